"""Train networks with a fixed optimizer and record their losses."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meta_train import unroll
from tasks import base as tasks_base

EVAL_BATCHES = 32


class Result(NamedTuple):
  """Losses of several runs; the leading axis is [runs].

  Attributes:
    train_loss: loss of each batch before the update, [runs, num_steps].
    final: {split: {"loss": [runs], ...}} of the final parameters. The entries
      besides "loss" are the aux of the task's loss, such as "accuracy".
  """

  train_loss: np.ndarray
  final: dict[str, dict[str, np.ndarray]]


def trainer(task: tasks_base.Task, opt_fn: unroll.OptFn
            ) -> Callable[..., Result]:
  """Return a version of `train` for one task and optimizer, compiled once.

  Args:
    task: task that networks are trained on.
    opt_fn: `opt_fn(theta, num_steps=...)` returns the optimizer. For a
      baseline, theta may be the learning rate.

  Returns:
    `train(thetas, keys, num_steps, chunk, on_chunk)`, see the function `train`.
  """
  data = jax.device_put(task.data)

  def start(thetas, keys, num_steps):
    start_run = lambda theta, key: unroll.start(
        task, opt_fn, theta, jax.random.fold_in(key, 0), num_steps)
    return jax.vmap(start_run)(thetas, keys)

  def advance(state, thetas, keys, data, steps):
    # The number of steps before this chunk makes the key of the chunk.
    advance_run = lambda state, theta, key: unroll.unroll(
        task, opt_fn, theta, state, jax.random.fold_in(key, 1 + state.step),
        data, steps)
    return jax.vmap(advance_run)(state, thetas, keys)

  start = jax.jit(start)
  advance = jax.jit(advance, static_argnums=4, donate_argnums=0)
  final = jax.jit(jax.vmap(
      lambda params, scales, data: evaluate(
          task, unroll.task_params(params, scales), data), (0, 0, None)))

  def run(thetas, keys, num_steps, chunk=50, on_chunk=lambda steps: None):
    state = start(thetas, keys, jnp.int32(num_steps))
    losses = []
    for first in range(0, num_steps, chunk):
      steps = min(chunk, num_steps - first)
      state, loss = advance(state, thetas, keys, data, steps)
      losses.append(np.asarray(loss))
      on_chunk(steps)
    final_losses = final(state.params, state.scales,
                         {s: data[s] for s in ("outer_valid", "test")})
    return Result(np.concatenate(losses, 1), jax.device_get(final_losses))

  return run


def train(task: tasks_base.Task, opt_fn: unroll.OptFn, thetas: Any,
          keys: jax.Array, num_steps: int, chunk: int = 50,
          on_chunk: Callable[[int], None] = lambda steps: None) -> Result:
  """Train one network per entry of `thetas`, all at the same time.

  Args:
    task: see `trainer`.
    opt_fn: see `trainer`.
    thetas: tree whose arrays have the leading axis [runs].
    keys: keys [runs] of initialisation and batches.
    num_steps: steps per run.
    chunk: steps per call of the compiled program.
    on_chunk: function called after each chunk with its number of steps.

  Returns:
    A `Result`. A run that diverged has losses that are not finite.
  """
  return trainer(task, opt_fn)(thetas, keys, num_steps, chunk, on_chunk)


def evaluate(task: tasks_base.Task, params: Any, splits: dict[str, Any]
             ) -> dict[str, dict[str, jax.Array]]:
  """Return mean loss and aux over EVAL_BATCHES batches of each split.

  The batches are the same in every call, so that runs can be compared.
  """
  def on_split(split):
    def on_batch(key):
      loss, aux = task.loss(params, key, task.sample_batch(key, split))
      return {"loss": loss, **aux}
    keys = jax.random.split(jax.random.key(0), EVAL_BATCHES)
    return jax.tree.map(jnp.mean, jax.lax.map(on_batch, keys))
  return {name: on_split(split) for name, split in splits.items()}
