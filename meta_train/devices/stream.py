"""Data that stay on the host: batches go to the devices, step by step.

The batches are equal to those that the task would draw, with the same keys,
from data on the device. A thread prepares them ahead of their outer step.
"""

import concurrent.futures
from typing import Any, Iterator

import jax
import jax.numpy as jnp

from meta_train import step as step_lib
from meta_train import unroll
from meta_train.devices import parallel
from tasks import base as tasks_base

AHEAD = 2  # outer steps


def task_of(task: tasks_base.Task) -> tasks_base.Task:
  """Return the task with a `sample_batch` that looks up prepared batches.

  A split of its data is {"keys": [n, 2], "batches": tree of [n, ...]}: the
  batches of one outer step. A batch is looked up by the key that it was drawn
  with. For a key that was not prepared, floating-point arrays are NaN.
  """
  def sample_batch(key, split):
    same = (split["keys"] == jax.random.key_data(key)[None]).all(1)  # [n]

    def pick(x):
      batch = x[same.argmax()]
      return jnp.where(same.any(), batch, jnp.nan) if jnp.issubdtype(
          x.dtype, jnp.floating) else batch

    return jax.tree.map(pick, split["batches"])

  return task._replace(sample_batch=sample_batch)


def batches(tasks: dict[str, tasks_base.Task], seed: int, copies: int,
            truncation: int, loss_split: str, devices: jax.sharding.Mesh,
            first: int, last: int) -> Iterator[dict[str, Any]]:
  """Yield `data` of each outer step after step `first`, up to step `last`.

  For estimators that make one truncation of every copy in an outer step.

  Args:
    tasks: {task name: task}, from before `task_of`.
    seed: seed of the run.
    copies: number of copies of each task.
    truncation: inner steps per outer step.
    loss_split: setting of the estimator.
    devices: devices to put the batches on.
    first: outer steps already taken.
    last: outer steps of the run.
  """
  host = jax.local_devices(backend="cpu")[0]
  data = {name: jax.device_put(task.data, host) for name, task in tasks.items()}

  def draw(step, data):
    # Repeats the keys of an outer step: see `step.make`, the estimators and
    # `unroll.unroll`.
    drawn: dict[str, Any] = {}
    keys = step_lib.task_keys(step_lib.key_of_step(seed, step), tasks, copies)
    for name, task in tasks.items():
      inner_keys = jax.vmap(lambda key: unroll.step_keys(
          unroll.key_of_truncation(key), truncation))(
              keys[name])  # [copies, truncation, 3]
      drawn[name] = {}
      # Column of `unroll.step_keys` for each split. If `loss_split` is "train",
      # its column 2 is replaced by 0: there is no second batch.
      second_split = unroll.drawn_from(loss_split)
      for split, column in {second_split: 2, "train": 0}.items():
        split_keys = inner_keys[:, :, column].reshape(-1)
        drawn[name][split] = {
            "keys": jax.random.key_data(split_keys),
            "batches": jax.vmap(task.sample_batch, (0, None))(
                split_keys, data[name][split])}
    return drawn

  draw = jax.jit(draw)

  def prepare(step):
    with jax.default_device(host):
      return parallel.spread(jax.device_get(draw(step, data)), devices)

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    ready = [pool.submit(prepare, step)
             for step in range(first, min(first + AHEAD, last))]
    for step in range(first, last):
      if step + AHEAD < last:
        ready.append(pool.submit(prepare, step + AHEAD))
      yield ready.pop(0).result()
