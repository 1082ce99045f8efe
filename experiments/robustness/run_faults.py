"""Faults of meta-training in one process: kills, signals, disks, damaged files.

This file is also the config of the runs.
"""

import contextlib
import functools
import io
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import Callable, Iterator, NamedTuple

import ml_collections
import numpy as np

from meta_train import build
from meta_train import train
from meta_train.configs import quickstart
from meta_train.workdir import claim
from meta_train.workdir import metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
WAIT = 300.0  # seconds after which a process counts as hanging
SURVIVED, REFUSED = "survived", "refused in one line"


class Fault(NamedTuple):
  """A fault and what comes of it.

  Attributes:
    kind: group of the fault in the table.
    name: what is injected.
    inject: `(empty folder) -> outcome`: SURVIVED if the result is right,
      REFUSED, or a text that says what went wrong.
  """

  kind: str
  name: str
  inject: Callable[[pathlib.Path], str]


def get_config() -> ml_collections.ConfigDict:
  """Return the config of a run of some seconds, on MNIST's format and a bowl.
  """
  config = quickstart.get_config()
  config.unlock()
  config.update(num_steps=60, copies=2, devices=1, log_every=2,
                checkpoint_every=4)
  config.optimizer = {"name": "hyperparam_adam"}
  config.tasks = {
      "images": {"name": "mlp", "dataset": "mnist", "width": 4, "depth": 1,
                 "batch_size": 4},
      "bowl": {"name": "quadratic", "dim": 2}}
  config.estimator.update(truncation=2, shortest=2, longest=6)
  config.theta_opt.warmup = 2
  return config.lock()


def write_data(folder: pathlib.Path, seed: int, count: int = 300) -> None:
  """Write a data set in MNIST's file format.

  Args:
    folder: folder of data sets.
    seed: of the random images.
    count: number of images of each part.
  """
  (folder / "mnist").mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  for split in ("train", "t10k"):
    for kind, shape, top in (("images-idx3", (count, 28, 28), 256),
                             ("labels-idx1", (count,), 10)):
      head = np.array([0x800 + len(shape), *shape], ">i4").tobytes()
      (folder / "mnist" / f"{split}-{kind}-ubyte").write_bytes(
          head + rng.integers(0, top, shape, "u1").tobytes())


def environment(cache: pathlib.Path) -> dict[str, str]:
  """Return the variables of the runs; compilation is short, and cached."""
  return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache),
          "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
          "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "GIT_DIR": os.devnull}


class Ended(NamedTuple):
  """How a process ended: exit status, and its lines on both outputs."""

  status: int
  out: list[str]
  errors: list[str]

  @property
  def outcome(self) -> str:
    """REFUSED, or what is wrong with the end of a process that must refuse."""
    if not self.status:
      return "accepted"
    lines = [line for line in self.errors if not line.startswith("Warning: ")]
    if self.status < 0 and not lines:
      return f"died with status {self.status}, without a word"
    return REFUSED if len(lines) == 1 else (
        f"{len(lines)} lines: {' | '.join(lines)[:300]}")


class Runs:
  """Starts runs of one config, all with the same data and cache."""

  def __init__(self, folder: pathlib.Path):
    """Write the data.

    Args:
      folder: for data and compiled programs.
    """
    self.folder, self.data = folder, folder / "data"
    self.env = environment(folder / "cache")
    write_data(self.data, 0)

  def start(self, workdir: pathlib.Path, *flags: str, **settings
            ) -> subprocess.Popen:
    """Start a process.

    Args:
      workdir: workdir of the run.
      *flags: more flags.
      **settings: arguments of Popen.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "meta_train.train", f"--config={__file__}",
         f"--workdir={workdir}", f"--data_dir={self.data}", *flags],
        **{"cwd": ROOT, "env": self.env, "stdin": subprocess.DEVNULL,
           "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
           **settings})

  def run(self, workdir: pathlib.Path, *flags: str, **settings) -> Ended:
    """Run a process to its end; see `start`."""
    return end(self.start(workdir, *flags, **settings))

  @functools.cached_property
  def theta(self) -> bytes:
    """theta.safetensors of a run without faults."""
    self.run(self.folder / "reference")
    return (self.folder / "reference" / "theta.safetensors").read_bytes()

  def finish(self, workdir: pathlib.Path) -> str:
    """Run to the end and compare; SURVIVED or what went wrong."""
    ended = self.run(workdir)
    path = workdir / "theta.safetensors"
    if ended.status or not path.exists():
      return f"status {ended.status}: {' | '.join(ended.errors)[-300:]}"
    return SURVIVED if path.read_bytes() == self.theta else "another theta"


def end(process: subprocess.Popen, seconds: float = WAIT) -> Ended:
  """Wait for the end of a process, and kill it after some time."""
  try:
    out, errors = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.kill()
    out, errors = process.communicate()
    errors += f"\nno end within {seconds:.0f} s\nkilled"
  # Progress bars end with a carriage return.
  lines = [line for line in re.split(r"[\r\n]+", errors)
           if line.strip() and not line.startswith("meta-training:")]
  return Ended(process.returncode, out.splitlines(), lines)


def wait_for_rows(process: subprocess.Popen, workdir: pathlib.Path, step: int
                  ) -> bool:
  """Wait until an outer step is logged; False if the process ended before."""
  deadline = time.monotonic() + WAIT
  while process.poll() is None and time.monotonic() < deadline:
    rows = metrics.read(workdir / "metrics.jsonl")
    if rows and rows[-1]["step"] >= step:
      return True
    time.sleep(0.02)
  return False


def stopped(runs: Runs, number: int, step: int, folder: pathlib.Path) -> str:
  """Send a signal after some steps; the run must go on where it was."""
  process = runs.start(folder / "run")
  wait_for_rows(process, folder / "run", step)
  process.send_signal(number)
  ended = end(process)
  if number != signal.SIGKILL:
    said = [line for line in ended.out if line.startswith("Stopped after")]
    if ended.status != 128 + number or len(said) != 1 or ended.errors:
      return (f"status {ended.status}, {len(ended.errors)} lines: "
              f"{' | '.join(ended.errors)[:300]}")
  return runs.finish(folder / "run")


def limited(runs: Runs, size: int, folder: pathlib.Path) -> str:
  """Limit the size of files, as a full disk does; then run without limit."""
  env = {**runs.env, "JAX_ENABLE_COMPILATION_CACHE": "false"}
  ended = runs.run(folder / "run", env=env, preexec_fn=lambda: (
      resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))))
  if ended.outcome != REFUSED:
    return ended.outcome
  again = runs.finish(folder / "run")
  return REFUSED if again == SURVIVED else again


def locked(runs: Runs, folder: pathlib.Path) -> str:
  """Start a process in the workdir of another one."""
  (folder / "run").mkdir()
  with claim.hold(folder / "run" / "lock", "run"):
    ended = runs.run(folder / "run")
  if ended.outcome != REFUSED:
    return ended.outcome
  again = runs.finish(folder / "run")
  return REFUSED if again == SURVIVED else again


def other_data(runs: Runs, folder: pathlib.Path) -> str:
  """Go on with other data under the same name."""
  process = runs.start(folder / "run")
  wait_for_rows(process, folder / "run", 6)
  process.kill()
  end(process)
  write_data(folder / "data", 1)
  ended = runs.run(folder / "run", f"--data_dir={folder / 'data'}")
  if ended.outcome != REFUSED:
    return ended.outcome
  again = runs.finish(folder / "run")
  return REFUSED if again == SURVIVED else again


def _flip(path: pathlib.Path, rng: random.Random) -> None:
  data = bytearray(path.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(data)


def _cut(path: pathlib.Path, rng: random.Random) -> None:
  data = path.read_bytes()
  path.write_bytes(data[:rng.randrange(len(data))])


DAMAGE = {"flipped bit": _flip, "cut off": _cut,
          "missing": lambda path, rng: path.unlink(),
          "empty": lambda path, rng: path.write_bytes(b"")}


def in_process(runs: Runs, workdir: pathlib.Path) -> str:
  """Meta-train in this process; return the outcome."""
  printed = io.StringIO()
  try:
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(
        printed):
      path = train.meta_train(get_config(), str(workdir), str(runs.data))
  except train.ERRORS as e:
    return REFUSED if "\n" not in str(e) else f"more than a line: {e}"
  return SURVIVED if path.read_bytes() == (
      workdir.parent / "right.safetensors").read_bytes() else "another theta"


def damaged_checkpoint(runs: Runs, how: str, newest: bool, seed: int,
                       folder: pathlib.Path) -> str:
  """Damage a file of the newest checkpoint, or one of each checkpoint."""
  workdir = _finished(runs, folder)
  (workdir / "theta.safetensors").rename(folder / "right.safetensors")
  rng = random.Random(seed)
  steps = sorted((workdir / "checkpoints").iterdir(), key=lambda x: int(x.name))
  for step in steps[-1:] if newest else steps:
    files = sorted(x for x in step.rglob("*")
                   if x.is_file() and x.stat().st_size > 16)
    DAMAGE[how](rng.choice(files), rng)
  return in_process(runs, workdir)


def _finished(runs: Runs, folder: pathlib.Path) -> pathlib.Path:
  """Return a copy of a finished run of this process."""
  reference = runs.folder / "here"
  if not reference.exists():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(
        io.StringIO()):
      train.meta_train(get_config(), str(reference), str(runs.data))
  shutil.copytree(reference, folder / "run")
  return folder / "run"


def damaged_file(runs: Runs, name: str, how: str, seed: int,
                 folder: pathlib.Path) -> str:
  """Damage a file of a finished run, and run again."""
  workdir = _finished(runs, folder)
  shutil.copy(workdir / "theta.safetensors", folder / "right.safetensors")
  DAMAGE[how](workdir / name, random.Random(seed))
  return in_process(runs, workdir)


def gone(runs: Runs, keep_folder: bool, folder: pathlib.Path) -> str:
  """Take the checkpoints away."""
  workdir = _finished(runs, folder)
  (workdir / "theta.safetensors").rename(folder / "right.safetensors")
  shutil.rmtree(workdir / "checkpoints")
  if keep_folder:
    (workdir / "checkpoints").mkdir()
  return in_process(runs, workdir)


def damaged_data(runs: Runs, how: str, seed: int, folder: pathlib.Path) -> str:
  """Damage a file of the data before a run."""
  shutil.copytree(runs.data, folder / "data")
  rng = random.Random(seed)
  path = rng.choice(sorted((folder / "data" / "mnist").iterdir()))
  DAMAGE[how](path, rng)
  workdir = _finished(runs, folder)
  (workdir / "theta.safetensors").unlink()
  try:
    train.meta_train(get_config(), str(workdir), str(folder / "data"))
  except train.ERRORS as e:
    return REFUSED if "\n" not in str(e) else f"more than a line: {e}"
  return "accepted"


def bad_row(line: bytes, folder: pathlib.Path) -> str:
  """Put a line into metrics.jsonl that is not a row, and go on."""
  path = folder / "metrics.jsonl"
  rows = [{"step": step, "x": 0.5} for step in range(1, 6)]
  text = [json.dumps(row).encode() for row in rows]
  path.write_bytes(b"\n".join([*text[:3], line, *text[3:], b""]))
  with contextlib.redirect_stderr(io.StringIO()) as printed:
    with metrics.Writer(path, 4):
      pass
  if metrics.read(path) != rows[:4]:
    return f"rows are {metrics.read(path)}"
  lines = printed.getvalue().splitlines()
  return SURVIVED if len(lines) == 1 and str(path) in lines[0] else (
      f"{len(lines)} lines")


def nonsense(name: str, value: object, folder: pathlib.Path) -> str:
  """Set a number of the config to a value that nobody means."""
  del folder
  config = get_config()
  config.unlock()
  *sections, last = name.split(".")
  section = config
  for part in sections:
    section = section[part]
  with section.ignore_type():
    section[last] = value
  try:
    build.check(config)
  except ValueError as e:
    return REFUSED if last in str(e) and "\n" not in str(e) else str(e)
  return "accepted"


def numbers(config: ml_collections.ConfigDict, prefix: str = ""
            ) -> Iterator[str]:
  """Yield the names of all settings that are numbers."""
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from numbers(value, f"{prefix}{name}.")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
      yield prefix + name


def faults(runs: Runs, rng: random.Random) -> Iterator[Fault]:
  """Yield the faults of one process."""
  make = lambda kind, name, function, *args: Fault(
      kind, name, functools.partial(function, *args))
  for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"):
    for _ in range(8 if name == "SIGKILL" else 2):
      step = rng.randrange(1, 50)
      yield make("kills and signals", f"{name} after step {step}", stopped,
                 runs, getattr(signal, name), step)
  for size in (0, 1000, 3000):
    yield make("disks", f"files of at most {size} bytes", limited, runs, size)
  yield make("workdir", "second process", locked, runs)
  yield make("data", "other data", other_data, runs)
  for how in DAMAGE:
    for newest in (True, False):
      yield make("checkpoints", f"{how}, {'newest' if newest else 'all'}",
                 damaged_checkpoint, runs, how, newest, rng.random())
    if how != "flipped bit":  # other pixels are other data
      yield make("data", how, damaged_data, runs, how, rng.random())
    if how != "missing":
      for name in ("theta.safetensors", "config.json"):
        if (name, how) != ("config.json", "flipped bit"):
          yield make("workdir", f"{name} {how}", damaged_file, runs, name, how,
                     rng.random())
  for keep in (True, False):
    yield make("checkpoints", "all gone", gone, runs, keep)
  for line in (b"[1, 2]", b"3", b'{"a": 1}', b"\xff\xfe", b'{"step": 1', b"NaN",
               b'{"step": "x"}', b"\x00"):
    yield make("workdir", f"row of metrics {line!r}", bad_row, line)
  for value in (float("nan"), float("inf"), -float("inf"), -1, 2**63, "text"):
    for name in numbers(get_config()):
      if (name, value) != ("theta_opt.clip", 2**63):
        yield make("configs", f"{name}={value}", nonsense, name, value)
