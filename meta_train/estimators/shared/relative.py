"""Differences of meta-losses relative to their size.

Losses of different tasks, and of different splits, differ in size and noise. A
difference is therefore divided by the root of its running mean square in the
same copy, so that all count equally. Results of a copy so depend on its own key
and state alone.

Reference:
  ELO, 2026, https://arxiv.org/abs/2607.06772 (over the mean square of the
  batch).
"""

import jax
import jax.numpy as jnp

DECAY = 0.9  # per outer step


def squares(old: jax.Array, meta_losses: jax.Array) -> jax.Array:
  """Return the running mean squares with the latest differences.

  Args:
    old: before, [copies] or [copies, splits]; zeros at first.
    meta_losses: of theta + eps and theta - eps, [copies, 2] or
      [copies, 2, splits]. A difference that is not finite does not count.
  """
  difference = meta_losses[:, 0] - meta_losses[:, 1]
  new = DECAY * old + (1 - DECAY) * difference**2
  return jnp.where(jnp.isfinite(new), new, old)


def sizes(mean_squares: jax.Array, count: jax.Array) -> jax.Array:
  """Return the sizes of differences, 1 where all have been 0.

  Args:
    mean_squares: see `squares`.
    count: number of differences so far, int32 [copies].
  """
  bias = 1 - DECAY**count.astype(jnp.float32)
  corrected = mean_squares / bias.reshape(
      (-1,) + (1,) * (mean_squares.ndim - 1))
  positive = corrected > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, corrected, 1)), 1)
