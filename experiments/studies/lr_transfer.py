"""Whether the best learning rate depends on width: Adam beside muAdam.

python -m experiments.studies.lr_transfer --workdir=docs/studies/lr_transfer_mlp
python -m experiments.studies.lr_transfer --workdir=docs/studies/lr_transfer_lm \
    --task=transformer_lm --settings=dataset=python,depth=2 --num_steps=50 \
    --widths=64,128,256,512,1024 --exponents=-14,-3 --seeds=2

The same networks, in standard parametrization, are trained with `optax.adam`,
and with `mulo.scaling`: `mu_adamw` and `rescale_init` for the least width, at
which both are the same. Short runs with a learning rate that falls to zero, on
a grid of factors of two, all seeds of a learning rate counted together. Scores
are mean train losses over the second half of the steps. Writes results.csv,
table.md and transfer.png to the workdir. Run again, it skips what is done.

The exit status is 0 if no best learning rate is on the edge of its grid, that
of muAdam stays within a factor of two of that at the least width, and Adam's
moves further.
"""

import functools
import pathlib
import shlex
import sys
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pandas as pd
import tqdm

from experiments import sweep
from experiments.studies import transfer
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import evaluate
from mulo import scaling
from tasks import base as tasks_base

METHODS = ("Adam", "muAdam")
MAX_PARAMS = 2**25  # of all networks that are trained at the same time
EPS = 1e-12


def narrow(task: tasks_base.Task, base: tasks_base.Task) -> tasks_base.Task:
  """The task with initial weights as muP wants them, for a base width."""
  return task._replace(init=lambda key: scaling.rescale_init(
      task.init(key), base.init(key), delta_shapes=base.base_shapes))


def opt_fn_of(method: str, base: tasks_base.Task):
  """`opt_fn` whose theta is the first learning rate.

  Args:
    method: one of METHODS.
    base: the task at the base width; its base_shapes are at another one.
  """
  shapes = jax.eval_shape(base.init, jax.random.key(0))

  def opt_fn(theta, *, num_steps=None):
    rate = lambda step: theta * (1 - step / num_steps)
    if method == "Adam":
      return optax.with_extra_args_support(optax.adam(rate, eps=EPS))
    return scaling.mu_adamw(
        rate, shapes, eps=EPS,
        inference={"delta_shapes": base.base_shapes})

  return opt_fn


def scores(method: str, section: dict[str, Any], base_width: int, width: int,
           rates: list[float], seeds: int, num_steps: int,
           data_dir: str | None) -> list[dict]:
  """A row per learning rate and seed."""
  rule = parametrizations.get("standard")
  of = lambda width: build.task_of(section | {"width": width}, rule, data_dir)
  task, base = of(width), of(base_width)
  if task.base_shapes is None:
    raise ValueError(f"{section['name']} has no width.")
  train = evaluate.trainer(
      narrow(task, base) if method == "muAdam" else task,
      opt_fn_of(method, base))
  params = sum(x.size for x in jax.tree.leaves(
      jax.eval_shape(task.init, jax.random.key(0))))
  at_once = max(1, MAX_PARAMS // (params * seeds))
  rows = []
  for first in range(0, len(rates), at_once):
    part = [(rate, seed) for rate in rates[first:first + at_once]
            for seed in range(seeds)]
    result = train(
        jnp.asarray([rate for rate, _ in part], jnp.float32),
        jnp.stack([jax.random.key(seed) for _, seed in part]), num_steps)
    for (rate, seed), loss in zip(part, result.train_loss):
      rows.append({"learning rate": rate, "seed": seed, "loss": float(
          np.mean(loss[num_steps // 2 - 2:]))})
  return rows


def best(results: pd.DataFrame) -> pd.DataFrame:
  """The best learning rate of each method and width.

  Returns:
    Columns method, width, learning rate, loss, edge (whether it is the least
    or the largest of its grid) and moved (octaves from the least width).
  """
  rows = []
  for (method, width), group in results.groupby(["method", "width"],
                                                sort=False):
    means = group.assign(loss=group.loss.fillna(np.inf)).groupby(
        "learning rate").loss.mean()
    rate = means.idxmin()
    rows.append({"method": method, "width": width, "learning rate": rate,
                 "loss": means.min(),
                 "edge": rate in (means.index[0], means.index[-1])})
  found = pd.DataFrame(rows)
  first = found.groupby("method")["learning rate"].transform("first")
  return found.assign(moved=np.log2(found["learning rate"] / first).round(6))


def complaints(found: pd.DataFrame) -> list[str]:
  """What is not as it should be."""
  lines = [f"{row.method} at width {row.width}: the best learning rate is on "
           "the edge of the grid; widen --exponents."
           for row in found.itertuples() if row.edge]
  moved = found.assign(moved=found.moved.abs()).groupby("method").moved.max()
  if moved["muAdam"] > 1:
    lines.append(f"muAdam's best learning rate moves by {moved['muAdam']:.0f} "
                 "octaves.")
  if moved["Adam"] <= max(1, moved["muAdam"]):
    lines.append(f"Adam's best learning rate moves by {moved['Adam']:.0f} "
                 "octaves only, so this setting tells nothing.")
  return lines


def plot(results: pd.DataFrame, path: pathlib.Path) -> None:
  """Loss against learning rate, a line for each width."""
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
  """Defines the flags; not at import, where they would be everyone's."""
  flags.DEFINE_string("workdir", None, "Folder for the results.")
  flags.DEFINE_string("task", "mlp", "Family.")
  flags.DEFINE_list("settings", ["dataset=digits", "depth=2", "batch_size=128"],
                    "Settings of the task: setting=value.")
  flags.DEFINE_list("widths", ["64", "128", "256", "512", "1024"],
                    "In increasing order; the first is the base width.")
  flags.DEFINE_list("exponents", ["-13", "-3"],
                    "Of 2: the least and the largest learning rate.")
  flags.DEFINE_integer("num_steps", 25, "Steps per run.", lower_bound=8)
  flags.DEFINE_integer("seeds", 4, "Runs per learning rate.", lower_bound=1)
  flags.DEFINE_string(
      "data_dir", None, "Folder with data sets; default: MULO_DATA_DIR.")
  flags.mark_flags_as_required(["workdir"])


def run(found) -> int:
  """Trains, writes and prints the table, and returns the exit status.

  Args:
    found: has the flags as attributes.

  Raises:
    ValueError: flags that do not fit.
    OSError: no such data set, or a workdir that cannot be written.
  """
  folder = pathlib.Path(found.workdir)
  section = {"name": found.task, **transfer.parse(found.settings)}
  widths = [int(x) for x in found.widths]
  least, largest = (int(x) for x in found.exponents)
  rates = [2.0**e for e in range(least, largest + 1)]
  frames = []
  with tqdm.tqdm(total=len(METHODS) * len(widths), unit="width",
                 mininterval=0.5 if sys.stderr.isatty() else 10) as bar:
    for method in METHODS:
      for width in widths:
        config = {"method": method, "section": section, "width": width,
                  "base_width": widths[0], "rates": rates, "eps": EPS,
                  "seeds": found.seeds, "num_steps": found.num_steps,
                  "jax": jax.__version__}
        frames.append(pd.DataFrame(sweep.run_cell(
            folder / "cells", config, functools.partial(
                scores, method, section, widths[0], width, rates, found.seeds,
                found.num_steps, found.data_dir))).assign(
                    method=method, width=width))
        bar.update()
  results = pd.concat(frames, ignore_index=True)
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


def main(argv):
  """Runs the study; the exit status is its verdict."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  found = flags.FLAGS
  try:
    status = run(found)
    (pathlib.Path(found.workdir) / "command.txt").write_text(
        f"python -m experiments.studies.lr_transfer {shlex.join(sys.argv[1:])}\n")
  except (ValueError, OSError) as e:
    sys.exit(f"{type(e).__name__}: {e}")
  sys.exit(status)


if __name__ == "__main__":
  define_flags()
  app.run(main)
