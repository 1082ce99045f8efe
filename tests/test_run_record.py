"""Records of a run in its workdir: data, checkpoints, rows of metrics."""

import json
import random
import shutil

import numpy as np
import pytest
import tiny_config

from experiments.robustness import jobs
from experiments.robustness import run_faults
from meta_train.workdir import claim
from meta_train.workdir import files
from meta_train.workdir import run_record
from tasks.data import identity


def test_identity_of_data():
  """It depends on names, dtypes, shapes and every byte, not on memory."""
  data = {"train": {"x": np.arange(6, dtype=np.uint8).reshape(2, 3)}, "n": 1.0}
  same = {"n": 1.0, "train": {"x": np.asfortranarray(data["train"]["x"])}}
  assert identity.sha256(data) == identity.sha256(same)
  x = data["train"]["x"]
  changed = x.copy()
  changed[1, 2] += 1
  others = [changed, x.astype(np.int8), x.reshape(3, 2), x.T, x[:0],
            x[:0].reshape(0, 4)]
  hashes = {identity.sha256({"train": {"x": x}})} | {
      identity.sha256({"train": {"x": y}}) for y in others}
  hashes.add(identity.sha256({"train": {"y": x}}))
  assert len(hashes) == 8


def test_other_data_are_refused(tmp_path):
  path = tmp_path / "config.json"
  config = tiny_config.get_config()
  run_record.note(config, path, 1, {"a": "1" * 64, "b": "2" * 64})
  run_record.compare_data({"a": "1" * 64, "new": "3" * 64}, path)
  with pytest.raises(ValueError, match="other data for b: their sha256 was "
                     "222222222222..., now it is 444444444444"):
    run_record.compare_data({"a": "1" * 64, "b": "4" * 64}, path)


def test_runs_of_earlier_versions_go_on(tmp_path):
  path = tmp_path / "config.json"
  config = tiny_config.get_config()
  software = run_record.note(config, path, 1, {})
  content = json.loads(path.read_text())
  del content["data"], content["had_checkpoint"]
  path.write_text(json.dumps(content))
  assert run_record.note(config, path, 1, {"a": "1"}) == software
  assert json.loads(path.read_text())["data"] == {"a": "1"}


def test_checkpoints_that_are_gone(tmp_path, capsys):
  """Without a word from config.json, a run that had none begins anew."""
  path = tmp_path / "config.json"
  files.begins_anew(tmp_path)
  assert capsys.readouterr().err == ""
  run_record.note(tiny_config.get_config(), path, 1, {})
  (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n')
  files.begins_anew(tmp_path)
  assert "begins anew, after 2 outer steps" in capsys.readouterr().err
  run_record.note_checkpoint(path)
  run_record.note(tiny_config.get_config(), path, 2, {})  # keeps it
  with pytest.raises(OSError, match="checkpoints are gone. Put them back"):
    files.begins_anew(tmp_path)


def test_a_workdir_has_one_writer(tmp_path):
  config = tiny_config.get_config()
  with files.opened(config, tmp_path / "run", 1, {}) as first:
    first.check()
    with pytest.raises(OSError, match="run is in use by process"):
      with files.opened(config, tmp_path / "run", 1, {}):
        raise AssertionError
    shutil.rmtree(tmp_path / "run" / "lock")
    with pytest.raises(OSError, match="was taken over by another process"):
      first.check()
  assert claim.take(tmp_path / "run" / "lock") is not None


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
  (tmp_path / ".theta.safetensors.x1y2").write_text("half")
  with files.opened(tiny_config.get_config(), tmp_path, 1, {}):
    assert not list(tmp_path.glob(".theta*"))


@pytest.mark.parametrize("line", [
    b"[1, 2]", b"3", b'{"a": 1}', b"\xff\xfe", b'{"step": 1', b"\x00",
    b'{"step": "x"}', b'{"step": true}'])
def test_lines_that_are_no_rows(line, tmp_path):
  assert run_faults.bad_row(line, tmp_path) == run_faults.SURVIVED
  assert line in (tmp_path / "metrics.damaged.jsonl").read_bytes()


def test_an_unfinished_last_line_is_usual(tmp_path, capsys):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"st')
  assert run_faults.metrics.read(path, warn=True) == [{"step": 1}]
  assert capsys.readouterr().err == ""


def test_the_table_of_faults(tmp_path):
  """Some of the faults of `experiments.robustness.jobs`, and its table."""
  rows = []
  for i, (name, how) in enumerate((
      ("metrics.jsonl", "cut off"), ("DONE", "flipped bit"),
      ("config.json", "empty"))):
    (tmp_path / str(i)).mkdir()
    outcome = jobs.damaged_cell(name, how, i, tmp_path / str(i))
    rows.append({"kind": "cells", "fault": name, "outcome": outcome})
  names = sorted(run_faults.numbers(run_faults.get_config()))
  for name in random.Random(0).sample(names, 5):
    rows.append({"kind": "configs", "fault": name, "outcome":
                 run_faults.nonsense(name, float("nan"), tmp_path)})
  rows.append({"kind": "data", "fault": "x", "outcome": "another theta"})
  table = [line.split("|")[1:-1] for line in jobs.table(rows).splitlines()[2:]]
  assert [[x.strip() for x in row] for row in table] == [
      ["configs", "5", "0", "5", "0"], ["data", "1", "0", "0", "1"],
      ["cells", "3", "3", "0", "0"], ["all", "9", "3", "5", "1"]]
