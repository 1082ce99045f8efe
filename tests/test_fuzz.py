"""Hostile weight files are refused, and the fuzzer sees what is not."""

import os
import pickle
import time

import numpy as np
import pytest

from experiments.robustness import fuzz
from learned_opt import artifact as artifact_lib
import mulo
from mulo import _published_layouts as published_layouts


def test_500_cases():
  found = fuzz.run(0, 500)
  assert not {k: v for k, v in found.items() if v not in ("read", "refused")}
  assert 10 < sum(v == "read" for v in found.values()) < 250


@pytest.mark.parametrize("layout", published_layouts.LAYOUTS)
def test_what_is_changed_was_valid(layout):
  arrays, arguments = fuzz.published(layout)
  found = mulo.convert(arrays, layout, **arguments)
  assert found.optimizer == published_layouts.LAYOUTS[layout].optimizer


def bad_cases(seed, folder):
  """One of each kind of failure."""
  def evil():
    (folder / "x").write_bytes(b"")
    raise artifact_lib.ArtifactError("it wrote a file before it was refused")

  def refuse(message):
    raise artifact_lib.ArtifactError(message)

  bad = {20: lambda: os._exit(7), 22: lambda: time.sleep(60),
         24: lambda: np.ones(2**32), 26: lambda: {}["x"], 28: evil,
         30: lambda: pickle.loads(pickle.dumps(np.float32)),
         32: lambda: refuse("\x1b[2J and more"), 34: lambda: refuse("")}
  return bad.get(seed, lambda: None)


def test_the_fuzzer_sees_failures():
  found = fuzz.run(19, 17, bad_cases, seconds=4.0)
  assert sorted(found) == list(range(19, 36))
  for seed, part in {
      20: "ended with status 7", 22: "no end within 4.0 s", 24: "MemoryError",
      26: "KeyError", 28: "it did [\"open", 30: "pickle.find_class",
      32: "not printable", 34: "empty"}.items():
    assert part in found.pop(seed)
  assert set(found.values()) == {"read"}


def test_cases_follow_from_their_seed(tmp_path):
  contents = []
  for seed in (5, 5, 6):
    fuzz.case(seed, tmp_path)
    contents.append([p.read_bytes() for p in sorted(tmp_path.iterdir())])
  assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("bound", ["MAX_INTEGER", "MAX_HEADER", "MAX_BYTES"])
def test_bounds(bound, tmp_path, monkeypatch):
  path = tmp_path / "a.safetensors"
  path.write_bytes(fuzz.artifact_bytes(fuzz.sample()))
  artifact_lib.read(path)
  monkeypatch.setattr(artifact_lib, bound, 2)
  with pytest.raises(artifact_lib.ArtifactError, match="more than 2"):
    artifact_lib.read(path)
