r"""Compare learned optimizers with tuned baselines on new tasks.

Along an axis, such as width, depth, num_steps or batch_size:

python -m experiments.studies.transfer --workdir=runs/width \
    --optimizers=mulo=runs/q/theta.safetensors,adamw,mu_adam_transferred \
    --task=mlp --settings=dataset=digits,depth=2 --axis=width --values=32,128

or on every task of a suite:

python -m experiments.studies.transfer --workdir=runs/heldout --suite=heldout \
    --optimizers=mulo=runs/q/theta.safetensors,adamw

Learned optimizers are used without tuning. Baselines (experiments/baselines)
are tuned over their settings, see docs/baselines.md, with seeds of their own:
on each task, or only at the first value of the axis if their label says
"transferred". While the best learning rate is at an edge of the grid, the next
one is tried, at most --max_growth times.

Writes results.csv, table.md, transfer.png and command.txt to the workdir. A
second run skips the cells that are done. `python -m experiments.report` makes a
page of the workdir; with --cost, the page has seconds beside steps.
"""

import functools
import pathlib
from typing import Any, Generator, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from experiments import baselines
from experiments import command
from experiments import cost
from experiments import methods
from experiments import report
from experiments import sweep
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import evaluate
from tasks import suites

FIRST_TUNING_SEED, FIRST_SEED = 1000, 0
CURVE_POINTS = 100
MAX_PARAMS = 2**25  # total size of the networks that are trained at once
SCORES = ("final_train_loss", "mean_train_loss", "outer_valid_loss")


class Choice(NamedTuple):
  """Result of tuning a method.

  Attributes:
    candidate: the best one.
    edge: whether its learning rate is the smallest or largest one tried.
    grown: learning rates by which the grid grew.
    runs: training runs that were compared; 0 if there was no choice.
  """

  candidate: methods.Candidate
  edge: bool
  grown: int
  runs: int


class Study:
  """A comparison, whose finished cells are not computed again."""

  def __init__(self, folder: pathlib.Path, data_dir: str | None,
               num_tuning_seeds: int, num_seeds: int, tune_on: str, bar,
               max_growth: int = baselines.MAX_GROWTH):
    """Prepare a study.

    Args:
      folder: the workdir.
      data_dir: see `tasks.data.images.image_data`.
      num_tuning_seeds: runs per candidate, to choose the best.
      num_seeds: runs of the best candidate.
      tune_on: one of SCORES.
      bar: progress bar that counts steps.
      max_growth: learning rates by which a grid grows at most.
    """
    self._folder, self._data_dir = folder / "cells", data_dir
    self._tuning_seeds = [
        FIRST_TUNING_SEED + i for i in range(num_tuning_seeds)]
    self._seeds = [FIRST_SEED + i for i in range(num_seeds)]
    self._tune_on, self._bar, self._max_growth = tune_on, bar, max_growth
    self._last: tuple[Any, ...] = ()  # a trainer, see `_trainer`

  def compare(self, compared: list[methods.Method], targets: dict[str, dict]
              ) -> pd.DataFrame:
    """Return a row for each target, method and seed.

    Args:
      compared: the methods.
      targets: {name: section of the task, with "num_steps"}.

    Returns:
      Columns target, method, schedule, learning_rate, grid_edge (whether the
      best learning rate was the smallest or largest one tried), grown (learning
      rates by which the grid grew), tuning_runs (spent on the choice for this
      target), num_steps and the columns of `_row`.
    """
    frames: dict[tuple[str, str], pd.DataFrame] = {}
    for found in sweep.run_chains(self._folder, [
        self._results(method, part) for method in compared
        for part in ([targets] if method.tuned_at_base else
                     [{name: section} for name, section in targets.items()])
    ], self._bar):
      frames |= found
    return pd.concat([frames[target, method.label] for target in targets
                      for method in compared], ignore_index=True)

  def _results(self, method: methods.Method, targets: dict[str, dict]
               ) -> sweep.Chain:
    """Chain that tunes a method on the first target and runs it on all.

    Its result: {(target, label of the method): rows}.
    """
    choice = yield from self._best(method, next(iter(targets.values())))
    best = choice.candidate
    rows = yield [self._cell(method, [best], section, self._seeds)
                  for section in targets.values()]
    return {(target, method.label): pd.DataFrame(part).assign(
        target=target, method=method.label, schedule=best.schedule,
        learning_rate=best.learning_rate, grid_edge=choice.edge,
        grown=choice.grown, tuning_runs=0 if i else choice.runs,
        num_steps=targets[target]["num_steps"])
            for i, (target, part) in enumerate(zip(targets, rows))}

  def _best(self, method: methods.Method, section: dict
            ) -> Generator[list[sweep.Cell], list[sweep.Rows], Choice]:
    """Chain whose result is the candidate with the lowest score.

    While it is at an edge of its grid, the candidate beyond the edge is tried.
    """
    if len(method.candidates) == 1:
      return Choice(method.candidates[0], False, 0, 0)
    groups: dict[str, list[methods.Candidate]] = {}
    for candidate in method.candidates:
      groups.setdefault(candidate.schedule, []).append(candidate)
    candidates: list[methods.Candidate] = []
    scores: list[float] = []
    new = list(groups.values())
    while True:
      rows = yield [self._cell(method, group, section, self._tuning_seeds)
                    for group in new]
      for group, part in zip(new, rows):
        candidates += group
        scores += self._scores(part, len(group))
      best = candidates[int(np.argmin(scores))]
      beyond = methods.beyond(best, candidates)
      grown = len(candidates) - len(method.candidates)
      if beyond is None or grown == self._max_growth:
        return Choice(best, beyond is not None, grown,
                      len(candidates) * len(self._tuning_seeds))
      if self._bar.total:
        self._bar.total += len(self._tuning_seeds) * section["num_steps"]
      new = [[beyond]]

  def _scores(self, rows: sweep.Rows, count: int) -> list[float]:
    """Return the mean score over tuning seeds of each candidate.

    A score that is not finite counts as infinite.

    Args:
      rows: a row per candidate and seed.
      count: number of candidates.
    """
    values = np.reshape([row[self._tune_on] for row in rows], (count, -1)
                        ).mean(1)
    return list(np.where(np.isfinite(values), values, np.inf))

  def _cell(self, method: methods.Method, candidates: list[methods.Candidate],
            section: dict, seeds: list[int]) -> sweep.Cell:
    """Return the cell with a row per candidate and seed.

    Args:
      method: the method of the candidates.
      candidates: candidates with the same `opt_fn`.
      section: section of the task.
      seeds: seeds of the runs.
    """
    config = {"candidates": [c.identity for c in candidates], "seeds": seeds,
              "parametrization": method.parametrization, "section": section,
              "jax": jax.__version__}
    return sweep.Cell(
        config, functools.partial(
            self._train, method, candidates, section, seeds),
        len(candidates) * len(seeds) * section["num_steps"])

  def _train(self, method, candidates, section, seeds) -> sweep.Rows:
    """Train each candidate with each seed; return the rows."""
    self._bar.set_postfix_str(f"{section['name']}, {method.label}")
    task, train = self._trainer(method, candidates[0].opt_fn, section)
    runs = [(c, seed) for c in candidates for seed in seeds]
    params = sum(x.size for x in jax.tree.leaves(
        jax.eval_shape(task.init, jax.random.key(0))))
    # The runs of a group are trained at the same time, as far as memory allows.
    group_size = max(1, min(len(runs), MAX_PARAMS // params))
    rows = []
    for first in range(0, len(runs), group_size):
      group = runs[first:first + group_size]
      result = train(
          jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y) for y in x]),
                       *[c.theta for c, _ in group]),
          jnp.stack([jax.random.key(seed) for _, seed in group]),
          section["num_steps"],
          on_chunk=lambda steps, n=len(group): self._bar.update(steps * n))
      rows += [_row(result, i, seed) for i, (_, seed) in enumerate(group)]
    return rows

  def _trainer(self, method, opt_fn, section):
    """Return the task and its trainer.

    Candidates of one `opt_fn` come one after the other and share a compiled
    program, so the last trainer is kept.
    """
    key = method.parametrization, method.gradient_width, section, opt_fn
    if not self._last or self._last[0] != key:
      task, opt_fn = methods.of_task(method, opt_fn, section, self._data_dir)
      self._last = key, task, evaluate.trainer(task, opt_fn)
    return self._last[1:]


def _row(result: evaluate.Result, i: int, seed: int) -> dict:
  """Return the numbers of run i: losses, metrics of the splits, the curve."""
  loss = result.train_loss[i].astype(float)  # [num_steps]
  return {
      "seed": seed,
      "final_train_loss": float(np.mean(loss[-max(1, len(loss) // 10):])),
      "mean_train_loss": float(np.mean(loss)),
      **{f"{split}_{name}": float(x[i])
         for split, values in result.final.items()
         for name, x in values.items()},
      "curve": [float(np.mean(part)) for part in np.array_split(
          loss, min(CURVE_POINTS, len(loss)))]}


def targets_of(flags) -> dict[str, dict]:
  """Return the tasks that the flags name, as {target: section}.

  Raises:
    ValueError: an unknown suite or task, or a malformed setting.
  """
  steps = {} if flags.num_steps is None else {"num_steps": flags.num_steps}
  if flags.suite:
    sections = suites.get(flags.suite)
    names = flags.tasks or list(sections)
    if unknown := [name for name in names if name not in sections]:
      raise ValueError(f"{flags.suite} has no task {unknown[0]!r}; it has "
                       f"{', '.join(sections)}.")
    return {name: {"num_steps": 1000, **sections[name], **steps}
            for name in names}
  section = {"name": flags.task, "num_steps": 1000,
             **command.parse_settings(flags.settings), **steps}
  targets = {f"{flags.axis} {value}": section | {
      flags.axis: command.parse_value(value)} for value in flags.values}
  for target, section in targets.items():
    if not isinstance(section["num_steps"], int) or section["num_steps"] < 1:
      raise ValueError(f"{target}: num_steps must be a positive integer, got "
                       f"{section['num_steps']!r}.")
  return targets


def check_tasks(compared: list[methods.Method], targets: dict[str, dict],
                data_dir: str | None) -> None:
  """Build every task once, so that a wrong setting is found before any run.

  Raises:
    ValueError: an unknown family, or settings that it does not accept.
    OSError: a data set is missing.
  """
  parametrization = parametrizations.get("standard")
  for section in targets.values():
    build.task_of(section, parametrization, data_dir)
    for width in {m.gradient_width for m in compared} - {None}:
      build.task_of(section | {"width": width}, parametrization, data_dir)


def title_of(flags) -> str:
  """Return the title of the plot: the suite, or the family and its settings."""
  if flags.suite:
    return f"suite {flags.suite}"
  return ", ".join((flags.task, *flags.settings))


def count_steps(compared: list[methods.Method], targets: dict[str, dict],
                seeds: int, tuning_seeds: int) -> int:
  """Return the training steps of a comparison, if no grid grows.

  A baseline trains every candidate once per tuning seed, then the best one.
  """
  runs = sum(seeds + tuning_seeds * (
      len(m.candidates) if len(m.candidates) > 1 else 0) for m in compared)
  return runs * sum(section["num_steps"] for section in targets.values())


def record_of(compared: list[methods.Method], num_tuning_seeds: int,
              tune_on: str) -> dict[str, Any]:
  """Return what `report.write` records of a study, besides its results."""
  return {"tuning_seeds": [
              FIRST_TUNING_SEED + i for i in range(num_tuning_seeds)],
          "tune_on": tune_on,
          "sources": {m.label: m.source for m in compared if m.source},
          "meta_trained": {m.label: dict(m.meta_trained) for m in compared
                           if m.meta_trained}}


def define_flags() -> None:
  """Define the flags of this command."""
  command.define_workdir()
  command.define_data_dir()
  command.define_trust()
  flags.DEFINE_list(
      "optimizers", None, "Optimizers to compare. A baseline "
      f"({', '.join(baselines.names())}), or [label=]file.py (see "
      "docs/board.md), or [label=]artifact[@width], or "
      "[label=]untrained:artifact or untrained:optimizer/parametrization. An "
      "artifact is a pretrained name or a .safetensors file. With @width, it "
      "receives gradients rescaled to their magnitude at that width.",
      required=True)
  flags.DEFINE_string(
      "suite", None, "Compare on the tasks of this suite (tasks/suites.py); "
      "replaces --task, --settings, --axis and --values.")
  flags.DEFINE_list("tasks", None, "Tasks of the suite; default: all.")
  command.define_task()
  flags.DEFINE_string(
      "axis", "width", "Task setting to vary, or num_steps.")
  flags.DEFINE_list("values", ["32", "128", "512"], "Values of the axis.")
  flags.DEFINE_integer(
      "num_steps", None, "Steps per run; default: as in the suite, or 1000.",
      lower_bound=10)
  flags.DEFINE_integer(
      "seeds", 3, "Runs per optimizer and task.", lower_bound=1)
  flags.DEFINE_integer(
      "tuning_seeds", 1, "Runs per learning rate and schedule, to find the "
      "best ones of a baseline.", lower_bound=1)
  flags.DEFINE_multi_enum(
      "schedules", ["constant", "cosine"], list(baselines.SCHEDULES),
      "Learning rate schedules that baselines try.")
  flags.DEFINE_integer(
      "max_growth", baselines.MAX_GROWTH, "Learning rates that are tried "
      "beyond the grid of a baseline, while the best is at its edge.",
      lower_bound=0)
  flags.DEFINE_enum(
      "tune_on", SCORES[0], SCORES, "Score that tuning minimises.")
  flags.DEFINE_bool(
      "bfloat16_state", False,
      "Also run each trained optimizer with bfloat16 state.")
  flags.DEFINE_bool(
      "cost", False, "Also measure the seconds of a step and the bytes of "
      "state of each optimizer on each task.")


def main(flags) -> None:
  """Compare the optimizers; write and print the report."""
  compared = methods.parse(
      flags.optimizers, flags.schedules, flags.trust)
  if flags.bfloat16_state:
    compared += methods.with_bfloat16_state(
        flags.optimizers, compared, flags.trust)
  targets = targets_of(flags)
  folder = pathlib.Path(flags.workdir)
  if not folder.exists():  # a second run may find all cells and need no data
    check_tasks(compared, targets, flags.data_dir)
  folder.mkdir(parents=True, exist_ok=True)
  command.write_command(folder)
  with command.progress(
      count_steps(compared, targets, flags.seeds, flags.tuning_seeds), "step",
      "comparing", unit_scale=True) as bar:
    results = Study(
        folder, flags.data_dir, flags.tuning_seeds, flags.seeds,
        flags.tune_on, bar, flags.max_growth).compare(compared, targets)
  if flags.cost:
    results = cost.columns(
        results, compared, targets, folder / "cells", flags.data_dir)
  print(report.write(results, folder, title_of(flags), **record_of(
      compared, flags.tuning_seeds, flags.tune_on)))


if __name__ == "__main__":
  command.run(define_flags, main)
