"""Backpropagation through one truncation.

The gradient of a truncation's loss is exact, except that the state at its start
counts as a constant: the effect of theta on this state is ignored. The variance
is small. The bias favours a theta that helps within one truncation.

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
    inner: network in training.
    outer_step: estimates made so far, int32 scalar.
  """

  inner: unroll.InnerState
  outer_step: jax.Array


def make(task: tasks_base.Task, opt_fn: unroll.OptFn, *, truncation: int = 25,
         shortest: int = 100, longest: int = 1000, curriculum: int = 0,
         stagger: bool = True, loss: str = "mean", loss_split: str = "train",
         remat: bool = False, drop_nonfinite: bool = False
         ) -> base.GradientEstimator:
  """Return truncated backpropagation for one task.

  Args:
    task: task of the inner loop.
    opt_fn: `opt_fn(theta, num_steps=length)` returns the inner optimizer.
    truncation: inner steps per estimate.
    shortest: minimum length of an episode, in inner steps.
    longest: maximum length of an episode, in inner steps.
    curriculum: see `truncation.lengths`.
    stagger: see `truncation.lengths`.
    loss: see `unroll.meta_loss`.
    loss_split: see `unroll.unroll`.
    remat: recompute each inner step in the backward pass instead of keeping
      its intermediate results. Needs less memory and a third more time.
    drop_nonfinite: leave out copies whose meta-loss or gradient is not finite,
      and count them in info["dropped"].

  Raises:
    ValueError: a name is unknown or a number makes no sense.
  """
  unroll.check_loss(loss, loss_split)
  lengths = truncation_lib.lengths(
      truncation, shortest, longest, curriculum, stagger)

  def init(keys, theta):
    def init_copy(key):
      params_key, length_key = jax.random.split(key)
      return State(unroll.start(task, opt_fn, theta, params_key,
                                lengths.first(length_key)), jnp.int32(0))
    return jax.vmap(init_copy)(keys)

  def truncate(theta, key, state, data):
    """Run one truncation of one copy: (meta-loss, (state, losses [K]))."""
    params_key, length_key = jax.random.split(key)
    over = state.inner.step >= state.inner.length
    new = unroll.start(
        task, opt_fn, theta, params_key,
        lengths.sample(length_key, state.outer_step))
    # Under vmap both branches are computed anyway: a new network is initialised
    # in every truncation, and used where the episode is over.
    inner = jax.tree.map(
        lambda new, old: jnp.where(over, new, old), new, state.inner)
    inner, losses = unroll.unroll(
        task, opt_fn, theta, inner, unroll.key_of_truncation(key), data,
        truncation, loss_split, remat)
    return unroll.meta_loss(task, losses, loss, inner), (
        State(inner, state.outer_step + 1), losses)

  def estimate(keys, theta, state, data):
    # With respect to theta, the first argument; `state` is a constant.
    truncate_copy = jax.value_and_grad(truncate, has_aux=True)
    (meta_losses, (state, losses)), grads = jax.vmap(
        truncate_copy, (None, 0, 0, None))(theta, keys, state, data)
    out = backprop.estimate(
        grads, meta_losses, drop_nonfinite, unroll.counts(losses))
    return out, state

  return base.GradientEstimator(init, estimate)
