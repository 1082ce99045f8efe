"""The inner loop, used by every estimator: K steps of a task in one scan."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import base as learned_opt_base
from learned_opt import kinds as kinds_lib
from learned_opt.scaling import multipliers
from learned_opt.scaling import roles as roles_lib
from tasks import base as tasks_base

LOSSES = ("mean", "late", "end", "last")
END = 0.8  # of an episode: "end" counts the losses after it
BOTH = "both"  # a loss_split: mean of the losses on train and on inner_valid
EACH = "each"  # the two losses one by one

# `opt_fn(theta, *, num_steps)` returns the inner optimizer.
OptFn = Callable[..., optax.GradientTransformationExtraArgs]


class InnerState(NamedTuple):
  """One network in training.

  Attributes:
    params: parameters as the inner optimizer sees them: the parameters of the
      task, divided by `scales`.
    opt_state: state of the inner optimizer.
    step: inner steps taken in this episode, int32 scalar.
    length: inner steps of the whole episode, int32 scalar.
    scales: random scales of this episode, a tree like params, see
      `tasks.augment`; () for a task without scales.
  """

  params: Any
  opt_state: Any
  step: jax.Array
  length: jax.Array
  scales: Any = ()


def scaled(opt_fn: OptFn, parametrization: learned_opt_base.Parametrization,
           task: tasks_base.Task) -> OptFn:
  """Return `opt_fn` with the task's update multipliers applied.

  The optimizer is told the roles of parameters. A task without base shapes has
  neither roles nor multipliers: its `opt_fn` is returned as it is.
  """
  if task.base_shapes is None or not parametrization.needs_base_shapes:
    return opt_fn

  tables = (task.tables or {}) if parametrization.knows_tables else {}
  overrides = {**{path: roles_lib.Override(depth=depth)
                  for path, depth in (task.blocks or {}).items()},
               **{path: roles_lib.Override(role=role)
                  for path, role in tables.items()}}
  told_opt_fn = kinds_lib.told(opt_fn, multipliers.kinds(
      task.base_shapes, overrides=overrides))

  def scaled_opt_fn(theta, *, num_steps=None):
    return optax.chain(
        told_opt_fn(theta, num_steps=num_steps),
        multipliers.scale_by_parametrization(
            parametrization, task.base_shapes, forward=True,
            overrides=overrides))

  return scaled_opt_fn


def start(task: tasks_base.Task, opt_fn: OptFn, theta: Any, key: jax.Array,
          length: jax.Array) -> InnerState:
  """Return a network at initialisation, to be trained for `length` steps."""
  params, scales = task.init(key), ()
  if task.scales is not None:
    # task.init may split the key. Splits are numbered from 0, so they do not
    # reach 2**31.
    scales = task.scales(jax.random.fold_in(key, 2**31), params)
    params = jax.tree.map(jnp.divide, params, scales)
  opt_state = opt_fn(theta, num_steps=length).init(params)
  return InnerState(
      params, opt_state, jnp.zeros([], jnp.int32),
      jnp.asarray(length, jnp.int32), scales)


def task_params(params: Any, scales: Any) -> Any:
  """Return the task's parameters: those of an `InnerState`, times `scales`."""
  return jax.tree.map(jnp.multiply, params, scales) if scales else params


def key_of_truncation(key: jax.Array) -> jax.Array:
  """Return the key for `unroll`, from a copy's key of this outer step."""
  return jax.random.fold_in(key, 2**31)


def step_keys(key: jax.Array, num_steps: int) -> jax.Array:
  """Return the keys of inner steps: batch, loss, batch of `loss_split`.

  Made before the scan: on a CPU, one split takes as long as many kernels.

  Returns:
    Keys [num_steps, 3].
  """
  return jax.random.split(key, (num_steps, 3))


def unroll(task: tasks_base.Task, opt_fn: OptFn, theta: Any,
           state: InnerState, key: jax.Array, data: Any, num_steps: int,
           loss_split: str = "train", remat: bool = False
           ) -> tuple[InnerState, jax.Array]:
  """Train a network for `num_steps` inner steps.

  Args:
    task: task of the network.
    opt_fn: `opt_fn(theta, num_steps=length)` returns the inner optimizer.
    theta: meta-parameters.
    state: state before the first step.
    key: decides the batches.
    data: `task.data`, on the device.
    num_steps: number of inner steps.
    loss_split: split of the recorded losses. "train": loss of the train batch
      before the update. "both": mean of this loss and the loss for
      "inner_valid". "each": both, not averaged. Any other split: loss of a
      batch of this split after the update.
    remat: recompute each step in the backward pass, to use less memory.

  Returns:
    The state after the steps, and the recorded losses, float32 [num_steps],
    for "each" [num_steps, 2].
  """
  tx = opt_fn(theta, num_steps=state.length)
  scales = state.scales

  def loss_of(params, key, batch):
    return task.loss(task_params(params, scales), key, batch)

  def inner_step(state, keys):
    batch_key, loss_key, valid_key = keys
    batch = task.sample_batch(batch_key, data["train"])
    loss, grads, extra_args = (task.gradients or gradients)(
        loss_of, state.params, loss_key, batch)
    # Optimizers that need the loss itself take it as the argument `value`.
    updates, opt_state = tx.update(
        grads, state.opt_state, state.params, value=loss, **extra_args)
    params = optax.apply_updates(state.params, updates)
    if loss_split != "train":
      batch = task.sample_batch(valid_key, data[drawn_from(loss_split)])
      valid_loss, _ = loss_of(params, loss_key, batch)
      loss = {BOTH: (loss + valid_loss) / 2,
              EACH: jnp.stack([loss, valid_loss])}.get(loss_split, valid_loss)
    return InnerState(
        params, opt_state, state.step + 1, state.length, scales), loss

  return jax.lax.scan(
      jax.checkpoint(inner_step) if remat else inner_step, state,
      step_keys(key, num_steps))


def gradients(loss: Callable[..., Any], params: Any, key: jax.Array,
              batch: Any) -> tuple[jax.Array, Any, dict[str, Any]]:
  """Return (value, gradient of the loss, {}); see `tasks.base.Task.gradients`.
  """
  (value, _), grads = jax.value_and_grad(loss, has_aux=True)(
      params, key, batch)
  return value, grads, {}


def drawn_from(loss_split: str) -> str:
  """Return the split whose batches use the third key of `step_keys`."""
  return "inner_valid" if loss_split in (BOTH, EACH) else loss_split


def check_loss(loss: str, loss_split: str, each: bool = False) -> None:
  """Raise ValueError if the name of the loss or of its split is unknown.

  Args:
    loss: one of LOSSES.
    loss_split: see `unroll`.
    each: whether the estimator takes the losses of each of two splits.
  """
  if loss not in LOSSES:
    raise ValueError(
        f"Unknown loss {loss!r}; available: {', '.join(LOSSES)}.")
  splits = (*tasks_base.META_SPLITS, BOTH, *[EACH] * each)
  if loss_split not in splits:
    raise ValueError(f"Unknown loss_split {loss_split!r}; available: "
                     f"{', '.join(splits)}.")


def weights(loss: str, inner: InnerState, num_steps: int) -> jax.Array:
  """Return the weights of the last `num_steps` losses in the meta-loss.

  `weight = 2 * step / length` for "late", where steps count from 1; for "end" 0
  and after 80 % of the episode 5. Otherwise `weight = 1`.

  Args:
    loss: one of LOSSES.
    inner: state after these steps; `step` and `length` have shape [...].
    num_steps: number of losses.

  Returns:
    [..., num_steps]. The mean over an episode is 1, for "late"
    `1 + 1 / length`, for "end" about 1.
  """
  if loss not in ("late", "end"):
    return jnp.ones((*inner.step.shape, num_steps), jnp.float32)
  steps = inner.step[..., None] - jnp.arange(num_steps)[::-1].reshape(
      (1,) * inner.step.ndim + (-1,))
  done = steps.astype(jnp.float32) / inner.length[..., None].astype(
      jnp.float32)
  return 2 * done if loss == "late" else jnp.where(
      done > END, 1 / (1 - END), 0.0)


def meta_loss(task: tasks_base.Task, losses: jax.Array, loss: str,
              inner: InnerState) -> jax.Array:
  """Return the meta-loss [...] of losses [..., steps].

  Losses of each of two splits, [..., steps, 2], give meta-losses [..., 2].

  Args:
    task: task whose `normalize` is applied to every loss.
    losses: losses as `unroll` returns them.
    loss: "mean" of all losses, mean weighted by `weights` ("late", "end"), or
      the "last" loss.
    inner: state after these steps, whose leading axes are equal to those of
      losses or 1.
  """
  if losses.ndim > inner.step.ndim + 1:
    return jnp.stack([meta_loss(task, losses[..., i], loss, inner)
                      for i in range(losses.shape[-1])], -1)
  losses = task.normalize(losses)
  if loss == "last":
    return losses[..., -1]
  return jnp.mean(losses * weights(loss, inner, losses.shape[-1]), -1)


def counts(losses: jax.Array) -> dict[str, jax.Array]:
  """Return `EstimatorOut.info` for losses of any shape, without "dropped"."""
  return {"inner_steps": jnp.float32(losses.size),
          "diverged": jnp.sum(~jnp.isfinite(losses), dtype=jnp.float32)}
