"""The scan of multipliers before meta-training, and the configs."""

import importlib
import os
import pkgutil

import jax
import numpy as np
import optax
import pandas as pd
import pytest

from experiments import prior_scan
from learned_opt import optimizers
from meta_train import configs
from meta_train import program

FILES = ("mnist", "cifar10")  # data sets that do not come with mulo


def test_factors():
  lopt = optimizers.get("mulo", hidden=3, step_mult=1.0)
  theta = lopt.init(jax.random.key(0))
  params = {"w": np.ones((3, 4), np.float32), "b": np.ones(4, np.float32)}
  found = []
  for tx in (lopt.opt_fn(theta), prior_scan.with_factors(lopt, theta)(
      np.float32([0.5, 0.1]))):
    found.append(tx.update(params, tx.init(params), params)[0])
  np.testing.assert_allclose(found[1]["w"], 0.5 * found[0]["w"], rtol=1e-6)
  np.testing.assert_allclose(found[1]["b"], 0.05 * found[0]["b"], rtol=1e-6)
  assert optax.tree.norm(found[0]) > 0


def test_table():
  rows = pd.DataFrame([
      {"task": task, "horizon": True, "step_mult": step, "vector_mult": 1.0,
       "mean": loss, "final": loss}
      for task, losses in (("a", (1.0, np.e)), ("b", (2.0, 2 * np.e**3)))
      for step, loss in zip((0.1, 0.3), losses)])
  lines = prior_scan.table(rows).splitlines()[2:]
  assert [line.split("|")[2].strip() for line in lines] == ["0.1", "0.3"]
  assert [line.split("|")[4].strip() for line in lines] == ["0", "2"]


@pytest.mark.parametrize(
    "name", [m.name for m in pkgutil.iter_modules(configs.__path__)])
def test_configs_make_sense(name):
  module = importlib.import_module(f"{configs.__name__}.{name}")
  config = module.get_config()
  program.check(config)
  if "MULO_DATA_DIR" not in os.environ and any(
      section.get("dataset") in FILES for section in (
          *config.tasks.values(), *config.evaluation.tasks.values())):
    pytest.skip("MULO_DATA_DIR is not set")
  for section in (config.tasks, config.evaluation.tasks):
    for task, _ in program.tasks(config, section, None).values():
      assert jax.eval_shape(task.init, jax.random.key(0))
