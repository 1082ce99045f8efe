"""Evolution strategies on truncated unrolls: shared by PES and its relatives.

Each copy of a task trains two networks, one with theta + eps and one with
theta - eps. Both start from the same parameters and draw the same batches. An
outer step trains them for one truncation. Episodes consist of whole
truncations, so every loss is credited to the noise of its own episode alone.
Estimators differ in their noise only: a `Noise`.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from meta_train import base
from meta_train import unroll
from meta_train.estimators.shared import bank as bank_lib
from meta_train.estimators.shared import perturb
from meta_train.estimators.shared import relative as relative_lib
from meta_train.estimators.shared import truncation as truncation_lib
from tasks import base as tasks_base


class State(NamedTuple):
  """State of one copy; leading axis [copies] outside the vmap.

  Attributes:
    inner: networks in training. The leading axis is [2] (theta + eps,
      theta - eps), or [1] if `Noise.merge` is set.
    noise: direction of the last truncation, tree like theta.
    outer_step: estimates made so far, int32 scalar.
    squares: see `relative.squares`, float32 scalar.
    bank: see `bank.Bank`; () if no episode resumes.
  """

  inner: unroll.InnerState
  noise: Any
  outer_step: jax.Array
  squares: jax.Array
  bank: Any = ()


class Noise(NamedTuple):
  """The noise of an estimator.

  `kept` is the direction of the last truncation. `begins` is a bool scalar:
  whether this truncation begins an episode.

  Attributes:
    eps: `(fresh, kept, begins) -> eps`, the perturbation of theta, where
      `fresh` is newly drawn noise.
    direction: `(eps, kept, begins) -> direction`. The estimate is
      `direction * (loss+ - loss-) / (2 std^2)`.
    merge: whether both networks start each truncation from the state at which
      the network with theta + eps ended the last truncation.
  """

  eps: Callable[[Any, Any, jax.Array], Any]
  direction: Callable[[Any, Any, jax.Array], Any]
  merge: bool = False


def fresh_eps(fresh: Any, kept: Any, begins: jax.Array) -> Any:
  """Return the fresh noise: a `Noise.eps` that draws anew each truncation."""
  del kept, begins
  return fresh


def eps_direction(eps: Any, kept: Any, begins: jax.Array) -> Any:
  """Return eps: a `Noise.direction` that forgets earlier truncations."""
  del kept, begins
  return eps


def make(name: str, noise: Noise, task: tasks_base.Task, opt_fn: unroll.OptFn,
         *, std: float = 0.01, truncation: int = 25, shortest: int = 100,
         longest: int = 1000, curriculum: int = 0, stagger: bool = True,
         resume: float = 0.0, loss: str = "mean", loss_split: str = "train",
         relative: bool = False, clip: float = 0.0, sign: float = 0.0,
         drop_nonfinite: bool = False) -> base.GradientEstimator:
  """Return an estimator for one task.

  Args:
    name: name of the estimator, for error messages.
    noise: see `Noise`.
    task: task of the inner loop.
    opt_fn: `opt_fn(theta, num_steps=length)` returns the inner optimizer.
    std: standard deviation of eps.
    truncation: inner steps per estimate.
    shortest: minimum length of an episode, in inner steps.
    longest: maximum length of an episode, in inner steps.
    curriculum: see `truncation.lengths`.
    stagger: see `truncation.lengths`.
    resume: probability to go on from a hard state, see `bank`.
    loss: see `unroll.meta_loss`.
    loss_split: see `unroll.unroll`.
    relative: divide differences by their size, see `relative_lib`.
    clip: see `perturb.estimate`.
    sign: see `perturb.estimate`.
    drop_nonfinite: see `perturb.estimate`.

  Raises:
    ValueError: a name is unknown or a number makes no sense.
  """
  perturb.check(name, std, clip, sign)
  bank_lib.check(name, resume)
  unroll.check_loss(loss, loss_split)
  lengths = truncation_lib.lengths(
      truncation, shortest, longest, curriculum, stagger)

  def start(key, theta, length):
    inner = unroll.start(task, opt_fn, theta, key, length)
    networks = 1 if noise.merge else 2
    return jax.tree.map(lambda x: jnp.stack([x] * networks), inner)

  def init(keys, theta):
    def init_copy(key):
      params_key, length_key = jax.random.split(key)
      inner = start(params_key, theta, lengths.first(length_key))
      zeros = jax.tree.map(jnp.zeros_like, theta)
      return State(inner, zeros, jnp.int32(0), jnp.float32(0),
                   bank_lib.empty(inner, zeros) if resume else ())
    return jax.vmap(init_copy)(keys)

  def truncate(key, theta, state, data):
    params_key, length_key, eps_key = jax.random.split(key, 3)
    over = state.inner.step[0] >= state.inner.length[0]
    # Under vmap, a new network is initialised in every truncation anyway.
    inner = jax.tree.map(
        lambda new, old: jnp.where(over, new, old),
        start(params_key, theta, lengths.sample(length_key, state.outer_step)),
        state.inner)
    bank, inner, kept = bank_lib.begin(
        state.bank, inner, state.noise, over, key, resume)
    begins = inner.step[0] == 0
    eps = noise.eps(perturb.sample(eps_key, theta, std), kept, begins)
    new, losses = _train(task, opt_fn, perturb.antithetic(theta, eps), inner,
                         key, data, truncation, loss_split)
    bank = bank_lib.end(bank, (inner, kept), new, losses)
    return State(new, noise.direction(eps, kept, begins), state.outer_step + 1,
                 state.squares, bank), losses

  def estimate(keys, theta, state, data):
    state, losses = jax.vmap(truncate, (0, None, 0, None))(
        keys, theta, state, data)  # losses [copies, 2, truncation]
    meta_losses = unroll.meta_loss(
        task, losses, loss, jax.tree.map(lambda x: x[:, :1], state.inner))
    squares = relative_lib.squares(state.squares, meta_losses)
    sizes = relative_lib.sizes(squares, state.outer_step) if relative else None
    return perturb.estimate(
        state.noise, meta_losses, std, clip, sign, drop_nonfinite,
        unroll.counts(losses), sizes), state._replace(squares=squares)

  return base.GradientEstimator(init, estimate)


def _train(task, opt_fn, thetas, inner, key, data, truncation, loss_split):
  """Train both networks of a copy for one truncation.

  Args:
    task: see `make`.
    opt_fn: see `make`.
    thetas: theta + eps and theta - eps, [2].
    inner: their networks [2], or one network [1] that both start from.
    key: of the copy, in this outer step; the same batches for both.
    data: see `base.GradientEstimator`.
    truncation: see `make`.
    loss_split: see `make`.

  Returns:
    Networks with the leading axis of `inner`, and losses [2, truncation].
  """
  networks = len(inner.step)
  if networks == 1:
    inner = jax.tree.map(lambda x: jnp.concatenate([x, x]), inner)
  inner, losses = jax.vmap(
      lambda theta, inner: unroll.unroll(
          task, opt_fn, theta, inner, unroll.key_of_truncation(key), data,
          truncation, loss_split))(thetas, inner)
  return jax.tree.map(lambda x: x[:networks], inner), losses
