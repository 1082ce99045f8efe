"""Unit-scaled muP: weights start with std 1, the forward pass scales.

| role   | init std     | output mult    | update mult     |
| input  | 1            | 1/sqrt(fan_in) | 1/sqrt(fan_in)  |
| fixed  | 1            | 1/sqrt(fan_in) | 1/sqrt(fan_in)  |
| table  | 1            | 1              | 1/sqrt(fan_out) |
| hidden | 1            | 1/sqrt(fan_in) | 1/sqrt(fan_in)  |
| output | 1            | 1/fan_in       | 1               |
| vector | for the task | 1              | 1               |

Gradients grow with output mult / fan_out, gradients of the readout with output
mult. Attention logits are multiplied by 1 / head size. A table is an input
parameter of canonical shape (1, n), as a declared embedding has. Multipliers
are absolute, and fan_in includes the places of a convolution. For Adam this is
muP in other units, but for the update multiplier of tables, which falls with
width.

Residual branches, and updates and gradients of parameters in blocks, are
multiplied by 1/sqrt(depth). The paper has, for branch l = 0, 1, ... of L:

    x = (x + tau * branch(x)) / sqrt(1 + tau^2),  tau^2 = 1 / (L/2 + l)

After l branches this is, with x0 the input of the first branch,

    x = sqrt(L/2 / (L/2 + l)) * (x0 + sum of branches / sqrt(L/2))

Norms remove the first square root. The two forms are therefore equal if every
branch and the readout begin with a norm. L is 2 * depth: a block has two
branches, of the same weight.

Reference:
  Blake et al., u-muP, 2024, https://arxiv.org/abs/2407.17465.
"""

from learned_opt import base
from learned_opt.scaling import fan


def make() -> base.Parametrization:
  """Return the parametrization in the table above."""

  def output_mult(shape: base.Shape, base_shape: base.Shape) -> float:
    role = fan.role(shape, base_shape)
    if role == "vector":
      return 1.0
    fan_in = fan.fan_in(shape, base_shape)
    return 1.0 / fan_in if role == "output" else float(fan_in**-0.5)

  def update_mult(shape: base.Shape, base_shape: base.Shape) -> float:
    role = fan.role(shape, base_shape)
    if role in ("vector", "output"):
      return 1.0
    if role == "input" and fan.fan_in(shape, base_shape) == 1:  # a table
      return float(fan.fan_out(shape, base_shape)**-0.5)
    return float(fan.fan_in(shape, base_shape)**-0.5)

  def gradient_scale(shape: base.Shape, base_shape: base.Shape) -> float:
    mult = output_mult(shape, base_shape)
    if fan.role(shape, base_shape) == "output":
      return mult
    return mult / fan.fan_out(shape, base_shape)

  by_depth = lambda depth: depth**-0.5
  return base.Parametrization(
      lambda shape, base_shape: 1.0, output_mult,
      lambda head_size: 1 / head_size, update_mult, needs_base_shapes=True,
      gradient_scale=gradient_scale, branch_mult=by_depth,
      block_update_mult=by_depth)
