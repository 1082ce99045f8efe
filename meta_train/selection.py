"""Evaluation of theta during meta-training, to choose the best theta."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from meta_train import evaluate
from meta_train import unroll
from tasks import base as tasks_base


class Evaluator:
  """Trains networks with a frozen theta; compiled once.

  The loss of a task is the mean over seeds of its normalised final loss on the
  split "outer_valid". A theta with a NaN here is never the best. The second
  number of a task is the mean of its normalised train loss over all steps and
  seeds.
  """

  def __init__(self, section: ml_collections.ConfigDict,
               tasks: dict[str, tuple[tasks_base.Task, unroll.OptFn]]):
    """Prepare the evaluation.

    Args:
      section: `config.evaluation`.
      tasks: the tasks of `section.tasks`, see `build.tasks`.
    """
    self._seeds = section.seeds
    # A task may set its own num_steps.
    self._tasks = {
        name: (task, section.tasks[name].get("num_steps", section.num_steps),
               evaluate.trainer(task, opt_fn))
        for name, (task, opt_fn) in tasks.items()}

  def __call__(self, theta: Any) -> dict[str, float]:
    """Evaluate theta.

    Returns:
      {"evaluation/<task>": final loss of each task, "evaluation": mean of these
      losses, "evaluation_train/<task>": train loss of each task,
      "evaluation_train": mean of these losses}.
    """
    keys = jax.random.split(jax.random.key(0), self._seeds)
    thetas = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (self._seeds, *x.shape)), theta)
    losses: dict[str, dict[str, float]] = {
        "evaluation": {}, "evaluation_train": {}}
    for name, (task, num_steps, train) in self._tasks.items():
      result = train(thetas, keys, num_steps)
      mean = lambda losses, task=task: float(
          np.mean(task.normalize(jnp.asarray(losses))))
      losses["evaluation"][name] = mean(result.final["outer_valid"]["loss"])
      losses["evaluation_train"][name] = mean(result.train_loss)
    return {
        **{f"{kind}/{name}": loss for kind, by_task in losses.items()
           for name, loss in by_task.items()},
        **{kind: float(np.mean(list(by_task.values())))
           for kind, by_task in losses.items()}}
