"""Find the update multipliers with which mulo trains best before meta-training.

python -m experiments.studies.prior_scan --workdir=runs/prior
python -m experiments.studies.prior_scan --workdir=runs/prior2 \
    --optimizer=mulo2 --parametrization=natural --suite=prior_valid

At initialisation mulo is close to Adam, and mulo2 to Muon. The multipliers of
their updates then play the role of a learning rate, and meta-training starts
from them. The command trains small networks of several families with random
multipliers, one for each role of a parameter. A multiplier of 1 stands for
step_mult = 1 under the parametrization, or for mulo2, for its defaults. Takes
five to ten minutes on two cores, with a suite and mulo2 half an hour.

Writes results.csv and table.md to the workdir. The first table has the draws
that are best over all tasks. The score of a draw is log(loss / lowest loss of
the task), for the mean and the final train loss and the final validation loss.
The second table has, for each task, the geometric mean of its eight best draws.
A second run skips the cells that are done.
"""

import functools
import pathlib
from typing import Any, Callable, Sequence

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from experiments import command
from experiments import sweep
from learned_opt import base as learned_opt_base
from learned_opt import kinds as kinds_lib
from learned_opt import optimizers
from learned_opt.scaling import multipliers as multipliers_lib
from learned_opt.scaling import parametrizations
from learned_opt.scaling import roles as roles_lib
from meta_train import build
from meta_train import evaluate
from meta_train import unroll
from tasks import base as tasks_base
from tasks import suites

_MNIST = {"dataset": "mnist", "image_size": 14}
TASKS: suites.Suite = {
    "mlp_w32_d2": {"name": "mlp", **_MNIST, "width": 32, "depth": 2},
    "mlp_w64_d4": {"name": "mlp", **_MNIST, "width": 64, "depth": 4},
    "conv_w8": {"name": "conv", **_MNIST, "image_size": 8, "width": 8,
                "batch_size": 32},
    "conv_w16_norm": {"name": "conv", **_MNIST, "width": 16, "norm": "layer",
                      "batch_size": 32},
    "autoencoder_w32": {"name": "autoencoder", **_MNIST, "image_size": 8,
                        "width": 32},
    "vit_w16": {"name": "vit", **_MNIST, "patch": 7, "width": 16,
                "batch_size": 16},
    "lm_w16": {"name": "transformer_lm", "width": 16, "length": 8,
               "batch_size": 16},
    "rnn_w16": {"name": "rnn_lm", "width": 16, "length": 8, "batch_size": 16}}
ROLES = ("input", "hidden", "output", "vector", "table")
SETTINGS: dict[str, dict[str, Any]] = {
    "mulo": dict(step_mult=1.0, hidden=4, horizon=True, depth=True),
    "mulo2": dict(hidden=1)}
CENTER = {"mulo": 0.3, "mulo2": 1.0}  # of the draws
SCORES = {"mean": "mean loss", "final": "final loss", "valid": "valid loss"}
BEST = 8  # best draws of a task, whose geometric mean is reported


def draws(num: int, spread: float, center: float,
          roles: Sequence[str] = ROLES) -> np.ndarray:
  """Draw multipliers, log-uniform from center / spread to center * spread.

  Returns:
    Multipliers of the roles, float32 [num, roles]; always the same draws.
  """
  exponents = np.random.default_rng(0).uniform(-1, 1, (num, len(roles)))
  return (center * spread**exponents).astype(np.float32)


def with_multipliers(lopt: learned_opt_base.LearnedOptimizer, theta: Any,
                     task: tasks_base.Task, roles: Sequence[str] = ROLES
                     ) -> unroll.OptFn:
  """Return an `opt_fn` whose theta are multipliers of the updates of ROLES.

  Args:
    lopt: the learned optimizer.
    theta: its meta-parameters.
    task: the task, whose shapes determine the role of each parameter.
    roles: ROLES, or all but tables, which then count as inputs.

  Returns:
    `opt_fn(multipliers, num_steps=...)`, with multipliers of shape [roles].
  """
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  # A matrix none of whose axes grows is treated like an input matrix.
  index = {"fixed": 0, **{role: i for i, role in enumerate(roles)}}
  index["embedding"] = index["tied"] = index.get("table", 0)
  role = kinds_lib.tree_map(
      lambda x, kind: index[kind.role], shapes, multipliers_lib.kinds(
          task.base_shapes, overrides={
              path: roles_lib.Override(role=role)
              for path, role in (task.tables or {}).items()}))

  def opt_fn(multipliers, *, num_steps=None, kinds=None):
    inner = kinds_lib.told(lopt.opt_fn, kinds)(theta, num_steps=num_steps)

    def update(grads, state, params=None, **extra_args):
      updates, state = inner.update(grads, state, params, **extra_args)
      return jax.tree.map(
          lambda u, i: u * multipliers[i], updates, role), state

    return optax.GradientTransformationExtraArgs(inner.init, update)

  return opt_fn


def _roles(parametrization: str) -> tuple[str, ...]:
  """Return the roles that have multipliers of their own."""
  knows_tables = parametrizations.get(parametrization).knows_tables
  return ROLES if knows_tables else ROLES[:4]


def rows(section: dict, parametrization_name: str, optimizer: str,
         settings: dict, grid: np.ndarray, num_steps: int, data_dir: str | None,
         on_chunk: Callable[[int], None] = lambda steps: None) -> list[dict]:
  """Train a network with each draw; return its losses, see SCORES.

  Args:
    section: the task, see `meta_train.build.task_of`.
    parametrization_name: parametrization of network and update.
    optimizer: name of the learned optimizer.
    settings: of the optimizer.
    grid: result of `draws`.
    num_steps: steps per run.
    data_dir: see `tasks.data.images.image_data`.
    on_chunk: called with the number of steps since the last call.
  """
  parametrization = parametrizations.get(parametrization_name)
  task = build.task_of(section, parametrization, data_dir)
  lopt = optimizers.get(optimizer, **settings)
  roles = _roles(parametrization_name)
  opt_fn = with_multipliers(lopt, lopt.init(jax.random.key(0)), task, roles)
  # All draws start from the same network and see the same batches.
  result = evaluate.train(
      task, unroll.scaled(opt_fn, parametrization, task), jnp.asarray(grid),
      jnp.stack([jax.random.key(0)] * len(grid)), num_steps, on_chunk=on_chunk)
  losses = np.nan_to_num(
      result.train_loss, nan=np.inf, posinf=np.inf).astype(float)
  return [{**{role: float(x) for role, x in zip(roles, multipliers)},
           "mean": float(np.mean(loss)),
           "final": float(np.mean(loss[-max(1, num_steps // 10):])),
           "valid": float(valid)}
          for multipliers, loss, valid in zip(grid, losses, np.nan_to_num(
              result.final["outer_valid"]["loss"], nan=np.inf))]


def table(results: pd.DataFrame) -> str:
  """Return two Markdown tables: best draws over all tasks, best of each task.

  Args:
    results: rows of `rows`, with the column task.
  """
  keys = [role for role in ROLES if role in results]
  results = results.copy()
  for column, name in SCORES.items():
    best = results.groupby("task")[column].transform("min")
    results[f"log ratio, {name}"] = np.log(results[column] / best)
  ratios = [f"log ratio, {name}" for name in SCORES.values()]
  results["all"] = results[ratios].sum(axis=1)
  overall = results.groupby(keys)[[*ratios, "all"]].mean().sort_values("all")
  best_of = results.sort_values("all").groupby("task", sort=False)[keys].agg(
      lambda x: float(np.exp(np.mean(np.log(x.head(BEST))))))
  markdown = lambda frame: frame.reset_index().to_markdown(
      index=False, floatfmt=".3g")
  return "\n\n".join(
      (markdown(overall[ratios].head(12)), markdown(best_of.sort_index())))


def define_flags() -> None:
  """Define the flags of this command."""
  command.define_workdir()
  command.define_data_dir()
  flags.DEFINE_enum(
      "optimizer", "mulo", list(SETTINGS), "Untrained optimizer.")
  flags.DEFINE_enum(
      "suite", None, suites.names(), "Tasks and their numbers of steps; "
      "default: eight small networks.")
  flags.DEFINE_string(
      "parametrization", "mup_balanced", "Parametrization of network and "
      f"update: {', '.join(parametrizations.names())}.")
  flags.DEFINE_integer(
      "newton_schulz", None, "Newton-Schulz iterations; default: 3, of mulo2 "
      "5.", lower_bound=0)
  flags.DEFINE_integer(
      "num_draws", 64, "Draws of the multipliers.", lower_bound=1)
  flags.DEFINE_float(
      "spread", 10.0, "Ratio of the largest multiplier to the middle.",
      lower_bound=1.0)
  flags.DEFINE_integer(
      "num_steps", 400, "Steps per run of tasks that do not say it.",
      lower_bound=1)


def main(flags) -> None:
  """Run the scan; write and print the tables.

  Raises:
    ValueError: an unknown parametrization.
    OSError: a missing data set, or a workdir that is not writable.
  """
  folder = pathlib.Path(flags.workdir)
  grid = draws(flags.num_draws, flags.spread, CENTER[flags.optimizer],
               _roles(flags.parametrization))
  settings: dict[str, Any] = dict(SETTINGS[flags.optimizer])
  if flags.optimizer == "mulo" or flags.newton_schulz is not None:
    settings["newton_schulz"] = (
        3 if flags.newton_schulz is None else flags.newton_schulz)
  tasks: suites.Suite = suites.get(flags.suite) if flags.suite else TASKS
  steps: dict[str, int] = {
      name: section.get("num_steps", flags.num_steps)
      for name, section in tasks.items()}
  with command.progress(sum(steps.values()), "step", "training") as bar:
    cells = []
    for name, section in tasks.items():
      section = {k: v for k, v in section.items() if k != "num_steps"}
      config = {"section": section, "draws": grid.tolist(),
                "parametrization": flags.parametrization,
                "optimizer": flags.optimizer, "settings": settings,
                "num_steps": steps[name]}
      cells.append(sweep.Cell(config, functools.partial(
          rows, section, flags.parametrization, flags.optimizer, settings,
          grid, steps[name], flags.data_dir, bar.update), steps[name]))
    found = sweep.run_cells(folder / "cells", cells, bar)
  results = pd.concat([pd.DataFrame(part).assign(task=name)
                       for name, part in zip(tasks, found)], ignore_index=True)
  results.to_csv(folder / "results.csv", index=False)
  text = table(results)
  (folder / "table.md").write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  command.run(define_flags, main)
