"""muP with constants under which one learning rate suits all roles.

How multipliers depend on width is as in `mup`; that leaves free what does not
depend on width, and under the published rule steps of first layers are large
beside those of others, the more so the more inputs they have. Here:

| role         | update mult                                       |
| input, fixed | 2/sqrt(fan_in)                                    |
| vector       | 1/12                                              |
| hidden       | 1/fan_in, the places of a convolution not counted |
| output       | 3                                                 |

so first layers move in proportion to the entries that they start with. The
constants are from experiments/studies/prior_scan.py, on small networks of six families:
with one learning rate for all, each role is near its best.

Reference:
  Yang et al., 2022, https://arxiv.org/abs/2203.03466, section 6 and appendix F
  (constants are hyperparameters that transfer across width).
"""

from learned_opt import base
from learned_opt.scaling import width
from learned_opt.scaling.parametrizations import mup

INPUT, OUTPUT, VECTOR = 2.0, 3.0, 1 / 12


def make() -> base.Parametrization:
  """See the table above; all but the update multipliers is as in `mup`."""

  def update_mult(shape, base_shape):
    role = width.role(shape, base_shape)
    if role == "hidden":
      return 1.0 / width.dense_fan_in(shape, base_shape)
    if role in ("input", "fixed"):
      return INPUT * width.fan_in(shape, base_shape)**-0.5
    return OUTPUT if role == "output" else VECTOR

  return mup.make()._replace(update_mult=update_mult)
