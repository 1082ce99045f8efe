"""Optimizers on tasks that they were not made for, beside tuned baselines.

Along an axis, such as width, depth, num_steps or batch_size:

python -m experiments.studies.transfer --workdir=runs/width \
    --optimizers=mulo=runs/q/theta.safetensors,adamw,mu_adam_transferred \
    --task=mlp --settings=dataset=digits,depth=2 --axis=width --values=32,128

or on every task of a suite:

python -m experiments.studies.transfer --workdir=runs/heldout --suite=heldout \
    --optimizers=mulo=runs/q/theta.safetensors,adamw

Learned optimizers are used as they are. Baselines (experiments/baselines.py)
are tuned where they are used, or at the first value of the axis, over nine
learning rates and two schedules, with seeds of their own. Writes results.csv,
table.md, transfer.png and command.txt to the workdir. Run again, it skips what
is done.
"""

import ast
import dataclasses
import pathlib
import re
import shlex
import sys
from typing import Any, Callable, NamedTuple

from absl import app
from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import tqdm

from experiments import baselines
from experiments import report
from experiments import sweep
from learned_opt import artifact as artifact_lib
from learned_opt import base as learned_opt_base
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import evaluate
from meta_train import unroll
import mulo
from tasks import base as tasks_base
from tasks import suites

FIRST_TUNING_SEED, FIRST_SEED = 1000, 0
CURVE_POINTS = 100
MAX_PARAMS = 2**25  # of all networks that are trained at the same time
SCORES = ("final_train_loss", "mean_train_loss", "outer_valid_loss")


class Candidate(NamedTuple):
  """An optimizer with all its settings.

  Attributes:
    opt_fn: `opt_fn(theta, num_steps=...)`.
    theta: what it is called with.
    schedule: of the learning rate, or "".
    learning_rate: or None.
    identity: what decides the result; JSON values.
  """

  opt_fn: Callable
  theta: Any
  schedule: str
  learning_rate: float | None
  identity: dict[str, Any]


class Method(NamedTuple):
  """A row of the comparison: the best of its candidates."""

  label: str
  parametrization: str
  candidates: list[Candidate]
  tuned_at_base: bool = False
  gradient_width: int | None = None  # see `with_gradients_of`


def methods(names: list[str], schedules: list[str]) -> list[Method]:
  """Methods by name of a baseline, or `[label=]artifact[@width]`.

  Without a label, what ships has its name and a file that of its optimizer.
  With a width, gradients are brought to the size that they have there, and the
  label says so. Of what is on a hub, @ is the revision.

  Raises:
    ValueError: an unknown name, or a width for an artifact under a
      parametrization that says nothing of the size of gradients.
    FileNotFoundError: no such artifact.
  """
  found = []
  for name in names:
    label, _, path = name.rpartition("=")
    at = re.fullmatch(r"(?!hf://)(.+)@([1-9]\d*)", path)
    path, width = (at[1], int(at[2])) if at else (path, None)
    if name in baselines.BASELINES:
      found.append(_tuned(name, schedules))
    elif label or path.endswith(".safetensors") or (
        path in mulo.list_pretrained()):
      found.append(_learned(label or _label(path), mulo.read(path), width))
    else:
      raise ValueError(
          f"Unknown optimizer {name!r}; available: "
          f"{', '.join(baselines.BASELINES)}, [label=]file.safetensors, and "
          f"{', '.join(mulo.list_pretrained()) or 'no pretrained ones'}.")
  return found


def _label(name_or_path: str) -> str:
  if name_or_path in mulo.list_pretrained():
    return name_or_path
  return mulo.read(name_or_path).optimizer


def _tuned(name: str, schedules: list[str]) -> Method:
  baseline = baselines.BASELINES[name]
  return Method(baseline.label, baseline.parametrization, [
      Candidate(baselines.opt_fn(baseline, schedule), np.float32(rate),
                schedule, rate, {"baseline": name, "learning_rate": rate,
                                 "schedule": schedule})
      for schedule in schedules for rate in baseline.learning_rates],
                baseline.tuned_at_base)


def _learned(label: str, artifact: artifact_lib.Artifact,
             gradient_width: int | None = None) -> Method:
  identity: dict[str, Any] = {
      "optimizer": artifact.optimizer, "settings": artifact.settings,
      "theta": artifact_lib.sha256(artifact.theta)}
  if gradient_width:
    rule = parametrizations.get(artifact.parametrization)
    if not rule.needs_base_shapes:
      raise ValueError(
          f"{label}@{gradient_width}: the parametrization "
          f"{artifact.parametrization} does not say how large gradients are at "
          "another width; leave out the width.")
    identity["gradient_width"] = gradient_width
    label = f"{label}, gradients as at width {gradient_width}"
  return Method(label, artifact.parametrization, [Candidate(
      artifact.lopt.opt_fn, artifact.theta, "", None, identity)],
                gradient_width=gradient_width)


def with_bfloat16_state(name: str) -> Method:
  """The artifact with statistics in bfloat16."""
  artifact = mulo.read(name)
  return _learned(f"{_label(name)}, bfloat16 state", dataclasses.replace(
      artifact, settings=artifact.settings | {
          "accumulator_dtype": "bfloat16"}))


def with_gradients_of(base: tasks_base.Task, opt_fn: unroll.OptFn,
                      rule: learned_opt_base.Parametrization) -> unroll.OptFn:
  """`opt_fn` that sees gradients of the size that they have in another task.

  Args:
    base: the task at another width.
    opt_fn: `opt_fn(theta, num_steps=...)`.
    rule: of network and updates.
  """
  link = mulo.scaling.scale_gradients(
      jax.eval_shape(base.init, jax.random.key(0)), parametrization=rule,
      forward=True, inference={"delta_shapes": base.base_shapes,
                               "readout": False})
  return lambda theta, *, num_steps=None: optax.chain(
      link, opt_fn(theta, num_steps=num_steps))


class Study:
  """Trains what is asked for, unless it was before."""

  def __init__(self, folder: pathlib.Path, data_dir: str | None,
               num_tuning_seeds: int, num_seeds: int, tune_on: str, bar):
    self._folder, self._data_dir = folder / "cells", data_dir
    self._tuning_seeds = [
        FIRST_TUNING_SEED + i for i in range(num_tuning_seeds)]
    self._seeds = [FIRST_SEED + i for i in range(num_seeds)]
    self._tune_on, self._bar = tune_on, bar

  def compare(self, found: list[Method], targets: dict[str, dict]
              ) -> pd.DataFrame:
    """A row for each target, method and seed.

    Args:
      found: the methods.
      targets: {name: section with "num_steps"}.

    Returns:
      Columns target, method, schedule, learning_rate, grid_edge (whether the
      best learning rate was the smallest or largest tried), num_steps and
      those of `rows`.
    """
    frames = []
    kept: dict[str, tuple[Candidate, bool]] = {}
    for target, section in targets.items():
      for method in found:
        self._bar.set_postfix_str(f"{target}, {method.label}")
        if method.label in kept:
          best, edge = kept[method.label]
        else:
          best, edge = self._best(method, section)
        if method.tuned_at_base:
          kept[method.label] = best, edge
        frames.append(pd.DataFrame(
            self.rows(method, [best], section, self._seeds)).assign(
                target=target, method=method.label, schedule=best.schedule,
                learning_rate=best.learning_rate, grid_edge=edge,
                num_steps=section["num_steps"]))
    return pd.concat(frames, ignore_index=True)

  def _best(self, method: Method, section: dict) -> tuple[Candidate, bool]:
    """The candidate with the least score; one that is NaN is the worst."""
    if len(method.candidates) == 1:
      return method.candidates[0], False
    scores: list[float] = []
    schedules = {c.schedule: 0 for c in method.candidates}
    for schedule in schedules:  # each compiled once
      group = [c for c in method.candidates if c.schedule == schedule]
      rows = self.rows(method, group, section, self._tuning_seeds)
      values = np.reshape([row[self._tune_on] for row in rows],
                          (len(group), -1)).mean(1)
      scores += list(np.where(np.isfinite(values), values, np.inf))
    best = method.candidates[int(np.argmin(scores))]
    rates = sorted(c.learning_rate or 0.0 for c in method.candidates)
    return best, best.learning_rate in (rates[0], rates[-1])

  def rows(self, method: Method, candidates: list[Candidate], section: dict,
           seeds: list[int]) -> list[dict]:
    """Trains candidates of one `opt_fn` with each seed: a row per run."""
    config = {"candidates": [c.identity for c in candidates], "seeds": seeds,
              "parametrization": method.parametrization, "section": section,
              "jax": jax.__version__}
    before = self._bar.n
    rows = sweep.run_cell(self._folder, config, lambda: self._train(
        method, candidates, section, seeds))
    steps = len(rows) * section["num_steps"]
    self._bar.update(steps - (self._bar.n - before))  # done earlier
    return rows

  def _train(self, method, candidates, section, seeds) -> list[dict]:
    parametrization = parametrizations.get(method.parametrization)
    task = build.task_of(section, parametrization, self._data_dir)
    opt_fn = candidates[0].opt_fn
    if method.gradient_width:
      opt_fn = with_gradients_of(build.task_of(
          section | {"width": method.gradient_width}, parametrization,
          self._data_dir), opt_fn, parametrization)
    train = evaluate.trainer(
        task, unroll.scaled(opt_fn, parametrization, task))
    runs = [(c, seed) for c in candidates for seed in seeds]
    params = sum(x.size for x in jax.tree.leaves(
        jax.eval_shape(task.init, jax.random.key(0))))
    at_once = max(1, min(len(runs), MAX_PARAMS // params))
    rows = []
    for first in range(0, len(runs), at_once):
      part = runs[first:first + at_once]
      result = train(
          jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y) for y in x]),
                       *[c.theta for c, _ in part]),
          jnp.stack([jax.random.key(seed) for _, seed in part]),
          section["num_steps"],
          on_chunk=lambda steps, n=len(part): self._bar.update(steps * n))
      rows += [_row(result, i, seed) for i, (_, seed) in enumerate(part)]
    return rows


def _row(result: evaluate.Result, i: int, seed: int) -> dict:
  loss = result.train_loss[i].astype(float)
  return {
      "seed": seed,
      "final_train_loss": float(np.mean(loss[-max(1, len(loss) // 10):])),
      "mean_train_loss": float(np.mean(loss)),
      **{f"{split}_{name}": float(x[i])
         for split, values in result.final.items()
         for name, x in values.items()},
      "curve": [float(np.mean(part)) for part in np.array_split(
          loss, min(CURVE_POINTS, len(loss)))]}


def parse(settings: list[str]) -> dict[str, Any]:
  """`["width=8", "dataset=mnist"]` as a dict; raises ValueError."""
  found: dict[str, Any] = {}
  for text in settings:
    key, equals, value = text.partition("=")
    if not equals:
      raise ValueError(f"{text!r} is not of the form setting=value.")
    found[key] = _value(value)
  return found


def _value(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def targets_of(found) -> dict[str, dict]:
  """What the flags ask for: {target: section}; raises ValueError."""
  steps = {} if found.num_steps is None else {"num_steps": found.num_steps}
  if found.suite:
    sections = suites.get(found.suite)
    names = found.tasks or list(sections)
    if unknown := [name for name in names if name not in sections]:
      raise ValueError(f"{found.suite} has no task {unknown[0]!r}; it has "
                       f"{', '.join(sections)}.")
    return {name: {"num_steps": 1000, **sections[name], **steps}
            for name in names}
  section = {"name": found.task, "num_steps": 1000, **parse(found.settings),
             **steps}
  return {f"{found.axis} {value}": section | {found.axis: _value(value)}
          for value in found.values}


def define_flags() -> None:
  """Defines the flags; not at import, where they would be everyone's."""
  flags.DEFINE_string("workdir", None, "Folder for the results.")
  flags.DEFINE_list(
      "optimizers", None, "Baselines, or [label=]artifact[@width]; with a "
      "width, gradients are of the size that they have there.")
  flags.DEFINE_string("suite", None, "Name of a suite, instead of an axis.")
  flags.DEFINE_list("tasks", None, "Tasks of the suite; default: all.")
  flags.DEFINE_string("task", "mlp", "Family, for an axis.")
  flags.DEFINE_list("settings", [], "Settings of the task: setting=value.")
  flags.DEFINE_string("axis", "width", "Setting that varies, or num_steps.")
  flags.DEFINE_list("values", ["32", "128", "512"], "Values of the axis.")
  flags.DEFINE_integer("num_steps", None, "Steps per run; default: the "
                       "suite's, or 1000.", lower_bound=10)
  flags.DEFINE_integer("seeds", 3, "Runs per method.", lower_bound=1)
  flags.DEFINE_integer("tuning_seeds", 1, "Runs per learning rate.",
                       lower_bound=1)
  flags.DEFINE_multi_enum("schedules", list(baselines.SCHEDULES), list(
      baselines.SCHEDULES), "Schedules of the baselines.")
  flags.DEFINE_enum("tune_on", SCORES[0], SCORES, "Score to tune by.")
  flags.DEFINE_bool("bfloat16_state", False, "Learned optimizers twice, also "
                    "with statistics in bfloat16.")
  flags.DEFINE_string(
      "data_dir", None, "Folder with data sets; default: MULO_DATA_DIR.")
  flags.mark_flags_as_required(["workdir", "optimizers"])


def main(argv):
  """Compares, and writes the report."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  found = flags.FLAGS
  folder = pathlib.Path(found.workdir)
  try:
    compared = methods(found.optimizers, found.schedules)
    if found.bfloat16_state:
      compared += [with_bfloat16_state(name.rpartition("=")[2])
                   for name in found.optimizers
                   if name not in baselines.BASELINES]
    targets = targets_of(found)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "command.txt").write_text(
        f"python -m experiments.studies.transfer {shlex.join(sys.argv[1:])}\n")
    runs = sum(found.seeds + found.tuning_seeds * (
        len(m.candidates) if len(m.candidates) > 1 else 0) for m in compared)
    with tqdm.tqdm(
        total=runs * sum(s["num_steps"] for s in targets.values()),
        unit="step", desc="comparing", unit_scale=True,
        mininterval=0.5 if sys.stderr.isatty() else 10) as bar:
      results = Study(
          folder, found.data_dir, found.tuning_seeds, found.seeds,
          found.tune_on, bar).compare(compared, targets)
  except (ValueError, OSError, ImportError) as e:
    sys.exit(f"{type(e).__name__}: {e}")
  print(report.write(results, folder))


if __name__ == "__main__":
  define_flags()
  app.run(main)
