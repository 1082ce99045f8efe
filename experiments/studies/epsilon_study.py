"""Effect of absolute epsilons on a learned optimizer as networks get wider.

python -m experiments.studies.epsilon_study --workdir=docs/studies/epsilons

Compares two forms of the architecture small_fc_lopt: as published (adafac_mlp),
with absolute epsilons in its normalisers, and without epsilons (mulo). Under
muP the gradients of a hidden matrix fall as 1/width, so in a wide enough
network they fall below the epsilons. The networks are 64-n-n-10 perceptrons on
digits under muP. The study measures

* the root mean square of the features that the MLP receives for the hidden
  matrix, after a few steps of Adam; for a normalised feature it is 1;
* the change of each layer in a few steps of the learned optimizer. Its MLP
  either returns the normalised gradient or has random weights, the same in both
  forms.

Writes features.csv, changes.csv, table.md and epsilons.png to the workdir. A
second run skips the cells that are done.
"""

import functools
import itertools
import pathlib
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import matplotlib
import optax
import pandas as pd

from experiments import baselines
from experiments import command
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
# {feature: its row in the first weight matrix}. A feature that exists for three
# decays is represented by the middle one.
FEATURES = {
    "gradient": 0, "parameter": 1, "momentum": 3, "second moment": 5,
    "momentum / root": 7, "1 / root of second moment": 9,
    "gradient, factored": 11, "row factor": 14, "column factor": 17,
    "1 / root of row factor": 20, "1 / root of column factor": 23,
    "momentum, factored": 26}
# MLPs: one returns the normalised gradient, the other has random weights.
READERS = ("normalised gradient", "random")
SECTION = {"name": "mlp", "depth": 2, "batch_size": 128}
STEPS = (2, 5)
LEARNING_RATE = 0.1  # of Adam


def reading(theta: dict, row: int) -> dict:
  """Replace the MLP by one whose output "direction" is one of its features.

  Args:
    theta: meta-parameters of either form.
    row: row of the feature, a value of FEATURES.
  """
  # Two hidden units carry relu(x) and relu(-x); their difference is x. The
  # output "magnitude" is 0.
  weights = [jnp.zeros_like(theta[f"w{i}"]) for i in range(3)]
  for layer, unit_in, unit_out, value in (
      (0, row, 0, 1), (0, row, 1, -1), (1, 0, 0, 1), (1, 1, 1, 1),
      (2, 0, 0, 1), (2, 1, 0, -1)):
    weights[layer] = weights[layer].at[unit_in, unit_out].set(value)
  return {**theta, **{f"w{i}": w for i, w in enumerate(weights)}}


def with_weights_of(theta: dict, other: dict) -> dict:
  """Replace the MLP of theta by the MLP of `other`.

  If `other` has fewer features, the last features of theta get the weight 0.
  """
  missing = len(theta["w0"]) - len(other["w0"])
  mlp = {k: other[k] for k in ("b0", "w1", "b1", "w2", "b2")}
  return {**theta, **mlp, "w0": jnp.pad(other["w0"], ((0, missing), (0, 0)))}


def optimizer(form: str, reader: str) -> tuple[base.LearnedOptimizer, dict]:
  """Return the learned optimizer of a form, and theta.

  Args:
    form: a key of FORMS.
    reader: one of READERS, which names the weights of the MLP.
  """
  lopt = optimizers.get(FORMS[form], **SETTINGS)
  theta = lopt.init(jax.random.key(0))
  if reader == "random":
    published = optimizers.get(FORMS["as published"], **SETTINGS)
    return lopt, with_weights_of(theta, published.init(jax.random.key(1)))
  return lopt, reading(theta, FEATURES["gradient"])


def feature_sizes(form: str, width: int) -> list[dict]:
  """Return the RMS of each feature of the hidden matrix, after STEPS[-1] steps.

  The network is trained by Adam. The learned optimizer runs alongside to
  accumulate its statistics of the hidden matrix, but its updates are discarded.

  Returns:
    Rows with the keys form, width, feature and rms.
  """
  parametrization = parametrizations.get("mup")
  task = build.task_of(SECTION | {"width": width}, parametrization, None)
  data = jax.tree.map(jnp.asarray, task.data["train"])
  lopt, theta = optimizer(form, READERS[0])
  adam = unroll.scaled(
      lambda rate, **_: baselines.get("adam").make(rate, eps=1e-16),
      parametrization, task)(LEARNING_RATE)
  hidden = lambda tree: {"w": tree["layer_1"]["w"]}

  def gradient(params, key):
    loss_of = lambda p: task.loss(p, key, task.sample_batch(key, data))[0]
    return jax.grad(loss_of)(params)

  @jax.jit
  def train(key):
    """Return the arguments of the update after the last step of Adam."""
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
    # `reading` gives update = -step_mult * feature.
    updates, _ = lopt.opt_fn(theta).update(*args)
    return jnp.sqrt(jnp.mean(jnp.square(updates["w"]))) / SETTINGS["step_mult"]

  args = train(jax.random.key(0))  # gradient, state, params
  return [{"form": form, "width": width, "feature": name,
           "rms": float(read(reading(theta, row), *args))}
          for name, row in FEATURES.items()]


def changes(form: str, reader: str, widths: tuple[int, ...], seeds: int
            ) -> list[dict]:
  """Return the changes of the layers, as rows of `coord_check.rows`.

  Args:
    form: a key of FORMS.
    reader: one of READERS.
    widths: in increasing order.
    seeds: networks of each width.
  """
  lopt, theta = optimizer(form, reader)
  report = coord_check.check(
      lambda _, **settings: lopt.opt_fn(theta, **settings),
      parametrizations.get("mup"), SECTION, "width", widths, seeds, STEPS, None,
      lambda _: None)
  return coord_check.rows(report, f"{reader}, {form}").to_dict("records")


def tables(sizes: pd.DataFrame, moves: pd.DataFrame) -> str:
  """Return two Markdown tables: RMS of features by width, slopes by layer.

  Args:
    sizes: rows of `feature_sizes`.
    moves: rows of `changes`.
  """
  features = sizes.pivot_table(
      index=["feature", "form"], columns="width", values="rms", sort=False)
  features.columns = [f"width {n}" for n in features.columns]
  last = moves[moves.step == STEPS[-1]]
  lines = []
  for (title, layer), group in last.groupby(["which", "layer"], sort=False):
    table = group.pivot_table(index="width", columns="seed", values="change")
    fit = coord_check_lib.fit(list(table.index), table.to_numpy())
    lines.append({
        "MLP, form": title, "layer": layer,
        f"slope, step {STEPS[-1]}": f"{fit.slope:+.3f} ± {fit.error:.3f}",
        **{f"change at {n}": f"{x:.3g}" for n, x in table.mean(1).items()}})
  return "\n\n".join((
      features.reset_index().sort_values(
          "feature", key=lambda x: x.map(list(FEATURES).index), kind="stable"
      ).to_markdown(index=False, floatfmt=".2g"),
      pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)))


def plot(sizes: pd.DataFrame, moves: pd.DataFrame, path: pathlib.Path) -> None:
  """Plot the features of both forms and the change of the hidden layer.

  Args:
    sizes: rows of `feature_sizes`.
    moves: rows of `changes`.
    path: file of the plot.
  """
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
  for axis, form in zip(axes, FORMS):
    for i, name in enumerate(FEATURES):
      rows = sizes[(sizes.form == form) & (sizes.feature == name)]
      axis.plot(rows.width, rows.rms, ".-",
                color=plt.get_cmap("tab20")(i), label=name)
    axis.set(title=f"features, {form}", xscale="log", yscale="log",
             xlabel="width", ylim=(sizes.rms.min() / 2, 3))
  axes[0].set_ylabel("RMS of the feature")
  axes[1].legend(fontsize=7)
  rows = moves[(moves.layer == "layer_1") & (moves.step == STEPS[-1])]
  for i, (title, group) in enumerate(rows.groupby("which", sort=False)):
    mean = group.groupby("width").change.mean()
    axes[2].plot(mean.index, mean / mean.iloc[0], ".-", color=f"C{i}",
                 label=title)
  axes[2].set(title=f"change of the hidden layer in {STEPS[-1]} steps",
              ylabel=f"relative to width {moves.width.min()}",
              xscale="log", yscale="log", xlabel="width")
  axes[2].legend(fontsize=7)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def define_flags() -> None:
  """Define the flags of this command."""
  command.define_workdir()
  flags.DEFINE_list(
      "widths", ["64", "256", "1024", "4096", "8192"],
      "Widths of the networks, at least two, in increasing order.")
  flags.DEFINE_integer("seeds", 1, "Networks of each width.", lower_bound=1)


def measure(folder: pathlib.Path, widths: tuple[int, ...], seeds: int
            ) -> tuple[pd.DataFrame, pd.DataFrame]:
  """Return the rows of `feature_sizes` and of `changes` for both forms.

  Args:
    folder: the workdir.
    widths: widths of the networks.
    seeds: networks of each width.
  """
  common = {"settings": SETTINGS, "section": SECTION, "steps": STEPS,
            "jax": jax.__version__}
  of_features = [sweep.Cell({"form": form, "width": width, **common},
                            functools.partial(feature_sizes, form, width))
                 for form in FORMS for width in widths]
  of_moves = [sweep.Cell(
      {"form": form, "reader": reader, "seeds": seeds, "widths": widths,
       **common}, functools.partial(changes, form, reader, widths, seeds))
              for form in FORMS for reader in READERS]
  cells = of_features + of_moves
  with command.progress(len(cells), "run", "measuring") as bar:
    rows = sweep.run_cells(folder / "cells", cells, bar)
  frame = lambda parts: pd.DataFrame(list(itertools.chain(*parts)))
  return frame(rows[:len(of_features)]), frame(rows[len(of_features):])


def main(flags) -> None:
  """Measure, then write and print the tables.

  Raises:
    ValueError: --widths are not at least two increasing integers.
  """
  widths = command.parse_integers("widths", flags.widths)
  if len(widths) < 2 or sorted(set(widths)) != list(widths):
    raise ValueError("--widths must be at least two integers in increasing "
                     f"order, got {', '.join(flags.widths)}.")
  folder = pathlib.Path(flags.workdir)
  frames = measure(folder, widths, flags.seeds)
  for name, frame in zip(("features", "changes"), frames):
    frame.to_csv(folder / f"{name}.csv", index=False)
  text = tables(*frames)
  (folder / "table.md").write_text(text + "\n")
  plot(*frames, folder / "epsilons.png")
  print(f"{text}\n\nPlot: {folder / 'epsilons.png'}")


if __name__ == "__main__":
  command.run(define_flags, main)
