"""Maximal-update parametrization as used for learned optimizers (muLO).

Initial standard deviation, multipliers on outputs and updates, and expected
size of gradients up to a constant:

| role         | init std       | output mult | update mult | gradients |
| input, fixed | 1/sqrt(fan_in) | 1           | 1           | 1/fan_out |
| vector       | for the task   | 1           | 1           | 1/fan_out |
| hidden       | 1/sqrt(fan_in) | 1           | 1/fan_in    | 1/fan_out |
| output       | 0              | 1/fan_in    | 1           | 1/fan_in  |

Attention logits are multiplied by 1 / head size. fan_in is absolute: there is
no base width at which the multipliers are 1. The update multipliers hold for
updates whose entries do not depend on width, such as the updates of Adam and of
learned optimizers with normalised features.

Reference:
  Therien et al., muLO, 2024, https://arxiv.org/abs/2406.00153, section 4;
  Yang et al., 2022, https://arxiv.org/abs/2203.03466, table 8.
"""

from learned_opt import base
from learned_opt.scaling import fan


def make() -> base.Parametrization:
  """Return the parametrization in the table above."""

  def init_std(shape: base.Shape, base_shape: base.Shape) -> float:
    if fan.role(shape, base_shape) == "output":
      return 0.0  # the readout starts at zero
    return float(fan.fan_in(shape, base_shape)**-0.5)

  def output_mult(shape: base.Shape, base_shape: base.Shape) -> float:
    if fan.role(shape, base_shape) == "output":
      return 1.0 / fan.fan_in(shape, base_shape)
    return 1.0

  def update_mult(shape: base.Shape, base_shape: base.Shape) -> float:
    if fan.role(shape, base_shape) == "hidden":
      return 1.0 / fan.fan_in(shape, base_shape)
    return 1.0

  def gradient_scale(shape: base.Shape, base_shape: base.Shape) -> float:
    if fan.role(shape, base_shape) == "output":
      return 1.0 / fan.fan_in(shape, base_shape)
    return 1.0 / fan.fan_out(shape, base_shape)

  return base.Parametrization(
      init_std, output_mult, lambda head_size: 1 / head_size, update_mult,
      needs_base_shapes=True, gradient_scale=gradient_scale)
