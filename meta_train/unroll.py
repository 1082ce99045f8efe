"""The inner loop: K steps of a task as one scan, shared by all estimators."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import base as learned_opt_base
from learned_opt.scaling import multipliers
from learned_opt.scaling import roles as roles_lib
from tasks import base as tasks_base

LOSSES = ("mean", "late", "last")
BOTH = "both"  # a loss_split: the mean of those on train and inner_valid

OptFn = Callable[..., optax.GradientTransformationExtraArgs]


class InnerState(NamedTuple):
  """One network in training.

  Attributes:
    params: what the inner optimizer sees: the parameters of the task, over
      `scales`.
    opt_state: state of the inner optimizer.
    step: inner steps taken in this episode, int32 scalar.
    length: inner steps of this episode, int32 scalar.
    scales: factors of this episode, see `tasks.augment`; () for none.
  """

  params: Any
  opt_state: Any
  step: jax.Array
  length: jax.Array
  scales: Any = ()


def scaled(opt_fn: OptFn, parametrization: learned_opt_base.Parametrization,
           task: tasks_base.Task) -> OptFn:
  """`opt_fn` followed by the parametrization's link for this task."""
  if task.base_shapes is None:
    return opt_fn

  overrides = {path: roles_lib.Override(depth=depth)
               for path, depth in (task.blocks or {}).items()}

  def scaled_opt_fn(theta, *, num_steps=None):
    return optax.chain(
        opt_fn(theta, num_steps=num_steps),
        multipliers.scale_by_parametrization(
            parametrization, task.base_shapes, overrides=overrides))

  return scaled_opt_fn


def start(task: tasks_base.Task, opt_fn: OptFn, theta: Any, key: jax.Array,
          length: jax.Array) -> InnerState:
  """A network at initialisation, to be trained for `length` inner steps."""
  params, scales = task.init(key), ()
  if task.scales is not None:
    # A number that no split of the key has, as init may make one.
    scales = task.scales(jax.random.fold_in(key, 2**31), params)
    params = jax.tree.map(jnp.divide, params, scales)
  opt_state = opt_fn(theta, num_steps=length).init(params)
  return InnerState(
      params, opt_state, jnp.zeros([], jnp.int32),
      jnp.asarray(length, jnp.int32), scales)


def task_params(params: Any, scales: Any) -> Any:
  """Parameters of the task, from those of an `InnerState` and its scales."""
  return jax.tree.map(jnp.multiply, params, scales) if scales else params


def key_of_truncation(key: jax.Array) -> jax.Array:
  """The key that a copy unrolls a truncation with, from the copy's key."""
  return jax.random.fold_in(key, 2**31)


def step_keys(key: jax.Array, num_steps: int) -> jax.Array:
  """Keys of inner steps [num_steps, 3]: batch, loss, batch of `loss_split`.

  Made ahead of the scan: on a CPU, one split takes as long as many kernels.
  """
  return jax.random.split(key, (num_steps, 3))


def unroll(task: tasks_base.Task, opt_fn: OptFn, theta: Any,
           state: InnerState, key: jax.Array, data: Any, num_steps: int,
           loss_split: str = "train", remat: bool = False
           ) -> tuple[InnerState, jax.Array]:
  """Trains for `num_steps` inner steps.

  Args:
    task: what is trained.
    opt_fn: `opt_fn(theta, num_steps=length)` is the inner optimizer.
    theta: meta-parameters.
    state: where to start from.
    key: decides the batches.
    data: `task.data`, on the device.
    num_steps: number of inner steps.
    loss_split: "train" records the loss whose gradient is taken, before the
      update; another split records the loss of the updated parameters on a
      batch from it; "both" the mean of the former and of that on inner_valid.
    remat: compute steps again when differentiating, to keep less in memory.

  Returns:
    The state after the steps, and the recorded losses, float32 [num_steps].
  """
  tx = opt_fn(theta, num_steps=state.length)
  scales = state.scales

  def loss_of(params, key, batch):
    return task.loss(task_params(params, scales), key, batch)

  def inner_step(state, keys):
    batch_key, loss_key, valid_key = keys
    batch = task.sample_batch(batch_key, data["train"])
    (loss, _), grads = jax.value_and_grad(loss_of, has_aux=True)(
        state.params, loss_key, batch)
    updates, opt_state = tx.update(
        grads, state.opt_state, state.params, value=loss)
    params = optax.apply_updates(state.params, updates)
    if loss_split != "train":
      batch = task.sample_batch(valid_key, data[drawn_from(loss_split)])
      valid_loss, _ = loss_of(params, loss_key, batch)
      loss = (loss + valid_loss) / 2 if loss_split == BOTH else valid_loss
    return InnerState(
        params, opt_state, state.step + 1, state.length, scales), loss

  return jax.lax.scan(
      jax.checkpoint(inner_step) if remat else inner_step, state,
      step_keys(key, num_steps))


def drawn_from(loss_split: str) -> str:
  """The split whose batches are drawn with the third of `step_keys`."""
  return "inner_valid" if loss_split == BOTH else loss_split


def check_loss(loss: str, loss_split: str) -> None:
  """Raises ValueError unless these are names of a meta-loss."""
  if loss not in LOSSES:
    raise ValueError(
        f"Unknown loss {loss!r}; available: {', '.join(LOSSES)}.")
  splits = (*tasks_base.META_SPLITS, BOTH)
  if loss_split not in splits:
    raise ValueError(f"Unknown loss_split {loss_split!r}; available: "
                     f"{', '.join(splits)}.")


def weights(loss: str, inner: InnerState, num_steps: int) -> jax.Array:
  """Of the last `num_steps` losses in the mean of an episode.

  Args:
    loss: "late": twice the part of the episode that is over, else 1.
    inner: after these steps; step and length [...].
    num_steps: how many.

  Returns:
    [..., num_steps]; their mean over an episode is 1 (1 + 1 / length for
    "late").
  """
  if loss != "late":
    return jnp.ones((*inner.step.shape, num_steps), jnp.float32)
  steps = inner.step[..., None] - jnp.arange(num_steps)[::-1].reshape(
      (1,) * inner.step.ndim + (-1,))
  return 2 * steps.astype(jnp.float32) / inner.length[..., None].astype(
      jnp.float32)


def meta_loss(task: tasks_base.Task, losses: jax.Array, loss: str,
              inner: InnerState) -> jax.Array:
  """Losses [..., steps] to what is minimised [...].

  Args:
    task: its `normalize` is applied to every loss.
    losses: as `unroll` returns them.
    loss: "mean" over the steps, "late": weighted by `weights`, or the "last".
    inner: after these steps; leading axes like those of losses, or 1.
  """
  losses = task.normalize(losses)
  if loss == "last":
    return losses[..., -1]
  return jnp.mean(losses * weights(loss, inner, losses.shape[-1]), -1)


def counts(losses: jax.Array) -> dict[str, jax.Array]:
  """`EstimatorOut.info` of inner steps with these losses, of any shape."""
  return {"inner_steps": jnp.float32(losses.size),
          "diverged": jnp.sum(~jnp.isfinite(losses), dtype=jnp.float32)}
