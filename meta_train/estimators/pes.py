"""Persistent evolution strategies: unbiased over truncated unrolls.

Each copy of the task trains two networks, with theta + eps and theta - eps,
from the same start on the same batches. Every truncation draws a new eps; xi
sums those of the episode so far, and the estimate is
xi * (loss+ - loss-) / (2 std^2). Episodes are whole truncations, and a new one
begins, with xi at zero, before a truncation, never inside one, so every loss
is credited to exactly the noise of its own episode.

Reference:
  Vicol et al., Unbiased gradient estimation in unrolled computation graphs
  with persistent evolution strategies, 2021, https://arxiv.org/abs/2112.13835,
  algorithm 2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meta_train import base
from meta_train import perturb
from meta_train import truncation as truncation_lib
from meta_train import unroll
from tasks import base as tasks_base


class State(NamedTuple):
  """State of one copy; leading axis [copies] outside the vmap.

  Attributes:
    inner: the two networks in training, leading axis [2] (pos, neg).
    xi: sum of this episode's eps, tree like theta.
  """

  inner: unroll.InnerState
  xi: Any


def make(task: tasks_base.Task, opt_fn: unroll.OptFn, *, std: float = 0.01,
         truncation: int = 25, shortest: int = 100, longest: int = 1000,
         loss_split: str = "train", drop_nonfinite: bool = False
         ) -> base.GradientEstimator:
  """PES on one task.

  Args:
    task: what is trained in the inner loop.
    opt_fn: `opt_fn(theta, num_steps=length)` is the inner optimizer.
    std: standard deviation of eps.
    truncation: inner steps per estimate.
    shortest: fewest inner steps of an episode, see
      `truncation.log_uniform`.
    longest: most inner steps of an episode.
    loss_split: the meta-loss, see `unroll.unroll`; losses are normalised by
      the task and averaged over the truncation.
    drop_nonfinite: leave copies with a non-finite meta-loss out, and count
      them in info["dropped"].

  Returns:
    The estimator. info: "inner_steps" taken, "dropped" copies, "diverged":
    the share of inner steps whose loss was not finite before normalisation.

  Raises:
    ValueError: std is not positive, loss_split unknown, or lengths that do
      not fit (`truncation.log_uniform`).
  """
  if std <= 0:
    raise ValueError(f"PES needs std > 0, got {std}.")
  if loss_split not in tasks_base.META_SPLITS:
    raise ValueError(f"Unknown loss_split {loss_split!r}; available: "
                     f"{', '.join(tasks_base.META_SPLITS)}.")
  sample_length = truncation_lib.log_uniform(shortest, longest, truncation)

  def start(key, theta, first=False):
    params_key, length_key, stagger_key = jax.random.split(key, 3)
    length = sample_length(length_key)
    if first:
      length = truncation_lib.staggered(length, truncation, stagger_key)
    inner = unroll.start(task, opt_fn, theta, params_key, length)
    return State(
        jax.tree.map(lambda x: jnp.stack([x, x]), inner),
        jax.tree.map(jnp.zeros_like, theta))

  def init(keys, theta):
    return jax.vmap(lambda key: start(key, theta, first=True))(keys)

  def truncate(key, theta, state, data):
    """One truncation of one copy: (state, losses [2, truncation])."""
    reset_key, eps_key, unroll_key = jax.random.split(key, 3)
    over = state.inner.step[0] >= state.inner.length[0]
    state = jax.tree.map(
        lambda new, old: jnp.where(over, new, old), start(reset_key, theta),
        state)
    eps = perturb.sample(eps_key, theta, std)
    xi = jax.tree.map(jnp.add, state.xi, eps)
    inner, losses = jax.vmap(
        lambda theta, inner: unroll.unroll(
            task, opt_fn, theta, inner, unroll_key, data, truncation,
            loss_split))(perturb.antithetic(theta, eps), state.inner)
    return State(inner, xi), losses

  def estimate(keys, theta, state, data):
    state, losses = jax.vmap(truncate, (0, None, 0, None))(
        keys, theta, state, data)  # losses [copies, 2, truncation]
    meta_losses = jnp.mean(task.normalize(losses), 2)  # [copies, 2]
    grad, dropped = perturb.mean_gradient(
        state.xi, meta_losses, std, drop_nonfinite)
    kept = jnp.isfinite(meta_losses) | (not drop_nonfinite)
    meta_loss = jnp.mean(meta_losses, where=kept)
    info = {"inner_steps": jnp.float32(losses.size),
            "dropped": dropped.astype(jnp.float32),
            "diverged": jnp.mean(~jnp.isfinite(losses), dtype=jnp.float32)}
    return base.EstimatorOut(meta_loss, grad, info), state

  return base.GradientEstimator(init, estimate)
