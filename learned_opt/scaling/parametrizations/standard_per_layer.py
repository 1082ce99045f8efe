"""Standard parametrization with a learning rate for each role.

The network is that of the standard parametrization; only updates have
multipliers:

| role          | update mult, "full" | update mult, "none" | gradients       |
| input, vector | 1                   | 1                   | 1/sqrt(fan_out) |
| fixed         | 1                   | 1                   | 1               |
| hidden        | 1/fan_in            | 1/sqrt(fan_in)      | 1/sqrt(fan_out) |
| output        | 1/fan_in            | 1/sqrt(fan_in)      | 1               |

The last column is the expected size of gradients, up to a constant. Alignment
"full" assumes that updates are aligned with the layer's inputs, as after the
first steps of training: their effects add up over all inputs. "none" assumes no
alignment: the effects are a random sum. Logits are of order 1 at
initialisation, unlike under muP.

Reference:
  Everett et al., 2024, https://arxiv.org/abs/2407.05872.
"""

from learned_opt import base
from learned_opt.scaling import fan
from learned_opt.scaling.parametrizations import standard

EXPONENTS = {"full": -1.0, "none": -0.5}  # of fan_in, by alignment


def make(alignment: str = "full") -> base.Parametrization:
  """Return the parametrization in the table above.

  Args:
    alignment: "full" or "none".

  Raises:
    ValueError: alignment is neither "full" nor "none".
  """
  if alignment not in EXPONENTS:
    raise ValueError(f"Unknown alignment {alignment!r}; available: "
                     f"{', '.join(EXPONENTS)}.")

  def update_mult(shape: base.Shape, base_shape: base.Shape) -> float:
    if fan.role(shape, base_shape) in ("hidden", "output"):
      return float(fan.fan_in(shape, base_shape)**EXPONENTS[alignment])
    return 1.0

  def gradient_scale(shape: base.Shape, base_shape: base.Shape) -> float:
    if fan.role(shape, base_shape) in ("output", "fixed"):
      return 1.0
    return float(fan.fan_out(shape, base_shape)**-0.5)

  return standard.make()._replace(
      update_mult=update_mult, gradient_scale=gradient_scale,
      needs_base_shapes=True)
