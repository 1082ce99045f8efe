"""muP for depth as well: residual branches count 1/sqrt(depth).

As `mup`, and in a residual network of so many blocks

| what                             | factor        |
| residual branches                | 1/sqrt(depth) |
| updates of parameters in blocks  | 1/sqrt(depth) |
| their gradients                  | 1/sqrt(depth) |

so SGD needs no factor for depth. Derived for blocks of one layer.

Reference:
  Yang et al., Tensor Programs VI, 2023, https://arxiv.org/abs/2310.02244.
"""

from learned_opt import base
from learned_opt.scaling.parametrizations import mup


def make() -> base.Parametrization:
  """See the table above."""
  rule = lambda depth: depth**-0.5
  return mup.make()._replace(branch_mult=rule, block_update_mult=rule)
