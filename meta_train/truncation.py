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
    truncation: inner steps per truncation; lengths are multiples of it.

  Returns:
    `key -> length`.

  Raises:
    ValueError: not 1 <= truncation <= shortest <= longest.
  """
  if not 1 <= truncation <= shortest <= longest:
    raise ValueError(
        "Episode lengths need 1 <= truncation <= shortest <= longest, got "
        f"truncation {truncation}, shortest {shortest}, longest {longest}.")

  def sample(key):
    log_length = jax.random.uniform(
        key, (), minval=jnp.log(shortest), maxval=jnp.log(longest))
    count = jnp.round(jnp.exp(log_length) / truncation).astype(jnp.int32)
    return count * truncation

  return sample


def staggered(length: jax.Array, truncation: int, key: jax.Array) -> jax.Array:
  """A shorter first episode, so that episodes do not all end together."""
  count = jax.random.randint(key, (), 1, length // truncation + 1)
  return count * truncation
