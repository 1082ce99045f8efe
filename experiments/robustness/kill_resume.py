"""Whether meta-training loses anything when it is killed, again and again.

python -m experiments.robustness.kill_resume --workdir=runs/kill_resume [--kills=20] \
    [--seed=0] [--estimators=pes,truncated_backprop]

For each estimator, meta-trains twice without interruption, then in further
folders with SIGKILL at random moments, start-up included, running the same
command again until it is finished. A folder that is finished before its
estimator has had its share of the kills is followed by another one. Each
theta.safetensors must have the bytes of the first. Takes six to eight minutes
on two cores.

Prints a table, one row per folder, and writes results.json to the workdir;
runs/ there, which holds the folders and what the runs printed, begins empty.
Exits with status 1 if any bytes differ.

This file is also the config of these runs, given an estimator:
--config=experiments/robustness/kill_resume.py:pes.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import Callable, Iterator, NamedTuple

from absl import app
from absl import flags
import ml_collections
import pandas as pd
import tqdm

from meta_train import estimators
from meta_train.configs import quickstart
from meta_train.workdir import metrics

FLAGS = flags.FLAGS

ROOT = pathlib.Path(__file__).resolve().parents[1]
TIMEOUT = 300.0  # seconds after which any run is killed, and counts as failed


class Kill(NamedTuple):
  """A SIGKILL that hit a process which had not written its result yet.

  Attributes:
    seconds: from the start of the process.
    step: last outer step in metrics.jsonl, 0 if there is none.
    starting: the process had logged no outer step yet, `step` is of an earlier
      one.
  """

  seconds: float
  step: int
  starting: bool


class Result(NamedTuple):
  """A folder with a finished run.

  Attributes:
    estimator: its name.
    folder: within the workdir.
    kills: in their order.
    equal: theta.safetensors has the bytes of the estimator's first run.
  """

  estimator: str
  folder: str
  kills: list[Kill]
  equal: bool


def get_config(estimator: str = "pes") -> ml_collections.ConfigDict:
  """A small network; some seconds of outer steps, with many checkpoints.

  Args:
    estimator: its name; settings that not all estimators take are left to
      their defaults.
  """
  config = quickstart.get_config()
  config.unlock()
  config.num_steps = 500
  # Backpropagation takes several times as long, for a step and to compile; its
  # programs compile faster with products of matrices.
  config.copies = 4 if estimator.endswith("backprop") else 16
  config.optimizer.update(hidden=4, lowering="blocked")
  config.tasks = {"digits": {"name": "mlp", "dataset": "digits", "width": 16,
                             "depth": 1, "batch_size": 64}}
  config.estimator = {
      "name": estimator, "truncation": 10, "shortest": 20,
      # Of some estimators, a step is a whole episode.
      "longest": 20 if estimator.startswith("full_") else 500}
  config.theta_opt.update(learning_rate=3e-4, final_learning_rate=3e-5)
  config.log_every = 2
  config.checkpoint_every = 10
  return config.lock()


def environment(cache: pathlib.Path) -> dict[str, str]:
  """That of the runs: compiled programs are kept, and git is left alone.

  A git command killed with its run could leave a lock in the repository, and a
  commit made in the meantime would be other software in the artifact's record.
  """
  kept = {"JAX_COMPILATION_CACHE_DIR": str(cache),
          "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
  return {**kept, **os.environ, "GIT_DIR": os.devnull}


def attempt(estimator: str, folder: pathlib.Path, env: dict[str, str],
            seconds: float | None = None) -> Kill | None:
  """Runs the command of meta-training once.

  Args:
    estimator: its name.
    folder: workdir of the run; what it prints is appended to `<folder>.log`.
    env: its environment variables.
    seconds: when to kill the process group; None to let it finish.

  Returns:
    The kill, or None if there was nothing left to lose: the run has ended or
    at least written theta.safetensors.

  Raises:
    RuntimeError: the run failed or took longer than TIMEOUT.
  """
  rows = folder / "metrics.jsonl"
  before, began = metrics.read(rows), time.monotonic()
  log_path = folder.with_suffix(".log")
  with log_path.open("a") as log:
    process = subprocess.Popen(
        [sys.executable, "-m", "meta_train.train",
         f"--config={pathlib.Path(__file__).resolve()}:{estimator}",
         f"--workdir={folder}"], cwd=ROOT, env=env, stdout=log, stderr=log,
        stdin=subprocess.DEVNULL, start_new_session=True)
    try:
      process.wait(TIMEOUT if seconds is None else min(seconds, TIMEOUT))
    except subprocess.TimeoutExpired:
      pass  # killed below, as it is when this process is interrupted
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
      status = process.wait()
  passed = time.monotonic() - began
  killed = (
      status == -signal.SIGKILL and seconds is not None and passed < TIMEOUT)
  if killed and not (folder / "theta.safetensors").exists():
    last = metrics.read(rows)[-1:]
    # No two rows are equal, they include speed.
    return Kill(passed, last[0]["step"] if last else 0,
                not last or last[0] in before)
  if status and not killed:
    raise RuntimeError(
        f"Meta-training in {folder} ended with status {status} after "
        f"{passed:.0f} s. The end of {log_path}:\n"
        f"{log_path.read_text()[-2000:]}")
  return None


def moments(rng: random.Random, parts: int) -> Iterator[float]:
  """Endless random numbers in [0, 1), evenly spread.

  Of each `parts` numbers, one is in each of as many equal parts.
  """
  while True:
    for i in rng.sample(range(parts), parts):
      yield (i + rng.random()) / parts


def killed_runs(estimator: str, folder: pathlib.Path, num_kills: int,
                env: dict[str, str], rng: random.Random,
                on_kill: Callable[[Kill], object]) -> Iterator[Result]:
  """Runs of one estimator: two that nothing interrupts, then killed ones.

  Args:
    estimator: its name.
    folder: where the folders of the runs are made.
    num_kills: in all of them together.
    env: environment variables of the runs.
    rng: chooses the moments, uniform over the duration of the second run (the
      first one compiles), start-up included.
    on_kill: called with each kill.

  Yields:
    One result per folder.

  Raises:
    RuntimeError: see `attempt`.
  """
  folder.mkdir(parents=True)
  duration, done, count, expected = 0.0, 0, 0, b""
  when = moments(rng, max(num_kills, 1))
  while count < 2 or done < num_kills:
    run = folder / str(count)
    kills: list[Kill] = []
    began = time.monotonic()
    while not (run / "theta.safetensors").exists():
      interrupt = count >= 2 and done < num_kills
      kill = attempt(estimator, run, env,
                     duration * next(when) if interrupt else None)
      if kill is not None:
        kills.append(kill)
        done += 1
        on_kill(kill)
    if count < 2:
      duration = time.monotonic() - began
    found = (run / "theta.safetensors").read_bytes()
    expected = expected or found
    yield Result(estimator, f"{folder.name}/{run.name}", kills,
                 found == expected)
    count += 1


def table(results: list[Result]) -> str:
  """A markdown table, one row per folder."""
  text = lambda kill: f"{kill.step}*" if kill.starting else str(kill.step)
  return pd.DataFrame([{
      "estimator": r.estimator, "folder": r.folder, "kills": len(r.kills),
      "at outer step": ", ".join(map(text, r.kills)),
      "bytes equal": "yes" if r.equal else "no"} for r in results
  ]).to_markdown(index=False, disable_numparse=True)


def summary(results: list[Result]) -> str:
  """The table, what its marks mean, and the verdict."""
  kills = [kill for r in results for kill in r.kills]
  different = [r.folder for r in results if not r.equal]
  return "\n".join([
      table(results), "",
      "* during start-up: the last step of the process before, 0 if none",
      f"{len(kills)} kills, {sum(k.starting for k in kills)} of them during "
      f"start-up, in {sum(bool(r.kills) for r in results)} runs. Bytes differ "
      f"in: {', '.join(different) or 'none'}."])


def write(path: pathlib.Path, results: list[Result]) -> None:
  """Writes results.json."""
  path.write_text(json.dumps(
      [{**r._asdict(), "kills": [kill._asdict() for kill in r.kills]}
       for r in results], indent=2))


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  unknown = set(FLAGS.estimators) - set(estimators.names())
  if unknown or not FLAGS.estimators:
    raise app.UsageError(
        f"Unknown estimators {sorted(unknown)}; available: "
        f"{', '.join(estimators.names())}.")
  workdir = pathlib.Path(FLAGS.workdir).resolve()
  workdir.mkdir(parents=True, exist_ok=True)
  shutil.rmtree(workdir / "runs", ignore_errors=True)
  env, rng = environment(workdir / "cache"), random.Random(FLAGS.seed)
  results: list[Result] = []
  with tqdm.tqdm(total=FLAGS.kills, desc="killing", unit="kill") as bar:
    for i, name in enumerate(FLAGS.estimators):
      bar.set_postfix_str(name)
      share = len(range(i, FLAGS.kills, len(FLAGS.estimators)))
      try:
        for result in killed_runs(name, workdir / "runs" / name, share, env,
                                  rng, lambda kill: bar.update()):
          results.append(result)
          write(workdir / "results.json", results)
      except RuntimeError as e:
        sys.exit(str(e))
  print(summary(results))
  sys.exit(0 if all(r.equal for r in results) else 1)


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)
  flags.DEFINE_integer("kills", 20, "In all estimators' runs together.",
                       lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Of the moments of the kills.")
  flags.DEFINE_list(
      "estimators", ["pes", "noise_reuse_es", "truncated_backprop"],
      "Names of files in meta_train/estimators.")
  app.run(main)
