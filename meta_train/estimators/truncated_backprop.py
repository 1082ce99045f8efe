"""Backpropagation through one truncation: exact there, blind to the past.

The state that a truncation starts from counts as a constant, so how theta led
there is not seen: little variance, and a bias towards what helps within a
truncation.

Reference:
  Werbos, Backpropagation through time, 1990; Wu et al., Understanding
  short-horizon bias in stochastic meta-optimization, 2018,
  https://arxiv.org/abs/1803.02021.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_train import base
from meta_train import unroll
from meta_train.estimators.shared import backprop
from meta_train.estimators.shared import truncation as truncation_lib
from tasks import base as tasks_base


class State(NamedTuple):
  """State of one copy; leading axis [copies] outside the vmap.

  Attributes:
    inner: the network in training.
    outer_step: estimates made so far, int32 scalar.
  """

  inner: unroll.InnerState
  outer_step: jax.Array


def make(task: tasks_base.Task, opt_fn: unroll.OptFn, *, truncation: int = 25,
         shortest: int = 100, longest: int = 1000, curriculum: int = 0,
         stagger: bool = True, loss: str = "mean", loss_split: str = "train",
         remat: bool = False, drop_nonfinite: bool = False
         ) -> base.GradientEstimator:
  """Truncated backpropagation on one task.

  Args:
    task: what is trained in the inner loop.
    opt_fn: `opt_fn(theta, num_steps=length)` is the inner optimizer.
    truncation: inner steps per estimate.
    shortest: fewest inner steps of an episode.
    longest: most inner steps of an episode.
    curriculum: see `truncation.lengths`.
    stagger: see `truncation.lengths`.
    loss: see `unroll.meta_loss`.
    loss_split: see `unroll.unroll`.
    remat: compute inner steps again on the way back instead of keeping what
      they computed: memory for less than one step each, a third more time.
    drop_nonfinite: leave copies with a non-finite meta-loss or gradient out,
      and count them in info["dropped"].

  Raises:
    ValueError: a name is unknown or a number makes no sense.
  """
  unroll.check_loss(loss, loss_split)
  lengths = truncation_lib.lengths(
      truncation, shortest, longest, curriculum, stagger)

  def init(keys, theta):
    def one(key):
      params_key, length_key = jax.random.split(key)
      return State(unroll.start(task, opt_fn, theta, params_key,
                                lengths.first(length_key)), jnp.int32(0))
    return jax.vmap(one)(keys)

  def truncate(theta, key, state, data):
    params_key, length_key = jax.random.split(key)
    over = state.inner.step >= state.inner.length
    new = unroll.start(
        task, opt_fn, theta, params_key,
        lengths.sample(length_key, state.outer_step))
    inner = jax.tree.map(
        lambda new, old: jnp.where(over, new, old), new, state.inner)
    inner, losses = unroll.unroll(
        task, opt_fn, theta, inner, unroll.key_of_truncation(key), data,
        truncation, loss_split, remat)
    return unroll.meta_loss(task, losses, loss, inner), (
        State(inner, state.outer_step + 1), losses)

  def estimate(keys, theta, state, data):
    one = jax.value_and_grad(truncate, has_aux=True)
    (meta_losses, (state, losses)), grads = jax.vmap(
        one, (None, 0, 0, None))(theta, keys, state, data)
    out = backprop.estimate(
        grads, meta_losses, drop_nonfinite, unroll.counts(losses))
    return out, state

  return base.GradientEstimator(init, estimate)
