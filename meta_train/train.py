"""Meta-trains an optimizer; run again, it goes on where it was.

python -m meta_train.train --config=meta_train/configs/quickstart.py \
    --workdir=runs/q [--config.num_steps=100 --config.max_minutes=10 ...]

Writes to the workdir: config.json, metrics.jsonl, checkpoints/, with
config.evaluation also best.safetensors, and at the end theta.safetensors, which
`mulo.load` reads.

On several hosts, start it on each with --coordinator=address:port,
--num_processes and --process_id, or with --cluster where these can be found out
(Cloud TPU, Slurm). Only process 0 writes.
"""

import contextlib
import json
import pathlib
import signal
import sys
import time
from typing import Any, Callable

from absl import app
from absl import flags
from absl import logging
import jax
import ml_collections
from ml_collections import config_flags
import numpy as np
import tqdm

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from meta_train import base
from meta_train import build
from meta_train import selection
from meta_train.devices import parallel
from meta_train.workdir import checkpoint
from meta_train.workdir import metrics as metrics_lib
from meta_train.workdir import run_record

PREEMPTED = 128 + signal.SIGTERM  # exit status


class Stopped(Exception):
  """Meta-training ended before its last step; all is saved."""

  def __init__(self, reason: str, step: int, num_steps: int):
    super().__init__(
        f"Stopped after {step} of {num_steps} outer steps ({reason}). Run the "
        "same command to go on.")
    self.reason = reason


class Clock:
  """Says when to stop: at SIGTERM, or before the minutes are over.

  A context manager, in which SIGTERM does no more than set `terminated`.
  """

  def __init__(self, max_minutes: float):
    self._limit = 60 * max_minutes
    self._start = time.monotonic()
    self._last: float | None = None
    self._longest = 0.0  # time between two calls
    self.terminated = False

  def reason(self) -> str | None:
    """Why to stop now; None to go on. Called at regular intervals.

    Of several processes, all get the same answer.
    """
    now = time.monotonic()
    if self._last is not None:  # what is before the first call is compilation
      self._longest = max(self._longest, now - self._last)
    self._last = now
    over = bool(self._limit) and (
        now + self._longest - self._start > self._limit)
    if parallel.anywhere(self.terminated):
      return "SIGTERM"
    return "max_minutes" if parallel.anywhere(over) else None

  def __enter__(self):
    def terminate(number, unused_frame):
      self.terminated = True
      signal.signal(number, self._before)  # the next one is not asked twice
    try:
      self._before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread
      self._before = None
    return self

  def __exit__(self, *exception):
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)


def check_finite(rows: list[dict], first_step: int) -> None:
  """Raises FloatingPointError at the first metric that is not finite."""
  for i, row in enumerate(rows):
    bad = {name: float(x) for name, x in row.items() if not np.isfinite(x)}
    if bad:
      raise FloatingPointError(
          f"Outer step {first_step + i} gave {bad}. Set config.estimator."
          "drop_nonfinite to leave copies with such a meta-loss out (it is of "
          "no use where all of a task's are), or lower theta_opt."
          "learning_rate; with another --workdir, for that is another run.")


def artifact(config, theta: Any, software: list[dict], step: int,
             evaluation: dict | None = None) -> artifact_lib.Artifact:
  """What is written of a theta, host arrays."""
  result = run_record.result_config(config)
  found = {
      "config": result, "software": software, "seed": config.seed,
      "steps": step, "tasks": result["tasks"],
      "horizon": [config.estimator.shortest, config.estimator.longest]}
  if evaluation is not None:
    found["evaluation"] = {
        "loss": evaluation, "config": config.evaluation.to_dict()}
  return artifact_lib.Artifact(
      config.optimizer.name, optimizers.all_settings(
          config.optimizer.name,
          **build.settings_of(config.optimizer.to_dict())),
      config.parametrization, theta, found)


def meta_train(config: ml_collections.ConfigDict, workdir: str,
               data_dir: str | None = None, tensorboard: bool = False
               ) -> pathlib.Path:
  """Meta-trains to the end of the config, from the last checkpoint if any.

  Args:
    config: see meta_train/configs.
    workdir: folder of the run; made if missing.
    data_dir: see `tasks.data.images.image_data`.
    tensorboard: write metrics for TensorBoard, too (needs tensorboardX).

  Returns:
    Path of theta.safetensors.

  Raises:
    ValueError: a config that makes no sense or is not that of the workdir.
    FloatingPointError: a meta-loss was not finite.
    OSError: the workdir cannot be written, or no checkpoint can be read.
    Stopped: by SIGTERM or at config.max_minutes.
  """
  clock = Clock(config.max_minutes)
  folder = pathlib.Path(workdir)
  result = folder / "theta.safetensors"
  build.check(config)
  with _together():
    run_record.compare_config(config, folder / "config.json")
    _compare_evaluation(config, folder / "best.safetensors")
  if parallel.anywhere(result.exists()):
    if result.exists():
      artifact_lib.read(result)
    print(f"{folder} is finished: {result}", flush=True)
    return result
  program = build.build(config, data_dir)
  first = jax.process_index() == 0
  like = jax.eval_shape(program.init)
  with contextlib.ExitStack() as stack:
    stack.enter_context(clock)
    saved = restored = evaluator = None
    used: list[dict] = []
    with _together():
      if first:
        if config.evaluation.every:
          evaluator = selection.Evaluator(config, data_dir)
        folder.mkdir(parents=True, exist_ok=True)
        used = run_record.note_software(
            config, folder / "config.json", program.devices.size)
        saved = stack.enter_context(checkpoint.Checkpointer(
            folder / "checkpoints", config.keep_checkpoints))
        restored = saved.restore_latest(like)
    state = _begin(program, like, restored)
    writer = stack.enter_context(metrics_lib.Writer(
        folder / "metrics.jsonl" if first else None, int(state.step),
        folder / "tensorboard" if tensorboard else None))
    select = None
    if evaluator is not None:
      select = _selector(config, evaluator, used, writer, folder)
    state = _loop(config, program, state, saved, writer, clock, select)
  if first:
    artifact_lib.write(result, artifact(
        config, state.theta, used, config.num_steps))
    print(f"{writer.summary(result)}\n"
          f"sha256 of theta: {artifact_lib.sha256(state.theta)}", flush=True)
  return result


@contextlib.contextmanager
def _together():
  """What fails on one process fails on all, which else would wait for it."""
  error = None
  try:
    yield
  except Exception as e:  # pylint: disable=broad-except
    error = e
  if parallel.anywhere(error is not None):
    raise error or OSError("Another process failed; see what it says.")


def _compare_evaluation(config, path: pathlib.Path) -> None:
  """Raises ValueError if the best theta so far was found by other tasks."""
  if not config.evaluation.every or not path.exists():
    return
  old = artifact_lib.read(path).record["evaluation"]["config"]
  now = json.loads(json.dumps(config.evaluation.to_dict()))
  if dict(old, every=0) != dict(now, every=0):
    raise ValueError(
        f"{path} was chosen with other settings of config.evaluation; use "
        "those, or move it away.")


def _begin(program: build.Program, like: base.MetaState,
           restored: base.MetaState | None) -> base.MetaState:
  """The state to go on from; process 0's if there are several."""
  if jax.process_count() > 1:
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    found = parallel.from_first(np.array(restored is not None))
    restored = zeros if restored is None else restored
    restored = parallel.from_first(restored) if found else None
  if restored is None:
    return program.init()
  return parallel.place(restored, program.devices)


def _selector(config, evaluator: Callable[[Any], dict], used: list[dict],
              writer: metrics_lib.Writer, folder: pathlib.Path
              ) -> Callable[[int, Any], dict[str, float]]:
  """A function that evaluates theta, and keeps the best one so far."""
  def select(step, theta):
    found = evaluator(theta)
    if found["evaluation"] < writer.lowest("evaluation"):
      artifact_lib.write(
          folder / "best.safetensors", artifact(
              config, theta, used, step, found))
    return found
  return select


def _loop(config, program: build.Program, state: base.MetaState,
          saved: checkpoint.Checkpointer | None, writer: metrics_lib.Writer,
          clock: Clock, select) -> base.MetaState:
  """Outer steps until config.num_steps; returns the last state, on the host."""
  first, written = int(state.step), time.perf_counter()
  if select is not None and not first:
    writer.write(0, select(0, parallel.fetch(state.theta)))
  waiting, began = [], time.perf_counter()
  with tqdm.tqdm(
      total=config.num_steps, initial=first, desc="meta-training", unit="step",
      disable=saved is None, smoothing=0.3,
      mininterval=0.5 if sys.stderr.isatty() else 10) as bar:
    for step, data in enumerate(program.data(first, config.num_steps),
                                first + 1):
      state, metrics = program.step(state, data)
      waiting.append(metrics)
      last = step == config.num_steps
      if step % config.log_every and not last:
        continue
      rows = jax.device_get(waiting)
      waiting = []
      check_finite(rows, step - len(rows) + 1)
      mean = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
      seconds, began = time.perf_counter() - began, time.perf_counter()
      mean["inner_steps_per_second"] = (
          mean["inner_steps"] * len(rows) / seconds)
      if config.evaluation.every and (
          step % config.evaluation.every == 0 or last):
        if select is not None:
          mean |= select(step, parallel.fetch(state.theta))
        began = time.perf_counter()  # its time is not that of outer steps
      mean["seconds"] = time.perf_counter() - written
      written += mean["seconds"]
      writer.write(step, mean)
      bar.update(len(rows))
      bar.set_postfix_str(
          f"meta-loss {mean['meta_loss']:.4f}, "
          f"{mean['inner_steps_per_second']:,.0f} inner steps/s")
      reason = None if last else clock.reason()
      if reason or step % config.checkpoint_every == 0:
        # On all processes, which fetch from each other.
        host_state = parallel.fetch(state)
        if saved is not None:
          saved.save(host_state)
      if reason:
        raise Stopped(reason, step, config.num_steps)
  return parallel.fetch(state)


def define_flags() -> None:
  """Defines the flags; not at import, where they would be everyone's."""
  config_flags.DEFINE_config_file(
      "config", None, "Configuration.", lock_config=True)
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.DEFINE_string(
      "data_dir", None, "Folder with data sets; default: MULO_DATA_DIR.")
  flags.DEFINE_bool("tensorboard", False, "Write metrics for TensorBoard, too.")
  flags.DEFINE_string("coordinator", None, "address:port of process 0.")
  flags.DEFINE_integer("num_processes", None, "Processes of this run.")
  flags.DEFINE_integer("process_id", None, "Number of this process.")
  flags.DEFINE_bool("cluster", False, "Several processes; find out the rest.")
  flags.mark_flags_as_required(["config", "workdir"])


def connect(found) -> None:
  """Sets up devices and processes as flags and config say."""
  logging.set_verbosity(logging.WARNING)
  parallel.set_cpu_devices(found.config.devices)
  given = (found.coordinator, found.num_processes, found.process_id)
  if found.cluster or any(x is not None for x in given):
    if not found.cluster and any(x is None for x in given):
      raise ValueError("Several processes need all of --coordinator, "
                       f"--num_processes and --process_id, got {given}.")
    parallel.connect(*given)


def main(argv):
  """Runs `meta_train` on the flags."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  found = flags.FLAGS
  try:
    connect(found)
    meta_train(found.config, found.workdir, found.data_dir, found.tensorboard)
  except Stopped as e:
    print(e, flush=True)
    sys.exit(PREEMPTED if e.reason == "SIGTERM" else 0)
  except (ValueError, FloatingPointError, OSError, ImportError) as e:
    sys.exit(f"{type(e).__name__}: {e}")


if __name__ == "__main__":
  define_flags()
  app.run(main)
