"""Evolution strategies on truncated unrolls: what PES and its relatives share.

Each copy of a task trains two networks, with theta + eps and theta - eps, from
the same start on the same batches, for one truncation per outer step. Episodes
are whole truncations, and a new one begins before a truncation, never inside
one, so every loss is credited to exactly the noise of its own episode. What
differs between estimators is their noise: a `Rule`.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from meta_train import base
from meta_train import unroll
from meta_train.estimators.shared import perturb
from meta_train.estimators.shared import truncation as truncation_lib
from tasks import base as tasks_base


class State(NamedTuple):
  """State of one copy; leading axis [copies] outside the vmap.

  Attributes:
    inner: networks in training, leading axis [2] (pos, neg), or [1] where the
      two start every truncation from the same state.
    noise: what the rule keeps, tree like theta.
    outer_step: estimates made so far, int32 scalar.
  """

  inner: unroll.InnerState
  noise: Any
  outer_step: jax.Array


class Rule(NamedTuple):
  """The noise of an estimator.

  Attributes:
    eps: `(fresh, kept, begins) -> eps` that theta is perturbed by: from fresh
      noise, what was kept, and whether an episode begins, a bool scalar.
    direction: `(eps, kept, begins) -> direction` that multiplies the
      difference of the losses; it is kept for the next truncation.
    merge: both networks go on from where the one with theta + eps ended.
  """

  eps: Callable[[Any, Any, jax.Array], Any]
  direction: Callable[[Any, Any, jax.Array], Any]
  merge: bool = False


def make(name: str, rule: Rule, task: tasks_base.Task, opt_fn: unroll.OptFn,
         *, std: float = 0.01, truncation: int = 25, shortest: int = 100,
         longest: int = 1000, curriculum: int = 0, stagger: bool = True,
         loss: str = "mean", loss_split: str = "train", clip: float = 0.0,
         sign: float = 0.0, drop_nonfinite: bool = False
         ) -> base.GradientEstimator:
  """An estimator on one task.

  Args:
    name: of the estimator, for errors.
    rule: see `Rule`.
    task: what is trained in the inner loop.
    opt_fn: `opt_fn(theta, num_steps=length)` is the inner optimizer.
    std: standard deviation of eps.
    truncation: inner steps per estimate.
    shortest: fewest inner steps of an episode.
    longest: most inner steps of an episode.
    curriculum: see `truncation.lengths`.
    stagger: see `truncation.lengths`.
    loss: the meta-loss of a truncation, see `unroll.meta_loss`.
    loss_split: which losses, see `unroll.unroll`.
    clip: see `perturb.estimate`.
    sign: see `perturb.estimate`.
    drop_nonfinite: leave copies with a non-finite meta-loss out, and count
      them in info["dropped"].

  Raises:
    ValueError: a name is unknown or a number makes no sense.
  """
  perturb.check(name, std, clip, sign)
  unroll.check_loss(loss, loss_split)
  lengths = truncation_lib.lengths(
      truncation, shortest, longest, curriculum, stagger)
  networks = 1 if rule.merge else 2

  def start(key, theta, length):
    inner = unroll.start(task, opt_fn, theta, key, length)
    return jax.tree.map(lambda x: jnp.stack([x] * networks), inner)

  def init(keys, theta):
    def one(key):
      params_key, length_key = jax.random.split(key)
      return State(start(params_key, theta, lengths.first(length_key)),
                   jax.tree.map(jnp.zeros_like, theta), jnp.int32(0))
    return jax.vmap(one)(keys)

  def truncate(key, theta, state, data):
    """One truncation of one copy: (state, losses [2, truncation])."""
    params_key, length_key, eps_key = jax.random.split(key, 3)
    over = state.inner.step[0] >= state.inner.length[0]
    inner = jax.tree.map(
        lambda new, old: jnp.where(over, new, old),
        start(params_key, theta, lengths.sample(length_key, state.outer_step)),
        state.inner)
    begins = inner.step[0] == 0
    eps = rule.eps(perturb.sample(eps_key, theta, std), state.noise, begins)
    direction = rule.direction(eps, state.noise, begins)
    if rule.merge:
      inner = jax.tree.map(lambda x: jnp.concatenate([x, x]), inner)
    inner, losses = jax.vmap(
        lambda theta, inner: unroll.unroll(
            task, opt_fn, theta, inner, unroll.key_of_truncation(key), data,
            truncation, loss_split))(perturb.antithetic(theta, eps), inner)
    inner = jax.tree.map(lambda x: x[:networks], inner)
    return State(inner, direction, state.outer_step + 1), losses

  def estimate(keys, theta, state, data):
    state, losses = jax.vmap(truncate, (0, None, 0, None))(
        keys, theta, state, data)  # losses [copies, 2, truncation]
    first = jax.tree.map(lambda x: x[:, :1], state.inner)  # both are as far
    out = perturb.estimate(
        state.noise, unroll.meta_loss(task, losses, loss, first), std, clip,
        sign, drop_nonfinite, unroll.counts(losses))
    return out, state

  return base.GradientEstimator(init, estimate)
