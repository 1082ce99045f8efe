"""Find the update multipliers with which mulo trains best before meta-training.

python -m experiments.studies.prior_scan --workdir=runs/prior

At initialisation mulo is close to Adam. The multipliers of its updates then
play the role of Adam's learning rate, and meta-training starts from them. The
command trains small networks of several families with random multipliers, one
for each role of a parameter. A multiplier of 1 stands for step_mult = 1 under
the parametrization. Takes five to ten minutes on two cores.

Writes results.csv and table.md to the workdir. The first table has the draws
that are best over all tasks. The score of a draw is log(loss / lowest loss of
the task), for the mean and the final train loss. The second table has, for each
task, the geometric mean of its eight best draws. A second run skips the cells
that are done.
"""

import functools
import pathlib
from typing import Any, Callable

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from experiments import command
from experiments import sweep
from learned_opt import base as learned_opt_base
from learned_opt import optimizers
from learned_opt.scaling import fan
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import evaluate
from meta_train import unroll
from tasks import base as tasks_base

_MNIST = {"dataset": "mnist", "image_size": 14}
TASKS = {
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
ROLES = ("input", "hidden", "output", "vector")
SETTINGS = dict(step_mult=1.0, hidden=4, horizon=True, depth=True)
BEST = 8  # best draws of a task, whose geometric mean is reported


def draws(num: int, spread: float) -> np.ndarray:
  """Draw multipliers, log-uniform between 0.3 / spread and 0.3 * spread.

  Returns:
    Multipliers of ROLES, float32 [num, 4]; always the same draws.
  """
  exponents = np.random.default_rng(0).uniform(-1, 1, (num, len(ROLES)))
  return (0.3 * spread**exponents).astype(np.float32)


def with_multipliers(lopt: learned_opt_base.LearnedOptimizer, theta: Any,
                     task: tasks_base.Task) -> unroll.OptFn:
  """Return an `opt_fn` whose theta are multipliers of the updates of ROLES.

  Args:
    lopt: the learned optimizer.
    theta: its meta-parameters.
    task: the task, whose shapes determine the role of each parameter.

  Returns:
    `opt_fn(multipliers, num_steps=...)`, with multipliers of shape [4].
  """
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  # A matrix none of whose axes grows is treated like an input matrix.
  index = {"fixed": 0, **{role: i for i, role in enumerate(ROLES)}}
  role = jax.tree.map(
      lambda x, base: index[fan.role(x.shape, base.shape)], shapes,
      task.base_shapes)

  def opt_fn(multipliers, *, num_steps=None):
    inner = lopt.opt_fn(theta, num_steps=num_steps)

    def update(grads, state, params=None, **extra_args):
      updates, state = inner.update(grads, state, params, **extra_args)
      return jax.tree.map(
          lambda u, i: u * multipliers[i], updates, role), state

    return optax.GradientTransformationExtraArgs(inner.init, update)

  return opt_fn


def rows(section: dict, parametrization_name: str, newton_schulz: int,
         grid: np.ndarray, num_steps: int, data_dir: str | None,
         on_chunk: Callable[[int], None] = lambda steps: None) -> list[dict]:
  """Train a network with each draw; return its mean and final train loss.

  Args:
    section: the task, see `meta_train.build.task_of`.
    parametrization_name: parametrization of network and update.
    newton_schulz: setting of mulo.
    grid: result of `draws`.
    num_steps: steps per run.
    data_dir: see `tasks.data.images.image_data`.
    on_chunk: called with the number of steps since the last call.
  """
  parametrization = parametrizations.get(parametrization_name)
  task = build.task_of(section, parametrization, data_dir)
  lopt = optimizers.get("mulo", **SETTINGS, newton_schulz=newton_schulz)
  opt_fn = with_multipliers(lopt, lopt.init(jax.random.key(0)), task)
  # All draws start from the same network and see the same batches.
  result = evaluate.train(
      task, unroll.scaled(opt_fn, parametrization, task), jnp.asarray(grid),
      jnp.stack([jax.random.key(0)] * len(grid)), num_steps, on_chunk=on_chunk)
  losses = np.nan_to_num(
      result.train_loss, nan=np.inf, posinf=np.inf).astype(float)
  return [{**{role: float(x) for role, x in zip(ROLES, multipliers)},
           "mean": float(np.mean(loss)),
           "final": float(np.mean(loss[-max(1, num_steps // 10):]))}
          for multipliers, loss in zip(grid, losses)]


def table(results: pd.DataFrame) -> str:
  """Return two Markdown tables: best draws over all tasks, best of each task.

  Args:
    results: rows of `rows`, with the column task.
  """
  keys = list(ROLES)
  results = results.copy()
  for column in ("mean", "final"):
    best = results.groupby("task")[column].transform("min")
    results[f"log ratio, {column} loss"] = np.log(results[column] / best)
  ratios = [f"log ratio, {column} loss" for column in ("mean", "final")]
  results["both"] = results[ratios].sum(axis=1)
  overall = results.groupby(keys)[[*ratios, "both"]].mean().sort_values("both")
  best_of = results.sort_values("both").groupby("task", sort=False)[keys].agg(
      lambda x: float(np.exp(np.mean(np.log(x.head(BEST))))))
  markdown = lambda frame: frame.reset_index().to_markdown(
      index=False, floatfmt=".3g")
  return "\n\n".join(
      (markdown(overall[ratios].head(12)), markdown(best_of.sort_index())))


def define_flags() -> None:
  """Define the flags of this command."""
  command.define_workdir()
  command.define_data_dir()
  flags.DEFINE_string(
      "parametrization", "mup_balanced", "Parametrization of network and "
      f"update: {', '.join(parametrizations.names())}.")
  flags.DEFINE_integer(
      "newton_schulz", 3, "Newton-Schulz iterations of mulo.", lower_bound=0)
  flags.DEFINE_integer(
      "num_draws", 64, "Draws of the four multipliers.", lower_bound=1)
  flags.DEFINE_float(
      "spread", 10.0, "Multipliers lie between 0.3 / spread and 0.3 * spread.",
      lower_bound=1.0)
  flags.DEFINE_integer("num_steps", 400, "Steps per run.", lower_bound=1)


def main(flags) -> None:
  """Run the scan; write and print the tables.

  Raises:
    ValueError: an unknown parametrization.
    OSError: a missing data set, or a workdir that is not writable.
  """
  folder = pathlib.Path(flags.workdir)
  grid = draws(flags.num_draws, flags.spread)
  frames = []
  with command.progress(
      len(TASKS) * flags.num_steps, "step", "training") as bar:
    for i, (name, section) in enumerate(TASKS.items(), 1):
      bar.set_postfix_str(name)
      config = {"section": section, "draws": grid.tolist(),
                "parametrization": flags.parametrization,
                "newton_schulz": flags.newton_schulz, "settings": SETTINGS,
                "num_steps": flags.num_steps}
      frames.append(pd.DataFrame(sweep.run_cell(
          folder / "cells", config, functools.partial(
              rows, section, flags.parametrization, flags.newton_schulz, grid,
              flags.num_steps, flags.data_dir, bar.update))).assign(task=name))
      # A cell that was done does not advance the bar while it is read.
      bar.update(i * flags.num_steps - bar.n)
  results = pd.concat(frames, ignore_index=True)
  results.to_csv(folder / "results.csv", index=False)
  text = table(results)
  (folder / "table.md").write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  command.run(define_flags, main)
