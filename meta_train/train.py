"""Meta-train a learned optimizer. Run the same command again to continue.

python -m meta_train.train --config=meta_train/configs/quickstart.py \
    --workdir=runs/q [--config.num_steps=100 --config.max_minutes=10 ...]

Writes to the workdir: config.json, metrics.jsonl and checkpoints/; with
config.evaluation also best.safetensors; and at the end theta.safetensors, which
`mulo.load` reads.

On several hosts, start the command on each of them with
--coordinator=address:port, --num_processes and --process_id. On a Cloud TPU,
under Slurm or in a JobSet, --cluster finds out all three. Only process 0 writes
files. examples/launch/ has jobs for clusters.
"""

import contextlib
import json
import pathlib
import sys
import time
from typing import Any, Callable, NoReturn, Sequence

from absl import app
from absl import flags
from absl import logging
import jax
import ml_collections
import numpy as np
import tqdm

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from meta_train import base
from meta_train import build
from meta_train import config_flag
from meta_train import time_limit
from meta_train.devices import hosts
from meta_train.devices import parallel
from meta_train.workdir import files as files_lib
from meta_train.workdir import metrics as metrics_lib
from meta_train.workdir import run_record

# Errors that the user can repair. They end the command in one line; all other
# errors are bugs and keep their traceback.
ERRORS = (ValueError, OSError, ImportError, FloatingPointError, MemoryError)
# `(step, theta)` -> metrics of the evaluation.
SelectFn = Callable[[int, base.Theta], dict[str, float]]


class Stopped(Exception):
  """Meta-training stopped before its last step, after saving a checkpoint.

  Attributes:
    reason: see `time_limit.Clock.reason`.
  """

  def __init__(self, reason: str, step: int, num_steps: int):
    """Write the message.

    Args:
      reason: see above.
      step: outer steps taken.
      num_steps: outer steps of the whole run.
    """
    super().__init__(
        f"Stopped after {step} of {num_steps} outer steps ({reason}). Run the "
        "same command again to continue.")
    self.reason = reason


def artifact(config: ml_collections.ConfigDict, theta: base.Theta,
             software: list[dict[str, Any]], data: dict[str, str], step: int,
             evaluation: dict[str, float] | None = None
             ) -> artifact_lib.Artifact:
  """Return the artifact of a theta.

  Args:
    config: config of the run.
    theta: meta-parameters, host arrays.
    software: see `run_record.note`.
    data: {task: hash of its data}.
    step: outer steps taken.
    evaluation: losses that theta was chosen for, if it was.
  """
  result_config = run_record.result_config(config)
  record = {
      "config": result_config, "software": software, "data": data,
      "seed": config.seed, "steps": step, "tasks": result_config["tasks"],
      "horizon": [config.estimator.shortest, config.estimator.longest]}
  if evaluation is not None:
    # JSON has no NaN.
    losses = {name: x if np.isfinite(x) else None
              for name, x in evaluation.items()}
    record["evaluation"] = {
        "loss": losses, "config": config.evaluation.to_dict()}
  settings = optimizers.all_settings(
      config.optimizer.name, **build.settings_of(config.optimizer.to_dict()))
  return artifact_lib.Artifact(
      config.optimizer.name, settings, config.parametrization, theta, record)


def meta_train(config: ml_collections.ConfigDict, workdir: str,
               data_dir: str | None = None, tensorboard: bool = False
               ) -> pathlib.Path:
  """Meta-train to the last step, from the newest checkpoint if there is one.

  Args:
    config: see meta_train/configs.
    workdir: folder of the run; created if missing.
    data_dir: see `tasks.data.images.image_data`.
    tensorboard: also write metrics for TensorBoard (needs tensorboardX).

  Returns:
    Path of theta.safetensors.

  Raises:
    ValueError: the config makes no sense, the workdir holds a run with another
      config or other data, or other processes have others.
    FloatingPointError: a meta-loss was not finite.
    OSError: the workdir cannot be written or is in use, no checkpoint can be
      read, or another process does not answer.
    Stopped: a signal, or config.max_minutes is over.
  """
  clock = time_limit.Clock(config.max_minutes)
  folder = pathlib.Path(workdir)
  result = folder / "theta.safetensors"
  build.check(config)
  if config.start and not config.start_sha256:
    config = config.copy_and_resolve_references()
    config.start_sha256 = artifact_lib.sha256(build.start(config).theta)
  hosts.agree(run_record.facts(config))
  with hosts.together():
    run_record.compare_config(config, folder / "config.json")
    _compare_evaluation(config, folder / "best.safetensors")
  if parallel.anywhere(result.exists()):
    if result.exists():
      _read(config, result)  # raises if the file is damaged
    print(f"{folder} is finished: {result}", flush=True)
    return result
  with clock, hosts.together():
    program = build.build(config, data_dir)
  hosts.agree({f"data of {k}": v for k, v in program.identity.items()})
  first_process = jax.process_index() == 0
  like = jax.eval_shape(program.init)
  with contextlib.ExitStack() as stack:
    stack.enter_context(clock)
    files = restored = evaluator = None
    with hosts.together():
      if first_process:
        if config.evaluation.every:
          evaluator = build.evaluator(config, data_dir)
        files = stack.enter_context(files_lib.opened(
            config, folder, program.devices.size, program.identity))
        restored = files.checkpointer.restore_latest(like)
        if restored is None:
          files_lib.begins_anew(folder)
    state = _begin(program, like, restored)
    writer = stack.enter_context(metrics_lib.Writer(
        folder / "metrics.jsonl" if first_process else None, int(state.step),
        folder / "tensorboard" if tensorboard else None))
    select = None
    if evaluator is not None and files is not None:
      select = _selector(config, program, evaluator, files, writer)
    state = _loop(config, program, state, files, writer, clock, select)
    if files is not None:
      files.checkpointer.wait()
      files.check()
      theta = state.average if config.average else state.theta
      artifact_lib.write(result, artifact(
          config, theta, files.software, program.identity, config.num_steps))
      print(f"{writer.summary(result)}\n"
            f"sha256 of theta: {artifact_lib.sha256(theta)}", flush=True)
  return result


def _read(config: ml_collections.ConfigDict, path: pathlib.Path
          ) -> artifact_lib.Artifact:
  """Read an artifact of this run, which may name the code of its config."""
  return artifact_lib.read(
      path, trust=(config.optimizer.name, config.parametrization))


def _compare_evaluation(config: ml_collections.ConfigDict, path: pathlib.Path
                        ) -> None:
  """Raise ValueError if best.safetensors was chosen by other evaluations."""
  if not config.evaluation.every or not path.exists():
    return
  old = _read(config, path).record["evaluation"]["config"]
  # Through JSON, which turns tuples into lists.
  now = json.loads(json.dumps(config.evaluation.to_dict()))
  if dict(old, every=0) != dict(now, every=0):
    raise ValueError(
        f"{path} was chosen with other settings of config.evaluation; use "
        "those settings, or move the file away.")


def _begin(program: build.Program, like: base.MetaState,
           restored: base.MetaState | None) -> base.MetaState:
  """Return the state before the next step, on the devices.

  Args:
    program: the program.
    like: shapes and dtypes of the state.
    restored: the state that process 0 restored; None for a new run. It is sent
      to all other processes.
  """
  if jax.process_count() > 1:
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    resumes = parallel.from_first(np.array(restored is not None))
    restored = zeros if restored is None else restored
    restored = parallel.from_first(restored) if resumes else None
  if restored is None:
    return program.init()
  return parallel.place(restored, program.devices)


def _selector(config: ml_collections.ConfigDict, program: build.Program,
              evaluator: Callable[[base.Theta], dict[str, float]],
              files: files_lib.Files, writer: metrics_lib.Writer) -> SelectFn:
  """Return a function that evaluates theta and saves the best theta so far."""
  def select(step: int, theta: base.Theta) -> dict[str, float]:
    losses = evaluator(theta)
    if losses["evaluation"] < writer.lowest("evaluation"):
      artifact_lib.write(
          files.folder / "best.safetensors", artifact(
              config, theta, files.software, program.identity, step, losses))
    return losses
  return select


def _loop(config: ml_collections.ConfigDict, program: build.Program,
          state: base.MetaState, files: files_lib.Files | None,
          writer: metrics_lib.Writer, clock: time_limit.Clock,
          select: SelectFn | None) -> base.MetaState:
  """Take outer steps until config.num_steps.

  Args:
    config: config of the run.
    program: the program.
    state: state before the first step, on the devices.
    files: None on all processes but process 0.
    writer: writer of metrics.
    clock: decides when to stop.
    select: see `_selector`; None without evaluation, and on all processes but
      process 0.

  Returns:
    The last state, as host arrays.

  Raises:
    FloatingPointError: see `metrics.check_finite`.
    Stopped: see `time_limit.Clock`.
  """
  first, written = int(state.step), time.perf_counter()
  if select is not None and not first:
    writer.write(0, select(0, parallel.fetch(state.theta)))
  # Metrics stay on the device between rows: the host need not wait for them.
  waiting, began = [], time.perf_counter()
  with tqdm.tqdm(
      total=config.num_steps, initial=first, desc="compiling", unit="step",
      disable=files is None, smoothing=0,
      mininterval=0.5 if sys.stderr.isatty() else 10) as bar:
    for step, data in enumerate(program.data(first, config.num_steps),
                                first + 1):
      state, metrics = program.step(state, data)
      waiting.append(metrics)
      if step == first + 1:  # the first call compiles: no time of steps
        bar.set_description("meta-training", refresh=False)
        bar.unpause()
      last = step == config.num_steps
      if step % config.log_every and not last:
        continue
      rows = jax.device_get(waiting)
      waiting = []
      metrics_lib.check_finite(rows, step - len(rows) + 1)
      mean = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
      seconds, began = time.perf_counter() - began, time.perf_counter()
      mean["inner_steps_per_second"] = (
          mean["inner_steps"] * len(rows) / seconds)
      if config.evaluation.every and (
          step % config.evaluation.every == 0 or last):
        if select is not None:
          mean |= select(step, parallel.fetch(state.theta))
        began = time.perf_counter()  # evaluation time is not time of steps
      mean["seconds"] = time.perf_counter() - written
      written += mean["seconds"]
      if files is not None:
        files.check()
      writer.write(step, mean)
      bar.set_postfix_str(
          f"meta-loss {mean['meta_loss']:.4f}, "
          f"{mean['inner_steps_per_second']:,.0f} inner steps/s", refresh=False)
      bar.update(len(rows))  # which writes at most once in mininterval
      reason = None if last else clock.reason()
      if reason or step % config.checkpoint_every == 0:
        # On all processes: each one sends its part of the state.
        host_state = parallel.fetch(state)
        if files is not None:
          files.save(host_state)
      if reason:
        raise Stopped(reason, step, config.num_steps)
  last_state: base.MetaState = parallel.fetch(state)
  return last_state


def define_flags() -> None:
  """Define the flags; not at import, because absl's flags are global."""
  if config_flag.NAME in flags.FLAGS:
    return
  config_flag.define()
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.DEFINE_string(
      "data_dir", None, "Folder with data sets; default: MULO_DATA_DIR.")
  flags.DEFINE_bool(
      "tensorboard", False, "Also write metrics for TensorBoard.")
  flags.DEFINE_string(
      "coordinator", None, "Multi-host run: address:port of process 0.")
  flags.DEFINE_integer(
      "num_processes", None, "Multi-host run: number of processes.")
  flags.DEFINE_integer(
      "process_id", None, "Multi-host run: number of this process, from 0.")
  flags.DEFINE_bool(
      "cluster", False, "Multi-host run: detect coordinator, number of "
      "processes and process id from the cluster.")
  flags.DEFINE_integer(
      "initialization_timeout", 300, "Multi-host run: seconds to wait for all "
      "processes at the start.", lower_bound=1)
  flags.DEFINE_integer(
      "heartbeat_timeout", 100, "Multi-host run: seconds without a sign of "
      "life after which a process counts as dead.", lower_bound=1)
  flags.mark_flags_as_required(  # type: ignore[no-untyped-call]
      ["config", "workdir"])


def connect(values: flags.FlagValues) -> None:
  """Set up devices and processes for the parsed flags.

  Raises:
    ValueError: some of the flags of a multi-host run are missing.
  """
  logging.set_verbosity(logging.WARNING)
  build.check(values.config)  # before anything is allocated
  parallel.set_cpu_devices(values.config.devices, values.config.copies)
  given = (values.coordinator, values.num_processes, values.process_id)
  if values.cluster or any(x is not None for x in given):
    if not values.cluster and any(x is None for x in given):
      raise ValueError("Several processes need all of --coordinator, "
                       f"--num_processes and --process_id, got {given}.")
    hosts.connect(
        *given, values.initialization_timeout, values.heartbeat_timeout)


def main(argv: Sequence[str]) -> None:
  """Run `meta_train` as a command; also from Python, several times.

  Args:
    argv: the command line, as `sys.argv`.

  Raises:
    SystemExit: an error, or a signal that stopped the run.
  """
  define_flags()
  if len(argv) > 1:  # not from app.run, which has parsed them
    config_flag.parse_again(argv)
  values = flags.FLAGS
  try:
    connect(values)
    meta_train(values.config, values.workdir, values.data_dir,
               values.tensorboard)
  except Stopped as e:
    print(e, flush=True)
    sys.exit(time_limit.STATUS.get(e.reason, 0))
  except KeyboardInterrupt:
    _fail("Interrupted. Run the same command again to continue.",
          time_limit.STATUS["SIGINT"])
  except Exception as e:  # pylint: disable=broad-except
    lost = hosts.lost(e)
    if lost is None and not isinstance(e, ERRORS):
      raise
    _fail(lost or f"{type(e).__name__}: {e}", others_live=lost is None)


def _fail(message: str, status: int = 1, others_live: bool = True) -> NoReturn:
  """End with one line; see `hosts.leave`."""
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    hosts.say(message)
    hosts.leave(status, others_live)
  print(message, file=sys.stderr, flush=True)
  sys.exit(status)


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=config_flag.parse_flags)
