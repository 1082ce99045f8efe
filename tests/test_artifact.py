"""Artifacts are read as written; everything else is refused."""

import json
import sys
import types

import chex
import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
import mulo


def make(**changes):
  """Return a small artifact of mulo."""
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
  actual, expected = mulo.read(path), make()
  for name in ("optimizer", "settings", "parametrization", "record",
               "licence"):
    assert getattr(actual, name) == getattr(expected, name)
  chex.assert_trees_all_equal(actual.theta, expected.theta)
  assert set(actual.theta) == {
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
  """Write the file again with other metadata or tensors, and right hashes."""
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


CODE = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()


def make(command=""):
  pathlib.Path(__file__).with_name("called").touch()
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
  """Folder of a module that leaves traces when it is imported or called."""
  folder = tmp_path / "code"
  folder.mkdir()
  (folder / "hostile_code.py").write_text(CODE)
  monkeypatch.syspath_prepend(folder)
  yield folder
  sys.modules.pop("hostile_code", None)


@pytest.mark.parametrize("name", [
    "os:system", "subprocess:getoutput", "builtins:exec", "hostile_code:make",
    "hostile_code:nothing", "not_installed:make", " os:system", "os:system ",
    ":", "hostile_code:", "a\x1b[2J:make"])
@pytest.mark.parametrize("field", ["optimizer", "parametrization"])
def test_code_that_a_file_names_is_not_run(field, name, path, hostile):
  target = hostile / "called"
  settings = {"hidden": 4} if field == "parametrization" else {
      "command": f"touch {target}"}
  rewrite(path, **{field: name, "settings": settings})
  others = ("mulo", "hostile_code", "os.system", "os")
  for attempt in (
      lambda: mulo.read(path), lambda: mulo.read(path, trust=others),
      lambda: artifact_lib.read(path), lambda: mulo.load(path, trust=others)):
    with pytest.raises(mulo.ArtifactError, match="would run that code") as e:
      attempt()
    assert str(e.value).startswith(f"{path} was refused: it names")
    assert str(e.value).isprintable()
  assert "hostile_code" not in sys.modules
  assert [x.name for x in hostile.iterdir()] == ["hostile_code.py"]


def test_the_traces_of_code_are_seen(path, hostile):
  """With trust the code of a file runs, so the test above can fail."""
  target = hostile / "called"
  rewrite(path, optimizer="os:system", settings={"command": f"touch {target}"})
  with pytest.raises(mulo.ArtifactError, match="'int' object"):
    mulo.read(path, trust=["os:system"])
  assert target.exists()
  rewrite(path, parametrization="hostile_code:make", settings={"hidden": 4},
          optimizer="mulo")
  assert mulo.read(path, trust={"hostile_code:make"}).optimizer == "mulo"
  assert (hostile / "imported").exists()


def test_all_names_of_a_file_must_be_trusted(path, hostile):
  names = "hostile_code:make", "os:system"
  rewrite(path, optimizer=names[0], parametrization=names[1])
  with pytest.raises(mulo.ArtifactError) as e:
    mulo.read(path)
  assert 'trust=("hostile_code:make", "os:system",)' in str(e.value)
  with pytest.raises(mulo.ArtifactError) as e:
    mulo.read(path, trust=names[:1])
  assert 'trust=("os:system",), or install' in str(e.value)
  assert "hostile_code" not in sys.modules


def test_trust_is_not_a_string(path):
  """A string has other names within it."""
  rewrite(path, optimizer="os:system", settings={"command": "true"})
  for trust in ("os:system", "os:system2"):
    with pytest.raises(ValueError, match="must be a collection of names"):
      mulo.read(path, trust=trust)


def test_retired_settings(path):
  old = {"hidden": 4, "normalize": False, "vector_mult": 1.0}
  rewrite(path, settings=old)
  artifact = mulo.read(path)
  assert artifact.settings == {"hidden": 4}
  chex.assert_trees_all_equal(artifact.theta, make().theta)
  rewrite(path, settings=old | {"normalize": True})
  with pytest.raises(mulo.ArtifactError, match="normalize = True"):
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


def test_repr_is_five_lines():
  """A summary, not all numbers; a text of the file cannot add a line."""
  lines = repr(make(licence="MIT\nno")).splitlines()
  assert len(lines) == 5
  assert "'mulo'" in lines[0] and artifact_lib.sha256(make().theta) in lines[1]


def test_shapes_of_theta_follow_the_settings_and_the_code(monkeypatch):
  module = types.ModuleType("changing")
  monkeypatch.setitem(sys.modules, "changing", module)

  def define(rows):
    def make(size=1):
      mlp = optimizers.get("adafac_mlp", hidden=2)
      return mlp._replace(
          init=lambda key: {"w": jnp.zeros((rows, int(size) + 1))})
    module.make = make

  shape = lambda **settings: optimizers.theta_shapes(
      "changing:make", **settings)["w"].shape
  define(rows=3)
  assert [shape(size=x) for x in (1, 2, 1)] == [(3, 2), (3, 3), (3, 2)]
  define(rows=5)
  assert shape(size=1) == (5, 2)
  assert shape(size=np.int64(2)) == (5, 3)  # no JSON value
  with pytest.raises(ValueError, match="sise"):
    shape(sise=1)


@pytest.mark.parametrize("name", optimizers.names())
def test_theta_has_32_bits_where_64_are_allowed(name):
  """A file that was written without jax_enable_x64 can be read with it."""
  shapes = optimizers.theta_shapes(name)
  with jax.enable_x64(True):
    assert optimizers.theta_shapes(name) == shapes
