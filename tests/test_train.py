"""Meta-training as a command: killed, resumed, refused."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_config

from meta_train import checkpoint
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
  assert artifact.settings == {
      "hidden": 3, "step_mult": 0.1, "exp_mult": 0.1,
      "accumulator_dtype": "float32"}
  assert record["steps"] == 40 and record["seed"] == 0
  assert record["horizon"] == [2, 6]
  assert record["tasks"]["digits"]["width"] == 3
  assert record["config"]["theta_opt"]["learning_rate"] == 3e-3
  assert len(record["software"]) == 1
  assert {"python", "jax", "optax", "git_revision"} <= set(
      record["software"][0])
  start = artifact.lopt.init(jax.random.fold_in(jax.random.key(0), 0))
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start, artifact.theta)
  assert all(jax.tree.leaves(moved))
  found = rows(finished)
  assert [row["step"] for row in found] == list(range(1, 41))
  assert found[0]["inner_steps"] == 2 * 2 * 2 * 2  # tasks, copies, pair, K
  assert len({row["meta_loss"] for row in found}) == 40


ENVIRONMENT = {
    **os.environ, "PYTHONPATH": str(ROOT / "tests"),
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}


# Runs meta-training and kills the process, as `kill -9` does, at one point.
KILLED = """
import os, signal, sys, types
import tiny_config
from learned_opt import artifact
from meta_train import checkpoint, metrics, train

folder, where, step = sys.argv[1], sys.argv[2], int(sys.argv[3])
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
save, write = checkpoint.Checkpointer.save, metrics.Writer.write

def killed_save(self, state):
  if where == "before checkpoint" and state.step == step:
    die()
  save(self, state)
  if where == "within checkpoint" and state.step == step:
    die()

def killed_write(self, at, values):
  write(self, at, values)
  if where == "after metrics" and at == step:
    self._file.write('{"step": ')  # a line without its end
    self._file.flush()
    die()

checkpoint.Checkpointer.save = killed_save
metrics.Writer.write = killed_write
if where == "before result":
  artifact.os = types.SimpleNamespace(
      **{**vars(os), "replace": lambda *names: die()})
train.meta_train(tiny_config.get_config(), folder)
"""


def test_kill_and_resume_gives_the_same_bits(finished, tmp_path, monkeypatch):
  for where, step in (("after metrics", 7), ("within checkpoint", 10),
                      ("before checkpoint", 16), ("before result", 40)):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), where, str(step)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "theta.safetensors").exists()
    if step < 40:
      assert metrics.read(tmp_path / "metrics.jsonl")[-1]["step"] == step
  restored = []
  restore = checkpoint.Checkpointer.restore_latest
  monkeypatch.setattr(
      checkpoint.Checkpointer, "restore_latest",
      lambda *args: restored.append(restore(*args)) or restored[-1])
  train.meta_train(tiny_config.get_config(), str(tmp_path))
  assert restored[0].step == 40  # went on, and did not begin again
  for name in ("theta.safetensors", "config.json"):
    assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
  assert rows(tmp_path) == rows(finished)


@pytest.mark.parametrize("where, step, resumed", [
    ("after metrics", 7, 6), ("before checkpoint", 16, 14)])
def test_resumes_from_the_last_checkpoint(where, step, resumed, tmp_path):
  subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), where,
                  str(step)], cwd=ROOT, env=ENVIRONMENT, capture_output=True)
  with checkpoint.Checkpointer(tmp_path / "checkpoints", 2) as saved:
    program = train.build(tiny_config.get_config(), None)
    state = saved.restore_latest(jax.eval_shape(program.init))
  # An asynchronous write may be lost with the process, never two.
  assert state.step in (resumed, resumed - 2)


def command(folder, *flags):
  return [sys.executable, "-m", "meta_train.train",
          f"--config={ROOT / 'tests' / 'tiny_config.py'}",
          f"--workdir={folder}", *flags]


def test_a_finished_run_says_so(finished, capsys):
  before = (finished / "theta.safetensors").stat().st_mtime_ns
  train.meta_train(tiny_config.get_config(), str(finished))
  assert "is finished" in capsys.readouterr().out
  assert (finished / "theta.safetensors").stat().st_mtime_ns == before


def test_another_config_is_refused(finished):
  config = tiny_config.get_config()
  config.checkpoint_every = 4  # this alone is fine
  train.meta_train(config, str(finished))
  config.seed = 1
  with pytest.raises(ValueError, match=r"another config \(seed: 0 -> 1\)"):
    train.meta_train(config, str(finished))


@pytest.mark.parametrize("key, value, message", [
    ("optimizer.name", "nope", "Unknown name 'nope'.*available: adafac"),
    ("parametrization", "nope", "Unknown name 'nope'.*available: mup"),
    ("tasks.bowl.name", "nope", "Unknown task 'nope'; available: mlp"),
    ("estimator.name", "nope", "Unknown name 'nope'.*available: pes"),
    ("estimator.truncation", 8, "truncation 8, shortest 2"),
    ("tasks", {}, "tasks is empty"),
    ("copies", 0, "copies must be at least 1"),
    ("log_every", 0, "log_every must be at least 1"),
    ("keep_checkpoints", 0, "keep_checkpoints must be at least 1"),
    ("theta_opt.clip", 0.0, "clip must be positive"),
    ("theta_opt.warmup", 40, "warmup .40. must be less"),
    ("log_every", 5, "multiple of log_every")])
def test_configs_that_make_no_sense(key, value, message, tmp_path):
  config = tiny_config.get_config()
  with config.unlocked():
    *sections, last = key.split(".")
    section = config
    for name in sections:
      section = section[name]
    section[last] = value
  with pytest.raises(ValueError, match=message):
    train.meta_train(config, str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_errors_of_the_command_are_one_line(finished, tmp_path):
  for folder, flags, message in (
      (finished, ["--config.seed=1"], "another config (seed: 0 -> 1)"),
      (finished, ["--config.sed=1"], "sed"),
      (tmp_path, ["--data_dir=nowhere", "--config.tasks.digits.dataset=mnist"],
       "FileNotFoundError")):
    done = subprocess.run(
        command(folder, *flags), cwd=ROOT, env=ENVIRONMENT,
        capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stderr.strip().splitlines()[-1]


def test_other_software_is_noted(tmp_path, monkeypatch, capsys):
  config = tiny_config.get_config()
  path = tmp_path / "config.json"
  first = train.note_software(config, path)
  assert train.note_software(config, path) == first
  assert capsys.readouterr().err == ""
  monkeypatch.setattr(train, "software", lambda: dict(first[0], jax="9"))
  assert train.note_software(config, path) == [*first, dict(first[0], jax="9")]
  assert "resuming with other software (jax)" in capsys.readouterr().err


def test_a_meta_loss_that_is_not_finite_stops_the_run(monkeypatch, tmp_path):
  make = tasks.suite.quadratic.make

  def broken(parametrization, **settings):
    task = make(parametrization, **settings)
    return task._replace(
        loss=lambda params, key, batch: (params["p"][0] * np.inf, {}))

  monkeypatch.setattr(tasks.suite.quadratic, "make", broken)
  with pytest.raises(FloatingPointError, match="step 1 .*'bowl/meta_loss'"):
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
