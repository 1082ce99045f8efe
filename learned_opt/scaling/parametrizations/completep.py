"""CompleteP: muP for depth under which every layer learns features.

As `mup`, and in a residual network of so many blocks

| what                             | factor             |
| residual branches                | depth**-alpha      |
| updates of parameters in blocks  | depth**(alpha - 1) |
| their gradients                  | depth**-alpha      |

At alpha = 1, the default, updates need no factor for depth, and what is linear
and what is not in the change of a block are of the same order; at 1/2 this is
Depth-muP.

Reference:
  Dey et al., CompleteP, 2025, https://arxiv.org/abs/2505.01618.
"""

from learned_opt import base
from learned_opt.scaling.parametrizations import mup


def make(alpha: float = 1.0) -> base.Parametrization:
  """See the table above.

  Args:
    alpha: from 1/2 to 1.

  Raises:
    ValueError: another alpha.
  """
  if not 0.5 <= alpha <= 1:
    raise ValueError(f"alpha must be from 0.5 to 1, got {alpha}.")
  return mup.make()._replace(
      branch_mult=lambda depth: depth**-alpha,
      block_update_mult=lambda depth: depth**(alpha - 1))
