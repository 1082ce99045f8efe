"""Meta-training as a command: killed and resumed runs, refused configs."""

import os
import shutil
import signal
import subprocess
import sys

import forked
import jax
import numpy as np
import pytest
import tiny_config
import tiny_run
import tqdm

from meta_train import build
from meta_train import train
from meta_train.workdir import checkpoint
from meta_train.workdir import metrics
from meta_train.workdir import run_record
import mulo
import tasks.families.quadratic


def test_result(finished):
  artifact = mulo.read(finished / "theta.safetensors")
  record = artifact.record
  assert artifact.optimizer == "hyperparam_adam"
  assert artifact.parametrization == "mup"
  assert artifact.settings == {
      "learning_rate": 0.1, "b1": 0.9, "b2": 0.999, "epsilon": 1e-8}
  assert record["steps"] == 40 and record["seed"] == 0
  assert record["horizon"] == [2, 6]
  assert record["tasks"]["digits"]["width"] == 3
  assert record["config"]["theta_opt"]["learning_rate"] == 3e-3
  assert len(record["software"]) == 1
  assert {"python", "jax", "optax", "git_revision"} <= set(
      record["software"][0])
  if (tiny_run.ROOT / ".git").exists() and shutil.which("git"):
    assert record["software"][0]["git_revision"] != "unknown"
  start = artifact.lopt.init(jax.random.fold_in(jax.random.key(0), 0))
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start, artifact.theta)
  assert all(jax.tree.leaves(moved))
  metric_rows = tiny_run.rows(finished)
  assert [row["step"] for row in metric_rows] == list(range(1, 41))
  # Tasks, copies, networks of a pair, inner steps of a truncation.
  assert metric_rows[0]["inner_steps"] == 2 * 2 * 2 * 2
  assert len({row["meta_loss"] for row in metric_rows}) == 40


# Runs meta-training and kills its own process at one point, like `kill -9`.
KILLED = """
import os, signal, sys, types
import tiny_config
import tiny_run
import tqdm
from learned_opt import artifact
from meta_train import train
from meta_train.workdir import checkpoint, metrics

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
    self._file.write('{"step": ')  # an unfinished line
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
  folder = tmp_path / "run"
  like = jax.eval_shape(build.build(tiny_config.get_config(), None).init)
  for where, step, saved in (
      ("after metrics", 7, 6), ("within checkpoint", 10, 10),
      ("before checkpoint", 16, 14), ("before result", 40, 40)):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), where, str(step)],
        cwd=tiny_run.ROOT, env=tiny_run.ENVIRONMENT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "theta.safetensors").exists()
    if step < 40:
      assert metrics.read(folder / "metrics.jsonl")[-1]["step"] == step
    # A copy, because reading may clean up what the run itself must bear.
    copy = shutil.copytree(folder / "checkpoints", tmp_path / str(step))
    with checkpoint.Checkpointer(copy, 2) as checkpoints:
      state = checkpoints.restore_latest(like)
    # An asynchronous write may be lost with the process, never two.
    assert state.step in (saved, saved - 2)
  restored = []
  restore = checkpoint.Checkpointer.restore_latest
  monkeypatch.setattr(
      checkpoint.Checkpointer, "restore_latest",
      lambda *args: restored.append(restore(*args)) or restored[-1])
  train.meta_train(tiny_config.get_config(), str(folder))
  assert restored[0].step == 40  # went on, and did not begin again
  for name in ("theta.safetensors", "config.json"):
    assert (folder / name).read_bytes() == (finished / name).read_bytes()
  assert tiny_run.rows(folder) == tiny_run.rows(finished)


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
    ("parametrization", "nope", "Unknown name 'nope'.*available: .*mup"),
    ("tasks.bowl.name", "nope", "Unknown name 'nope'.*available: auto"),
    ("estimator.name", "nope", "Unknown name 'nope'.*available: full_back"),
    ("theta_opt.make", "adam", "'adam' is not of the form package.module:make"),
    ("theta_opt.make", "optax:nope", "'optax:nope' cannot be imported.*nope"),
    ("theta_opt.make", "optax:sgd", "does not take the settings.*num_steps"),
    ("theta_opt.make", "tiny_config:number", "must return an optax.*got 40"),
    ("optimizer.nope", 1, "its settings are learning_rate, b1, b2"),
    ("estimator.nope", 1, "its settings are std, trunc"),
    ("tasks.bowl.nope", 1, "does not take the settings.*nope"),
    ("tasks.bowl.weight", 0.0, "bowl.weight must be positive"),
    ("tasks.bowl.num_steps", 9, "bowl.num_steps means nothing"),
    ("tasks.bowl.augment", {"levle": 1}, "augment does not take"),
    ("tasks.bowl.normalizer", "log", "for tasks with a loss of chance"),
    ("tasks.digits.normalizer", "lgo", "Unknown normalizer 'lgo'"),
    ("evaluation.every", 3, "must be a multiple of log_every"),
    ("evaluation", {"every": 2, "tasks": {}}, "evaluation.tasks is empty"),
    ("mapping", "nope", "available: shard_map, pmap"),
    ("devices", -1, "devices must not be negative"),
    ("max_minutes", -1.0, "max_minutes must not be negative"),
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
  config.unlock()
  if key == "evaluation.every":
    config.log_every = config.checkpoint_every = 2
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
  command = "meta_train.train", f"--config={tiny_config.__file__}"
  other, missing = forked.run([
      (*command, f"--workdir={finished}", "--config.seed=1"),
      (*command, f"--workdir={tmp_path / 'x'}", "--data_dir=nowhere",
       "--config.tasks.digits.dataset=mnist")], tmp_path)
  for done, message in ((other, "another config (seed: 0 -> 1)"),
                        (missing, "FileNotFoundError")):
    assert done.returncode != 0
    assert message in done.stderr.strip().splitlines()[-1]


def test_other_software_is_noted(tmp_path, monkeypatch, capsys):
  config = tiny_config.get_config()
  path = tmp_path / "config.json"
  note = lambda: run_record.note(config, path, 1, {})
  first = note()
  assert note() == first
  assert capsys.readouterr().err == ""
  monkeypatch.setattr(
      run_record, "software", lambda devices: dict(first[0], jax="9"))
  assert note() == [
      *first, dict(first[0], jax="9")]
  assert "resuming with other software (jax)" in capsys.readouterr().err


def test_a_meta_loss_that_is_not_finite_stops_the_run(monkeypatch, tmp_path):
  make = tasks.families.quadratic.make

  def broken(parametrization, **settings):
    task = make(parametrization, **settings)
    return task._replace(
        loss=lambda params, key, batch: (params["p"][0] * np.inf, {}))

  monkeypatch.setattr(tasks.families.quadratic, "make", broken)
  with pytest.raises(FloatingPointError, match="step 1 .*'bowl/meta_loss'"):
    train.meta_train(tiny_config.get_config(), str(tmp_path))
  assert not (tmp_path / "theta.safetensors").exists()


def test_progress_where_stderr_is_no_terminal(tmp_path, monkeypatch, capsys):
  """On a clock of 1,000 s for the first step, and of 1 s for each other.

  The first estimate leaves out compilation, which is in the first step.
  """
  now, make = [0.0], build.build
  monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
  monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # it has another clock

  def slow(config, data_dir):
    program = make(config, data_dir)

    def step(state, data):
      now[0] += 1 if int(state.step) else 1000
      return program.step(state, data)
    return program._replace(step=step)

  monkeypatch.setattr(build, "build", slow)
  config = tiny_config.get_config()
  config.checkpoint_every = 40
  train.meta_train(config, str(tmp_path))
  compiling, first, *others = capsys.readouterr().err.strip().split("\r")
  assert "compiling" in compiling and "11/40 [00:10<00:26" in first
  assert len(others) <= 4  # one line each 10 s, and the last


def test_sigterm_and_minutes(finished, tmp_path, monkeypatch):
  """SIGTERM and max_minutes save a state; a resumed run has the same bits."""
  write = metrics.Writer.write

  def terminated(self, step, values):
    write(self, step, values)
    if step == 7:
      os.kill(os.getpid(), signal.SIGTERM)

  handler = signal.getsignal(signal.SIGTERM)
  with monkeypatch.context() as patch:
    patch.setattr(metrics.Writer, "write", terminated)
    with pytest.raises(train.Stopped, match="after 7 of 40 .*SIGTERM"):
      train.meta_train(tiny_config.get_config(), str(tmp_path))
  assert signal.getsignal(signal.SIGTERM) == handler
  assert sorted(os.listdir(tmp_path / "checkpoints"))[-1] == "7"
  config = tiny_config.get_config()
  config.max_minutes = 1e-9
  for step in (8, 9):
    with pytest.raises(train.Stopped, match=f"after {step} of 40 .*max_min"):
      train.meta_train(config, str(tmp_path))
  train.meta_train(tiny_config.get_config(), str(tmp_path))
  assert tiny_run.same_result(tmp_path, finished)


def test_exit_status_when_stopped(tmp_path):
  done = tiny_run.run(tmp_path, "--config.max_minutes=1e-9")
  assert done.returncode == 0
  assert "Stopped after 1 of 40 outer steps (max_minutes)" in done.stdout


def test_evaluation_keeps_the_best(finished, tmp_path):
  config = tiny_config.get_config()
  config.evaluation.update(every=10, num_steps=3, seeds=2)
  config.evaluation.tasks = {"other": config.tasks["digits"].to_dict()}
  train.meta_train(config, str(tmp_path))
  losses = {row["step"]: row["evaluation"] for row in tiny_run.rows(tmp_path)
            if "evaluation" in row}
  assert list(losses) == [0, 10, 20, 30, 40] and len(set(losses.values())) == 5
  best = mulo.read(tmp_path / "best.safetensors")
  lowest = min(losses.values())
  assert best.record["steps"] == min(losses, key=losses.get)
  assert best.record["evaluation"]["loss"]["evaluation"] == lowest
  config.evaluation.num_steps = 4
  with pytest.raises(ValueError, match="other settings of config.evaluation"):
    train.meta_train(config, str(tmp_path))
  config.evaluation.num_steps = 3
  # Evaluations do not change theta.
  name = "theta.safetensors"
  assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
  evaluate = build.evaluator(config, None)
  assert evaluate(best.theta)["evaluation"] == pytest.approx(lowest, rel=1e-4)
