"""Progress of training from the losses alone: 9 numbers for an LSTM.

Ten moving averages of the loss have time constants from 10 steps to num_steps.
Feature i compares average i with the next slower average, both relative to the
minimum of average i so far:

  feature_i = clip((mean_i - min_i) / (mean_{i+1} - min_i) - 1, -1, 1)

The feature is 0 if both averages are equal, and -1 if average i has never been
lower. Features do not depend on the unit of the loss, nor on a constant added
to the loss, except where spikes are clipped.

Reference:
  Metz et al., 2022, https://arxiv.org/abs/2211.09760 (VeLO).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NUM_AVERAGES = 10
NUM_FEATURES = NUM_AVERAGES - 1
FASTEST = 10  # inner steps, the shortest time constant
LARGEST_LOSS = 1e12 - 1  # minimum before the first loss
SPIKE = 2  # losses are clipped at this many times the largest average
FIRST = 2  # number of first updates whose features are zero


class State(NamedTuple):
  """Averages of the losses so far.

  Attributes:
    mean: moving averages that started at zero, [10].
    least: minima of the bias-corrected averages so far, [10].
  """

  mean: jax.Array
  least: jax.Array


def init() -> State:
  """Return the state before the first loss."""
  return State(
      jnp.zeros(NUM_AVERAGES, jnp.float32),
      jnp.full(NUM_AVERAGES, LARGEST_LOSS, jnp.float32))


def update(state: State, loss: jax.Array, step: jax.Array,
           num_steps: jax.Array | int) -> tuple[State, jax.Array]:
  """Return state and features after one more loss.

  Args:
    state: before this loss.
    loss: scalar.
    step: number of losses before this loss, int32 scalar.
    num_steps: inner steps planned.

  Returns:
    (state, features [9]). Features are zero for the first two losses.
  """
  loss = jnp.asarray(loss, jnp.float32)
  slowest = jnp.asarray(num_steps, jnp.float32)
  time = FASTEST * (slowest / FASTEST)**jnp.linspace(
      0, 1, NUM_AVERAGES, dtype=jnp.float32)
  # Decays are exp(-1 / time). 1 - decay is -expm1(-1 / time), which is exact
  # for decays close to 1.
  bias = -jnp.expm1(-(step + 1) / time)
  largest = jnp.where(step == 0, loss, jnp.max(state.mean / bias))
  loss = jnp.minimum(SPIKE * jnp.abs(largest), loss)
  mean = jnp.exp(-1 / time) * state.mean - jnp.expm1(-1 / time) * loss
  unbiased = mean / bias
  least = jnp.minimum(state.least, unbiased)
  ratio = (unbiased - least)[:-1] / jnp.maximum(
      1e-8, unbiased[1:] - least[:-1])
  features = jnp.where(step < FIRST, 0, jnp.clip(ratio - 1, -1, 1))
  return State(mean, least), features
