"""How long episodes are, in whole truncations."""

from typing import Callable

import jax
import jax.numpy as jnp

Sampler = Callable[[jax.Array], jax.Array]  # key -> inner steps, int32 scalar


def log_uniform(shortest: int, longest: int, truncation: int) -> Sampler:
  """Episode lengths whose logarithm is uniform, rounded to truncations.

  Args:
    shortest: fewest inner steps.
    longest: most inner steps; equal to `shortest` for a constant length.
    truncation: inner steps per truncation; lengths are multiples of it, at
      least `shortest` and at most `longest`.

  Returns:
    `key -> length`.

  Raises:
    ValueError: truncation is below 1, or no multiple of it lies between
      shortest and longest.
  """
  if truncation < 1 or not 1 <= shortest <= longest or (
      -(-shortest // truncation) > longest // truncation):
    raise ValueError(
        "Episodes need a whole number of truncations between shortest and "
        f"longest, got truncation {truncation}, shortest {shortest}, longest "
        f"{longest}.")
  least, most = -(-shortest // truncation), longest // truncation

  def sample(key):
    log_length = jax.random.uniform(
        key, (), minval=jnp.log(shortest), maxval=jnp.log(longest))
    count = jnp.round(jnp.exp(log_length) / truncation).astype(jnp.int32)
    return jnp.clip(count, least, most) * truncation

  return sample


def staggered(length: jax.Array, truncation: int, key: jax.Array) -> jax.Array:
  """A shorter first episode, so that episodes do not all end together."""
  count = jax.random.randint(key, (), 1, length // truncation + 1)
  return count * truncation
