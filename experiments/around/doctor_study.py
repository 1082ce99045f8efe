r"""Is `mulo.doctor` right? Its predictions beside the networks themselves.

python -m experiments.around.doctor_study --workdir=runs/doctor \
    --networks=tests/network_cnn.py,tests/network_gpt.py

`mulo.doctor` predicts from narrow copies of a network how much faster an
optimizer is than a tuned AdamW and a tuned Muon. Here the network itself is
then trained, too: by the optimizer and by both rivals at all of their learning
rates, with seeds of its own, and for --num_steps, which is longer than copies
are tried. A network is a file with the functions `init` and `loss` that
`mulo.doctor` takes, and possibly SETTINGS, further arguments of `mulo.load`.

Writes results.csv, table.md, prediction.png and command.txt to the workdir. A
second run skips the networks that are done.
"""

import functools
import pathlib

from absl import flags
import jax
from matplotlib import figure as figure_lib
import numpy as np
import pandas as pd

from experiments import command
from experiments import report
from experiments import sweep
import mulo
from mulo._cli import networks
from mulo.diagnosis import doctor as doctor_lib
from mulo.diagnosis import speed

FIRST_SEED = 100  # of the networks themselves; copies have seed 0


def rows(path: str, optimizer: str, width: int,
         widths: tuple[int, ...], trial_steps: int, num_steps: int, seeds: int
         ) -> sweep.Rows:
  """Return a row for each rival: what copies predict and what is measured.

  Args:
    path: file of the network.
    optimizer: name or file, see `mulo.load`.
    width: of the network itself.
    widths: of the copies.
    trial_steps: steps of the copies.
    num_steps: steps of the network itself.
    seeds: runs of the network itself.
  """
  init, loss, settings = networks.network(path)
  found = mulo.doctor(init, loss, width=width, widths=widths,
                      num_steps=num_steps, optimizer=optimizer,
                      trial_steps=trial_steps, **settings)
  other_shapes = mulo.scaling.base_shapes(
      functools.partial(init, jax.random.key(0)), widths[0])
  tx = mulo.load(optimizer, base_shapes=other_shapes, num_steps=num_steps,
                 **settings)
  trials = [doctor_lib.trial(init, loss, tx, width, other_shapes, num_steps,
                             jax.random.key(FIRST_SEED + i), settings)
            for i in range(seeds)]
  return [{"rival": rival, "predicted": x.mean, "low": x.low, "high": x.high,
           "copies": list(x.copies),
           "measured": [speed.speedup(
               trial.losses["optimizer"], trial.losses[rival])
                        for trial in trials],
           "final_losses": [
               [doctor_lib.final(trial.losses[name])
                for name in ("optimizer", rival)] for trial in trials],
           "rates": [trial.rates[rival] for trial in trials],
           "params": found.num_params}
          for rival, x in found.speedups.items()]


def table(results: pd.DataFrame) -> str:
  """Return a table in Markdown with a row for each network and rival."""
  listed = lambda values: ", ".join(f"{x:.2f}" for x in values)
  return report.markdown(pd.DataFrame([{
      "network": row.network, "parameters": f"{row.params:,}",
      "over": row.rival,
      "copies": listed(row.copies),
      "predicted": f"{row.predicted:.2f} ({row.low:.2f} to {row.high:.2f})",
      "measured": f"{row.mean:.2f} ({listed(row.measured)})",
      "inside": "yes" if row.inside else "NO"}
                                       for row in results.itertuples()]))


def plot(results: pd.DataFrame, path: pathlib.Path) -> None:
  """Draw predictions as bars and measurements as dots, a panel per rival."""
  rivals = list(dict.fromkeys(results["rival"]))
  figure = figure_lib.Figure(
      (4.5 * len(rivals), 1 + 0.4 * results["network"].nunique()),
      layout="constrained")
  for axis, rival in zip(
      figure.subplots(1, len(rivals), sharey=True, squeeze=False)[0], rivals):
    own = results[results["rival"] == rival]
    for y, row in enumerate(own.itertuples()):
      axis.plot([row.low, row.high], [y, y], color="0.75", linewidth=8,
                solid_capstyle="butt",
                label=None if y else "predicted, 95 % interval")
      axis.plot(row.predicted, y, "|", color="black", markersize=12,
                label=None if y else "predicted")
      axis.plot(row.measured, [y] * len(row.measured), "o",
                color=report.COLORS[3], markersize=4,
                label=None if y else "measured, each seed")
    axis.axvline(1, color="black", linewidth=0.5)
    axis.set(xscale="log", xlabel=f"speed-up in steps over {rival}")
    ticks = [x for x in (0.1, 0.2, 0.5, 1, 2, 5, 10)
             if own["low"].min() / 1.3 < x < own["high"].max() * 1.3]
    axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axis.set_xticks([], minor=True)
    axis.set_yticks(range(len(own)), own["network"])
  axis.invert_yaxis()
  figure.legend(*axis.get_legend_handles_labels(), fontsize="small",
                loc="outside lower center", ncols=3)
  figure.savefig(path, dpi=120)


def define_flags() -> None:
  """Define the flags of this command."""
  command.define_workdir()
  flags.DEFINE_list("networks", None, "Files of networks.", required=True)
  flags.DEFINE_string("optimizer", "mulo-s", "Name or file, see mulo.load.")
  flags.DEFINE_integer("width", 128, "Of the networks.", lower_bound=2)
  flags.DEFINE_list("widths", ["8", "16", "32"], "Of the narrow copies.")
  flags.DEFINE_integer("trial_steps", 200, "Of copies.", lower_bound=10)
  flags.DEFINE_integer("num_steps", 500, "Of networks.", lower_bound=10)
  flags.DEFINE_integer("seeds", 2, "Runs of networks.", lower_bound=1)


def main(flags) -> None:
  """Compare predictions with measurements; write and print the table."""
  widths = command.parse_integers("widths", flags.widths)
  paths = {pathlib.Path(path).stem.removeprefix("network_"): path
           for path in flags.networks}
  for path in paths.values():  # so that wrong files are found before any run
    networks.network(path)
  folder = pathlib.Path(flags.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  command.write_command(folder)
  settings = {"optimizer": flags.optimizer, "width": flags.width,
              "widths": tuple(widths), "trial_steps": flags.trial_steps,
              "num_steps": flags.num_steps, "seeds": flags.seeds}
  with command.progress(len(paths), "network", "comparing") as bar:
    found = sweep.run_cells(folder / "cells", [sweep.Cell(
        {"source": pathlib.Path(path).read_text(), "jax": jax.__version__,
         **settings, "widths": list(widths)},
        functools.partial(rows, path, **settings))
        for path in paths.values()], bar)
  results = pd.DataFrame([{"network": name, **row} for name, part in zip(
      paths, found) for row in part])
  results["mean"] = [float(np.exp(np.mean(np.log(x))))
                     for x in results["measured"]]
  results["inside"] = results["mean"].between(results["low"], results["high"])
  results.to_csv(folder / "results.csv", index=False)
  plot(results, folder / "prediction.png")
  text = (f"{table(results)}\n\n{results['inside'].sum()} of {len(results)} "
          "measured speed-ups are inside of their intervals.")
  (folder / "table.md").write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  command.run(define_flags, main)
