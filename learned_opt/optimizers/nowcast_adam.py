"""Adam with nowcasting: from time to time, parameters jump to a prediction.

The formulas are in `learned_opt.nowcasting`. theta is the MLP that predicts;
`mulo.nowcast` puts it around any other optimizer.

Reference:
  Knyazev et al., 2024, https://arxiv.org/abs/2409.04434 (WNN+).
"""

import optax

from learned_opt import base
from learned_opt import nowcasting

DEFAULT_STEPS = 1000  # planned number of steps, if the caller gives none


def make(hidden: int = 32, horizons: int = 40, every: int = 100,
         inner_rate: float = 0.001, power: float = 2.0
         ) -> base.LearnedOptimizer:
  """Return the optimizer.

  theta has 23 H + 3 H^2 + K H + K numbers (5160 for H = 32 and K = 40).

  Args:
    hidden: H, width of the layers.
    horizons: K, largest distance of a prediction, in distances of snapshots.
    every: steps from one jump to the next, a multiple of 5.
    inner_rate: learning rate of Adam.
    power: see `learned_opt.nowcasting.reach`.

  Raises:
    ValueError: a number is not positive.
  """
  base.check_sizes(hidden=hidden, horizons=horizons, every=every)
  base.check_positive(inner_rate=inner_rate, power=power)

  def opt_fn(theta, *, num_steps=None, kinds=None):
    del kinds
    total = DEFAULT_STEPS if num_steps is None else num_steps
    return nowcasting.nowcast(
        optax.adam(inner_rate), theta, every=every, num_steps=total,
        power=power)

  return base.LearnedOptimizer(
      lambda key: nowcasting.init(key, hidden, horizons), opt_fn)
