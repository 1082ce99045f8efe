"""Cells of a study: computed once, packed without loss."""

import gzip
import json
import os
import shutil

import pytest

from experiments import sweep

CONFIGS = [{"name": "b", "x": 1}, {"name": "a", "rates": [0.1, 1e-5]}]


def rows_of(config):
  """Rows with numbers that JSON must keep, and keys out of order."""
  return [{"z": 0.1 + 0.2, "a": config["name"]}, {"z": float("inf"), "a": None}]


def never():
  raise AssertionError("A cell that was done is computed again.")


@pytest.fixture(name="folder")
def fixture_folder(tmp_path):
  """A study with two cells, not packed."""
  folder = tmp_path / "cells"
  for config in CONFIGS:
    sweep.run_cell(folder, config, lambda config=config: rows_of(config))
  return folder


def check(folder):
  """Check that both cells are found and have their rows."""
  for config in CONFIGS:
    rows = sweep.run_cell(folder, config, never)
    assert rows == rows_of(config)
    assert list(rows[0]) == ["z", "a"]


def lines(folder):
  path = folder.with_name("cells.jsonl.gz")
  return gzip.decompress(path.read_bytes()).decode().splitlines()


def test_cells_are_computed_once(folder):
  check(folder)
  configs = [json.loads((cell / "config.json").read_text())
             for cell in folder.iterdir()]
  assert sorted(configs, key=str) == sorted(CONFIGS, key=str)


def test_packed_cells_are_found(folder):
  sweep.pack(folder)
  assert [p.name for p in folder.parent.iterdir()] == ["cells.jsonl.gz"]
  check(folder)
  cells = [json.loads(line) for line in lines(folder)]
  assert [cell["config"] for cell in cells] == CONFIGS[::-1]
  # A caller that changes rows does not change the cell.
  sweep.run_cell(folder, CONFIGS[0], never)[0].clear()
  check(folder)


def test_bytes_do_not_depend_on_order_and_time(folder, tmp_path):
  sweep.pack(folder)
  content = folder.with_name("cells.jsonl.gz").read_bytes()
  other = tmp_path / "other" / "cells"
  for config in CONFIGS[::-1]:
    reordered = dict(reversed(config.items()))
    sweep.run_cell(other, reordered, lambda config=config: rows_of(config))
    sweep.pack(other)  # one cell after the other
  assert other.with_name("cells.jsonl.gz").read_bytes() == content
  assert content[4:8] == bytes(4)  # time in the header


def test_cells_are_added_to_a_pack(folder):
  sweep.pack(folder)
  sweep.run_cell(folder, {"name": "c"}, lambda: [{"y": 1}])
  assert len(list(folder.iterdir())) == 1
  sweep.pack(folder)
  assert len(lines(folder)) == 3
  check(folder)
  sweep.pack(folder)  # nothing to do
  assert len(lines(folder)) == 3


def kill_at(monkeypatch, owner, name, count):
  """Let the call number `count` of a function end like a killed process."""
  calls = []
  original = getattr(owner, name)

  def call(*args, **kwargs):
    calls.append(args)
    if len(calls) == count:
      raise KeyboardInterrupt
    return original(*args, **kwargs)

  monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("owner, name, count", [
    (os, "fsync", 1), (os, "replace", 1), (shutil, "rmtree", 1),
    (shutil, "rmtree", 2)])
def test_a_kill_loses_and_duplicates_nothing(
    folder, monkeypatch, owner, name, count):
  """The moments: before and after the rename, and between two deletions."""
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    kill_at(patch, owner, name, count)
    sweep.pack(folder)
  check(folder)
  sweep.pack(folder)
  assert [p.name for p in folder.parent.iterdir()] == ["cells.jsonl.gz"]
  assert len(lines(folder)) == 2
  check(folder)


def test_a_folder_without_done_is_computed_again(folder):
  cell = folder / sweep.identity(CONFIGS[0])
  (cell / "DONE").unlink()
  (cell / "metrics.jsonl").write_text("")
  sweep.pack(folder)  # leaves the folder alone
  assert len(lines(folder)) == 1 and cell.exists()
  assert sweep.run_cell(folder, CONFIGS[0], lambda: [{"y": 1}]) == [{"y": 1}]


@pytest.mark.parametrize("damage", [
    lambda x: b"", lambda x: x[:-9], lambda x: b"text" + x, lambda x: x + b"x",
    lambda x: x[:40] + bytes([x[40] ^ 1]) + x[41:],
    lambda x: gzip.compress(b"{}\n"), lambda x: gzip.compress(b"1\n"),
    lambda x: gzip.compress(b"no JSON\n")])
def test_a_damaged_pack_is_refused(folder, damage):
  sweep.pack(folder)
  path = folder.with_name("cells.jsonl.gz")
  content = damage(path.read_bytes())
  path.write_bytes(content)
  folder.mkdir()
  for attempt in (lambda: sweep.run_cell(folder, CONFIGS[0], never),
                  lambda: sweep.pack(folder)):
    with pytest.raises(ValueError, match="is damaged .* or delete it") as error:
      attempt()
    assert "\n" not in str(error.value)
  assert path.read_bytes() == content
