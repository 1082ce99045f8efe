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
import jaxlib
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
    task = suite.get(section.name, parametrization, data_dir=data_dir,
                     **settings_of(section))
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
  schedule = optax.warmup_cosine_decay_schedule(
      0.0, section.learning_rate, section.warmup, config.num_steps,
      section.final_learning_rate)
  return optax.chain(
      optax.clip_by_global_norm(section.clip),
      optax.adamw(schedule, weight_decay=section.weight_decay))


def software() -> dict[str, str]:
  """Versions of what computes theta."""
  root = pathlib.Path(__file__).parents[1]
  git = lambda *words: subprocess.run(
      ["git", "-C", str(root), *words], capture_output=True, text=True,
      check=True).stdout.strip()
  try:
    revision = "unknown"
    if pathlib.Path(git("rev-parse", "--show-toplevel")) == root.resolve():
      revision = git("describe", "--always", "--dirty", "--abbrev=40",
                     "--exclude=*")
  except (OSError, subprocess.CalledProcessError):
    pass  # no git, or not a checkout
  return {"python": platform.python_version(), "jax": jax.__version__,
          "jaxlib": jaxlib.__version__, "numpy": np.__version__,
          "optax": optax.__version__, "backend": jax.default_backend(),
          "git_revision": revision}


def result_config(config) -> dict:
  """The settings that theta depends on."""
  return {k: v for k, v in config.to_dict().items() if k not in NOT_IN_RESULT}


def check_config(config) -> None:
  """Raises ValueError for numbers that make no sense."""
  for key in ("num_steps", "copies", *NOT_IN_RESULT):
    if config[key] < 1:
      raise ValueError(f"config.{key} must be at least 1, got {config[key]}.")
  if config.checkpoint_every % config.log_every:
    raise ValueError(
        f"checkpoint_every ({config.checkpoint_every}) must be a multiple of "
        f"log_every ({config.log_every}).")
  if not config.tasks:
    raise ValueError("config.tasks is empty: there is nothing to train on.")
  if config.theta_opt.clip <= 0:
    raise ValueError(
        f"theta_opt.clip must be positive, got {config.theta_opt.clip}.")
  if not 0 <= config.theta_opt.warmup < config.num_steps:
    raise ValueError(
        f"theta_opt.warmup ({config.theta_opt.warmup}) must be less than "
        f"num_steps ({config.num_steps}).")


def compare_config(config, path: pathlib.Path) -> None:
  """Raises ValueError if the workdir belongs to a run with another config."""
  if not path.exists():
    return
  old = dict(_dotted(json.loads(path.read_text())["config"]))
  # Through JSON, which turns tuples into lists.
  now = dict(_dotted(json.loads(json.dumps(result_config(config)))))
  changed = [f"{k}: {old.get(k)} -> {now.get(k)}"
             for k in sorted({*old, *now}) if old.get(k) != now.get(k)]
  if changed:
    raise ValueError(
        f"{path.parent} holds a run with another config ({'; '.join(changed)})"
        ". Use another --workdir, or the config of that run.")


def note_software(config, path: pathlib.Path) -> list[dict]:
  """Writes config and software to config.json; returns all software so far.

  More than one entry means that the run was resumed by other software, and
  that its bits are not those of a run by either.
  """
  used = json.loads(path.read_text())["software"] if path.exists() else []
  current = software()
  if used and used[-1] != current:
    changed = [k for k in current if used[-1].get(k) != current[k]]
    print(f"Warning: resuming with other software ({', '.join(changed)}); "
          "the result will say so.", file=sys.stderr, flush=True)
  if not used or used[-1] != current:
    used.append(current)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(
        {"config": result_config(config), "software": used}, indent=2,
        sort_keys=True))
    os.replace(new, path)
  return used


def _dotted(tree: dict, prefix: str = ""):
  for k, v in tree.items():
    if isinstance(v, dict):
      yield from _dotted(v, f"{prefix}{k}.")
    else:
      yield prefix + k, v


def check_finite(rows: list[dict], first_step: int) -> None:
  """Raises FloatingPointError at the first metric that is not finite."""
  for i, row in enumerate(rows):
    bad = {name: float(x) for name, x in row.items() if not np.isfinite(x)}
    if bad:
      raise FloatingPointError(
          f"Outer step {first_step + i} gave {bad}. Set config.estimator."
          "drop_nonfinite to leave copies with such a meta-loss out (it is of "
          "no use where all of a task's are), or lower theta_opt."
          "learning_rate.")


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
  check_config(config)
  compare_config(config, folder / "config.json")
  if result.exists():
    artifact_lib.read(result)
    print(f"{folder} is finished: {result}", flush=True)
    return result
  program = build(config, data_dir)
  folder.mkdir(parents=True, exist_ok=True)
  used = note_software(config, folder / "config.json")
  with checkpoint.Checkpointer(
      folder / "checkpoints", config.keep_checkpoints) as saved:
    state = saved.restore_latest(jax.eval_shape(program.init))
    if state is None:
      state = program.init()
    state = _loop(config, program, state, saved, folder / "metrics.jsonl")
  artifact_lib.write(result, artifact_lib.Artifact(
      config.optimizer.name, optimizers.all_settings(
          config.optimizer.name, **settings_of(config.optimizer.to_dict())),
      config.parametrization, jax.device_get(state.theta),
      {"config": result_config(config), "software": used,
       "seed": config.seed, "steps": config.num_steps,
       "tasks": result_config(config)["tasks"],
       "horizon": [config.estimator.shortest, config.estimator.longest]}))
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
