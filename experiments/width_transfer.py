"""A meta-trained optimizer on wider networks, beside tuned Adam.

python -m experiments.width_transfer --artifact=runs/q/theta.safetensors \
    --workdir=runs/q/width_transfer [--widths=32,128,512] [--dataset=mnist]

For each width: the optimizer as it is, Adam at learning rate 1e-3, and Adam
(standard parametrization) and muAdam (muP, the same link as the optimizer) at
the best of nine learning rates, tuned at that width on other seeds. Writes
results.csv, table.md and width_transfer.png to the workdir. Run again, it
skips what is done.
"""

import dataclasses
import pathlib
import sys
from typing import Any, Callable, NamedTuple

from absl import app
from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pandas as pd
from scipy import stats
import tqdm

from experiments import sweep
from learned_opt import artifact as artifact_lib
from learned_opt import parametrizations
from meta_train import evaluate
from meta_train import unroll
import mulo
from tasks import suite

LEARNING_RATES = {
    "Adam": [10**(e / 2) for e in range(-8, 1)],  # 1e-4 to 1
    "muAdam": [10**(e / 2) for e in range(-6, 3)],  # 1e-3 to 10
}
FIRST_TUNING_SEED, FIRST_SEED = 1000, 0
CURVE_POINTS = 100


class Method(NamedTuple):
  """An optimizer in the comparison.

  Attributes:
    name: as in the table.
    parametrization: name, of the network and of the update.
    opt_fn: `opt_fn(theta, num_steps=...)`, theta a learning rate or theta.
    thetas: the candidates; more than one means that it is tuned.
    identity: what decides the result beside theta; JSON values.
  """

  name: str
  parametrization: str
  opt_fn: Callable
  thetas: list[Any]
  identity: dict[str, Any]


def adam(learning_rate, *, num_steps=None):
  """optax.adam as an `opt_fn` whose theta is the learning rate."""
  del num_steps
  return optax.with_extra_args_support(optax.adam(learning_rate))


def methods(artifact: artifact_lib.Artifact) -> list[Method]:
  """The optimizers that are compared."""
  learned = lambda name, artifact: Method(
      name, artifact.parametrization, artifact.lopt.opt_fn, [artifact.theta], {
          "optimizer": artifact.optimizer, "settings": artifact.settings})
  found = [learned(artifact.optimizer, artifact)]
  if artifact.settings.get("accumulator_dtype") == "float32":
    half = artifact.settings | {"accumulator_dtype": "bfloat16"}
    found.append(learned(f"{artifact.optimizer}, bfloat16 state",
                         dataclasses.replace(artifact, settings=half)))
  return found + [
      Method("Adam 1e-3", "standard", adam, [1e-3], {}),
      Method("Adam", "standard", adam, LEARNING_RATES["Adam"], {}),
      Method("muAdam", "mup", adam, LEARNING_RATES["muAdam"], {})]


def default_widths(artifact: artifact_lib.Artifact) -> list[int]:
  """1, 4 and 16 times the largest meta-training width."""
  trained = [task["width"] for task in
             artifact.record.get("tasks", {}).values() if "width" in task]
  if not trained:
    raise ValueError("The artifact names no widths: pass --widths.")
  return [factor * max(trained) for factor in (1, 4, 16)]


def train_rows(method: Method, thetas: list, seeds: list[int], task: dict,
               data_dir: str | None, num_steps: int, bar) -> list[dict]:
  """Trains every theta with every seed; one row per run."""
  parametrization = parametrizations.get(method.parametrization)
  network = suite.get("mlp", parametrization, data_dir=data_dir, **task)
  runs = [(theta, seed) for theta in thetas for seed in seeds]
  result = evaluate.train(
      network, unroll.scaled(method.opt_fn, parametrization, network),
      jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y) for y in x]),
                   *[theta for theta, _ in runs]),
      jnp.stack([jax.random.key(seed) for _, seed in runs]), num_steps,
      on_chunk=lambda steps: bar.update(steps * len(runs)))
  rows = []
  for i, (theta, seed) in enumerate(runs):
    loss = result.train_loss[i].astype(float)
    rows.append({
        "seed": seed,
        "learning_rate": theta if isinstance(theta, float) else None,
        "final_train_loss": float(np.mean(loss[-max(1, num_steps // 10):])),
        "mean_train_loss": float(np.mean(loss)),
        **{f"{split}_{name}": float(x[i])
           for split, values in result.final.items()
           for name, x in values.items()},
        "curve": [float(np.mean(part)) for part in np.array_split(
            loss, min(CURVE_POINTS, num_steps))]})
  return rows


def compare(artifact: artifact_lib.Artifact, folder: pathlib.Path, *,
            dataset: str, widths: list[int], depth: int, batch_size: int,
            num_steps: int, num_seeds: int, num_tuning_seeds: int,
            tune_on: str, data_dir: str | None) -> pd.DataFrame:
  """Every method at every width; one row per run at the chosen theta.

  Columns: method, width, grid_edge (whether the best learning rate was the
  smallest or largest tried), and those of `train_rows`.
  """
  compared = methods(artifact)
  tuned = sum(len(m.thetas) for m in compared if len(m.thetas) > 1)
  per_width = num_seeds * len(compared) + num_tuning_seeds * tuned
  bar = tqdm.tqdm(total=len(widths) * per_width * num_steps, unit="step",
                  desc="comparing", unit_scale=True,
                  mininterval=0.5 if sys.stderr.isatty() else 10)
  frames = []
  for width in widths:
    task = {"dataset": dataset, "width": width, "depth": depth,
            "batch_size": batch_size}
    for method in compared:
      bar.set_postfix_str(f"width {width}, {method.name}")

      def cell(thetas, seeds):
        ids = [t if isinstance(t, float) else artifact_lib.sha256(t)
               for t in thetas]
        config = {"method": method.name, "thetas": ids, "seeds": seeds,
                  "parametrization": method.parametrization, "task": task,
                  "num_steps": num_steps, "jax": jax.__version__,
                  **method.identity}
        before = bar.n
        rows = sweep.run_cell(
            folder / "cells", config, lambda: train_rows(
                method, thetas, seeds, task, data_dir, num_steps, bar))
        if bar.n == before:  # done earlier
          bar.update(len(rows) * num_steps)
        return rows

      best, edge = method.thetas[0], False
      if len(method.thetas) > 1:
        rows = cell(method.thetas, [
            FIRST_TUNING_SEED + i for i in range(num_tuning_seeds)])
        scores = np.reshape([row[tune_on] for row in rows], (
            len(method.thetas), num_tuning_seeds)).mean(1)
        index = best_index(scores)
        best = method.thetas[index]
        edge = index in (0, len(scores) - 1)
      seeds = [FIRST_SEED + i for i in range(num_seeds)]
      frames.append(pd.DataFrame(cell([best], seeds)).assign(
          method=method.name, width=width, grid_edge=edge))
  bar.close()
  return pd.concat(frames, ignore_index=True)


def best_index(scores: np.ndarray) -> int:
  """Index of the smallest score; one that is not a number is the worst."""
  return int(np.argmin(np.nan_to_num(scores, nan=np.inf)))


def interval(values: pd.Series) -> tuple[float, float]:
  """95 % bootstrap interval of the mean; both ends equal for one value."""
  values = values.to_numpy()
  if len(values) == 1 or np.ptp(values) == 0 or not np.all(
      np.isfinite(values)):
    return float(np.mean(values)), float(np.mean(values))
  found = stats.bootstrap(
      (values,), np.mean, method="percentile", rng=np.random.default_rng(0))
  return (float(found.confidence_interval.low),
          float(found.confidence_interval.high))


def table(results: pd.DataFrame) -> str:
  """A markdown table, one row per width and method."""
  rows = []
  for (width, method), group in results.groupby(
      ["width", "method"], sort=False):
    with_interval = lambda name, group=group: (
        "{:.2g} ({:.2g} to {:.2g})".format(
            group[name].mean(), *interval(group[name])))
    rate = group["learning_rate"].iloc[0]
    rows.append({
        "width": width, "optimizer": method,
        "learning rate": "none" if pd.isna(rate) else f"{rate:.1e}" +
                         (" (grid edge)" if group["grid_edge"].iloc[0] else ""),
        "final train loss": with_interval("final_train_loss"),
        "mean train loss": with_interval("mean_train_loss"),
        "test loss": with_interval("test_loss"),
        "test accuracy": f"{group['test_accuracy'].mean():.1%}",
        "diverged": f"{(~np.isfinite(group['final_train_loss'])).sum()} of "
                    f"{len(group)}"})
  return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def plot(results: pd.DataFrame, num_steps: int, path: pathlib.Path) -> None:
  """Loss against steps for each width, and final loss against width."""
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  widths = list(results["width"].unique())
  names = list(results["method"].unique())
  colors = {name: f"C{i}" for i, name in enumerate(names)}
  figure, axes = plt.subplots(
      1, len(widths) + 1, figsize=(3.6 * (len(widths) + 1), 3.4),
      layout="constrained")
  for axis, width in zip(axes, widths):
    for name in names:
      group = results[(results.width == width) & (results.method == name)]
      curves = np.array(group["curve"].tolist())
      steps = np.linspace(0, num_steps, curves.shape[1])
      axis.plot(steps, np.mean(curves, 0), color=colors[name], label=name)
      axis.fill_between(steps, np.min(curves, 0), np.max(curves, 0),
                        color=colors[name], alpha=0.2, linewidth=0)
    axis.set(title=f"width {width}", xlabel="step", yscale="log")
  axes[0].set_ylabel("train loss (mean and range of seeds)")
  for name in names:
    group = results[results.method == name].groupby("width")
    mean = group["final_train_loss"].mean()
    ends = np.array([interval(g["final_train_loss"]) for _, g in group])
    axes[-1].plot(mean.index, mean, "o-", color=colors[name], label=name)
    axes[-1].fill_between(mean.index, ends[:, 0], ends[:, 1],
                          color=colors[name], alpha=0.2, linewidth=0)
  axes[-1].set(title="final train loss", xlabel="width", xscale="log",
               yscale="log", xticks=widths, xticklabels=widths)
  axes[-1].minorticks_off()
  axes[0].legend(fontsize="small")
  figure.savefig(path, dpi=120)
  plt.close(figure)


def define_flags() -> None:
  """Defines the flags; not at import, where they would be everyone's."""
  flags.DEFINE_string("artifact", None, "A theta.safetensors.")
  flags.DEFINE_string("workdir", None, "Folder for the results.")
  flags.DEFINE_list(
      "widths", None, "Default: 1, 4 and 16 times the largest one that the "
      "optimizer was meta-trained on.")
  flags.DEFINE_enum("dataset", "digits", ["digits", "mnist"], "Data set.")
  flags.DEFINE_string(
      "data_dir", None, "Folder with data sets; default: MULO_DATA_DIR.")
  flags.DEFINE_integer("depth", 2, "Hidden layers.", lower_bound=1)
  flags.DEFINE_integer(
      "batch_size", 64, "Examples per batch.", lower_bound=1)
  flags.DEFINE_integer("num_steps", 1000, "Steps per run.", lower_bound=10)
  flags.DEFINE_integer("seeds", 3, "Runs per method.", lower_bound=1)
  flags.DEFINE_integer(
      "tuning_seeds", 3, "Runs per learning rate, with seeds of their own.",
      lower_bound=1)
  flags.DEFINE_enum(
      "tune_on", "final_train_loss",
      ["final_train_loss", "mean_train_loss", "outer_valid_loss"],
      "What the learning rates of the baselines are chosen by.")
  flags.mark_flags_as_required(["artifact", "workdir"])


def main(argv):
  """Runs `compare` on the flags and writes the report."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  found = flags.FLAGS
  folder = pathlib.Path(found.workdir)
  try:
    artifact = mulo.read(found.artifact)
    widths = [int(w) for w in found.widths or default_widths(artifact)]
    folder.mkdir(parents=True, exist_ok=True)
    results = compare(
        artifact, folder, dataset=found.dataset, widths=widths,
        depth=found.depth, batch_size=found.batch_size,
        num_steps=found.num_steps, num_seeds=found.seeds,
        num_tuning_seeds=found.tuning_seeds, tune_on=found.tune_on,
        data_dir=found.data_dir)
  except (ValueError, OSError) as e:
    sys.exit(f"{type(e).__name__}: {e}")
  results.drop(columns="curve").to_csv(folder / "results.csv", index=False)
  text = table(results)
  (folder / "table.md").write_text(text + "\n")
  plot(results, found.num_steps, folder / "width_transfer.png")
  print(text)
  print(f"\nPlot: {folder / 'width_transfer.png'}")


if __name__ == "__main__":
  define_flags()
  app.run(main)
