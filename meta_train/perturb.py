"""Gaussian perturbations of theta and what their losses tell."""

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp


def sample(key: jax.Array, theta: Any, std: float) -> Any:
  """Independent normal noise with standard deviation `std`, like theta."""
  flat, unflatten = jax.flatten_util.ravel_pytree(theta)
  return unflatten(std * jax.random.normal(key, flat.shape, flat.dtype))


def antithetic(theta: Any, eps: Any) -> Any:
  """theta + eps and theta - eps, stacked on a new leading axis of size 2."""
  return jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, eps)


def mean_gradient(directions: Any, losses: jax.Array, std: float, drop: bool
                  ) -> tuple[Any, jax.Array]:
  """Mean over pairs of direction * (loss+ - loss-) / (2 std^2).

  Args:
    directions: tree like theta with leading axis [pairs]: eps, or PES's xi.
    losses: [pairs, 2], of theta + eps and theta - eps.
    std: standard deviation of eps.
    drop: leave pairs with a non-finite loss out of the mean; otherwise they
      make the gradient non-finite.

  Returns:
    (gradient, number of pairs left out).
  """
  difference = losses[:, 0] - losses[:, 1]
  keep = jnp.isfinite(difference) if drop else jnp.ones_like(
      difference, dtype=bool)
  weights = jnp.where(keep, difference, 0) / (
      2 * std**2 * jnp.maximum(jnp.sum(keep), 1))
  gradient = jax.tree.map(
      lambda x: jnp.tensordot(weights, x, 1), directions)
  return gradient, jnp.sum(~keep)
