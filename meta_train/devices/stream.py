"""Data that stay on the host: each outer step's batches go to the devices.

The batches are those that the task itself would have drawn from data on the
device, from the same keys. A thread prepares them ahead of their step.
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
  """The task, drawing from prepared batches: those of one outer step.

  A split is {"keys" [n, 2], "batches" [n, ...]}, and a batch is found by the
  key that it was drawn with. Of a key that was not prepared, numbers that can
  be NaN are.
  """
  def sample_batch(key, split):
    same = (split["keys"] == jax.random.key_data(key)[None]).all(1)

    def pick(x):
      found = x[same.argmax()]
      return jnp.where(same.any(), found, jnp.nan) if jnp.issubdtype(
          x.dtype, jnp.floating) else found

    return jax.tree.map(pick, split["batches"])

  return task._replace(sample_batch=sample_batch)


def batches(tasks: dict[str, tasks_base.Task], seed: int, copies: int,
            truncation: int, loss_split: str, devices: jax.sharding.Mesh,
            first: int, last: int) -> Iterator[dict[str, Any]]:
  """`data` of the outer steps after `first` others, up to `last`.

  For estimators that make one truncation of every copy in an outer step.

  Args:
    tasks: as they were before `task_of`.
    seed: of the run.
    copies: of each task.
    truncation: inner steps per outer step.
    loss_split: of the estimator.
    devices: to put the batches on.
    first: outer steps that are done.
    last: outer steps in the end.
  """
  host = jax.local_devices(backend="cpu")[0]
  data = {name: jax.device_put(task.data, host) for name, task in tasks.items()}

  def draw(step, data):
    found: dict[str, Any] = {}
    keys = step_lib.task_keys(step_lib.key_of_step(seed, step), tasks, copies)
    for name, task in tasks.items():
      each = jax.vmap(lambda key: unroll.step_keys(
          unroll.key_of_truncation(key), truncation))(keys[name])
      found[name] = {}
      second = unroll.drawn_from(loss_split)
      for split, column in {second: 2, "train": 0}.items():
        own = each[:, :, column].reshape(-1)  # [copies * truncation]
        found[name][split] = {
            "keys": jax.random.key_data(own),
            "batches": jax.vmap(task.sample_batch, (0, None))(
                own, data[name][split])}
    return found

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
