"""Evaluation of theta on held-out tasks during meta-training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meta_train import evaluate
from meta_train import program


class Evaluator:
  """Trains networks with a frozen theta; compiled once.

  The loss of a task is the mean over seeds of its normalised loss on the split
  "outer_valid" at the end; with a NaN, theta is never the best.
  """

  def __init__(self, config, data_dir: str | None):
    section = config.evaluation
    self._seeds, self._steps = section.seeds, section.num_steps
    self._tasks = {
        name: (task, evaluate.trainer(task, opt_fn))
        for name, (task, opt_fn) in program.tasks(
            config, section.tasks, data_dir).items()}

  def __call__(self, theta: Any) -> dict[str, float]:
    """{"evaluation/<task>": loss of each task, "evaluation": their mean}."""
    keys = jax.random.split(jax.random.key(0), self._seeds)
    thetas = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (self._seeds, *x.shape)), theta)
    found = {}
    for name, (task, train) in self._tasks.items():
      result = train(thetas, keys, self._steps)
      losses = task.normalize(
          jnp.asarray(result.final["outer_valid"]["loss"]))
      found[f"evaluation/{name}"] = float(np.mean(losses))
    return {**found, "evaluation": float(np.mean(list(found.values())))}
