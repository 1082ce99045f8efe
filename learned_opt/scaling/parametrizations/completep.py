"""CompleteP: muP for depth under which every layer learns features.

Like `mup`, with further multipliers for a residual network of `depth` blocks:

| multiplier on                     | value              |
| residual branches                 | depth**-alpha      |
| updates of parameters in blocks   | depth**(alpha - 1) |
| gradients of parameters in blocks | depth**-alpha      |

At alpha = 1, the default, updates need no multiplier for depth, and the linear
and the nonlinear part of a block's change are of the same order. At alpha = 1/2
this is Depth-muP.

Reference:
  Dey et al., CompleteP, 2025, https://arxiv.org/abs/2505.01618.
"""

from learned_opt import base
from learned_opt.scaling.parametrizations import mup


def make(alpha: float = 1.0) -> base.Parametrization:
  """Return the parametrization in the table above.

  Args:
    alpha: exponent of the residual branches, from 1/2 to 1.

  Raises:
    ValueError: alpha is outside of this range.
  """
  if not 0.5 <= alpha <= 1:
    raise ValueError(f"alpha must be from 0.5 to 1, got {alpha}.")
  return mup.make()._replace(
      branch_mult=lambda depth: depth**-alpha,
      block_update_mult=lambda depth: depth**(alpha - 1))
