"""The board: optimizers on fixed tracks, ranked by steps and by seconds.

python -m experiments.board --workdir=runs/board

A track is a task of the suite `board` (tasks/suites.py) with a number of steps
and a target loss. An entry is a name that `experiments.studies.transfer` takes
as an optimizer, or a file, see docs/board.md:

python -m experiments.board --workdir=runs/mine \
    --entries=path/to/my_entry.py,mulo-s,adamw_tuned,muon_tuned

Entries are trained as in `experiments.studies.transfer`: with an equal budget
of settings, and tuning seeds apart from the reported ones. Each step is timed
as a single run, in turns with AdamW. experiments/report/ranks.py says when an
entry wins against another one.

Writes report.html and report.md, and the files of `transfer`, to the workdir. A
second run skips the cells that are done.
"""

import pathlib

from absl import flags
import pandas as pd

from experiments import baselines
from experiments import command
from experiments import cost
from experiments import methods
from experiments import report
from experiments import sweep  # noqa: F401, for --shard and --executor
from experiments.report import ranks
from experiments.report import statistics
from experiments.studies import transfer
from tasks import suites

SUITE = "board"
RIVAL, SHARE = "adamw_tuned", 0.8  # what makes target losses, see `targets_of`
# Learned optimizers and their starts, what a user takes without tuning, and
# all that are tuned on each track.
ENTRIES = ("mulo-s", "untrained:mulo-s", "untrained:mulo2/natural",
           "adamw_fixed", "muon_fixed", *(
               name for name in baselines.names() if name.endswith("_tuned")))


def tracks(names: list[str]) -> dict[str, dict]:
  """Return {track: section}; all tracks if there are no names.

  Raises:
    ValueError: an unknown track.
  """
  sections = suites.get(SUITE)
  for name in names:
    if name not in sections:
      raise ValueError(f"There is no track {name!r}; available: "
                       f"{', '.join(sections)}.")
  return {name: sections[name] for name in names or sections}


def targets_of(results: pd.DataFrame) -> dict[str, float]:
  """Return the loss of RIVAL on each track after a SHARE of the steps.

  Of the loss over the last tenth of the steps until then, it is the highest of
  all seeds, with three digits. At its end, RIVAL is lower, so that noise does
  not decide whether the runs of an equal optimizer reach the target.
  """
  losses = {}
  label = baselines.get(RIVAL).label
  for track, group in results[results["method"] == label].groupby(
      "target", sort=False):
    ends = []
    for curve in group["curve"]:
      means = statistics.trailing_mean(curve)
      # The first mean ends where the first whole window does.
      ends.append(means[round(SHARE * len(curve)) - 1 - (
          len(curve) - len(means))])
    losses[str(track)] = float(f"{max(ends):.3g}")
  return losses


def define_flags() -> None:
  """Define the flags of this command."""
  command.define_workdir()
  command.define_data_dir()
  command.define_trust()
  flags.DEFINE_list("entries", [], "Entries; default: all that ship with mulo.")
  flags.DEFINE_list("tracks", [], "Tracks; default: all.")
  flags.DEFINE_integer("seeds", 3, "Runs of each entry on a track.",
                       lower_bound=2)
  flags.DEFINE_integer(
      "tuning_seeds", 1, "Runs of each setting, to find the best.",
      lower_bound=1)
  flags.DEFINE_bool(
      "targets", False, f"Print the target losses that the runs of {RIVAL} "
      "give.")


def main(flags) -> None:
  """Run what is not done; write the page and print the standings."""
  compared = methods.parse(
      flags.entries or list(ENTRIES), list(baselines.base.DECAYING),
      flags.trust)
  targets = tracks(flags.tracks)
  if flags.targets and baselines.get(RIVAL).label not in {
      method.label for method in compared}:
    raise ValueError(f"--targets needs the entry {RIVAL}.")
  folder = pathlib.Path(flags.workdir)
  if not folder.exists():  # a second run may find all cells and need no data
    transfer.check_tasks(compared, targets, flags.data_dir)
  folder.mkdir(parents=True, exist_ok=True)
  command.write_command(folder)
  with command.progress(
      transfer.count_steps(
          compared, targets, flags.seeds, flags.tuning_seeds),
      "step", "training", unit_scale=True) as bar:
    results = transfer.Study(
        folder, flags.data_dir, flags.tuning_seeds, flags.seeds,
        transfer.SCORES[0], bar).compare(compared, targets)
  results = cost.columns(
      results, compared, targets, folder / "cells", flags.data_dir)
  results["target_loss"] = results["target"].map(suites.BOARD_TARGETS)
  report.write(results, folder, "The board", **transfer.record_of(
      compared, flags.tuning_seeds, transfer.SCORES[0]))
  page = report.write_page(folder)
  print(report.markdown(report.overall(ranks.standings(results))))
  print(f"\nPage: {page}")
  if flags.targets:
    print(f"\nTarget losses: {targets_of(results)}")


if __name__ == "__main__":
  command.run(define_flags, main)
