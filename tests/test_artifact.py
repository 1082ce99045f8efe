"""Artifacts: what is written is read, and nothing else is."""

import json

import conftest
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
import mulo


def make(**changes):
  lopt = optimizers.get("mulo", hidden=4)
  theta = conftest.perturbed(lopt.init(jax.random.key(0)), 1)
  fields = {"optimizer": "mulo", "settings": {"hidden": 4},
            "parametrization": "mup", "theta": theta,
            "record": {"seed": 3, "config": {"a": [1, 2.5, "x"]}}}
  return artifact_lib.Artifact(**{**fields, **changes})


@pytest.fixture
def path(tmp_path):
  mulo.save(tmp_path / "a.safetensors", make())
  return tmp_path / "a.safetensors"


def test_round_trip(path):
  found, expected = mulo.read(path), make()
  for name in ("optimizer", "settings", "parametrization", "record",
               "licence"):
    assert getattr(found, name) == getattr(expected, name)
  jax.tree.map(np.testing.assert_array_equal, found.theta, expected.theta)
  assert set(found.theta) == {
      "w0", "b0", "w1", "b1", "w2", "b2", "momentum_decays",
      "factored_decays", "second_decay"}


def test_equal_artifacts_are_equal_files(path):
  mulo.save(path.with_name("b.safetensors"), make())
  assert path.read_bytes() == path.with_name("b.safetensors").read_bytes()


def test_every_flipped_bit_is_found(path):
  content = bytearray(path.read_bytes())
  rng = np.random.default_rng(0)
  for position in {0, 9, len(content) - 1,
                   *rng.integers(0, len(content), 60).tolist()}:
    damaged = bytearray(content)
    damaged[position] ^= 1 << int(rng.integers(8))
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="was refused"):
      mulo.read(path)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated(path, keep):
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match="a.safetensors was refused"):
    mulo.read(path)


def rewrite(path, flat=None, **changes):
  """The file with other metadata or tensors, and hashes that fit."""
  tensors = safetensors_numpy.load(path.read_bytes()) if flat is None else flat
  size = int.from_bytes(path.read_bytes()[:8], "little")
  metadata = json.loads(path.read_bytes()[8:8 + size])["__metadata__"]
  header = json.loads(metadata["mulo"])
  header |= changes
  header["sha256"] = artifact_lib.sha256(tensors)
  header["header_sha256"] = artifact_lib.header_sha256(header)
  path.write_bytes(safetensors_numpy.save(
      tensors, {"mulo": json.dumps(header)}))


@pytest.mark.parametrize("changes, message", [
    ({"optimizer": "adamw"}, "Unknown name 'adamw'.*available: adafac_mlp"),
    ({"optimizer": "adafac_mlp"}, "do not fit the optimizer"),
    ({"parametrization": "nope"}, "Unknown name 'nope'"),
    ({"format_version": 2}, "format version is 2.*update mulo"),
    ({"format_version": "1"}, "metadata must have"),
    ({"settings": {"hidden": 5}}, "are not a theta of mulo"),
    ({"settings": {"width": 5}}, "does not take the settings"),
    ({"settings": {"name": 5}}, "does not take the settings"),
    ({"settings": {"hidden": 4.5}}, "hidden must be an integer"),
    ({"settings": {"hidden": 4, "step_mult": "x"}}, "step_mult must be"),
    ({"format_version": 0}, "metadata must have"),
    ({"format_version": True}, "metadata must have"),
    ({"extra": 1}, "metadata must have")])
def test_other_metadata(path, changes, message):
  rewrite(path, **changes)
  with pytest.raises(ValueError, match=message):
    mulo.read(path)


def test_not_finite(path):
  flat = artifact_lib.flatten(make().theta)
  rewrite(path, dict(flat, w1=np.full((4, 4), np.nan, np.float32)))
  with pytest.raises(ValueError, match="'w1'.*not finite"):
    mulo.read(path)


def test_foreign(path):
  path.write_bytes(safetensors_numpy.save({"w": np.ones(3)}))
  with pytest.raises(ValueError, match="not one of mulo's"):
    mulo.read(path)
  path.write_text("not a safetensors file, but long enough to be one")
  with pytest.raises(ValueError, match="was refused"):
    mulo.read(path)


def test_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match="neither a file nor"):
    mulo.read(tmp_path / "a.safetensors")


def test_a_failed_write_changes_nothing(path):
  before = path.read_bytes()
  with pytest.raises(TypeError):
    mulo.save(path, make(record={"not json": object()}))
  assert path.read_bytes() == before
  assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_wrong_theta():
  theta = make().theta
  with pytest.raises(ValueError, match=r"Expected .*float32\[4, 4\]"):
    make(theta=dict(theta, w1=theta["w1"][:3]))
  with pytest.raises(ValueError, match="found .*float64"):
    make(theta=dict(theta, w1=np.float64(theta["w1"])))
