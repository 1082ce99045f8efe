"""A bank of one hard state per copy, from which episodes go on.

At the end of an episode, a copy resumes from the state in its bank with a given
probability, for a fresh number of steps, and otherwise starts anew. Episodes so
form chains, which reach late states by short truncations.

The state in the bank is the one before the hardest truncation: the one in which

    s_t = max(0, s_(t-1) + l_t - l_(t-1)),    l_t the loss of inner step t,

rose above all earlier s of the episode, or with which an episode ended. The
noise of the estimator is stored with the state: PES stays unbiased only if the
noise of all earlier truncations of the chain is counted.

Reference:
  ELO, 2026, https://arxiv.org/abs/2607.06772 (failure-aware resume bank).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meta_train import unroll


class Bank(NamedTuple):
  """The bank of one copy, and what decides on the state in it.

  Attributes:
    inner: networks before the hardest truncation.
    noise: of the estimator, at the same time.
    filled: whether there is such a state, bool scalar.
    rise: s_t of the current episode, float32 scalar.
    highest: maximum of s in the current episode, float32 scalar.
    last: latest loss of the current episode, NaN before the first one, float32
      scalar.
  """

  inner: unroll.InnerState
  noise: Any
  filled: jax.Array
  rise: jax.Array
  highest: jax.Array
  last: jax.Array


def check(name: str, resume: float) -> None:
  """Raise ValueError if the setting of an estimator makes no sense."""
  if not 0 <= resume <= 1:
    raise ValueError(f"{name}: resume is a probability, got {resume}.")


def empty(inner: unroll.InnerState, noise: Any) -> Bank:
  """Return a bank without a state.

  Args:
    inner: networks of the copy, for shapes.
    noise: noise of the copy, for shapes.
  """
  zero = jnp.float32(0)
  return Bank(inner, noise, jnp.bool_(False), zero, zero, jnp.float32(jnp.nan))


def begin(bank: Bank, inner: unroll.InnerState, noise: Any, over: jax.Array,
          key: jax.Array, resume: float
          ) -> tuple[Bank, unroll.InnerState, Any]:
  """Return (bank, networks, noise) at the beginning of a truncation.

  Args:
    bank: the bank; () if no episode resumes.
    inner: networks at this time; a new episode if the last one is over.
    noise: of the estimator.
    over: whether the last episode is over, bool scalar.
    key: of the copy, in this outer step.
    resume: probability to resume.
  """
  if not resume:
    return bank, inner, noise
  # A key beyond that of `unroll.key_of_truncation`.
  key = jax.random.fold_in(key, 2**31 + 1)
  takes = over & bank.filled & (jax.random.uniform(key) < resume)
  pick = lambda new, old: jax.tree.map(
      lambda x, y: jnp.where(takes, x, y), new, old)
  # `inner.length` is the length of the new episode.
  resumed = bank.inner._replace(length=bank.inner.step + inner.length)
  reset = lambda new, old: jnp.where(over, jnp.float32(new), old)
  bank = bank._replace(rise=reset(0, bank.rise), highest=reset(0, bank.highest),
                       last=reset(jnp.nan, bank.last))
  return bank, pick(resumed, inner), pick(bank.noise, noise)


def end(bank: Bank, before: tuple[unroll.InnerState, Any],
        inner: unroll.InnerState, losses: jax.Array) -> Bank:
  """Return the bank at the end of a truncation.

  A state is stored only if the losses before and after it are finite, but for
  the first and the last loss of the truncation that follows.

  Args:
    bank: as `begin` returns it.
    before: networks and noise, as `begin` returns them.
    inner: networks at the end of the truncation.
    losses: their losses [networks, steps].
  """
  if not isinstance(bank, Bank):
    return bank
  path = jnp.mean(losses, 0)
  first = jnp.isnan(bank.last)  # of the episode, or of the part that resumed
  known = jnp.where(first, path[0], bank.last)
  changes = jnp.diff(path, prepend=known[None])
  sums = bank.rise + jnp.cumsum(changes)
  rises = sums - jnp.minimum(jax.lax.cummin(sums), 0)
  highest = jnp.maximum(bank.highest, jnp.max(rises))
  over = inner.step[0] >= inner.length[0]
  stores = (first | jnp.isfinite(bank.last)) & jnp.isfinite(path[0]) & (
      over | (highest > bank.highest))
  kept, noise = jax.tree.map(
      lambda new, old: jnp.where(stores, new, old), before,
      (bank.inner, bank.noise))
  return Bank(kept, noise, bank.filled | stores, rises[-1], highest, path[-1])
