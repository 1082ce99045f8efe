"""Depth-muP: muP with residual branches multiplied by 1/sqrt(depth).

Like `mup`, with further multipliers for a residual network of `depth` blocks:

| multiplier on                     | value         |
| residual branches                 | 1/sqrt(depth) |
| updates of parameters in blocks   | 1/sqrt(depth) |
| gradients of parameters in blocks | 1/sqrt(depth) |

SGD needs no multiplier for depth: its update is proportional to the gradient,
which already has this multiplier. Derived for blocks of one layer.

Reference:
  Yang et al., Tensor Programs VI, 2023, https://arxiv.org/abs/2310.02244.
"""

from learned_opt import base
from learned_opt.scaling.parametrizations import mup


def make() -> base.Parametrization:
  """Return the parametrization in the table above."""
  by_depth = lambda depth: depth**-0.5
  return mup.make()._replace(branch_mult=by_depth, block_update_mult=by_depth)
