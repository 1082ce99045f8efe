"""Standard parametrization with a learning rate for each kind of layer.

Nothing in the network changes; the updates do:

| role          | update mult, "full" | update mult, "none" | gradients       |
| input, vector | 1                   | 1                   | 1/sqrt(fan_out) |
| fixed         | 1                   | 1                   | 1               |
| hidden        | 1/fan_in            | 1/sqrt(fan_in)      | 1/sqrt(fan_out) |
| output        | 1/fan_in            | 1/sqrt(fan_in)      | 1               |

"full" holds if updates are aligned with what comes in, so that their effects
add up over all inputs, as after the first steps of training; "none" if they are
not, so that these are a random sum. Unlike under muP logits are of order 1 at
initialisation.

Reference:
  Everett et al., 2024, https://arxiv.org/abs/2407.05872.
"""

from learned_opt import base
from learned_opt.scaling import width
from learned_opt.scaling.parametrizations import standard

EXPONENTS = {"full": -1.0, "none": -0.5}


def make(alignment: str = "full") -> base.Parametrization:
  """See the table above.

  Raises:
    ValueError: alignment is neither "full" nor "none".
  """
  if alignment not in EXPONENTS:
    raise ValueError(f"Unknown alignment {alignment!r}; available: "
                     f"{', '.join(EXPONENTS)}.")

  def update_mult(shape, base_shape):
    if width.role(shape, base_shape) in ("hidden", "output"):
      return width.fan_in(shape, base_shape)**EXPONENTS[alignment]
    return 1.0

  def gradient_scale(shape, base_shape):
    if width.role(shape, base_shape) in ("output", "fixed"):
      return 1.0
    return width.fan_out(shape, base_shape)**-0.5

  return standard.make()._replace(
      update_mult=update_mult, gradient_scale=gradient_scale,
      needs_base_shapes=True)
