"""muP with constants under which one learning rate suits all roles.

Multipliers depend on width as in `mup`, which leaves constants free. With the
published constants the steps of first layers are large compared to the steps of
other layers, and grow with the number of inputs. Here:

| role         | update mult                                       |
| input, fixed | 2/sqrt(fan_in)                                    |
| vector       | 1/12                                              |
| hidden       | 1/fan_in, the places of a convolution not counted |
| output       | 3                                                 |

First layers therefore move in proportion to their initial entries. The
constants are from experiments/studies/prior_scan.py, on small networks of six
families: with one learning rate for all roles, each role is near its best.

Reference:
  Yang et al., 2022, https://arxiv.org/abs/2203.03466, section 6 and appendix F
  (constants are hyperparameters that transfer across width).
"""

from learned_opt import base
from learned_opt.scaling import fan
from learned_opt.scaling.parametrizations import mup

INPUT, OUTPUT, VECTOR = 2.0, 3.0, 1 / 12


def make() -> base.Parametrization:
  """Return `mup` with the update multipliers in the table above."""

  def update_mult(shape: base.Shape, base_shape: base.Shape) -> float:
    role = fan.role(shape, base_shape)
    if role == "hidden":
      return 1.0 / fan.dense_fan_in(shape, base_shape)
    if role in ("input", "fixed"):
      return float(INPUT * fan.fan_in(shape, base_shape)**-0.5)
    return OUTPUT if role == "output" else VECTOR

  return mup.make()._replace(update_mult=update_mult)
