"""The study prior_scan, and the configs of meta-training."""

import importlib
import os
import pkgutil

import jax
import numpy as np
import pandas as pd
import pytest

from experiments.studies import prior_scan
from learned_opt import optimizers
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import configs
from tasks import families

FILES = ("mnist", "cifar10")  # data sets that do not come with mulo


def test_multipliers():
  """Each multiplier applies to the parameters of its role."""
  task = families.get("mlp", parametrizations.get("mup"), width=4, depth=2)
  lopt = optimizers.get("mulo", hidden=3, step_mult=1.0)
  theta = lopt.init(jax.random.key(0))
  params = jax.jit(task.init)(jax.random.key(0))
  grads = jax.tree.map(np.ones_like, params)
  updates = []
  for tx in (lopt.opt_fn(theta), prior_scan.with_multipliers(
      lopt, theta, task)(np.float32([0.5, 0.1, 2.0, 3.0, 9.0]))):
    updates.append(jax.jit(tx.update)(grads, tx.init(params), params)[0])
  ratios = jax.tree.map(lambda x, y: float(np.mean(y / x)), *updates)
  np.testing.assert_allclose(
      [[ratios[f"layer_{i}"][name] for name in "wb"] for i in range(3)],
      [[0.5, 3.0], [0.1, 3.0], [2.0, 3.0]], rtol=1e-5)


def test_draws():
  draws = prior_scan.draws(1000, 10.0, 0.3)
  assert draws.shape == (1000, 5) and draws.dtype == np.float32
  assert 0.03 <= draws.min() < 0.04 and 2.5 < draws.max() <= 3.001
  np.testing.assert_array_equal(draws, prior_scan.draws(1000, 10.0, 0.3))


def test_table(monkeypatch):
  monkeypatch.setattr(prior_scan, "BEST", 1)
  rows = pd.DataFrame([
      {"task": task, "input": step, "hidden": 1.0, "output": 1.0,
       "vector": 1.0, "table": 1.0, "mean": loss, "final": 3.0, "valid": 1.0}
      for task, losses in (("a", (1.0, np.e)), ("b", (2.0, 2 * np.e**3)))
      for step, loss in zip((0.1, 0.3), losses)])
  overall, best_of = [
      [[x.strip() for x in line.split("|")[1:-1]]
       for line in part.splitlines()[2:]]
      for part in prior_scan.table(rows).split("\n\n")]
  assert [(row[0], *row[5:]) for row in overall] == [
      ("0.1", "0", "0", "0"), ("0.3", "2", "0", "0")]
  assert [row[:2] for row in best_of] == [["a", "0.1"], ["b", "0.1"]]


@pytest.mark.parametrize("optimizer, parametrization", [
    ("mulo", "mup_balanced"), ("mulo2", "natural")])
def test_rows(optimizer, parametrization):
  section = {"name": "rnn_lm", "dataset": "sums", "width": 8, "length": 8,
             "batch_size": 2}
  has_tables = parametrization == "natural"
  grid = prior_scan.draws(
      2, 3.0, 1.0, prior_scan.ROLES if has_tables else prior_scan.ROLES[:4])
  first, second = prior_scan.rows(
      section, parametrization, optimizer, {"hidden": 3, "newton_schulz": 1},
      grid, 3, None)
  assert ("table" in first) == has_tables
  assert first["final"] != second["final"]
  assert all(np.isfinite(row[x]) for row in (first, second)
             for x in prior_scan.SCORES)


@pytest.mark.parametrize(
    "name", [m.name for m in pkgutil.iter_modules(configs.__path__)])
def test_configs_are_valid(name):
  module = importlib.import_module(f"{configs.__name__}.{name}")
  config = module.get_config()
  build.check(config)
  if "MULO_DATA_DIR" not in os.environ and any(
      section.get("dataset") in FILES for section in (
          *config.tasks.values(), *config.evaluation.tasks.values())):
    pytest.skip("MULO_DATA_DIR is not set")
  parametrization = parametrizations.get(config.parametrization)
  for sections in (config.tasks, config.evaluation.tasks):
    for section in sections.values():
      task = build.task_of(section, parametrization, None)
      assert jax.eval_shape(task.init, jax.random.key(0))
