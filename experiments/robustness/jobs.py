"""Table of faults that meta-training and sweeps must bear.

python -m experiments.robustness.jobs --workdir=runs/jobs \
    [--kinds=hosts,sweeps] [--seed=0] [--kills=10]

Faults are injected one after the other: kills and signals, full disks, damaged
checkpoints, workdirs, data, cells and weights files, numbers that nobody means,
processes that share a sweep, hosts that differ or die. For each kind the table
counts the faults that the program survived (the result is right, in its bytes),
those that it refused in one line, and those of which something was lost: a
wrong result, a hang, more than one line.

Prints the table and writes table.md and results.json to the workdir. The exit
status is 1 if anything was lost.
"""

import functools
import json
import pathlib
import random
import shutil
import sys
from typing import Iterator

from absl import flags
import pandas as pd

from experiments import command
from experiments import sweep
from experiments.robustness import fuzz
from experiments.robustness import host_faults
from experiments.robustness import isolation
from experiments.robustness import run_faults
from experiments.robustness import sharing

KINDS = ("configs", "workdir", "checkpoints", "data", "kills and signals",
         "disks", "sweeps", "cells", "hosts", "weights files")
FILES = 300  # weights files


def shared(seed: int, folder: pathlib.Path) -> str:
  """Kill one of the processes that share a sweep."""
  return "; ".join(sharing.trial(folder, seed)) or run_faults.SURVIVED


def damaged_cell(name: str, how: str, seed: int, folder: pathlib.Path) -> str:
  """Damage a file of a cell; the cell must be computed again."""
  config = {"cell": 3}
  sweep.run_cell(folder / "cells", config, lambda: sharing.rows_of(3))
  path = folder / "cells" / sweep.identity(config) / name
  run_faults.DAMAGE[how](path, random.Random(seed))
  if name == "DONE" and how == "empty":
    path.with_name("metrics.jsonl").write_text("")
  rows = sweep.run_cell(folder / "cells", config, lambda: sharing.rows_of(3))
  return run_faults.SURVIVED if rows == sharing.rows_of(3) else f"rows {rows}"


def faults(args: flags.FlagValues, folder: pathlib.Path
           ) -> Iterator[run_faults.Fault]:
  """Yield all faults but weights files, which `isolation` tries.

  Args:
    args: the flags.
    folder: for what the runs share.
  """
  rng = random.Random(args.seed)
  runs = run_faults.Runs(folder)
  yield from run_faults.faults(runs, rng)
  yield from host_faults.faults(runs, rng, args.kills)
  for i in range(20):
    yield run_faults.Fault("sweeps", f"kill {i}", functools.partial(
        shared, rng.randrange(2**32)))
  for name in ("metrics.jsonl", "config.json", "DONE"):
    for how in run_faults.DAMAGE:
      for _ in range(3):
        yield run_faults.Fault("cells", f"{name} {how}", functools.partial(
            damaged_cell, name, how, rng.randrange(2**32)))


def try_all(args: flags.FlagValues, folder: pathlib.Path) -> list[dict]:
  """Return the kind, name and outcome of each fault."""
  chosen = [x for x in faults(args, folder / "shared") if x.kind in args.kinds]
  rows = []
  with command.progress(len(chosen), "fault") as bar:
    for i, fault in enumerate(chosen):
      bar.set_postfix_str(f"{fault.kind}: {fault.name}"[:50])
      place = folder / "faults" / str(i)
      place.mkdir(parents=True)
      try:
        outcome = fault.inject(place)
      except Exception as e:  # pylint: disable=broad-except
        outcome = f"{type(e).__name__}: {e}"
      rows.append({"kind": fault.kind, "fault": fault.name, "outcome": outcome})
      if outcome in (run_faults.SURVIVED, run_faults.REFUSED):
        shutil.rmtree(place)
      bar.update()
  if "weights files" in args.kinds:
    words = {"refused": run_faults.REFUSED, "read": run_faults.SURVIVED}
    rows += [{"kind": "weights files", "fault": f"case {seed}",
              "outcome": words.get(outcome, outcome)}
             for seed, outcome in isolation.run(fuzz.case, args.seed, FILES
                                                ).items()]
  return rows


def table(rows: list[dict]) -> str:
  """Return a markdown table with a row for each kind, and the sum."""
  counts = []
  for kind in (*KINDS, "all"):
    outcomes = [x["outcome"] for x in rows if kind in (x["kind"], "all")]
    if outcomes:
      survived = outcomes.count(run_faults.SURVIVED)
      refused = outcomes.count(run_faults.REFUSED)
      counts.append({
          "kind": kind, "injected": len(outcomes), "survived": survived,
          "refused in one line": refused,
          "lost": len(outcomes) - survived - refused})
  return pd.DataFrame(counts).to_markdown(index=False)


def define_flags() -> None:
  """Define the flags."""
  command.define_workdir()
  flags.DEFINE_list("kinds", list(KINDS), "Kinds of faults.")
  flags.DEFINE_integer("seed", 0, "Seed of moments and damages.")
  flags.DEFINE_integer("kills", 10, "Kills of one of two hosts.")


def main(args: flags.FlagValues) -> int:
  """Inject all faults, print the table; return 1 if anything was lost.

  Raises:
    ValueError: an unknown kind.
  """
  if unknown := sorted(set(args.kinds) - set(KINDS)):
    raise ValueError(
        f"Unknown kinds {unknown}; available: {', '.join(KINDS)}.")
  folder = pathlib.Path(args.workdir).resolve()
  for name in ("faults", "shared"):
    shutil.rmtree(folder / name, ignore_errors=True)
  (folder / "shared").mkdir(parents=True)
  rows = try_all(args, folder)
  (folder / "results.json").write_text(json.dumps(rows, indent=1))
  text = table(rows)
  (folder / "table.md").write_text(text + "\n")
  print(text)
  lost = [x for x in rows if x["outcome"] not in (
      run_faults.SURVIVED, run_faults.REFUSED)]
  for x in lost:
    print(f"{x['kind']}, {x['fault']}: {x['outcome']}", file=sys.stderr)
  return 1 if lost else 0


if __name__ == "__main__":
  command.run(define_flags, main)
