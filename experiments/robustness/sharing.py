"""Processes that share a sweep: one is killed, and one claim is left over."""

import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from experiments import sweep
from meta_train.workdir import claim as claim_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROCESSES, CELLS = 4, 40
WAIT = 120.0  # seconds; a trial takes one or two

# A process of the sweep: it notes each cell that it begins to compute.
WORKER = """
import pathlib, sys
from experiments.robustness import sharing
sharing.work(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
"""


def rows_of(i: int) -> list[dict]:
  """Return the right rows of a cell."""
  return [{"cell": i, "row": row, "value": i / (row + 3)}
          for row in range(1 + i % 5)]


def work(folder: pathlib.Path, cells: int) -> None:
  """Compute the cells of the sweep, in one of several processes.

  Args:
    folder: the folder of the trial.
    cells: number of cells.
  """
  sweep.POLL = 0.02
  rng = random.Random(os.getpid())

  def compute(i: int) -> list[dict]:
    (folder / "computed" / f"{i}-{os.getpid()}").touch(exist_ok=False)
    time.sleep(0.01 + 0.03 * rng.random())
    return rows_of(i)

  results = sweep.run_cells(folder / "cells", [
      sweep.Cell({"cell": i}, functools.partial(compute, i))
      for i in range(cells)])
  (folder / f"results-{os.getpid()}.json").write_text(json.dumps(results))


def stale_claim(folder: pathlib.Path, config: dict) -> None:
  """Leave the claim of a process that died long ago on another machine."""
  claim = folder / f"{sweep.identity(config)}.claim" / "0"
  claim.parent.mkdir(parents=True)
  claim.write_text(json.dumps(
      {"host": "elsewhere", "machine": "elsewhere", "pid": 1, "began": "1"}))
  long_ago = time.time() - 2 * claim_lib.STALE
  os.utime(claim, (long_ago, long_ago))


def trial(folder: pathlib.Path, seed: int, processes: int = PROCESSES,
          cells: int = CELLS) -> list[str]:
  """Run a sweep, kill one of its processes, and return what went wrong.

  Args:
    folder: an empty folder.
    seed: decides the moment of the kill and the cell with the old claim.
    processes: number of processes.
    cells: number of cells.
  """
  rng = random.Random(seed)
  (folder / "computed").mkdir(parents=True)
  stale_claim(folder / "cells", {"cell": rng.randrange(cells)})
  workers = [subprocess.Popen(
      [sys.executable, "-c", WORKER, str(folder), str(cells)], cwd=ROOT,
      stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE, text=True) for _ in range(processes)]
  victim, began = workers[rng.randrange(processes)], time.monotonic()
  computed = lambda: list((folder / "computed").iterdir())
  # Killed while the cells are computed, after a random number of them.
  enough = 1 + rng.randrange(cells // 2)
  while len(computed()) < enough and time.monotonic() < began + WAIT:
    time.sleep(0.002)
  victim.send_signal(signal.SIGKILL)
  problems = []
  for worker in workers:
    try:
      errors = worker.communicate(timeout=WAIT)[1]
    except subprocess.TimeoutExpired:
      worker.kill()
      errors = worker.communicate()[1] + f"no end within {WAIT} s"
    if worker is not victim and (worker.returncode or errors):
      problems.append(errors or f"status {worker.returncode}")
  expected = [rows_of(i) for i in range(cells)]
  results = list(folder.glob("results-*.json"))
  # The kill may come after the victim's last cell.
  if len(results) < processes - 1 or any(
      json.loads(path.read_text()) != expected for path in results):
    problems.append(f"{len(results)} results, or wrong rows")
  begun = [path.name.split("-") for path in computed()]
  twice = {i for i, _ in begun if sum(i == j for j, _ in begun) > 1}
  lost = {i for i, pid in begun if pid == str(victim.pid)}
  if not twice <= lost or len(twice) > 1 or len({i for i, _ in begun}) < cells:
    problems.append(f"{len(begun)} computations, cells {twice} twice")
  sweep.pack(folder / "cells")
  packed = [sweep.run_cell(folder / "cells", {"cell": i}, lambda: [])
            for i in range(cells)]
  left = sorted(path.name for path in folder.glob("cells*"))
  if packed != expected or left != ["cells.jsonl.gz"]:
    problems.append(f"after packing: {left}, or wrong rows")
  return problems
