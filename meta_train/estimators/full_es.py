"""Evolution strategies on whole episodes: unbiased, one estimate per episode.

Every outer step trains new pairs of networks from start to end.

Reference:
  Salimans et al., Evolution strategies as a scalable alternative to
  reinforcement learning, 2017, https://arxiv.org/abs/1703.03864.
"""

from typing import Mapping, NamedTuple

import jax
import jax.numpy as jnp

from meta_train import base
from meta_train import unroll
from meta_train.estimators.shared import perturb
from meta_train.estimators.shared import relative as relative_lib
from meta_train.estimators.shared import truncation as truncation_lib
from tasks import base as tasks_base


class State(NamedTuple):
  """State of one copy; leading axis [copies] outside the vmap.

  Attributes:
    outer_step: estimates made so far, int32 scalar.
    squares: see `relative.squares`, float32 scalar or [splits].
  """

  outer_step: jax.Array
  squares: jax.Array


def make(task: tasks_base.Task, opt_fn: unroll.OptFn, *, std: float = 0.01,
         std_mults: Mapping[str, float] | None = None, truncation: int = 25,
         shortest: int = 100, longest: int = 1000, curriculum: int = 0,
         same_length: bool = False, loss: str = "mean",
         loss_split: str = "train", relative: bool = False, clip: float = 0.0,
         sign: float = 0.0, drop_nonfinite: bool = False
         ) -> base.GradientEstimator:
  """Return ES on whole episodes of one task.

  On each device, all copies take the time of the longest episode among them,
  unless their lengths are the same.

  Args:
    task: task of the inner loop.
    opt_fn: `opt_fn(theta, num_steps=length)` returns the inner optimizer.
    std: standard deviation of eps.
    std_mults: multipliers of std, see `perturb.relative_std`.
    truncation: lengths of episodes are multiples of truncation.
    shortest: minimum length of an episode, in inner steps.
    longest: maximum length of an episode, in inner steps.
    curriculum: see `truncation.lengths`.
    same_length: draw one length for all copies in each outer step.
    loss: meta-loss of the whole episode, see `unroll.meta_loss`.
    loss_split: see `unroll.unroll`. With "each", the meta-loss is the mean over
      the splits.
    relative: divide differences of meta-losses by their size, see
      `relative_lib`; those of each split by their own.
    clip: see `perturb.estimate`.
    sign: see `perturb.estimate`.
    drop_nonfinite: leave out copies whose meta-loss is not finite, and count
      them in info["dropped"].

  Raises:
    ValueError: a name is unknown or a number makes no sense.
  """
  perturb.check("full_es", std, clip, sign)
  unroll.check_loss(loss, loss_split, each=True)
  lengths = truncation_lib.lengths(truncation, shortest, longest, curriculum)
  splits = (2,) if loss_split == unroll.EACH else ()

  def init(keys, theta):
    mults(theta)
    return State(jnp.zeros(len(keys), jnp.int32),
                 jnp.zeros((len(keys), *splits), jnp.float32))

  def mults(theta):
    return perturb.relative_std(theta, std_mults or {})

  def start(key, theta, outer_step):
    """Begin an episode of one copy: (eps, networks [2], key of batches)."""
    params_key, length_key, eps_key, unroll_key = jax.random.split(key, 4)
    if same_length:
      length_key = jax.random.fold_in(jax.random.key(0), outer_step)
    inner = unroll.start(task, opt_fn, theta, params_key,
                         lengths.sample(length_key, outer_step))
    eps = jax.tree.map(lambda x, m: x * m, perturb.sample(eps_key, theta, std),
                       mults(theta))
    return eps, jax.tree.map(lambda x: jnp.stack([x, x]), inner), unroll_key

  def estimate(keys, theta, state, data):
    eps, inner, keys = jax.vmap(start, (0, None, 0))(
        keys, theta, state.outer_step)
    thetas = jax.vmap(perturb.antithetic, (None, 0))(theta, eps)
    total, info = _episodes(task, opt_fn, thetas, inner, keys, data, truncation,
                            loss, loss_split)
    state = State(state.outer_step + 1,
                  relative_lib.squares(state.squares, total))
    # eps has m times the standard deviation; the estimate divides by std^2.
    directions = jax.tree.map(
        lambda x, m: x / m**2 if m else x, eps, mults(theta))
    return perturb.estimate(
        directions, total, std, clip, sign, drop_nonfinite, info,
        relative_lib.sizes(*state[::-1]) if relative else None), state

  return base.GradientEstimator(init, estimate)


def _episodes(task, opt_fn, thetas, inner, keys, data, truncation, loss,
              loss_split):
  """Train all copies to the end of their episodes.

  Args:
    task: see `make`.
    opt_fn: see `make`.
    thetas: tree with leading axes [copies, 2].
    inner: networks, with leading axes [copies, 2].
    keys: of batches, [copies].
    data: see `base.GradientEstimator`.
    truncation: see `make`.
    loss: see `make`.
    loss_split: see `make`.

  Returns:
    Meta-losses [copies, 2], for "each" [copies, 2, 2], and
    `EstimatorOut.info`.
  """
  each = loss_split == unroll.EACH
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
    expand = lambda x, like: x.reshape((-1,) + (1,) * (like.ndim - 1))
    pick = lambda new, old: jnp.where(expand(active, new), new, old)
    new, losses = jax.vmap(truncate)(keys, thetas, inner)
    value = unroll.meta_loss(task, losses, loss, new)  # as the result
    if loss != "last":  # the mean over the episode, a truncation at a time
      value = total + value * expand(truncation / length, value)
    bad = ~jnp.isfinite(losses)
    bad = jnp.sum(bad.any(-1) if each else bad, 2, dtype=jnp.float32)
    return (jax.tree.map(pick, new, inner), pick(value, total),
            pick(diverged + bad, diverged))

  zeros = jnp.zeros((len(keys), 2))
  _, total, diverged = jax.lax.while_loop(
      lambda carry: jnp.any(carry[0].step[:, 0] < length), body,
      (inner, jnp.zeros((len(keys), 2, 2)) if each else zeros, zeros))
  return total, {"inner_steps": 2 * jnp.sum(length, dtype=jnp.float32),
                 "diverged": jnp.sum(diverged)}
