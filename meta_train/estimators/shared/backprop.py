"""Average the exact meta-gradients of several copies."""

import jax
import jax.numpy as jnp

from meta_train import base


def estimate(grads: base.Theta, losses: jax.Array, drop: bool,
             info: dict[str, jax.Array]) -> base.EstimatorOut:
  """Return the means over copies.

  Args:
    grads: tree like theta with leading axis [copies].
    losses: meta-losses [copies].
    drop: leave out copies whose loss or gradient is not finite. Otherwise such
      a copy makes the means non-finite.
    info: entries of `EstimatorOut.info` besides "dropped" and
      "gradient_squares".
  """
  finite = lambda x: jnp.all(
      jnp.isfinite(x.reshape(len(losses), -1)), 1)  # [copies]
  keep = jnp.isfinite(losses)
  for x in jax.tree.leaves(grads):
    keep &= finite(x)
  keep |= not drop
  count = jnp.sum(keep, dtype=jnp.float32)

  def mean(x):
    kept = keep.reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.sum(jnp.where(kept, x, 0), 0) / jnp.maximum(count, 1)

  # If all copies are left out, the mean loss is NaN and the mean gradient 0.
  # In means over devices, `copies` gives them the weight 0.
  squares = sum(jnp.sum(jnp.square(x.reshape(len(losses), -1)), 1)
                for x in jax.tree.leaves(grads))
  return base.EstimatorOut(
      jnp.mean(losses, where=keep), jax.tree.map(mean, grads), count,
      {**info, "dropped": jnp.sum(~keep, dtype=jnp.float32),
       "gradient_squares": jnp.sum(jnp.where(keep, squares, 0))})
