"""Evolution strategies on whole episodes: unbiased, one estimate per episode.

Every outer step trains new pairs of networks from start to end.

Reference:
  Salimans et al., Evolution strategies as a scalable alternative to
  reinforcement learning, 2017, https://arxiv.org/abs/1703.03864.
"""

import jax
import jax.numpy as jnp

from meta_train import base
from meta_train import unroll
from meta_train.estimators.shared import perturb
from meta_train.estimators.shared import truncation as truncation_lib
from tasks import base as tasks_base


def make(task: tasks_base.Task, opt_fn: unroll.OptFn, *, std: float = 0.01,
         truncation: int = 25, shortest: int = 100, longest: int = 1000,
         curriculum: int = 0, loss: str = "mean", loss_split: str = "train",
         clip: float = 0.0, sign: float = 0.0, drop_nonfinite: bool = False
         ) -> base.GradientEstimator:
  """Return ES on whole episodes of one task.

  On each device, all copies take the time of the longest episode among them.

  Args:
    task: task of the inner loop.
    opt_fn: `opt_fn(theta, num_steps=length)` returns the inner optimizer.
    std: standard deviation of eps.
    truncation: lengths of episodes are multiples of truncation.
    shortest: minimum length of an episode, in inner steps.
    longest: maximum length of an episode, in inner steps.
    curriculum: see `truncation.lengths`.
    loss: meta-loss of the whole episode, see `unroll.meta_loss`.
    loss_split: see `unroll.unroll`.
    clip: see `perturb.estimate`.
    sign: see `perturb.estimate`.
    drop_nonfinite: leave out copies whose meta-loss is not finite, and count
      them in info["dropped"].

  Raises:
    ValueError: a name is unknown or a number makes no sense.
  """
  perturb.check("full_es", std, clip, sign)
  unroll.check_loss(loss, loss_split)
  lengths = truncation_lib.lengths(truncation, shortest, longest, curriculum)

  def init(keys, theta):
    del theta
    return jnp.zeros(len(keys), jnp.int32)  # outer steps

  def start(key, theta, outer_step):
    """Begin an episode of one copy: (eps, networks [2], key of batches)."""
    params_key, length_key, eps_key, unroll_key = jax.random.split(key, 4)
    inner = unroll.start(task, opt_fn, theta, params_key,
                         lengths.sample(length_key, outer_step))
    return (perturb.sample(eps_key, theta, std),
            jax.tree.map(lambda x: jnp.stack([x, x]), inner), unroll_key)

  def estimate(keys, theta, state, data):
    eps, inner, keys = jax.vmap(start, (0, None, 0))(keys, theta, state)
    thetas = jax.vmap(perturb.antithetic, (None, 0))(theta, eps)
    length = inner.length[:, 0]  # [copies], the same for both networks

    def truncate(key, thetas, inner):
      # A key for each truncation. The networks of a pair share it.
      key = jax.random.fold_in(key, inner.step[0])
      return jax.vmap(lambda theta, inner: unroll.unroll(
          task, opt_fn, theta, inner, key, data, truncation, loss_split))(
              thetas, inner)

    def body(carry):
      inner, total, diverged = carry
      active = inner.step[:, 0] < length  # [copies]
      # Copies whose episode is over keep their results.
      pick = lambda new, old: jnp.where(
          active.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
      new, losses = jax.vmap(truncate)(keys, thetas, inner)
      value = unroll.meta_loss(task, losses, loss, new)  # [copies, 2]
      if loss != "last":  # the mean over the episode, a truncation at a time
        value = total + value * (truncation / length)[:, None]
      bad = jnp.sum(~jnp.isfinite(losses), 2, dtype=jnp.float32)
      return (jax.tree.map(pick, new, inner), pick(value, total),
              pick(diverged + bad, diverged))

    zeros = jnp.zeros((len(keys), 2))
    _, total, diverged = jax.lax.while_loop(
        lambda carry: jnp.any(carry[0].step[:, 0] < length), body,
        (inner, zeros, zeros))
    info = {"inner_steps": 2 * jnp.sum(length, dtype=jnp.float32),
            "diverged": jnp.sum(diverged)}
    return perturb.estimate(
        eps, total, std, clip, sign, drop_nonfinite, info), state + 1

  return base.GradientEstimator(init, estimate)
