"""What absolute epsilons do to a learned optimizer as networks get wider.

python -m experiments.studies.epsilon_study --workdir=docs/studies/epsilons

The architecture of small_fc_lopt in two forms: as published (adafac_mlp), with
absolute epsilons in its normalisers, and without any (mulo). Under muP the
gradients of a hidden matrix fall as 1/width, so that sooner or later they fall
below an epsilon. On 64-n-n-10 perceptrons on digits under muP it measures

* how large the features are that the MLP reads about the hidden matrix, after
  a few steps of Adam: one that is normalised has root mean square 1;
* how much the layers change in a few steps under an MLP that hands on the
  normalised gradient, and under a random one, with equal weights in both forms.

Writes features.csv, changes.csv, table.md and epsilons.png to the workdir. Run
again, it skips what is done.
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
import optax
import pandas as pd
import tqdm

from experiments import sweep
from experiments.studies import coord_check
from learned_opt import base
from learned_opt import optimizers
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import unroll
from mulo import _coord_check as coord_check_lib

FORMS = {"as published": "adafac_mlp", "without epsilons": "mulo"}
SETTINGS: dict[str, Any] = dict(hidden=4, step_mult=0.01, exp_mult=0.001)
# Rows of the first weights, of the middle one where there are three decays.
FEATURES = {
    "gradient": 0, "parameter": 1, "momentum": 3, "second moment": 5,
    "momentum / root": 7, "1 / root of second moment": 9,
    "gradient, factored": 11, "row factor": 14, "column factor": 17,
    "1 / root of row factor": 20, "1 / root of column factor": 23,
    "momentum, factored": 26}
READERS = ("normalised gradient", "random")
SECTION = {"name": "mlp", "depth": 2, "batch_size": 128}
STEPS = (2, 5)
LEARNING_RATE = 0.1  # of Adam


def reading(theta: dict, row: int) -> dict:
  """theta with an MLP whose direction is one of its features."""
  weights = [jnp.zeros_like(theta[f"w{i}"]) for i in range(3)]
  for layer, unit_in, unit_out, value in (
      (0, row, 0, 1), (0, row, 1, -1), (1, 0, 0, 1), (1, 1, 1, 1),
      (2, 0, 0, 1), (2, 1, 0, -1)):
    weights[layer] = weights[layer].at[unit_in, unit_out].set(value)
  return {**theta, **{f"w{i}": w for i, w in enumerate(weights)}}


def with_weights_of(theta: dict, other: dict) -> dict:
  """theta with the MLP of another one, which has no more features."""
  more = len(theta["w0"]) - len(other["w0"])
  mlp = {k: other[k] for k in ("b0", "w1", "b1", "w2", "b2")}
  return {**theta, **mlp, "w0": jnp.pad(other["w0"], ((0, more), (0, 0)))}


def optimizer(form: str, reader: str) -> tuple[base.LearnedOptimizer, dict]:
  """(the form, theta of one of READERS)."""
  lopt = optimizers.get(FORMS[form], **SETTINGS)
  theta = lopt.init(jax.random.key(0))
  if reader == "random":
    published = optimizers.get(FORMS["as published"], **SETTINGS)
    return lopt, with_weights_of(theta, published.init(jax.random.key(1)))
  return lopt, reading(theta, FEATURES["gradient"])


def feature_sizes(form: str, width: int) -> list[dict]:
  """RMS of each feature of the hidden matrix, after the last of STEPS."""
  rule = parametrizations.get("mup")
  task = build.task_of(SECTION | {"width": width}, rule, None)
  data = jax.tree.map(jnp.asarray, task.data["train"])
  lopt, theta = optimizer(form, READERS[0])
  adam = unroll.scaled(
      lambda rate, **_: optax.adam(rate, eps=1e-16), rule, task)(LEARNING_RATE)
  hidden = lambda tree: {"w": tree["layer_1"]["w"]}

  gradient = lambda params, key: jax.grad(
      lambda p: task.loss(p, key, task.sample_batch(key, data))[0])(params)

  @jax.jit
  def train(key):
    params = task.init(jax.random.fold_in(key, 0))
    *keys, last = jax.random.split(jax.random.fold_in(key, 1), STEPS[-1])

    def step(carry, key):
      params, adam_state, state = carry
      grads = gradient(params, key)
      _, state = lopt.opt_fn(theta).update(
          hidden(grads), state, hidden(params))
      updates, adam_state = adam.update(grads, adam_state, params)
      return (optax.apply_updates(params, updates), adam_state, state), ()

    state = lopt.opt_fn(theta).init(hidden(params))
    (params, _, state), _ = jax.lax.scan(
        step, (params, adam.init(params), state), jnp.stack(keys))
    return hidden(gradient(params, last)), state, hidden(params)

  @jax.jit
  def read(theta, *args):
    updates, _ = lopt.opt_fn(theta).update(*args)
    return jnp.sqrt(jnp.mean(jnp.square(updates["w"]))) / SETTINGS["step_mult"]

  args = train(jax.random.key(0))
  return [{"form": form, "width": width, "feature": name,
           "rms": float(read(reading(theta, row), *args))}
          for name, row in FEATURES.items()]


def changes(form: str, reader: str, widths: tuple[int, ...], seeds: int
            ) -> list[dict]:
  """How much layers change, as `coord_check.rows`."""
  lopt, theta = optimizer(form, reader)
  report = coord_check.check(
      lambda _, **settings: lopt.opt_fn(theta, **settings),
      parametrizations.get("mup"), SECTION, "width", widths, seeds, STEPS, None,
      lambda _: None)
  found = coord_check.rows(report, f"{reader}, {form}")
  return found.to_dict("records")


def tables(sizes: pd.DataFrame, moves: pd.DataFrame) -> str:
  """Markdown: RMS of features by width, then slopes by layer."""
  features = sizes.pivot_table(
      index=["feature", "form"], columns="width", values="rms", sort=False)
  features.columns = [f"width {n}" for n in features.columns]
  last = moves[moves.step == STEPS[-1]]
  lines = []
  for (which, layer), group in last.groupby(["which", "layer"], sort=False):
    table = group.pivot_table(index="width", columns="seed", values="change")
    fit = coord_check_lib.fit(list(table.index), table.to_numpy())
    lines.append({
        "MLP, form": which, "layer": layer,
        f"slope, step {STEPS[-1]}": f"{fit.slope:+.3f} ± {fit.error:.3f}",
        **{f"change at {n}": f"{x:.3g}" for n, x in table.mean(1).items()}})
  return "\n\n".join((
      features.reset_index().sort_values(
          "feature", key=lambda x: x.map(list(FEATURES).index), kind="stable"
      ).to_markdown(index=False, floatfmt=".2g"),
      pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)))


def plot(sizes: pd.DataFrame, moves: pd.DataFrame, path: pathlib.Path) -> None:
  """Features of both forms against width, and changes of the hidden layer."""
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
  for axis, form in zip(axes, FORMS):
    for i, name in enumerate(FEATURES):
      rows = sizes[(sizes.form == form) & (sizes.feature == name)]
      axis.plot(rows.width, rows.rms, ".-" if i < 10 else ".--",
                color=f"C{i % 10}", label=name)
    axis.set(title=f"features, {form}", xscale="log", yscale="log",
             xlabel="width", ylim=(sizes.rms.min() / 2, 3))
  axes[0].set_ylabel("RMS of what the MLP reads")
  axes[1].legend(fontsize=7)
  rows = moves[(moves.layer == "layer_1") & (moves.step == STEPS[-1])]
  for i, (which, group) in enumerate(rows.groupby("which", sort=False)):
    mean = group.groupby("width").change.mean()
    axes[2].plot(mean.index, mean / mean.iloc[0], ".-", color=f"C{i}",
                 label=which)
  axes[2].set(title=f"change of the hidden layer, step {STEPS[-1]}, relative",
              xscale="log", yscale="log", xlabel="width")
  axes[2].legend(fontsize=7)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def define_flags() -> None:
  """Defines the flags; not at import, where they would be everyone's."""
  flags.DEFINE_string("workdir", None, "Folder for the results.")
  flags.DEFINE_list("widths", ["64", "256", "1024", "4096", "8192"],
                    "Widths, in increasing order.")
  flags.DEFINE_integer("seeds", 1, "Networks of each width.", lower_bound=1)
  flags.mark_flags_as_required(["workdir"])


def run(workdir: str, widths: tuple[int, ...], seeds: int) -> str:
  """Measures, writes the files, and returns the tables."""
  folder = pathlib.Path(workdir)
  sizes: list[dict] = []
  moves: list[dict] = []
  common = {"settings": SETTINGS, "section": SECTION, "steps": STEPS,
            "jax": jax.__version__}
  with tqdm.tqdm(total=len(FORMS) * (len(widths) + len(READERS)), unit="run",
                 mininterval=0.5 if sys.stderr.isatty() else 10) as bar:
    for form in FORMS:
      for width in widths:
        sizes += sweep.run_cell(
            folder / "cells", {"form": form, "width": width, **common},
            functools.partial(feature_sizes, form, width))
        bar.update()
      for reader in READERS:
        moves += sweep.run_cell(
            folder / "cells", {"form": form, "reader": reader, "seeds": seeds,
                               "widths": widths, **common},
            functools.partial(changes, form, reader, widths, seeds))
        bar.update()
  frames = pd.DataFrame(sizes), pd.DataFrame(moves)
  for name, frame in zip(("features", "changes"), frames):
    frame.to_csv(folder / f"{name}.csv", index=False)
  text = tables(*frames)
  (folder / "table.md").write_text(text + "\n")
  plot(*frames, folder / "epsilons.png")
  return f"{text}\n\nPlot: {folder / 'epsilons.png'}"


def main(argv):
  """Writes and prints the tables."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  found = flags.FLAGS
  try:
    print(run(found.workdir, tuple(int(x) for x in found.widths), found.seeds))
    (pathlib.Path(found.workdir) / "command.txt").write_text(
        f"python -m experiments.studies.epsilon_study {shlex.join(sys.argv[1:])}\n")
  except (ValueError, OSError) as e:
    sys.exit(f"{type(e).__name__}: {e}")


if __name__ == "__main__":
  define_flags()
  app.run(main)
