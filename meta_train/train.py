"""Meta-trains an optimizer; run again, it goes on where it was.

python -m meta_train.train --config=meta_train/configs/quickstart.py \
    --workdir=runs/q [--config.num_steps=100 ...]

Writes to the workdir: config.json, metrics.jsonl, checkpoints/ and, at the
end, theta.safetensors, which `mulo.load` reads.
"""

import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any, NamedTuple

from absl import app
from absl import flags
from absl import logging
import jax
import ml_collections
from ml_collections import config_flags
import numpy as np
import optax
import tqdm

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt import parametrizations
from meta_train import checkpoint
from meta_train import estimators
from meta_train import metrics as metrics_lib
from meta_train import step as step_lib
from meta_train import unroll
from tasks import suite

# Settings that change what is logged and saved, but not the result.
NOT_IN_RESULT = ("log_every", "checkpoint_every", "keep_checkpoints")


class Program(NamedTuple):
  """What a config means: `step.make`'s two functions, and their data."""

  init: Any
  step: Any
  data: dict[str, Any]


def settings_of(section) -> dict:
  """A section of the config without its name, as keyword arguments."""
  return {k: v for k, v in section.items() if k != "name"}


def build(config: ml_collections.ConfigDict, data_dir: str | None) -> Program:
  """The program that a config asks for.

  Raises:
    ValueError: an unknown name or a setting that does not fit.
  """
  parametrization = parametrizations.get(config.parametrization)
  lopt = optimizers.get(config.optimizer.name, **settings_of(config.optimizer))
  estimator_by_task, data = {}, {}
  for name, section in config.tasks.items():
    settings = settings_of(section)
    if settings.get("dataset", "digits") != "digits":
      settings["data_dir"] = data_dir
    task = suite.get(section.name, parametrization, **settings)
    estimator_by_task[name] = estimators.get(
        config.estimator.name, task=task,
        opt_fn=unroll.scaled(lopt.opt_fn, parametrization, task),
        **settings_of(config.estimator))
    data[name] = jax.device_put(task.data)
  init, step = step_lib.make(
      lopt, estimator_by_task, theta_optimizer(config), config.copies,
      config.seed)
  return Program(init, step, data)


def theta_optimizer(config) -> optax.GradientTransformation:
  """Clipping of the meta-gradient, then AdamW with warm-up and cosine."""
  section = config.theta_opt
  if not 0 <= section.warmup < config.num_steps:
    raise ValueError(
        f"theta_opt.warmup ({section.warmup}) must be less than num_steps "
        f"({config.num_steps}).")
  schedule = optax.warmup_cosine_decay_schedule(
      0.0, section.learning_rate, section.warmup, config.num_steps,
      section.final_learning_rate)
  return optax.chain(
      optax.clip_by_global_norm(section.clip),
      optax.adamw(schedule, weight_decay=section.weight_decay))


def record(config, steps: int) -> dict:
  """How theta was found; nothing in it depends on time or place."""
  try:
    root = pathlib.Path(__file__).parent
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40",
         "--match=", "--exclude=*"], cwd=root, capture_output=True, text=True,
        check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    revision = "unknown"
  return {
      "config": config.to_dict(), "seed": config.seed, "steps": steps,
      "tasks": {k: v.to_dict() for k, v in config.tasks.items()},
      "horizon": [config.estimator.shortest, config.estimator.longest],
      "versions": {"python": platform.python_version(),
                   "jax": jax.__version__, "numpy": np.__version__,
                   "optax": optax.__version__},
      "backend": jax.default_backend(), "git_revision": revision}


def check_config(config, path: pathlib.Path) -> None:
  """Writes the config to a new workdir; compares it in an old one.

  Raises:
    ValueError: the workdir belongs to a run with another config, or
      checkpoint_every is not a multiple of log_every.
  """
  if config.checkpoint_every % config.log_every:
    raise ValueError(
        f"checkpoint_every ({config.checkpoint_every}) must be a multiple of "
        f"log_every ({config.log_every}).")
  text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
  if not path.exists():
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    os.replace(new, path)
    return
  flat = lambda d: dict(_dotted(
      {k: v for k, v in d.items() if k not in NOT_IN_RESULT}))
  old, now = flat(json.loads(path.read_text())), flat(json.loads(text))
  changed = [f"{k}: {old.get(k)} -> {now.get(k)}"
             for k in sorted({*old, *now}) if old.get(k) != now.get(k)]
  if changed:
    raise ValueError(
        f"{path.parent} holds a run with another config ({'; '.join(changed)})"
        ". Use another --workdir, or the config of that run.")


def _dotted(tree: dict, prefix: str = ""):
  for k, v in tree.items():
    if isinstance(v, dict):
      yield from _dotted(v, f"{prefix}{k}.")
    else:
      yield prefix + k, v


def check_finite(rows: list[dict], first_step: int) -> None:
  """Raises FloatingPointError at the first meta-loss that is not finite."""
  for i, row in enumerate(rows):
    for name, value in row.items():
      if name.endswith("/meta_loss") and not np.isfinite(value):
        raise FloatingPointError(
            f"The meta-loss of task {name.removesuffix('/meta_loss')} was "
            f"{value} in outer step {first_step + i}. Set config.estimator."
            "drop_nonfinite to leave such copies out, or lower the learning "
            "rate of theta_opt.")


def meta_train(config: ml_collections.ConfigDict, workdir: str,
               data_dir: str | None = None) -> pathlib.Path:
  """Meta-trains to the end of the config, from the last checkpoint if any.

  Args:
    config: see meta_train/configs.
    workdir: folder of the run; made if missing.
    data_dir: see `tasks.data.image_data`.

  Returns:
    Path of theta.safetensors.

  Raises:
    ValueError: a config that makes no sense or is not that of the workdir.
    FloatingPointError: a meta-loss was not finite.
  """
  folder = pathlib.Path(workdir)
  result = folder / "theta.safetensors"
  program = build(config, data_dir)
  folder.mkdir(parents=True, exist_ok=True)
  check_config(config, folder / "config.json")
  if result.exists():
    artifact_lib.read(result)
    print(f"{folder} is finished: {result}", flush=True)
    return result
  with checkpoint.Checkpointer(
      folder / "checkpoints", config.keep_checkpoints) as saved:
    state = saved.restore_latest(jax.eval_shape(program.init))
    if state is None:
      state = program.init()
    state = _loop(config, program, state, saved, folder / "metrics.jsonl")
  artifact_lib.write(result, artifact_lib.Artifact(
      config.optimizer.name, settings_of(config.optimizer.to_dict()),
      config.parametrization, jax.device_get(state.theta),
      record(config, config.num_steps)))
  print(f"Wrote {result}", flush=True)
  return result


def _loop(config, program: Program, state, saved: checkpoint.Checkpointer,
          path: pathlib.Path):
  """Outer steps until config.num_steps; returns the last state."""
  first = int(state.step)
  waiting, began = [], time.perf_counter()
  with metrics_lib.Writer(path, first) as writer, tqdm.tqdm(
      total=config.num_steps, initial=first, desc="meta-training", unit="step",
      mininterval=0.5 if sys.stderr.isatty() else 10, smoothing=0.3) as bar:
    for step in range(first + 1, config.num_steps + 1):
      state, metrics = program.step(state, program.data)
      waiting.append(metrics)
      if step % config.log_every and step != config.num_steps:
        continue
      rows = jax.device_get(waiting)
      waiting = []
      check_finite(rows, step - len(rows) + 1)
      mean = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
      seconds, began = time.perf_counter() - began, time.perf_counter()
      mean["inner_steps_per_second"] = (
          mean["inner_steps"] * len(rows) / seconds)
      writer.write(step, mean)
      bar.update(len(rows))
      bar.set_postfix_str(
          f"meta-loss {mean['meta_loss']:.4f}, "
          f"{mean['inner_steps_per_second']:,.0f} inner steps/s")
      if step % config.checkpoint_every == 0:
        saved.save(state)
  return state


def define_flags() -> None:
  """Defines the flags; not at import, where they would be everyone's."""
  config_flags.DEFINE_config_file(
      "config", None, "Configuration.", lock_config=True)
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.DEFINE_string(
      "data_dir", None, "Folder with data sets; default: MULO_DATA_DIR.")
  flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
  """Runs `meta_train` on the flags."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  found = flags.FLAGS
  try:
    meta_train(found.config, found.workdir, found.data_dir)
  except (ValueError, FloatingPointError, OSError) as e:
    sys.exit(f"{type(e).__name__}: {e}")


if __name__ == "__main__":
  define_flags()
  app.run(main)
