"""Meta-gradients of single copies to an estimate."""

from typing import Any

import jax
import jax.numpy as jnp

from meta_train import base


def estimate(grads: Any, losses: jax.Array, drop: bool, info: dict
             ) -> base.EstimatorOut:
  """Means over copies.

  Args:
    grads: tree like theta with leading axis [copies].
    losses: meta-losses [copies].
    drop: leave copies out whose loss or gradient is not finite; otherwise they
      make the means non-finite.
    info: what to report besides "dropped".
  """
  finite = lambda x: jnp.all(
      jnp.isfinite(x.reshape(len(losses), -1)), 1)
  keep = jnp.isfinite(losses)
  for x in jax.tree.leaves(grads):
    keep &= finite(x)
  keep |= not drop
  count = jnp.sum(keep, dtype=jnp.float32)

  def mean(x):
    kept = keep.reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.sum(jnp.where(kept, x, 0), 0) / jnp.maximum(count, 1)

  return base.EstimatorOut(
      jnp.mean(losses, where=keep), jax.tree.map(mean, grads), count,
      {**info, "dropped": jnp.sum(~keep, dtype=jnp.float32)})
