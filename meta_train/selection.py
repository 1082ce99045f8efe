"""Evaluation of theta on held-out tasks during meta-training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meta_train import build
from meta_train import evaluate


class Evaluator:
  """Trains networks with a frozen theta; compiled once.

  The loss of a task is the mean over seeds of its normalised loss on the split
  "outer_valid" at the end; with a NaN, theta is never the best. Beside it, the
  mean over all steps of the normalised train loss.
  """

  def __init__(self, config, data_dir: str | None):
    section = config.evaluation
    self._seeds = section.seeds
    self._tasks = {
        name: (task, section.tasks[name].get("num_steps", section.num_steps),
               evaluate.trainer(task, opt_fn))
        for name, (task, opt_fn) in build.tasks(
            config, section.tasks, data_dir).items()}

  def __call__(self, theta: Any) -> dict[str, float]:
    """{"evaluation/<task>": loss of each task, "evaluation": their mean, and
    the same of "evaluation_train"}."""
    keys = jax.random.split(jax.random.key(0), self._seeds)
    thetas = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (self._seeds, *x.shape)), theta)
    found: dict[str, dict[str, float]] = {
        "evaluation": {}, "evaluation_train": {}}
    for name, (task, num_steps, train) in self._tasks.items():
      result = train(thetas, keys, num_steps)
      mean = lambda losses, task=task: float(
          np.mean(task.normalize(jnp.asarray(losses))))
      found["evaluation"][name] = mean(result.final["outer_valid"]["loss"])
      found["evaluation_train"][name] = mean(result.train_loss)
    return {
        **{f"{kind}/{name}": loss for kind, losses in found.items()
           for name, loss in losses.items()},
        **{kind: float(np.mean(list(losses.values())))
           for kind, losses in found.items()}}
