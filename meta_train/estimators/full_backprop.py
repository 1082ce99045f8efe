"""Backpropagation through whole episodes: the exact meta-gradient.

Of a landscape that is often too rough for it: over long episodes gradients
explode. Every outer step trains new networks from start to end.

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
  """Full backpropagation on one task.

  Takes the time of `longest` inner steps, whatever the length of an episode.

  Args:
    task: what is trained in the inner loop.
    opt_fn: `opt_fn(theta, num_steps=length)` is the inner optimizer.
    truncation: inner steps between the states that are kept for the way back;
      lengths are multiples of it.
    shortest: fewest inner steps of an episode.
    longest: most inner steps of an episode.
    curriculum: see `truncation.lengths`.
    loss: see `unroll.meta_loss`; over the whole episode.
    loss_split: see `unroll.unroll`.
    remat: compute each truncation again on the way back instead of keeping
      all that its inner steps computed.
    drop_nonfinite: leave copies with a non-finite meta-loss or gradient out,
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
    """(meta-loss, losses [longest], NaN after the end)."""
    params_key, length_key, unroll_key = jax.random.split(key, 3)
    start = unroll.start(task, opt_fn, theta, params_key,
                         lengths.sample(length_key, outer_step))
    take = lambda on, a, b: jax.tree.map(
        lambda x, y: jnp.where(on, x, y), a, b)

    def truncate(inner, key):
      on = inner.step < inner.length
      # From the start once it is over: what a network does that trains on
      # for no reason must not be able to make a gradient infinite.
      new, losses = unroll.unroll(
          task, opt_fn, theta, take(on, inner, start), key, data, truncation,
          loss_split)
      return take(on, new, inner), losses

    keys = jax.random.split(unroll_key, longest // truncation)
    inner, losses = jax.lax.scan(
        jax.checkpoint(truncate) if remat else truncate, start, keys)
    losses = losses.reshape(-1)
    before_end = jnp.arange(len(losses)) < inner.length
    normalized = jnp.where(before_end, task.normalize(losses), 0)
    # The weight of step t is the same, whether it is the last one or not.
    weights = unroll.weights(loss, inner._replace(
        step=jnp.int32(len(losses))), len(losses))
    total = (normalized[inner.length - 1] if loss == "last"
             else jnp.sum(weights * normalized) / inner.length)
    return total, (before_end, losses)

  def estimate(keys, theta, state, data):
    one = jax.value_and_grad(episode, has_aux=True)
    (meta_losses, (before_end, losses)), grads = jax.vmap(
        one, (None, 0, 0, None))(theta, keys, state, data)
    info = {
        "inner_steps": jnp.sum(before_end, dtype=jnp.float32),
        "diverged": jnp.sum(
            before_end & ~jnp.isfinite(losses), dtype=jnp.float32)}
    return backprop.estimate(
        grads, meta_losses, drop_nonfinite, info), state + 1

  return base.GradientEstimator(init, estimate)
