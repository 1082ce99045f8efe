"""Lengths of episodes, in whole truncations."""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp


class Lengths(NamedTuple):
  """Random lengths of episodes.

  Attributes:
    sample: `(key, outer_step) -> length` of an episode that begins at this
      outer step; int32 scalars.
    first: `(key) -> length` of the first episode of a copy.
  """

  sample: Callable[[jax.Array, jax.Array], jax.Array]
  first: Callable[[jax.Array], jax.Array]


def lengths(truncation: int, shortest: int, longest: int, curriculum: int = 0,
            stagger: bool = True) -> Lengths:
  """Return log-uniform lengths, rounded to whole truncations.

  Args:
    truncation: inner steps per truncation.
    shortest: minimum length, in inner steps.
    longest: maximum length, in inner steps; equal to `shortest` for a constant
      length.
    curriculum: number of outer steps in which the maximum length grows
      exponentially from `shortest` to `longest`. 0: it is `longest` from the
      beginning.
    stagger: shorten the first episode of each copy by a random number of
      truncations, so that the episodes of different copies end at different
      outer steps.

  Raises:
    ValueError: truncation is below 1, no multiple of truncation lies between
      shortest and longest, or curriculum is negative.
  """
  if truncation < 1 or not 1 <= shortest <= longest or (
      -(-shortest // truncation) > longest // truncation):
    raise ValueError(
        "Episodes need a whole number of truncations between shortest and "
        f"longest, got truncation {truncation}, shortest {shortest}, longest "
        f"{longest}.")
  if curriculum < 0:
    raise ValueError(f"curriculum must not be negative, got {curriculum}.")
  # Minimum (rounded up) and maximum number of truncations.
  fewest, most = -(-shortest // truncation), longest // truncation

  def sample(key, outer_step):
    low, high = jnp.log(shortest), jnp.log(longest)
    if curriculum:
      progress = jnp.minimum(outer_step / curriculum, 1.0)
      high = low + progress * (high - low)
    log_length = jax.random.uniform(key, (), minval=low, maxval=high)
    count = jnp.round(jnp.exp(log_length) / truncation).astype(jnp.int32)
    return jnp.clip(count, fewest, most) * truncation

  def first(key):
    length_key, stagger_key = jax.random.split(key)
    length = sample(length_key, jnp.int32(0))
    if not stagger:
      return length
    # 1 to length // truncation truncations, all equally likely.
    return truncation * jax.random.randint(
        stagger_key, (), 1, length // truncation + 1)

  return Lengths(sample, first)
