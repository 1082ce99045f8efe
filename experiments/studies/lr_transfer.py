r"""Compare how the best learning rates of Adam and muAdam depend on width.

python -m experiments.studies.lr_transfer \
    --workdir=docs/studies/lr_transfer_mlp
python -m experiments.studies.lr_transfer \
    --workdir=docs/studies/lr_transfer_lm \
    --task=transformer_lm --settings=dataset=python,depth=2 --num_steps=50 \
    --widths=64,128,256,512,1024 --exponents=-14,-3 --seeds=2

Trains the same networks, in standard parametrization, with `optax.adam` and
with muAdam: `mu_adamw` and `rescale_init` of `mulo.scaling`. The base width, at
which Adam and muAdam are the same, is the first width. Runs are short, and the
learning rate falls linearly to zero. The initial learning rates are a grid of
powers of two. The score of a learning rate is the mean train loss over the
second half of the steps and over seeds.

Writes results.csv, table.md and transfer.png to the workdir. A second run skips
the cells that are done.

The exit status is 0 if no best learning rate is on the edge of the grid, the
best learning rate of muAdam stays within a factor of two of its value at the
first width, and the best learning rate of Adam moves further. Otherwise the
exit status is 1.
"""

import functools
import itertools
import pathlib
from typing import Any, Callable

from absl import flags
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pandas as pd

from experiments import baselines
from experiments import command
from experiments import sweep
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import evaluate
from meta_train import unroll
from mulo import scaling
from tasks import base as tasks_base

# Networks are in standard parametrization for both methods; the multipliers of
# muAdam come from `scaling.mu_adamw`.
ADAM = baselines.get("adam").label
MU_ADAM = baselines.get("mu_adam").label
METHODS = (ADAM, MU_ADAM)
MAX_PARAMS = 2**25  # total size of the networks that are trained at once
EPS = 1e-12  # far below any gradient


def with_mup_init(task: tasks_base.Task, base: tasks_base.Task
                  ) -> tasks_base.Task:
  """Return the task with initial weights rescaled for muP.

  Args:
    task: the task in standard parametrization.
    base: the task at the base width; its base_shapes are at another width.
  """
  return task._replace(init=lambda key: scaling.rescale_init(
      task.init(key), base.init(key), delta_shapes=base.base_shapes))


def opt_fn_of(method: str, base: tasks_base.Task) -> unroll.OptFn:
  """Return an `opt_fn` whose theta is the learning rate of the first step.

  Args:
    method: one of METHODS.
    base: the task at the base width; its base_shapes are at another width.
  """
  shapes = jax.eval_shape(base.init, jax.random.key(0))

  def opt_fn(theta, *, num_steps=None):
    rate = lambda step: theta * (1 - step / num_steps)
    if method == ADAM:
      return optax.with_extra_args_support(
          baselines.get("adam").make(rate, eps=EPS))
    return scaling.mu_adamw(
        rate, shapes, eps=EPS,
        delta_shapes=base.base_shapes)

  return opt_fn


def task_of(section: dict[str, Any], width: int, data_dir: str | None
            ) -> tasks_base.Task:
  """Return a task at a width, in standard parametrization.

  Raises:
    ValueError: settings that the task does not accept, or a task without width.
  """
  task = build.task_of(section | {"width": width},
                       parametrizations.get("standard"), data_dir)
  if task.base_shapes is None:
    raise ValueError(f"{section['name']} has no width.")
  return task


def scores(method: str, section: dict[str, Any], base_width: int, width: int,
           rates: list[float], seeds: int, num_steps: int,
           data_dir: str | None,
           on_chunk: Callable[[int], None] = lambda steps: None) -> list[dict]:
  """Train with each learning rate and seed; return a row per run.

  Args:
    method: one of METHODS.
    section: the task, see `meta_train.build.task_of`.
    base_width: width at which both methods are the same.
    width: width of the networks.
    rates: learning rates of the first step.
    seeds: number of seeds.
    num_steps: steps per run.
    data_dir: see `tasks.data.images.image_data`.
    on_chunk: called with the number of steps, over all runs, since the last
      call.

  Returns:
    Rows with the keys "learning rate", "seed" and "loss".
  """
  task, base = (task_of(section, n, data_dir) for n in (width, base_width))
  train = evaluate.trainer(
      with_mup_init(task, base) if method == MU_ADAM else task,
      opt_fn_of(method, base))
  params = sum(x.size for x in jax.tree.leaves(
      jax.eval_shape(task.init, jax.random.key(0))))
  # The runs of a group are trained at the same time, as far as memory allows.
  group_size = max(1, MAX_PARAMS // (params * seeds))
  rows = []
  for first in range(0, len(rates), group_size):
    group = [(rate, seed) for rate in rates[first:first + group_size]
             for seed in range(seeds)]
    result = train(
        jnp.asarray([rate for rate, _ in group], jnp.float32),
        jnp.stack([jax.random.key(seed) for _, seed in group]), num_steps,
        on_chunk=lambda steps, n=len(group): on_chunk(steps * n))
    for (rate, seed), loss in zip(group, result.train_loss):
      rows.append({"learning rate": rate, "seed": seed, "loss": float(
          np.mean(loss[num_steps // 2 - 2:]))})
  return rows


def best(results: pd.DataFrame) -> pd.DataFrame:
  """Find the best learning rate of each method and width.

  Args:
    results: rows of `scores`, with the columns method and width.

  Returns:
    Columns method, width, learning rate, loss, edge (whether the learning rate
    is the smallest or largest of the grid) and moved (octaves from the learning
    rate at the first width).
  """
  rows = []
  for (method, width), group in results.groupby(["method", "width"],
                                                sort=False):
    # A learning rate that diverged with one seed is never the best.
    means = group.assign(loss=group.loss.fillna(np.inf)).groupby(
        "learning rate").loss.mean()
    rate = means.idxmin()
    rows.append({"method": method, "width": width, "learning rate": rate,
                 "loss": means.min(),
                 "edge": rate in (means.index[0], means.index[-1])})
  chosen = pd.DataFrame(rows)
  first = chosen.groupby("method")["learning rate"].transform("first")
  return chosen.assign(
      moved=np.log2(chosen["learning rate"] / first).round(6))


def complaints(chosen: pd.DataFrame) -> list[str]:
  """Return a line for each way in which learning rates do not transfer.

  Args:
    chosen: result of `best`.
  """
  lines = [f"{row.method} at width {row.width}: the best learning rate is on "
           "the edge of the grid; widen --exponents."
           for row in chosen.itertuples() if row.edge]
  moved = chosen.assign(moved=chosen.moved.abs()).groupby("method").moved.max()
  if moved[MU_ADAM] > 1:
    lines.append(f"muAdam's best learning rate moves by {moved[MU_ADAM]:.0f} "
                 "octaves.")
  if moved[ADAM] <= max(1, moved[MU_ADAM]):
    lines.append(f"Adam's best learning rate moves by {moved[ADAM]:.0f} "
                 "octaves only, so this setting tells nothing.")
  return lines


def plot(results: pd.DataFrame, path: pathlib.Path) -> None:
  """Plot loss against learning rate: a panel per method, a line per width."""
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  figure, axes = plt.subplots(1, len(METHODS), figsize=(10, 4), sharey=True,
                              layout="constrained")
  for axis, method in zip(axes, METHODS):
    groups = results[results.method == method].groupby("width")
    for i, (width, group) in enumerate(groups):
      color = plt.get_cmap("viridis")(i / max(len(groups) - 1, 1))
      means = group.groupby("learning rate").loss.mean()
      axis.plot(means.index, means, ".-", color=color, label=f"width {width}")
      axis.plot(means.idxmin(), means.min(), "o", color=color, markersize=9)
    axis.set(title=method, xscale="log", yscale="log", xlabel="learning rate")
  lowest = results.groupby(["method", "width", "learning rate"]).loss.mean()
  axes[0].set(ylabel="train loss", ylim=(0.8 * lowest.min(),
                                         2 * lowest.median()))
  axes[-1].legend(fontsize="small")
  figure.savefig(path, dpi=120)
  plt.close(figure)


def define_flags() -> None:
  """Define the flags of this command."""
  command.define_workdir()
  command.define_data_dir()
  command.define_task(["dataset=digits", "depth=2", "batch_size=128"])
  flags.DEFINE_list(
      "widths", ["64", "128", "256", "512", "1024"],
      "Widths in increasing order; the first is the base width.")
  flags.DEFINE_list(
      "exponents", ["-13", "-3"],
      "First and last exponent of the grid of learning rates: 2^first, ..., "
      "2^last.")
  flags.DEFINE_integer("num_steps", 25, "Steps per run.", lower_bound=8)
  flags.DEFINE_integer("seeds", 4, "Runs per learning rate.", lower_bound=1)


def measure(flags, section: dict[str, Any], widths: tuple[int, ...],
            rates: list[float]) -> pd.DataFrame:
  """Return the rows of `scores` for all methods and widths."""
  runs = list(itertools.product(METHODS, widths))
  steps = flags.num_steps * flags.seeds * len(rates)
  with command.progress(len(runs) * steps, "step", "training",
                        unit_scale=True) as bar:
    cells = [sweep.Cell(
        {"method": method, "section": section, "width": width,
         "base_width": widths[0], "rates": rates, "eps": EPS,
         "seeds": flags.seeds, "num_steps": flags.num_steps,
         "jax": jax.__version__},
        functools.partial(
            scores, method, section, widths[0], width, rates, flags.seeds,
            flags.num_steps, flags.data_dir, bar.update), steps)
             for method, width in runs]
    found = sweep.run_cells(pathlib.Path(flags.workdir) / "cells", cells, bar)
  return pd.concat([pd.DataFrame(rows).assign(method=method, width=width)
                    for (method, width), rows in zip(runs, found)],
                   ignore_index=True)


def main(flags) -> int:
  """Run the study, write and print the table, and return the exit status.

  Raises:
    ValueError: flags that do not fit together.
    OSError: a missing data set, or a workdir that is not writable.
  """
  folder = pathlib.Path(flags.workdir)
  section = {"name": flags.task, **command.parse_settings(flags.settings)}
  widths = command.parse_integers("widths", flags.widths)
  exponents = command.parse_integers("exponents", flags.exponents)
  if len(exponents) != 2 or exponents[0] > exponents[1]:
    raise ValueError("--exponents must be the first and the last exponent, got "
                     f"{','.join(flags.exponents)}.")
  rates = [2.0**e for e in range(exponents[0], exponents[1] + 1)]
  if not folder.exists():  # a second run may find all cells and need no data
    for width in widths:
      task_of(section, width, flags.data_dir)
  results = measure(flags, section, widths, rates)
  results.to_csv(folder / "results.csv", index=False)
  chosen = best(results)
  shown = chosen.assign(**{"learning rate": [
      f"2^{np.log2(rate):.0f}" for rate in chosen["learning rate"]]})
  text = "\n\n".join([shown.to_markdown(index=False, floatfmt=".3g"),
                      *complaints(chosen)])
  (folder / "table.md").write_text(text + "\n")
  plot(results, folder / "transfer.png")
  print(f"{text}\n\nPlot: {folder / 'transfer.png'}")
  return 1 if complaints(chosen) else 0


if __name__ == "__main__":
  command.run(define_flags, main)
