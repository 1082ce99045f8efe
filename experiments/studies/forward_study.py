"""Compare networks as they are with networks that divide their readout.

python -m experiments.studies.forward_study --workdir=docs/studies/forward

muP divides a readout by its fan-in. With `forward=False`, the default of
`mulo.load` and of `mulo.scaling`, the network stays as it is, and the division
moves into the updates and the initial weights of the readout. The study trains
flax networks in three forms:

* plain: as users write them, with the initial weights of flax;
* rescaled: the same, with initial weights of `mulo.scaling.rescale_init`;
* divided: the network divides the readout, `forward=True`, with initial weights
  of `rescale_init`.

The readout starts at zero, or at ordinary values: those of flax. The first
width is the base width of `rescale_init`; there all forms compute the same.

The families are a perceptron with two hidden layers and two convolutions with
stride, on CIFAR-10 (16 x 16 pixels), and a transformer of one block on the
source code of Python. Heads grow in number, not in size. Learned optimizers
have all their defaults. "mu_adamw" is `mulo.scaling.mu_adamw`, for comparison:
its learning rate falls linearly to zero from 2^-7, which is not tuned.

Writes results.csv, table.md and forward.png to the workdir. A second run skips
the cells that are done.
"""

import functools
import pathlib
from typing import Any, Callable

from absl import flags
import jax
import matplotlib
import numpy as np
import optax
import pandas as pd

from experiments import command
from experiments import sweep
from experiments.studies import plain_networks
from learned_opt import artifact as artifact_lib
import mulo

FORMS = ("plain", "rescaled", "divided")
CHOICES = {"families": tuple(plain_networks.FAMILIES),
           "readouts": plain_networks.READOUTS, "forms": FORMS}
KEYS = ["family", "optimizer", "readout", "form", "width"]
MU_ADAMW = "mu_adamw"
RATE = 2**-7  # of mu_adamw


def networks_of(family: str, optimizer: str, form: str, start: str,
                base_width: int, data_dir: str | None
                ) -> plain_networks.Networks:
  """Return the networks of a form; they depend on what an optimizer expects.

  Args:
    family: see `plain_networks.Networks`.
    optimizer: see `transformation`.
    form: one of FORMS.
    start: see `plain_networks.Networks`.
    base_width: width at which all forms are equal.
    data_dir: see `plain_networks.Networks`.
  """
  # Multipliers of learned optimizers are absolute: the divisor is the fan-in.
  # Those of mulo.scaling are relative to the base width.
  unit = base_width if optimizer == MU_ADAMW else 1
  return plain_networks.Networks(
      family, data_dir, start,
      lambda width: width / unit if form == "divided" else 1.0)


def transformation(optimizer: str, networks: plain_networks.Networks,
                   base_width: int, width: int, num_steps: int, forward: bool
                   ) -> optax.GradientTransformation:
  """Return the optimizer with its defaults, as a user calls it.

  Args:
    optimizer: argument of `mulo.load`, or MU_ADAMW.
    networks: the networks, for their shapes.
    base_width: width at which the learning rate of MU_ADAMW has no multiplier.
    width: width of the network.
    num_steps: steps of the run.
    forward: whether the networks divide their readout.
  """
  if optimizer == MU_ADAMW:
    rate = optax.linear_schedule(RATE, 0.0, num_steps)
    return mulo.scaling.mu_adamw(
        rate, networks.shapes(base_width), forward=forward,
        delta_shapes=networks.shapes(2 * base_width))
  # Any other width would do: multipliers of learned optimizers are absolute.
  return mulo.load(optimizer, num_steps=num_steps, forward=forward,
                   base_shapes=networks.shapes(2 * width))


def curves(optimizer: str, networks: plain_networks.Networks, form: str,
           base_width: int, width: int, seeds: int, num_steps: int,
           on_step: Callable[[], Any] = lambda: None) -> np.ndarray:
  """Train networks; return their train loss before each step, [seeds, steps].

  Args:
    optimizer: see `transformation`.
    networks: result of `networks_of` for this optimizer and form.
    form: one of FORMS.
    base_width: see `transformation`.
    width: width of the networks.
    seeds: number of networks; a seed determines initial weights and batches.
    num_steps: steps of each run.
    on_step: called after each step.
  """
  forward = form == "divided"
  tx = transformation(
      optimizer, networks, base_width, width, num_steps, forward)

  @jax.jit
  def start(key):
    params = networks.init(width, key)
    if form == "plain":
      return params
    return mulo.scaling.rescale_init(
        params, networks.init(base_width, key), forward=forward,
        delta_shapes=networks.shapes(2 * base_width))

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, batch):
    loss, grads = jax.value_and_grad(
        lambda p: networks.loss(width, p, batch))(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  losses = np.zeros((seeds, num_steps))
  for seed in range(seeds):
    key = jax.random.key(seed)
    params = start(key)
    state = tx.init(params)
    for i in range(num_steps):
      batch = networks.batch(jax.random.fold_in(key, i))
      params, state, losses[seed, i] = step(params, state, batch)
      on_step()
  return losses


def final_losses(family: str, optimizer: str, form: str, start: str,
                 base_width: int, width: int, seeds: int, num_steps: int,
                 data_dir: str | None,
                 on_step: Callable[[], Any] = lambda: None) -> list[dict]:
  """Return a row per seed: first loss, and mean of the last tenth of losses.

  Arguments are those of `networks_of` and `curves`.
  """
  networks = networks_of(
      family, optimizer, form, start, base_width, data_dir)
  losses = curves(optimizer, networks, form, base_width, width, seeds,
                  num_steps, on_step)
  return [{"seed": seed, "first loss": float(x[0]),
           "loss": float(np.mean(x[-max(1, num_steps // 10):]))}
          for seed, x in enumerate(losses)]


def table(results: pd.DataFrame) -> str:
  """Return a Markdown table for each family: mean losses over seeds.

  In parentheses are ratios to divided networks, if there are any.

  Args:
    results: rows of `final_losses`, with the columns KEYS.
  """
  parts = []
  for family, group in results.groupby("family", sort=False):
    means = group.pivot_table(
        index=KEYS[1:-1], columns="width", values="loss", sort=False)
    rows = []
    for key, losses in means.iterrows():
      row = dict(zip(means.index.names, key))
      divided = (*key[:-1], "divided")
      for width, loss in losses.items():
        text = f"{loss:#.4g}"
        if divided in means.index and key != divided:
          text += f" ({loss / means.loc[divided, width]:.3f})"
        row[f"width {width}"] = text
      rows.append(row)
    parts += [f"{family}:", pd.DataFrame(rows).to_markdown(
        index=False, disable_numparse=True)]
  return "\n\n".join(parts)


def plot(results: pd.DataFrame, path: pathlib.Path) -> None:
  """Plot loss against width: a panel for each optimizer and family."""
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  families, optimizers = (list(results[name].unique())
                          for name in ("family", "optimizer"))
  figure, axes = plt.subplots(
      len(optimizers), len(families), squeeze=False, layout="constrained",
      figsize=(2 + 4 * len(families), 3 * len(optimizers)))
  for i, optimizer in enumerate(optimizers):
    for j, family in enumerate(families):
      rows = results[(results.optimizer == optimizer) &
                     (results.family == family)]
      for (start, form), group in rows.groupby(["readout", "form"], sort=False):
        k = FORMS.index(form)
        mean = group.groupby("width").loss.mean()
        axes[i, j].plot(
            mean.index, mean, "-" if start == "zero" else "--", color=f"C{k}",
            marker="ox+"[k], fillstyle="none", label=f"{start}, {form}")
      widths = sorted(rows.width.unique())
      axes[i, j].set(title=f"{family}, {optimizer}", xscale="log",
                     xlabel="width")
      axes[i, j].set_xticks(widths, [str(width) for width in widths])
      axes[i, j].set_xticks([], minor=True)
  axes[0, 0].set_ylabel("final train loss")
  figure.legend(*axes[0, 0].get_legend_handles_labels(),
                loc="outside right center")
  figure.savefig(path, dpi=90)
  plt.close(figure)


def define_flags() -> None:
  """Define the flags of this command."""
  command.define_workdir()
  command.define_data_dir()
  for name, known in CHOICES.items():
    flags.DEFINE_list(name, list(known), f"Some of: {', '.join(known)}.")
  defaults = "; ".join(
      f"{name} {', '.join(map(str, family.widths))}"
      for name, family in plain_networks.FAMILIES.items())
  flags.DEFINE_list(
      "optimizers", ["mulo-s", MU_ADAMW],
      f"{MU_ADAMW}, or what `mulo.load` takes: names or files.")
  flags.DEFINE_list(
      "widths", [], "Widths in increasing order, multiples of 16; the first is "
      f"the base width. Default: {defaults}.")
  flags.DEFINE_integer("num_steps", 100, "Steps per run.", lower_bound=1)
  flags.DEFINE_integer("seeds", 2, "Runs per network.", lower_bound=1)


def check(flags) -> tuple[int, ...]:
  """Return the widths of the flag, () for the defaults.

  Raises:
    ValueError: a flag that does not name what there is, or wrong widths.
  """
  for name, known in CHOICES.items():
    given = getattr(flags, name)
    if not given or set(given) - set(known):
      raise ValueError(f"--{name}={','.join(given)}: available are "
                       f"{', '.join(known)}.")
  widths = command.parse_integers("widths", flags.widths)
  if sorted(set(widths)) != list(widths) or any(
      width < 1 or width % plain_networks.HEAD_SIZE for width in widths):
    raise ValueError("--widths must be multiples of 16 in increasing order, "
                     f"got {', '.join(flags.widths)}.")
  for name in flags.optimizers:
    if name != MU_ADAMW:
      mulo.read(name)
  return widths


def main(flags) -> None:
  """Train, then write and print the table.

  Raises:
    ValueError: see `check`.
    OSError: a missing data set, or a workdir that is not writable.
  """
  widths = check(flags)
  runs = [(family, optimizer, start, form, width)
          for family in flags.families for optimizer in flags.optimizers
          for start in flags.readouts for form in flags.forms
          for width in widths or plain_networks.FAMILIES[family].widths]
  folder = pathlib.Path(flags.workdir)
  steps = flags.seeds * flags.num_steps
  with command.progress(len(runs) * steps, "step", "training") as bar:
    cells = []
    for run in runs:
      family, optimizer, start, form, width = run
      base_width = (widths or plain_networks.FAMILIES[family].widths)[0]
      config = {**dict(zip(KEYS, run)), "base_width": base_width,
                "section": plain_networks.FAMILIES[family].section,
                "seeds": flags.seeds, "num_steps": flags.num_steps,
                "jax": jax.__version__, **_identity(optimizer)}
      cells.append(sweep.Cell(config, functools.partial(
          final_losses, family, optimizer, form, start, base_width, width,
          flags.seeds, flags.num_steps, flags.data_dir, bar.update), steps))
    found = sweep.run_cells(folder / "cells", cells, bar)
  results = pd.concat([
      pd.DataFrame(rows).assign(**dict(zip(KEYS, run)))
      for run, rows in zip(runs, found)], ignore_index=True)
  results.to_csv(folder / "results.csv", index=False)
  text = table(results)
  (folder / "table.md").write_text(text + "\n")
  plot(results, folder / "forward.png")
  print(f"{text}\n\nPlot: {folder / 'forward.png'}")


def _identity(optimizer: str) -> dict[str, Any]:
  """Return what determines an optimizer besides its name; JSON values."""
  if optimizer == MU_ADAMW:
    return {"rate": RATE}
  artifact = mulo.read(optimizer)
  return {"settings": artifact.settings,
          "theta": artifact_lib.sha256(artifact.theta)}


if __name__ == "__main__":
  command.run(define_flags, main)
