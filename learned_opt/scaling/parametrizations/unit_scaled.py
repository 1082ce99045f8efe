"""Unit-scaled muP: weights start at 1, the forward pass scales.

| role   | init std     | output mult    | update mult     |
| input  | 1            | 1/sqrt(fan_in) | 1/sqrt(fan_in)  |
| fixed  | 1            | 1/sqrt(fan_in) | 1/sqrt(fan_in)  |
| table  | 1            | 1              | 1/sqrt(fan_out) |
| hidden | 1            | 1/sqrt(fan_in) | 1/sqrt(fan_in)  |
| output | 1            | 1/fan_in       | 1               |
| vector | for the task | 1              | 1               |

Gradients are as output mult / fan_out, those of the readout as output mult.
Attention logits are multiplied by 1 / head size. A table is an input of fan-in
1, (1, n): that is what an embedding counts as where it is declared one. All is
absolute, fan_in with the places of a convolution. For Adam this is muP in other
units but for the rate of tables, which falls with width.

Residual branches, and updates and gradients of parameters in blocks, are as
1/sqrt(depth). The paper multiplies the branch l of L by tau / sqrt(1 + tau^2)
and what it is added to by 1 / sqrt(1 + tau^2), with tau^2 = 1 / (L/2 + l). Of
what l branches before have been added to, the product of these factors is
sqrt(L/2 / (L/2 + l)), so that all of it is 1 / sqrt(L/2) on each branch and a
factor on their sum, which norms do not see: the two are the same where every
branch and the readout begin with a norm. L is twice the depth: blocks have two
branches, of the same weight.

Reference:
  Blake et al., u-muP, 2024, https://arxiv.org/abs/2407.17465.
"""

from learned_opt import base
from learned_opt.scaling import width


def make() -> base.Parametrization:
  """See the table above."""

  def output_mult(shape, base_shape):
    role = width.role(shape, base_shape)
    if role == "vector":
      return 1.0
    fan_in = width.fan_in(shape, base_shape)
    return 1.0 / fan_in if role == "output" else fan_in**-0.5

  def update_mult(shape, base_shape):
    role = width.role(shape, base_shape)
    if role in ("vector", "output"):
      return 1.0
    if role == "input" and width.fan_in(shape, base_shape) == 1:
      return width.fan_out(shape, base_shape)**-0.5
    return width.fan_in(shape, base_shape)**-0.5

  def gradient_scale(shape, base_shape):
    mult = output_mult(shape, base_shape)
    if width.role(shape, base_shape) == "output":
      return mult
    return mult / width.fan_out(shape, base_shape)

  by_depth = lambda depth: depth**-0.5
  return base.Parametrization(
      lambda shape, base_shape: 1.0, output_mult,
      lambda head_size: 1 / head_size, update_mult, needs_base_shapes=True,
      gradient_scale=gradient_scale, branch_mult=by_depth,
      block_update_mult=by_depth)
