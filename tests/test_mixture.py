"""Meta-training on three families at once, and the table of task cards."""

import json

import jax
import numpy as np
import pandas as pd
import pytest
import tiny_config

from experiments.studies import task_table
from learned_opt.scaling import parametrizations
from meta_train import time_limit
from meta_train import train
from meta_train.workdir import metrics
import mulo
from tasks import families
from tasks import suites


def mixture():
  """Return a config of a classifier and a language model.

  The parameters of the "mlp" task are rescaled at random.
  """
  config = tiny_config.get_config().unlock()
  config.tasks = {
      "mlp": {"name": "mlp", "width": 4, "depth": 1,
              "augment": {"level": "tensor", "low": 0.1, "high": 10.0}},
      "lm": {"name": "transformer_lm", "width": 8, "length": 4}}
  for section in config.tasks.values():
    section.batch_size = 4
  config.tasks["lm"].weight = 2.0
  config.num_steps = 6
  config.theta_opt.warmup = 1
  return config.lock()


def test_resumes_bit_exactly(tmp_path, monkeypatch):
  paths = [tmp_path / "whole", tmp_path / "parts"]
  train.meta_train(mixture(), str(paths[0]))
  with monkeypatch.context() as patch:
    reasons = iter([None, None, "SIGTERM"])
    patch.setattr(time_limit.Clock, "reason", lambda self: next(reasons))
    with pytest.raises(train.Stopped, match="after 3 of 6"):
      train.meta_train(mixture(), str(paths[1]))
  train.meta_train(mixture(), str(paths[1]))
  whole, parts = ((p / "theta.safetensors").read_bytes() for p in paths)
  assert whole == parts
  rows = metrics.read(paths[0] / "metrics.jsonl")
  assert len(rows) == 6
  names = ("lm", "lm", "mlp")  # lm has twice the weight
  losses = np.array(
      [[row[f"{name}/meta_loss"] for name in names] for row in rows])
  assert np.all(np.isfinite(losses))
  np.testing.assert_allclose(
      [row["meta_loss"] for row in rows], losses.mean(1), rtol=1e-5)
  record = mulo.read(paths[0] / "theta.safetensors").record
  assert record["tasks"]["mlp"]["augment"]["level"] == "tensor"


@pytest.mark.parametrize("width, depth", [(5, 1), (3, 2)])
def test_flops_of_a_multilayer_perceptron(width, depth):
  task = families.get("mlp", parametrizations.get("standard"), width=width,
                      depth=depth, batch_size=7)
  card = task_table.card(task)
  sizes = [64, *[width] * depth, 10]
  layers = [a * b for a, b in zip(sizes, sizes[1:])]
  # Three products per layer: forward, gradient of the weights, gradient of the
  # layer's input, which the first layer does not need.
  assert card["flops"] == 2 * 7 * (3 * sum(layers) - layers[0])
  assert card["params"] == sum(layers) + sum(sizes[1:])
  assert card["bytes"] == 1797 * (64 + 4)


def test_flops_of_loops_and_convolutions():
  def f(x, w):
    x = jax.lax.scan(lambda c, _: (c @ w, None), x, None, 5)[0]
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x)
  jaxpr = jax.make_jaxpr(f)(np.ones((2, 3)), np.ones((3, 3)))
  assert task_table.products(jaxpr.jaxpr) == 2 * 2 * 9 * (5 + 2)
  conv = jax.make_jaxpr(lambda x, w: jax.lax.conv(x, w, (1, 1), "VALID"))(
      np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3)))
  assert task_table.products(conv.jaxpr) == 2 * (2 * 4 * 36) * 27


def test_tuning_prefers_runs_that_do_not_diverge():
  task = families.get("quadratic", None, dim=2)
  best = task_table.tuned(task, 60, 2)
  assert best["learning_rate"] == pytest.approx(10**-0.5)
  assert not best["grid_edge"] and best["train_loss"] < 0.1


@pytest.mark.parametrize("name, num_steps", [("prior_hidden", 4), ("one", 0)])
def test_cards_without_adamw(name, num_steps, tmp_path, monkeypatch):
  """No optimizer runs on a hidden suite."""
  section = {"name": "mlp", "width": 3, "depth": 1}
  monkeypatch.setattr(suites, "get", lambda name: {"small": dict(section)})
  monkeypatch.setattr(task_table, "tuned", None)
  rows = task_table.cards([name], tmp_path, None, num_steps, 2)
  task_table.write(rows, tmp_path)
  text = (tmp_path / "table.md").read_text()
  assert "width 3, depth 1" in text and "AdamW" not in text


def test_cards_are_computed_once(tmp_path, monkeypatch):
  section = {"name": "mlp", "width": 3, "depth": 1, "batch_size": 4}
  monkeypatch.setattr(suites, "get", lambda name: {"small": dict(section)})
  rows = task_table.cards(["one"], tmp_path, None, 4, 2)
  (cell,) = (tmp_path / "cells").iterdir()
  written = (cell / "metrics.jsonl").stat().st_mtime_ns
  assert task_table.cards(["one"], tmp_path, None, 4, 2) == rows
  assert (cell / "metrics.jsonl").stat().st_mtime_ns == written
  task_table.write(rows, tmp_path)
  text = (tmp_path / "table.md").read_text()
  assert "| one     | small" in text and "235" in text
  assert len(pd.read_csv(tmp_path / "results.csv")) == 1
  assert json.loads((cell / "config.json").read_text())["section"] == section
