"""The command for the day when there is a GPU, at toy size."""

import json
import pathlib

import numpy as np

from experiments import gpu_day
import mulo
from tests import tiny_config


def test_dry_run(tmp_path):
  # No time limit: a slow machine must not leave anything out.
  results = gpu_day.run(gpu_day.DRY, 600.0, tmp_path / "day")
  tables = json.loads((tmp_path / "day" / "results.json").read_text())
  assert tables == results.tables
  assert list(tables) == [*gpu_day.SHARES, "meta_training"]
  assert [row for rows in tables.values() for row in rows if "error" in row
          ] == []
  assert len(tables["steps"]) == 2 and len(tables["parity"]) == 3
  assert max(row["largest relative difference"]
             for row in tables["parity"]) < 1e-3
  assert mulo.read(tmp_path / "day" / "theta.safetensors").optimizer == "mulo2"
  assert "## throughput" in (tmp_path / "day" / "results.md").read_text()


def test_what_fails_or_is_late_is_named(tmp_path):
  results = gpu_day.Results(tmp_path)

  def fail():
    raise FloatingPointError("no\nsecond line")

  gpu_day.each(results, "part", 1e9, [({"x": 1}, fail), ({"x": 2}, dict)])
  gpu_day.each(results, "part", -1.0, [({"x": 3}, dict)])
  assert results.tables["part"] == [
      {"x": 1, "error": "FloatingPointError: no"}, {"x": 2},
      {"error": "1 items left out: no time"}]


def theta(folder: pathlib.Path):
  return mulo.read(folder / "theta.safetensors").theta


def test_a_run_goes_on_from_a_checkpoint(tmp_path):
  """A run that was stopped and goes on has the bits of one that was not."""
  train = lambda name, start, seconds: gpu_day.meta_training(
      tiny_config.get_config(), tmp_path / name, start, seconds)
  stopped = train("stopped", None, 1e-3)
  assert stopped["outer steps"] < 40
  whole = train("whole", None, 1e4)
  train("on", tmp_path / "stopped" / "meta_training", 1e4)
  assert whole["outer steps"] == 40
  different = [not np.array_equal(x, theta(tmp_path / "whole")[name])
               for name, x in theta(tmp_path / "stopped").items()]
  assert any(different)
  for name, x in theta(tmp_path / "whole").items():
    np.testing.assert_array_equal(theta(tmp_path / "on")[name], x)
