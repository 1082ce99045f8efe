"""Meta-training as a command: killed, resumed, refused."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_config

from meta_train import metrics
from meta_train import train
import mulo
import tasks.suite.quadratic

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run that nothing interrupted."""
  folder = tmp_path_factory.mktemp("finished")
  train.meta_train(tiny_config.get_config(), str(folder))
  return folder


def rows(folder, skip=("inner_steps_per_second",)):
  return [{k: v for k, v in row.items() if k not in skip}
          for row in metrics.read(folder / "metrics.jsonl")]


def test_result(finished):
  artifact = mulo.read(finished / "theta.safetensors")
  record = artifact.record
  assert artifact.optimizer == "mulo" and artifact.parametrization == "mup"
  assert record["steps"] == 40 and record["seed"] == 0
  assert record["horizon"] == [2, 6]
  assert record["tasks"]["digits"]["width"] == 3
  assert record["config"]["theta_opt"]["learning_rate"] == 3e-3
  assert set(record["versions"]) == {"python", "jax", "numpy", "optax"}
  assert record["git_revision"]
  start = artifact.lopt.init(jax.random.fold_in(jax.random.key(0), 0))
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start, artifact.theta)
  assert all(jax.tree.leaves(moved))
  found = rows(finished)
  assert [row["step"] for row in found] == list(range(1, 41))
  assert found[0]["inner_steps"] == 2 * 2 * 2 * 2  # tasks, copies, pair, K
  assert len({row["meta_loss"] for row in found}) == 40


def command(folder, *flags):
  return [sys.executable, "-m", "meta_train.train",
          f"--config={ROOT / 'tests' / 'tiny_config.py'}",
          f"--workdir={folder}", *flags]


ENVIRONMENT = {
    **os.environ, "PYTHONPATH": str(ROOT / "tests"),
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}


def test_kill_and_resume_gives_the_same_bits(finished, tmp_path):
  killed_at = []
  for stop in (3, 7):
    process = subprocess.Popen(
        command(tmp_path), cwd=ROOT, env=ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (len(metrics.read(tmp_path / "metrics.jsonl")) < stop and
           process.poll() is None and time.monotonic() < deadline):
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at.append(len(metrics.read(tmp_path / "metrics.jsonl")))
  assert not (tmp_path / "theta.safetensors").exists(), killed_at
  # What a kill may leave of the metrics: a line without its end.
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 9')
  done = subprocess.run(command(tmp_path), cwd=ROOT, env=ENVIRONMENT,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  for name in ("theta.safetensors", "config.json"):
    assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
  assert rows(tmp_path) == rows(finished)


def test_a_finished_run_says_so(finished, capsys):
  before = (finished / "theta.safetensors").stat().st_mtime_ns
  train.meta_train(tiny_config.get_config(), str(finished))
  assert "is finished" in capsys.readouterr().out
  assert (finished / "theta.safetensors").stat().st_mtime_ns == before


def test_another_config_is_refused(finished):
  config = tiny_config.get_config()
  config.seed = 1
  config.log_every = 2  # this alone would be fine
  with pytest.raises(ValueError, match=r"another config \(seed: 0 -> 1\)"):
    train.meta_train(config, str(finished))


@pytest.mark.parametrize("key, value, message", [
    ("optimizer.name", "adamw", "Unknown name 'adamw'.*available: adafac"),
    ("parametrization", "nup", "available: mup, standard"),
    ("tasks.bowl.name", "bowl", "available: mlp, quadratic"),
    ("estimator.name", "es", "available: pes"),
    ("estimator.truncation", 4, "truncation 4, shortest 2"),
    ("theta_opt.warmup", 40, "warmup .40. must be less"),
    ("log_every", 5, "multiple of log_every")])
def test_configs_that_make_no_sense(key, value, message, tmp_path):
  config = tiny_config.get_config()
  with config.unlocked():
    config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=message):
    train.meta_train(config, str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_errors_of_the_command_are_one_line(finished):
  for flags, message in (
      (["--config.seed=1"], "another config (seed: 0 -> 1)"),
      (["--config.sed=1"], "sed"),
      (["--data_dir=nowhere", "--config.tasks.digits.dataset=mnist"],
       "FileNotFoundError")):
    done = subprocess.run(
        command(finished, *flags), cwd=ROOT, env=ENVIRONMENT,
        capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stderr.strip().splitlines()[-1]


def test_a_meta_loss_that_is_not_finite_stops_the_run(monkeypatch, tmp_path):
  make = tasks.suite.quadratic.make

  def broken(parametrization, **settings):
    task = make(parametrization, **settings)
    return task._replace(
        loss=lambda params, key, batch: (params["p"][0] * np.inf, {}))

  monkeypatch.setattr(tasks.suite.quadratic, "make", broken)
  with pytest.raises(FloatingPointError, match="task bowl.*outer step 1. "):
    train.meta_train(tiny_config.get_config(), str(tmp_path))
  assert not (tmp_path / "theta.safetensors").exists()


def test_metrics_file(tmp_path):
  path = tmp_path / "metrics.jsonl"
  with metrics.Writer(path, 0) as writer:
    for step in (1, 2, 3):
      writer.write(step, {"x": 0.5 * step})
  with metrics.Writer(path, 2):
    pass
  assert metrics.read(path) == [{"step": 1, "x": 0.5}, {"step": 2, "x": 1.0}]
  assert json.loads(path.read_text().splitlines()[-1])["step"] == 2
