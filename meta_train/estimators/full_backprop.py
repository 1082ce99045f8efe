"""Backpropagation through whole episodes: the exact meta-gradient.

Over long episodes the meta-loss is often so rough that the exact gradient is
useless: it explodes. Every outer step trains new networks from start to end.

Reference:
  Metz et al., Gradients are not all you need, 2021,
  https://arxiv.org/abs/2111.05803.
"""

import jax
import jax.numpy as jnp

from meta_train import base
from meta_train import unroll
from meta_train.estimators.shared import backprop
from meta_train.estimators.shared import truncation as truncation_lib
from tasks import base as tasks_base


def make(task: tasks_base.Task, opt_fn: unroll.OptFn, *, truncation: int = 25,
         shortest: int = 100, longest: int = 1000, curriculum: int = 0,
         loss: str = "mean", loss_split: str = "train", remat: bool = True,
         drop_nonfinite: bool = False) -> base.GradientEstimator:
  """Return full backpropagation for one task.

  An estimate takes the time of `longest` inner steps, even if all episodes are
  shorter.

  Args:
    task: task of the inner loop.
    opt_fn: `opt_fn(theta, num_steps=length)` returns the inner optimizer.
    truncation: inner steps between two states that are kept for the backward
      pass. Lengths of episodes are multiples of truncation.
    shortest: minimum length of an episode, in inner steps.
    longest: maximum length of an episode, in inner steps.
    curriculum: see `truncation.lengths`.
    loss: meta-loss of the whole episode, see `unroll.meta_loss`.
    loss_split: see `unroll.unroll`.
    remat: recompute each truncation in the backward pass instead of keeping the
      intermediate results of its inner steps.
    drop_nonfinite: leave out copies whose meta-loss or gradient is not finite,
      and count them in info["dropped"].

  Raises:
    ValueError: a name is unknown or a number makes no sense.
  """
  unroll.check_loss(loss, loss_split)
  lengths = truncation_lib.lengths(truncation, shortest, longest, curriculum)

  def init(keys, theta):
    del theta
    return jnp.zeros(len(keys), jnp.int32)  # outer steps

  def episode(theta, key, outer_step, data):
    """Train one network: (meta-loss, (before_end [steps], losses [steps])).

    `steps` is `longest` in whole truncations; `before_end` is whether a step
    belongs to the episode.
    """
    params_key, length_key, unroll_key = jax.random.split(key, 3)
    start = unroll.start(task, opt_fn, theta, params_key,
                         lengths.sample(length_key, outer_step))
    select = lambda active, a, b: jax.tree.map(
        lambda x, y: jnp.where(active, x, y), a, b)

    def truncate(inner, key):
      active = inner.step < inner.length
      # After the end of an episode, the scan trains from the start again and
      # the result is not used. Training on from the end could diverge, which
      # would make the gradient NaN although the result is not used.
      new, losses = unroll.unroll(
          task, opt_fn, theta, select(active, inner, start), key, data,
          truncation, loss_split)
      return select(active, new, inner), losses

    keys = jax.random.split(unroll_key, longest // truncation)
    inner, losses = jax.lax.scan(
        jax.checkpoint(truncate) if remat else truncate, start, keys)
    losses = losses.reshape(-1)
    before_end = jnp.arange(len(losses)) < inner.length
    normalized = jnp.where(before_end, task.normalize(losses), 0)
    return _meta_loss(normalized, loss, inner), (before_end, losses)

  def estimate(keys, theta, state, data):
    # With respect to theta, the first argument.
    episode_copy = jax.value_and_grad(episode, has_aux=True)
    (meta_losses, (before_end, losses)), grads = jax.vmap(
        episode_copy, (None, 0, 0, None))(theta, keys, state, data)
    info = {
        "inner_steps": jnp.sum(before_end, dtype=jnp.float32),
        "diverged": jnp.sum(
            before_end & ~jnp.isfinite(losses), dtype=jnp.float32)}
    return backprop.estimate(
        grads, meta_losses, drop_nonfinite, info), state + 1

  return base.GradientEstimator(init, estimate)


def _meta_loss(losses, loss, inner):
  """Return the meta-loss of an episode.

  Args:
    losses: normalized losses [steps], 0 after the end of the episode.
    loss: see `unroll.meta_loss`.
    inner: state at the end.
  """
  if loss == "last":
    return losses[inner.length - 1]
  # With `step` at the end of the scan, index t - 1 of `weights` is the weight
  # of step t.
  weights = unroll.weights(
      loss, inner._replace(step=jnp.int32(len(losses))), len(losses))
  return jnp.sum(weights * losses) / inner.length
