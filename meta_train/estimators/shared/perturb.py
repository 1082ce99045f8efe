"""Gaussian perturbations of theta, and the gradient from their losses."""

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp

from meta_train import base


def check(name: str, std: float, clip: float, sign: float) -> None:
  """Raise ValueError if settings of `estimate` make no sense."""
  if std <= 0:
    raise ValueError(f"{name} needs std > 0, got {std}.")
  for setting, value in (("clip", clip), ("sign", sign)):
    if value < 0:
      raise ValueError(
          f"{name}: {setting} must not be negative, got {value}.")


def sample(key: jax.Array, theta: base.Theta, std: float) -> base.Theta:
  """Return independent normal noise of standard deviation `std`, like theta."""
  flat, unflatten = jax.flatten_util.ravel_pytree(theta)
  # One draw for all of theta: on a CPU, each draw is many small kernels.
  return unflatten(std * jax.random.normal(key, flat.shape, flat.dtype))


def antithetic(theta: base.Theta, eps: base.Theta) -> base.Theta:
  """Return theta + eps and theta - eps, stacked on a new leading axis [2]."""
  return jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, eps)


def estimate(directions: Any, losses: jax.Array, std: float, clip: float,
             sign: float, drop: bool, info: dict[str, jax.Array]
             ) -> base.EstimatorOut:
  """Return the mean over pairs of `direction * (loss+ - loss-) / (2 std^2)`.

  Args:
    directions: tree like theta with leading axis [pairs], such as eps, or xi of
      PES.
    losses: meta-losses [pairs, 2] of theta + eps and theta - eps.
    std: standard deviation of eps.
    clip: limit of the loss difference: `clip(loss+ - loss-, -clip, clip)`. 0
      for no limit.
    sign: if positive, the difference is replaced by `+sign` or `-sign`,
      according to its sign. 0 keeps the difference.
    drop: leave out pairs with a non-finite loss. Otherwise such a pair makes
      the means non-finite.
    info: entries of `EstimatorOut.info` besides "dropped".
  """
  difference = losses[:, 0] - losses[:, 1]  # [pairs]
  keep = jnp.isfinite(difference) | (not drop)
  if clip:
    difference = jnp.clip(difference, -clip, clip)
  if sign:
    difference = sign * jnp.sign(difference)
  count = jnp.sum(keep, dtype=jnp.float32)
  weights = jnp.where(keep, difference, 0) / (
      2 * std**2 * jnp.maximum(count, 1))
  grad = jax.tree.map(lambda x: jnp.tensordot(weights, x, 1), directions)
  return base.EstimatorOut(
      jnp.mean(losses, where=keep[:, None]), grad, count,
      {**info, "dropped": jnp.sum(~keep, dtype=jnp.float32)})
