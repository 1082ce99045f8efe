"""Gaussian perturbations of theta, and the gradient from their losses."""

import re
from typing import Any, Mapping

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


def relative_std(theta: base.Theta, mults: Mapping[str, float]) -> base.Theta:
  """Return the multiplier of std for each array of theta, a tree of floats.

  Args:
    theta: meta-parameters.
    mults: {regular expression: multiplier}, matched with the whole path of an
      array, such as "w0"; the first that matches counts. 0 freezes an array.

  Raises:
    ValueError: an expression matches nothing, or a multiplier is negative.
  """
  unused = set(mults)

  def mult(path, _):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for pattern, value in mults.items():
      if re.fullmatch(pattern, name):
        unused.discard(pattern)
        return float(value)
    return 1.0

  result = jax.tree_util.tree_map_with_path(mult, theta)
  if unused or any(value < 0 for value in mults.values()):
    raise ValueError(
        f"std_mults {dict(mults)} must be multipliers of 0 or more for "
        f"arrays of theta; nothing is called {sorted(unused)}.")
  return result


def antithetic(theta: base.Theta, eps: base.Theta) -> base.Theta:
  """Return theta + eps and theta - eps, stacked on a new leading axis [2]."""
  return jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, eps)


def estimate(directions: Any, losses: jax.Array, std: float, clip: float,
             sign: float, drop: bool, info: dict[str, jax.Array],
             sizes: jax.Array | None = None) -> base.EstimatorOut:
  """Return the mean over pairs of `direction * (loss+ - loss-) / (2 std^2)`.

  Args:
    directions: tree like theta with leading axis [pairs], such as eps, or xi of
      PES.
    losses: meta-losses [pairs, 2] of theta + eps and theta - eps, or those of
      several splits [pairs, 2, splits], whose differences are averaged.
    std: standard deviation of eps.
    clip: limit of the loss difference: `clip(loss+ - loss-, -clip, clip)`. 0
      for no limit.
    sign: if positive, the difference is replaced by `+sign` or `-sign`,
      according to its sign. 0 keeps the difference.
    drop: leave out pairs with a non-finite loss. Otherwise such a pair makes
      the means non-finite.
    info: entries of `EstimatorOut.info` besides "dropped" and
      "gradient_squares".
    sizes: positive numbers [pairs] or [pairs, splits] that differences are
      divided by; None for 1.
  """
  difference = losses[:, 0] - losses[:, 1]  # [pairs] or [pairs, splits]
  if sizes is not None:
    difference /= sizes
  if difference.ndim > 1:
    difference, losses = jnp.mean(difference, -1), jnp.mean(losses, -1)
  keep = jnp.isfinite(difference) | (not drop)
  if clip:
    difference = jnp.clip(difference, -clip, clip)
  if sign:
    difference = sign * jnp.sign(difference)
  count = jnp.sum(keep, dtype=jnp.float32)
  weights = jnp.where(keep, difference, 0) / (2 * std**2)  # [pairs]
  grad = jax.tree.map(
      lambda x: jnp.tensordot(weights / jnp.maximum(count, 1), x, 1),
      directions)
  squares = sum(jnp.sum(jnp.square(x.reshape(len(x), -1)), 1)
                for x in jax.tree.leaves(directions))
  return base.EstimatorOut(
      jnp.mean(losses, where=keep[:, None]), grad, count,
      {**info, "dropped": jnp.sum(~keep, dtype=jnp.float32),
       "gradient_squares": jnp.sum(weights**2 * squares)})
