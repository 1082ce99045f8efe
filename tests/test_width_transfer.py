"""The width-transfer study, at a size that takes seconds."""

import json
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import test_train

from experiments import sweep
from experiments import width_transfer
from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt import parametrizations
from meta_train import evaluate
from meta_train import unroll
import mulo
from tasks import suite


def artifact():
  lopt = optimizers.get("mulo", hidden=3)
  return artifact_lib.Artifact(
      "mulo", optimizers.all_settings("mulo", hidden=3), "mup",
      lopt.init(jax.random.key(0)),
      {"tasks": {"a": {"width": 1}, "b": {"width": 2}}})


def test_command_is_resumable(tmp_path):
  mulo.save(tmp_path / "a.safetensors", artifact())
  command = [
      sys.executable, "-m", "experiments.width_transfer",
      f"--artifact={tmp_path / 'a.safetensors'}",
      f"--workdir={tmp_path / 'study'}", "--widths=2", "--num_steps=20",
      "--seeds=2", "--tuning_seeds=1", "--batch_size=4", "--depth=1"]

  def run():
    done = subprocess.run(command, cwd=test_train.ROOT, capture_output=True,
                          env=test_train.ENVIRONMENT, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

  folder = tmp_path / "study"
  first = run()
  results = pd.read_csv(folder / "results.csv")
  assert len(results) == 5 * 2  # methods, seeds
  assert set(results.method) == {
      "mulo", "mulo, bfloat16 state", "Adam 1e-3", "Adam", "muAdam"}
  assert np.all(np.isfinite(results.final_train_loss))
  # Five methods, and a tuning cell for two of them.
  cells = sorted((folder / "cells").iterdir())
  assert len(cells) == 5 + 2
  assert (folder / "width_transfer.png").read_bytes()[:4] == b"\x89PNG"
  # A cell that is not done is computed again, the others are not.
  (cells[0] / "DONE").unlink()
  (cells[0] / "metrics.jsonl").write_text("")
  times = {c: (c / "metrics.jsonl").stat().st_mtime_ns for c in cells}
  assert run() == first
  changed = [c for c in cells
             if (c / "metrics.jsonl").stat().st_mtime_ns != times[c]]
  assert changed == cells[:1]
  pd.testing.assert_frame_equal(
      pd.read_csv(folder / "results.csv"), results)


def test_cells(tmp_path):
  calls = []

  def compute():
    calls.append(1)
    return [{"x": 1.5}]

  for config in ({"a": 1}, {"a": 1}, {"a": 2}):
    assert sweep.run_cell(tmp_path, config, compute) == [{"x": 1.5}]
  assert len(calls) == 2
  found = {json.loads((c / "config.json").read_text())["a"]
           for c in tmp_path.iterdir()}
  assert found == {1, 2}


def test_the_best_learning_rate_is_taken():
  """Tuning takes the smallest score, never one that is not a number."""
  scores = np.array([3.0, np.nan, 1.0, 2.0])
  assert width_transfer.best_index(scores) == 2


def test_table_and_interval():
  rows = pd.DataFrame({
      "width": [8, 8], "method": ["Adam", "Adam"], "learning_rate": [0.1, 0.1],
      "grid_edge": [True, True], "final_train_loss": [1.0, float("inf")],
      "mean_train_loss": [2.0, 4.0], "test_loss": [3.0, 3.0],
      "test_accuracy": [0.5, 0.7]})
  row = width_transfer.table(rows).splitlines()[-1]
  for text in ("1.0e-01 (grid edge)", "60.0%", "1 of 2", "3 (3 to 3)"):
    assert text in row
  low, high = width_transfer.interval(pd.Series([1.0, 2.0, 3.0, 4.0]))
  assert 1 < low < 2.5 < high < 4


def test_runs_do_not_depend_on_their_company():
  """A run's result is that of its theta and key, whatever runs beside it."""
  standard = parametrizations.get("standard")
  task = suite.get("mlp", standard, width=4, depth=1, batch_size=4)
  opt_fn = unroll.scaled(width_transfer.adam, standard, task)
  keys = jax.random.split(jax.random.key(0), 2)
  rates = np.float32([0.1, 0.01])
  both = evaluate.train(task, opt_fn, rates, keys, 12, chunk=5)
  alone = evaluate.train(task, opt_fn, rates[1:], keys[1:], 12, chunk=5)
  assert both.train_loss.shape == (2, 12)
  np.testing.assert_allclose(
      both.train_loss[1], alone.train_loss[0], rtol=1e-4)
  np.testing.assert_allclose(
      both.final["test"]["loss"][1], alone.final["test"]["loss"][0], rtol=1e-4)


def test_errors(tmp_path):
  done = subprocess.run(
      [sys.executable, "-m", "experiments.width_transfer",
       "--artifact=nothing.safetensors", f"--workdir={tmp_path / 'x'}"],
      cwd=test_train.ROOT, capture_output=True, text=True,
      env=test_train.ENVIRONMENT)
  assert done.returncode != 0
  assert "neither a file nor" in done.stderr.strip().splitlines()[-1]
  assert not (tmp_path / "x").exists()
