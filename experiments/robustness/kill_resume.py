"""Test that meta-training loses nothing when it is killed again and again.

python -m experiments.robustness.kill_resume --workdir=runs/kill_resume \
    [--kills=20] [--seed=0] [--estimators=pes,truncated_backprop]

For each estimator, the command of meta-training runs twice without
interruption. In further folders it is killed by SIGKILL at random moments, also
during start-up, and started again until it is finished. New folders follow
until the estimator has had its number of kills. Each theta.safetensors must
have the same bytes as the first one. Takes six to eight minutes on two cores.

Prints a table with one row per folder and writes results.json to the workdir.
The folder runs/ in the workdir is emptied first; it holds the folders of the
runs and the output of the runs. The exit status is 1 if any bytes differ.

This file is also the config of the runs, with the estimator as its argument:
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

from absl import flags
import ml_collections
import pandas as pd

from experiments import command
from learned_opt import registry
from meta_train import estimators
from meta_train.configs import quickstart
from meta_train.workdir import metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 300.0  # seconds after which a run is killed and counts as failed


class Kill(NamedTuple):
  """A SIGKILL of a process that had not written its result yet.

  Attributes:
    seconds: time since the start of the process.
    step: last outer step in metrics.jsonl; 0 if there is none.
    starting: True if the process had not logged an outer step yet, so that
      `step` was logged by an earlier process.
  """

  seconds: float
  step: int
  starting: bool


class Result(NamedTuple):
  """A folder with a finished run.

  Attributes:
    estimator: name of the estimator.
    folder: path of the folder below runs/ in the workdir.
    kills: kills in the order of time.
    equal: True if theta.safetensors has the same bytes as in the first run of
      the estimator.
  """

  estimator: str
  folder: str
  kills: list[Kill]
  equal: bool


def get_config(estimator: str = "pes") -> ml_collections.ConfigDict:
  """Return the config of a run: a small network and many checkpoints.

  The outer steps take some seconds.

  Args:
    estimator: name of the estimator. Settings that only some estimators have
      keep their defaults.
  """
  config = quickstart.get_config()
  config.unlock()
  config.num_steps = 500
  # A step of backpropagation takes several times as long as a step of evolution
  # strategies, and so does compilation.
  config.copies = 4 if estimator.endswith("backprop") else 16
  config.optimizer.update(hidden=4, lowering="blocked")
  config.tasks = {"digits": {"name": "mlp", "dataset": "digits", "width": 16,
                             "depth": 1, "batch_size": 64}}
  config.estimator = {
      "name": estimator, "truncation": 10, "shortest": 20,
      # An outer step of full_es and full_backprop is a whole episode.
      "longest": 20 if estimator.startswith("full_") else 500}
  config.theta_opt.update(learning_rate=3e-4, final_learning_rate=3e-5)
  config.log_every = 2
  config.checkpoint_every = 10
  return config.lock()


def environment(cache: pathlib.Path) -> dict[str, str]:
  """Return the environment variables of the runs.

  Compiled programs are cached in the folder `cache`. Git is hidden from the
  runs, for two reasons. A git command that is killed with its run could leave a
  lock in the repository. A commit during this test would change the software in
  the record of the artifact, and so its bytes.
  """
  defaults = {"JAX_COMPILATION_CACHE_DIR": str(cache),
              "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
  return {**defaults, **os.environ, "GIT_DIR": os.devnull}


def attempt(estimator: str, folder: pathlib.Path, env: dict[str, str],
            seconds: float | None = None) -> Kill | None:
  """Run the command of meta-training once.

  Args:
    estimator: name of the estimator.
    folder: workdir of the run; its output is appended to `<folder>.log`.
    env: environment variables of the run.
    seconds: time after which the process group is killed; None: never.

  Returns:
    The kill, or None if a kill could not lose anything: the run has ended or
    has written theta.safetensors.

  Raises:
    RuntimeError: the run failed or took longer than TIMEOUT.
  """
  rows = folder / "metrics.jsonl"
  earlier_rows, began = metrics.read(rows), time.monotonic()
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
      pass  # `finally` kills the run, also when this process is interrupted
    finally:
      if process.poll() is None:
        # The run leads a session of its own, so its children die with it.
        os.killpg(process.pid, signal.SIGKILL)
      status = process.wait()
  passed = time.monotonic() - began
  killed = (
      status == -signal.SIGKILL and seconds is not None and passed < TIMEOUT)
  if killed and not (folder / "theta.safetensors").exists():
    last = metrics.read(rows)[-1:]
    # Rows contain the speed, so no two rows are equal.
    return Kill(passed, last[0]["step"] if last else 0,
                not last or last[0] in earlier_rows)
  if status and not killed:
    raise RuntimeError(
        f"Meta-training in {folder} ended with status {status} after "
        f"{passed:.0f} s. The end of {log_path}:\n"
        f"{log_path.read_text()[-2000:]}")
  return None


def moments(rng: random.Random, parts: int) -> Iterator[float]:
  """Yield random numbers in [0, 1) without end, evenly spread.

  Of `parts` numbers in a row, each falls into another one of `parts` intervals
  of equal length.
  """
  while True:
    for i in rng.sample(range(parts), parts):
      yield (i + rng.random()) / parts


def killed_runs(estimator: str, folder: pathlib.Path, num_kills: int,
                env: dict[str, str], rng: random.Random,
                on_kill: Callable[[Kill], object]) -> Iterator[Result]:
  """Run one estimator: two runs without interruption, then runs with kills.

  Args:
    estimator: name of the estimator.
    folder: folder for the folders of the runs.
    num_kills: number of kills in all runs together.
    env: environment variables of the runs.
    rng: chooses the moments of the kills. They are uniform over the duration
      of the second run, start-up included. (The first run compiles.)
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
    content = (run / "theta.safetensors").read_bytes()
    expected = expected or content
    yield Result(estimator, f"{folder.name}/{run.name}", kills,
                 content == expected)
    count += 1


def table(results: list[Result]) -> str:
  """Return a markdown table with one row per folder."""
  text = lambda kill: f"{kill.step}*" if kill.starting else str(kill.step)
  return pd.DataFrame([{
      "estimator": r.estimator, "folder": r.folder, "kills": len(r.kills),
      "at outer step": ", ".join(map(text, r.kills)),
      "bytes equal": "yes" if r.equal else "no"} for r in results
  ]).to_markdown(index=False, disable_numparse=True)


def summary(results: list[Result]) -> str:
  """Return the table, an explanation of its marks, and the verdict."""
  kills = [kill for r in results for kill in r.kills]
  different = [r.folder for r in results if not r.equal]
  return "\n".join([
      table(results), "",
      "* during start-up: last step of an earlier process, 0 if none",
      f"{len(kills)} kills, {sum(k.starting for k in kills)} of them during "
      f"start-up, in {sum(bool(r.kills) for r in results)} runs. Bytes differ "
      f"in: {', '.join(different) or 'none'}."])


def write(path: pathlib.Path, results: list[Result]) -> None:
  """Write results.json."""
  path.write_text(json.dumps(
      [{**r._asdict(), "kills": [kill._asdict() for kill in r.kills]}
       for r in results], indent=2))


def define_flags() -> None:
  """Define the flags."""
  command.define_workdir()
  flags.DEFINE_integer(
      "kills", 20, "Number of kills, in the runs of all estimators together.",
      lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Seed of the moments of the kills.")
  flags.DEFINE_list(
      "estimators", ["pes", "noise_reuse_es", "truncated_backprop"],
      "Names of files in meta_train/estimators, or package.module:make.")


def main(args: flags.FlagValues) -> int:
  """Run and kill all estimators; return 1 if any bytes differ, otherwise 0."""
  if not args.estimators:
    raise ValueError("--estimators is empty; available: "
                     f"{', '.join(estimators.names())}.")
  for name in args.estimators:
    registry.find(estimators.__name__, name)  # raises ValueError if unknown
  workdir = pathlib.Path(args.workdir).resolve()
  workdir.mkdir(parents=True, exist_ok=True)
  shutil.rmtree(workdir / "runs", ignore_errors=True)
  env, rng = environment(workdir / "cache"), random.Random(args.seed)
  results: list[Result] = []
  with command.progress(args.kills, "kill", "killing") as bar:
    for i, name in enumerate(args.estimators):
      bar.set_postfix_str(name)
      # Kills are dealt out to the estimators in turn.
      num_kills = len(range(i, args.kills, len(args.estimators)))
      try:
        for result in killed_runs(name, workdir / "runs" / name, num_kills, env,
                                  rng, lambda kill: bar.update()):
          results.append(result)
          write(workdir / "results.json", results)
      except RuntimeError as e:
        sys.exit(str(e))
  print(summary(results))
  return 0 if all(r.equal for r in results) else 1


if __name__ == "__main__":
  command.run(define_flags, main)
