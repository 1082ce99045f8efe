"""How far training has come, from the losses alone: 9 numbers for an LSTM.

Ten moving averages of the loss, with time constants from 10 steps to all of
them. A feature compares the distance of one of them from its minimum so far
with that of the next slower one from the same number: 0 where both are alike,
-1 where the loss has never been lower. The unit of the loss does not matter,
nor, but for where spikes are clipped, a number added to it.

Reference:
  Metz et al., 2022, https://arxiv.org/abs/2211.09760 (VeLO).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NUM_AVERAGES = 10
NUM_FEATURES = NUM_AVERAGES - 1
FASTEST = 10  # inner steps, the shortest time constant
LARGEST_LOSS = 1e12 - 1  # the minimum of none
SPIKE = 2  # losses count for at most this many times the largest average
FIRST = 2  # updates without features


class State(NamedTuple):
  """Averages of the losses so far.

  Attributes:
    mean: moving averages that started at zero, [10].
    least: smallest of their corrected values so far, [10].
  """

  mean: jax.Array
  least: jax.Array


def init() -> State:
  """The state before the first loss."""
  return State(
      jnp.zeros(NUM_AVERAGES, jnp.float32),
      jnp.full(NUM_AVERAGES, LARGEST_LOSS, jnp.float32))


def update(state: State, loss: jax.Array, step: jax.Array,
           num_steps: jax.Array | int) -> tuple[State, jax.Array]:
  """Takes one more loss in.

  Args:
    state: before this loss.
    loss: scalar.
    step: number of losses before this one, int32 scalar.
    num_steps: inner steps planned.

  Returns:
    (the state after it, features [9], zero for the first two losses).
  """
  loss = jnp.asarray(loss, jnp.float32)
  slowest = jnp.asarray(num_steps, jnp.float32)
  time = FASTEST * (slowest / FASTEST)**jnp.linspace(
      0, 1, NUM_AVERAGES, dtype=jnp.float32)
  # Decays are exp(-1 / time), and expm1 is exact for those close to 1.
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
