"""Cells that several processes share, damaged cells, and claims."""

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time

import pytest
import tqdm

from experiments import executors
from experiments import sweep
from experiments.robustness import sharing
from meta_train.workdir import claim as claim_lib

CONFIG = {"c": 1}
ROWS = [{"x": i} for i in range(3)]


@pytest.fixture(autouse=True)
def fixture_fast(monkeypatch):
  monkeypatch.setattr(sweep, "POLL", 0.01)


def never():
  raise AssertionError("A cell that was done is computed again.")


@pytest.mark.parametrize("seed", range(2))
def test_four_processes_share_forty_cells(seed, tmp_path):
  assert not sharing.trial(tmp_path, seed)


@pytest.mark.parametrize("name, content", [
    ("metrics.jsonl", ""), ("metrics.jsonl", '{"x": 0}\n'),
    ("metrics.jsonl", '{"x": 99}\n' * 3), ("metrics.jsonl", '{"x": 0}\n{"x"'),
    ("metrics.jsonl", None), ("metrics.jsonl", b"\xff\n"),
    ("config.json", "{}"), ("config.json", ""), ("config.json", None),
    ("DONE", "{}"), ("DONE", "3"), ("DONE", "no JSON"), ("DONE", None)])
def test_a_damaged_cell_is_computed_again(name, content, tmp_path, capsys):
  folder = tmp_path / "cells"
  sweep.run_cell(folder, CONFIG, lambda: ROWS)
  path = folder / sweep.identity(CONFIG) / name
  if content is None:
    path.unlink()
  else:
    path.write_bytes(content if isinstance(content, bytes) else
                     content.encode())
  assert sweep.run_cell(folder, CONFIG, lambda: [{"new": 1}]) == [{"new": 1}]
  errors = capsys.readouterr().err
  assert errors.count("\n") == (path.name != "DONE" or content is not None)
  assert not errors or f"{path.parent} is damaged" in errors
  assert sweep.run_cell(folder, CONFIG, never) == [{"new": 1}]
  assert [x.name for x in folder.iterdir()] == [sweep.identity(CONFIG)]


def test_damaged_cells_are_not_packed(tmp_path):
  folder = tmp_path / "cells"
  for c in range(2):
    sweep.run_cell(folder, {"c": c}, lambda: ROWS)
  (folder / sweep.identity(CONFIG) / "metrics.jsonl").write_text("")
  sweep.pack(folder)
  assert sweep.run_cell(folder, {"c": 0}, never) == ROWS
  assert sweep.run_cell(folder, CONFIG, lambda: [{"y": 1}]) == [{"y": 1}]


def test_cells_of_earlier_versions_are_read(tmp_path):
  folder = tmp_path / "cells"
  sweep.run_cell(folder, CONFIG, lambda: ROWS)
  (folder / sweep.identity(CONFIG) / "DONE").write_text("")
  assert sweep.run_cell(folder, CONFIG, never) == ROWS


def test_a_cell_without_rows(tmp_path):
  folder = tmp_path / "cells"
  assert sweep.run_cell(folder, CONFIG, lambda: []) == []
  assert sweep.run_cell(folder, CONFIG, never) == []


def test_configs_that_are_not_json_are_refused(tmp_path):
  with pytest.raises(ValueError, match="must be JSON values"):
    sweep.run_cell(tmp_path / "cells", {10: 1, 9: 1}, never)


def test_the_rows_of_the_first_count(tmp_path):
  """Two threads compute a cell, for the claim of one seems to be dead."""
  folder = tmp_path / "cells"
  began, go = threading.Event(), threading.Event()
  results = {}

  def slow():
    began.set()
    assert go.wait(20)
    return [{"by": "slow"}]

  thread = threading.Thread(target=lambda: results.update(
      slow=sweep.run_cell(folder, CONFIG, slow)))
  thread.start()
  assert began.wait(20)
  claim = folder / f"{sweep.identity(CONFIG)}.claim" / "0"
  owner = json.loads(claim.read_text())
  claim.write_text(json.dumps({**owner, "began": "another process"}))
  results["fast"] = sweep.run_cell(folder, CONFIG, lambda: [{"by": "fast"}])
  go.set()
  thread.join()
  assert results == {name: [{"by": "fast"}] for name in ("slow", "fast")}
  assert [x.name for x in folder.iterdir()] == [sweep.identity(CONFIG)]


def test_an_error_gives_the_claim_up(tmp_path):
  folder = tmp_path / "cells"
  with pytest.raises(ZeroDivisionError):
    sweep.run_cell(folder, CONFIG, lambda: 1 / 0)
  assert not list(folder.iterdir())
  assert sweep.run_cell(folder, CONFIG, lambda: ROWS) == ROWS


def test_shards(tmp_path, monkeypatch):
  """Each cell belongs to one shard; the rest is said to be missing."""
  folder, computed = tmp_path / "cells", []
  cells = [sweep.Cell({"c": c}, lambda c=c: computed.append(c) or [{"c": c}])
           for c in range(12)]
  monkeypatch.setattr(sweep.Shard, "count", 3)
  for index in (0, 2, 1):
    monkeypatch.setattr(sweep.Shard, "index", index)
    if index == 1:
      rows = sweep.run_cells(folder, cells)
    else:
      with pytest.raises(sweep.Incomplete, match=f"Shard {index}/3: .* of 12"):
        sweep.run_cells(folder, cells)
  assert sorted(computed) == list(range(12))
  assert rows == [[{"c": c}] for c in range(12)]


def chain(first, computed):
  """Chain of two cells, then one for the larger of their numbers."""
  cell = lambda c: sweep.Cell(
      {"c": c}, lambda: computed.append(c) or [{"c": c}], size=c)
  rows = yield [cell(first), cell(first + 1)]
  best = max(row[0]["c"] for row in rows)
  (row,), = yield [cell(10 * best)]
  return row["c"]


def test_chains(tmp_path):
  computed = []
  with tqdm.tqdm(total=99, file=io.StringIO()) as bar:
    assert sweep.run_chains(tmp_path / "cells", [
        chain(1, computed), chain(5, computed)], bar) == [20, 60]
    assert bar.n == 1 + 2 + 5 + 6 + 20 + 60
  # All cells of the first step are there before the second one begins.
  assert computed == [1, 2, 5, 6, 20, 60]
  assert sweep.run_chains(tmp_path / "cells", []) == []


def test_shards_of_chains(tmp_path, monkeypatch):
  """Shards that are started again for each step compute all cells once."""
  computed, results = [], []
  monkeypatch.setattr(sweep.Shard, "count", 3)
  for index in (0, 1, 2, 0, 1, 2, 0):
    monkeypatch.setattr(sweep.Shard, "index", index)
    with contextlib.suppress(sweep.Incomplete):
      results = sweep.run_chains(tmp_path / "cells", [
          chain(first, computed) for first in (1, 5, 9)])
  assert results == [20, 60, 100]
  assert sorted(computed) == [1, 2, 5, 6, 9, 10, 20, 60, 100]


def foreign(folder, age, machine="elsewhere"):
  """Leave a claim that was renewed `age` seconds ago; return its file."""
  folder.mkdir()
  (folder / "0").write_text(json.dumps(
      {"host": "elsewhere", "machine": machine, "pid": 7, "began": "1"}))
  os.utime(folder / "0", (time.time() - age,) * 2)
  return folder / "0"


def test_claims(tmp_path):
  folder = tmp_path / "claim"
  claim = claim_lib.take(folder)
  assert claim is not None and claim_lib.take(folder) is None
  claim.release()
  assert not folder.exists()


def test_nobody_waits_for_a_claim_that_was_never_made(tmp_path, monkeypatch):
  """A process dies while it makes a claim; a disk has no hard links."""
  def die(*args):
    raise SystemExit

  for name in ("_machine", "_began", "_make"):
    with monkeypatch.context() as patch:
      patch.setattr(claim_lib, name, die)
      with pytest.raises(SystemExit):
        claim_lib.take(tmp_path / name)
    claim_lib.take(tmp_path / name).release()

  def no_links(*args):
    raise PermissionError

  monkeypatch.setattr(os, "link", no_links)
  claim = claim_lib.take(tmp_path / "x")
  assert json.loads(claim.file.read_text())["pid"] == os.getpid()
  assert claim_lib.take(tmp_path / "x") is None
  claim.release()
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("age, taken", [
    (0, False), (claim_lib.STALE - 60, False), (claim_lib.STALE + 60, True),
    (-3600, False)])
def test_claims_of_other_machines(age, taken, tmp_path):
  foreign(tmp_path / "claim", age)
  claim = claim_lib.take(tmp_path / "claim")
  assert (claim is not None) == taken
  if taken:
    assert claim.file.name == "1" and not claim.lost()
    claim.release()


def test_a_claim_is_taken_over_once(tmp_path):
  """Many threads see a dead claim at the same time."""
  for i in range(20):
    foreign(tmp_path / str(i), claim_lib.STALE + 60)
  barrier, taken = threading.Barrier(8), []

  def attempt():
    for i in range(20):
      barrier.wait()
      if claim := claim_lib.take(tmp_path / str(i)):
        taken.append((i, claim))

  threads = [threading.Thread(target=attempt) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(i for i, _ in taken) == list(range(20))
  for _, claim in taken:
    claim.release()


def test_a_claim_is_renewed_and_can_be_lost(tmp_path, monkeypatch):
  monkeypatch.setattr(claim_lib, "HEARTBEAT", 0.01)
  with claim_lib.take(tmp_path / "claim") as claim:
    os.utime(claim.file, (0, 0))
    deadline = time.monotonic() + 20
    while not claim.file.stat().st_mtime and time.monotonic() < deadline:
      time.sleep(0.01)
    assert claim.file.stat().st_mtime and not claim.lost()
    (tmp_path / "claim" / "1").touch()
    assert claim.lost()
  assert (tmp_path / "claim" / "1").exists()


def test_hold(tmp_path, monkeypatch, capsys):
  """A claim of this machine is refused at once, one of another is watched."""
  monkeypatch.setattr(claim_lib, "HEARTBEAT", 0.01)
  with claim_lib.take(tmp_path / "a"):
    with pytest.raises(OSError, match=f"runs/a is in use by process "
                       f"{os.getpid()} on .*another folder") as error:
      claim_lib.hold(tmp_path / "a", "runs/a")
    assert "\n" not in str(error.value)
  monkeypatch.setattr(claim_lib, "STALE", 0.3)
  foreign(tmp_path / "b", 0)
  claim_lib.hold(tmp_path / "b", "runs/b").release()
  assert "was in use by process 7 on elsewhere" in capsys.readouterr().err
  monkeypatch.setattr(claim_lib, "STALE", 30)
  file = foreign(tmp_path / "c", 1)
  threading.Timer(0.1, os.utime, (file,)).start()
  with pytest.raises(OSError, match="is in use by process 7 on elsewhere"):
    claim_lib.hold(tmp_path / "c", "runs/c")


def test_claims_of_processes_that_ended(tmp_path):
  """Also if another process has the number now, or nobody waited for it."""
  code = ("import pathlib, sys; from meta_train.workdir import claim; "
          "claim.take(pathlib.Path(sys.argv[1])); "
          "import os; os.kill(os.getpid(), 9)")
  process = subprocess.Popen(
      [sys.executable, "-c", code, str(tmp_path / "claim")], cwd=sharing.ROOT)
  # It ends, but stays in the table of processes.
  os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
  claim = claim_lib.take(tmp_path / "claim")
  process.wait()
  assert claim is not None and claim.file.name == "1"
  claim.release()


STUDY = """
import pathlib
from absl import flags
from experiments import command
from experiments import sweep

def define_flags():
  command.define_workdir()

def main(values):
  folder = pathlib.Path(values.workdir)
  folder.mkdir(exist_ok=True)
  rows = sweep.run_cells(folder / "cells", [
      sweep.Cell({"c": c}, lambda c=c: [{"c": c}]) for c in range(6)])
  (folder / "result.txt").write_text(str(sum(row[0]["c"] for row in rows)))

if __name__ == "__main__":
  command.run(define_flags, main)
"""


def study(tmp_path, *arguments, **variables):
  """Run a study of six cells."""
  (tmp_path / "study.py").write_text(STUDY)
  return subprocess.run(
      [sys.executable, str(tmp_path / "study.py"),
       f"--workdir={tmp_path / 'run'}", *arguments], capture_output=True,
      text=True, cwd=sharing.ROOT,
      env={**os.environ, "PYTHONPATH": os.pathsep.join(
          [str(sharing.ROOT), str(tmp_path)]), **variables})


def test_executor_on_this_machine(tmp_path):
  done = study(tmp_path, "--executor=local:2")
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "run" / "result.txt").read_text() == "15"
  assert "--executor" not in (tmp_path / "run" / "command.txt").read_text()
  assert len(list((tmp_path / "run" / "jobs").iterdir())) == 2


SUBMITIT = """
import pickle, types
helpers = types.SimpleNamespace(DelayedSubmission=lambda *x: x)

class AutoExecutor:
  def __init__(self, folder, cluster):
    print("cluster", cluster)
  def update_parameters(self, **settings):
    print("settings", settings)
  def map_array(self, job, items):
    job = pickle.loads(pickle.dumps(job))
    assert job.checkpoint(3) == (job, 3)
    for i in items:
      job(i)
    return [types.SimpleNamespace(job_id=f"9_{i}") for i in items]
"""


def test_executor_on_a_cluster(tmp_path):
  """A module with submitit's interface runs the jobs at once."""
  (tmp_path / "submitit.py").write_text(SUBMITIT)
  done = study(tmp_path, "--executor", "submitit:2",
               "--executor_settings=timeout_min=5,cluster=local")
  assert done.returncode == 0, done.stderr
  assert "cluster local\nsettings {'timeout_min': 5}" in done.stdout
  assert "Submitted 9_0, 9_1." in done.stdout
  assert (tmp_path / "run" / "result.txt").read_text() == "15"


@pytest.mark.parametrize("flag, message", [
    ("--shard=2/2", "expected I/N"), ("--shard=x", "expected I/N"),
    ("--executor=local:0", "expected local:N or submitit:N"),
    ("--executor=ray:2", "expected local:N or submitit:N")])
def test_wrong_flags(flag, message, tmp_path):
  done = study(tmp_path, flag)
  line, = done.stderr.strip().splitlines()
  assert done.returncode == 1 and message in line
  assert not (tmp_path / "run").exists()


def test_shards_of_a_command(tmp_path):
  done = study(tmp_path, "--shard=0/2")
  assert done.returncode == 0 and "Shard 0/2: " in done.stdout
  assert not (tmp_path / "run" / "result.txt").exists()
  done = study(tmp_path, "--shard=1/2")
  assert (tmp_path / "run" / "result.txt").read_text() == "15"


def test_command_line(monkeypatch):
  monkeypatch.setattr(sys, "argv", [
      "x.py", "--a=1", "--executor=local:2", "-executor_settings", "a=1",
      "--executor", "local:2", "--b"])
  monkeypatch.setattr(
      sys.modules["__main__"], "__spec__", None, raising=False)
  assert executors.command_line() == [
      sys.executable, "x.py", "--a=1", "--b"]


def test_a_study_without_submitit(tmp_path):
  (tmp_path / "submitit.py").write_text("raise ImportError('not installed')")
  done = study(tmp_path, "--executor=submitit:2")
  assert done.returncode == 1 and "pip install submitit" in done.stderr
