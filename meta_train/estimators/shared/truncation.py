"""How long episodes are, in whole truncations."""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp


class Lengths(NamedTuple):
  """Episode lengths.

  Attributes:
    sample: `(key, outer_step) -> length`, int32 scalars; for an episode that
      begins at that outer step.
    first: `(key) -> length`; for the very first episode of a copy.
  """

  sample: Callable[[jax.Array, jax.Array], jax.Array]
  first: Callable[[jax.Array], jax.Array]


def lengths(truncation: int, shortest: int, longest: int, curriculum: int = 0,
            stagger: bool = True) -> Lengths:
  """Lengths whose logarithm is uniform, rounded to whole truncations.

  Args:
    truncation: inner steps per truncation.
    shortest: fewest inner steps; lengths are at least that.
    longest: most inner steps; equal to `shortest` for a constant length.
    curriculum: outer steps in which the limit on lengths grows from
      `shortest` to `longest`, by equal factors; 0 for no limit but `longest`.
    stagger: make first episodes shorter, by random numbers of truncations, so
      that the episodes of different copies do not all end together.

  Raises:
    ValueError: truncation is below 1, no multiple of it lies between shortest
      and longest, or curriculum is negative.
  """
  if truncation < 1 or not 1 <= shortest <= longest or (
      -(-shortest // truncation) > longest // truncation):
    raise ValueError(
        "Episodes need a whole number of truncations between shortest and "
        f"longest, got truncation {truncation}, shortest {shortest}, longest "
        f"{longest}.")
  if curriculum < 0:
    raise ValueError(f"curriculum must not be negative, got {curriculum}.")
  least, most = -(-shortest // truncation), longest // truncation

  def sample(key, outer_step):
    low, high = jnp.log(shortest), jnp.log(longest)
    if curriculum:
      done = jnp.minimum(outer_step / curriculum, 1.0)
      high = low + done * (high - low)
    log_length = jax.random.uniform(key, (), minval=low, maxval=high)
    count = jnp.round(jnp.exp(log_length) / truncation).astype(jnp.int32)
    return jnp.clip(count, least, most) * truncation

  def first(key):
    length_key, stagger_key = jax.random.split(key)
    length = sample(length_key, jnp.int32(0))
    if not stagger:
      return length
    return truncation * jax.random.randint(
        stagger_key, (), 1, length // truncation + 1)

  return Lengths(sample, first)
