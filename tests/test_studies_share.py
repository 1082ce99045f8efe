"""Every study gives its cells together, so that processes divide them."""

import importlib
import subprocess
import sys
import types

from absl import flags
import pandas as pd
import pytest
import tiny_run

from experiments import sweep
from tasks import suites

NETWORK = "--settings=depth=1,batch_size=4"
TRANSFER = ("studies.transfer", (
    "--optimizers=adam,mu_adam_transferred", NETWORK, "--values=2,3",
    "--num_steps=10", "--seeds=1", "--schedules=constant", "--max_growth=1"))
# {study: (small flags, cells that depend on no other cell)}.
STUDIES = {
    # Adam is tuned for both widths, muAdam for the first one.
    TRANSFER[0]: (TRANSFER[1], 3),
    "studies.lr_transfer": (
        (NETWORK, "--widths=4,8", "--exponents=-6,-5", "--num_steps=8",
         "--seeds=1"), 4),
    "studies.forward_study": (
        ("--families=mlp", "--optimizers=mu_adamw", "--readouts=zero",
         "--forms=plain", "--widths=16,32", "--num_steps=2"), 2),
    "studies.epsilon_study": (("--widths=16,32",), 8),
    "studies.prior_scan": (("--num_draws=2", "--num_steps=2"), 8),
    "studies.task_table": (("--suites=prior_train", "--num_steps=2"), 2),
    "studies.meta_gradient": (
        ("--config=tests/tiny_config.py", "--tasks=bowl", "--steps=8",
         "--variants=std=0.02;std=0.03"), 2),
    "around.communication": (
        ("--outer=slowmo", NETWORK, "--workers=2,3", "--local_rates=0.1",
         "--num_rounds=4", "--seeds=1"), 4),
    "around.doctor_study": (
        ("--networks=tests/network_moe.py,tests/network_haiku.py",), 2),
    "around.nowcasting": (
        (NETWORK, "--num_steps=100", "--every=40", "--rates=0.01",
         "--seeds=1"), 4)}


def test_all_studies_are_here():
  folder = tiny_run.ROOT / "experiments"
  with_cells = {f"{path.parent.name}.{path.stem}"
                for room in ("studies", "around", "benchmarks")
                for path in (folder / room).glob("*.py")
                if "import sweep" in path.read_text()}
  assert with_cells == set(STUDIES)


class Stop(Exception):
  """The study has asked for cells."""


def parsed(module, arguments):
  """Return the flags of a study, and leave the flags of this process alone."""
  before = set(flags.FLAGS)
  try:
    module.define_flags()
    flags.FLAGS(["study", *arguments])
    return types.SimpleNamespace(**{
        name: flags.FLAGS[name].value for name in flags.FLAGS})
  finally:
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


@pytest.mark.filterwarnings("ignore:the load_module")
@pytest.mark.parametrize("name", STUDIES)
def test_independent_cells_are_given_together(name, tmp_path, monkeypatch):
  arguments, count = STUDIES[name]
  module = importlib.import_module(f"experiments.{name}")
  given = []

  def stop(folder, cells, bar=None):
    given.extend(cells)
    raise Stop

  monkeypatch.setattr(sweep, "run_cells", stop)
  monkeypatch.setattr(suites, "get", lambda name: {
      task: {"name": "mlp", "width": width, "depth": 1}
      for task, width in (("a", 2), ("b", 3))})
  with pytest.raises(Stop):
    module.main(parsed(module, [f"--workdir={tmp_path}", *arguments]))
  assert len({sweep.identity(cell.config) for cell in given}) == count
  assert len(given) == count
  assert sweep in module.main.__globals__.values()  # --shard and --executor


# Runs a study. The first cell of each process is published only when another
# process has begun one, too: so both compute at the same time.
NOTED = """
import os, pathlib, runpy, sys, time
from experiments import sweep

notes, write = pathlib.Path(sys.argv.pop(1)), sweep._write_cell

def noted(new, config, rows):
  (notes / f"{sweep.identity(config)}-{os.getpid()}").touch()
  end = time.monotonic() + 240
  while len({x.name.split("-")[1] for x in notes.iterdir()}) < 2:
    if time.monotonic() > end:
      sys.exit("No other process computes a cell.")
    time.sleep(0.05)
  write(new, config, rows)

sweep._write_cell, sweep.POLL = noted, 0.1
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def two_processes(name, arguments, folder):
  """Run a study as two equal commands.

  Returns:
    {identity of a cell: [process that computed it, ...]}.
  """
  (folder / "notes").mkdir(parents=True)
  processes = [subprocess.Popen(
      [sys.executable, "-c", NOTED, str(folder / "notes"),
       f"experiments.{name}", f"--workdir={folder / 'run'}", *arguments],
      cwd=tiny_run.ROOT, env=tiny_run.ENVIRONMENT, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
  ends = [process.communicate(timeout=500) for process in processes]
  assert [x.returncode for x in processes] == [0, 0], ends
  assert ends[0][0] == ends[1][0]  # both print all results
  computed = {}
  for note in (folder / "notes").iterdir():
    cell, process = note.name.split("-")
    computed.setdefault(cell, []).append(process)
  return computed


def test_two_processes_divide_a_study(tmp_path):
  """Also the cells that depend on others: reported runs, and grown grids."""
  name, arguments = TRANSFER
  computed = two_processes(name, arguments, tmp_path)
  assert all(len(processes) == 1 for processes in computed.values())
  assert len({process for process, in computed.values()}) == 2
  assert len(computed) >= 7  # at least 4 reported
  results = pd.read_csv(tmp_path / "run" / "results.csv")
  assert len(results) == 4
  assert not (tmp_path / "run" / "cells").exists()
