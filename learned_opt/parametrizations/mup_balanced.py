"""muP with constants under which one learning rate suits all roles.

How multipliers depend on width is as in `mup`; that leaves a constant free for
each role, and those of the published rule make steps of first layers, whose
update multiplier does not know how many inputs they have, large beside those of
others. Here:

| role         | update mult                                   |
| input, fixed | 1/4                                           |
| vector       | 1                                             |
| hidden       | 1/fan_in, the places of a convolution not counted |
| output       | 3                                             |

Found by experiments/prior_scan.py on small networks of five families: at one
learning rate these are near the best that each role has to itself.

Reference:
  Yang et al., 2022, https://arxiv.org/abs/2203.03466, section 6 and appendix F
  (constants are hyperparameters that transfer across width).
"""

from learned_opt import base
from learned_opt import width
from learned_opt.parametrizations import mup

CONSTANTS = {"input": 0.25, "fixed": 0.25, "vector": 1.0, "output": 3.0}


def make() -> base.Parametrization:
  """See the table above; all but the update multipliers is as in `mup`."""

  def update_mult(shape, base_shape):
    role = width.role(shape, base_shape)
    if role == "hidden":
      return 1.0 / width.dense_fan_in(shape, base_shape)
    return CONSTANTS[role]

  return mup.make()._replace(update_mult=update_mult)
