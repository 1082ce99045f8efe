"""Runs of tiny_config: their commands and results."""

import os
import pathlib
import subprocess
import sys

import jax

from meta_train.workdir import metrics

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": str(ROOT / "tests"),
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    "JAX_NUM_CPU_DEVICES": "17"}  # as in conftest.py, for the same bits


def rows(folder, skip=("inner_steps_per_second", "seconds")):
  """Return the metrics of a run, without the time that it took."""
  return [{k: v for k, v in row.items() if k not in skip}
          for row in metrics.read(folder / "metrics.jsonl")]


def same_result(folder, finished):
  """Return whether two runs have the same theta.safetensors and metrics."""
  name = "theta.safetensors"
  return (folder / name).read_bytes() == (finished / name).read_bytes() and (
      rows(folder) == rows(finished))


def run(folder, *flags):
  """Return the finished process of the command of a run in this folder."""
  return subprocess.run(
      [sys.executable, "-m", "meta_train.train",
       f"--config={ROOT / 'tests' / 'tiny_config.py'}", f"--workdir={folder}",
       *flags], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
