"""Hostile weight files are refused, and the fuzz test notices failures."""

import os
import pickle
import time

import jax
import numpy as np
import pytest

from experiments.robustness import fuzz
from experiments.robustness import isolation
from learned_opt import artifact as artifact_lib
import mulo
from mulo import _published_layouts as published_layouts


def test_500_cases():
  outcomes = isolation.run(fuzz.case, 0, 500)
  assert not {seed: outcome for seed, outcome in outcomes.items()
              if outcome not in ("read", "refused")}
  assert 10 < sum(v == "read" for v in outcomes.values()) < 250


@pytest.mark.parametrize("layout", published_layouts.LAYOUTS)
def test_published_arrays_are_valid_before_the_change(layout):
  arrays, arguments = fuzz.published(layout)
  artifact = mulo.convert(arrays, layout, **arguments)
  assert artifact.optimizer == published_layouts.LAYOUTS[layout].optimizer


def bad_cases(seed, folder):
  """Try one case for each kind of failure."""
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


def test_failures_are_noticed():
  outcomes = isolation.run(bad_cases, 19, 17, seconds=4.0)
  assert sorted(outcomes) == list(range(19, 36))
  for seed, part in {
      20: "ended with status 7", 22: "no end within 4.0 s", 24: "MemoryError",
      26: "KeyError", 28: "it did [\"open", 30: "pickle.find_class",
      32: "not printable", 34: "empty"}.items():
    assert part in outcomes.pop(seed)
  assert set(outcomes.values()) == {"read"}


def wrong_reads(seeds, tmp_path):
  """Return what the second reader says about some cases, in this process."""
  outcomes = [isolation.outcome(fuzz.case(seed, tmp_path), [])
              for seed in seeds]
  return [x.split("Different: ")[1] for x in outcomes if "Different: " in x]


def test_files_that_are_read_wrongly_are_noticed(tmp_path, monkeypatch):
  seeds = range(150)
  assert not wrong_reads(seeds, tmp_path)
  with monkeypatch.context() as patch:  # damage is not looked for
    patch.setattr(artifact_lib, "_check_header", lambda header, flat: None)
    assert any("are not those" in x for x in wrong_reads(seeds, tmp_path))
  with monkeypatch.context() as patch:  # another number, another setting
    patch.setattr(artifact_lib, "unflatten", changed(artifact_lib.unflatten))
    said = wrong_reads(seeds, tmp_path)
    assert any("theta has other numbers" in x for x in said)
    assert any("are not those of the file" in x for x in said)
  with monkeypatch.context() as patch:
    patch.setattr(mulo, "read_arrays", changed(mulo.read_arrays))
    assert any("are not those of the file" in x
               for x in wrong_reads(seeds, tmp_path))


def changed(function):
  """Return a reader whose numbers are a little larger."""
  return lambda *args: jax.tree.map(
      lambda x: x + np.asarray(1e-3, x.dtype), function(*args))


def every_name(seed, folder):
  """Try each name of CODE as optimizer and as parametrization."""
  field = ("optimizer", "parametrization")[seed % 2]
  return fuzz.code_case({field: fuzz.CODE[seed // 2]}, folder)


def gullible(seed, folder):
  """Try the same names, but let files name any code."""
  artifact_lib._check_trust = lambda names, trust: None
  return every_name(seed, folder)


def test_named_code_is_refused():
  outcomes = isolation.run(every_name, 0, 2 * len(fuzz.CODE))
  assert set(outcomes.values()) == {"refused"}


def test_code_that_runs_is_noticed():
  outcomes = isolation.run(gullible, 0, 2 * len(fuzz.CODE))
  wrong = {fuzz.CODE[seed // 2] for seed, outcome in outcomes.items()
           if outcome != "refused"}
  assert wrong == {
      f"{fuzz.TRAP}:make", f"{fuzz.TRAP}:make.__call__",
      "learned_opt.optimizers.adafac_mlp:make",
      "learned_opt.scaling.parametrizations.mup:make"}
  for seed in (0, 1):  # as optimizer and as parametrization
    assert "fuzz.trap ('imported',)" in outcomes[seed]


def test_cases_follow_from_their_seed(tmp_path):
  contents = []
  for i, seed in enumerate((5, 5, 7)):
    (folder := tmp_path / str(i)).mkdir()
    fuzz.case(seed, folder)
    contents.append([p.read_bytes() for p in sorted(folder.iterdir())])
  assert contents[0] == contents[1] != contents[2]
  assert contents[0] and contents[2]


@pytest.mark.parametrize("bound", ["MAX_INTEGER", "MAX_HEADER", "MAX_BYTES"])
def test_bounds(bound, tmp_path, monkeypatch):
  path = tmp_path / "a.safetensors"
  path.write_bytes(fuzz.artifact_bytes(fuzz.sample()))
  artifact_lib.read(path)
  monkeypatch.setattr(artifact_lib, bound, 2)
  with pytest.raises(artifact_lib.ArtifactError, match="more than 2"):
    artifact_lib.read(path)
