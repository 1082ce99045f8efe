"""Gaussian perturbations of theta and what their losses tell."""

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp

from meta_train import base


def check(name: str, std: float, clip: float, sign: float) -> None:
  """Raises ValueError for settings of `estimate` that make no sense."""
  if std <= 0:
    raise ValueError(f"{name} needs std > 0, got {std}.")
  for setting, value in (("clip", clip), ("sign", sign)):
    if value < 0:
      raise ValueError(
          f"{name}: {setting} must not be negative, got {value}.")


def sample(key: jax.Array, theta: Any, std: float) -> Any:
  """Independent normal noise with standard deviation `std`, like theta."""
  flat, unflatten = jax.flatten_util.ravel_pytree(theta)
  return unflatten(std * jax.random.normal(key, flat.shape, flat.dtype))


def antithetic(theta: Any, eps: Any) -> Any:
  """theta + eps and theta - eps, stacked on a new leading axis of size 2."""
  return jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, eps)


def estimate(directions: Any, losses: jax.Array, std: float, clip: float,
             sign: float, drop: bool, info: dict) -> base.EstimatorOut:
  """Mean over pairs of direction * (loss+ - loss-) / (2 std^2).

  Args:
    directions: tree like theta with leading axis [pairs]: eps, or PES's xi.
    losses: meta-losses [pairs, 2], of theta + eps and theta - eps.
    std: standard deviation of eps.
    clip: differences of losses are limited to +-clip; 0 for no limit.
    sign: differences are replaced by +-sign, whichever they are; 0 to keep
      them.
    drop: leave pairs with a non-finite loss out of the means; otherwise they
      make them non-finite.
    info: what to report besides "dropped".
  """
  difference = losses[:, 0] - losses[:, 1]
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
