"""Weights of other projects: flax's msgpack, and Hugging Face."""

import hashlib
import pathlib
import sys
import types

import conftest
import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest

from experiments.robustness import fuzz
from learned_opt import optimizers
import mulo
from mulo import _hub as hub

GOLDEN = pathlib.Path(__file__).parent / "golden"
LAYOUT = "learned_optimization/adafac_mlp_lopt"


def published() -> dict[str, np.ndarray]:
  """Return {published name: array} of a theta."""
  with np.load(GOLDEN / "adafac_mlp_lopt_h4.npz") as file:
    return {k.removeprefix("theta/"): v for k, v in file.items()
            if k.startswith("theta/")}


def nested(flat) -> dict:
  """Return nested dicts from {path joined by "/": array}."""
  tree: dict = {}
  for path, x in flat.items():
    *folders, name = path.split("/")
    branch = tree
    for folder in folders:
      branch = branch.setdefault(folder, {})
    branch[name] = x
  return tree


def test_theta_state(tmp_path):
  """A file of flax is read, with and without a checkpoint around theta."""
  serialization = pytest.importorskip("flax.serialization")
  flat, path = published(), tmp_path / "theta.state"
  for tree in (nested(flat), {
      "params": nested(flat), "gen_id": "abc", "step": 12}):
    path.write_bytes(serialization.to_bytes(tree))
    arrays = mulo.read_arrays(path)
    assert set(arrays) == set(flat)
    for name, x in flat.items():
      np.testing.assert_array_equal(arrays[name], x)
      assert arrays[name].dtype == x.dtype
  artifact = mulo.convert(arrays, LAYOUT, step_mult=0.01)
  assert artifact.settings["step_mult"] == 0.01
  mulo.save(tmp_path / "a.safetensors", artifact)
  mulo.load(tmp_path / "a.safetensors")
  with pytest.raises(mulo.ArtifactError, match=r"Expected.*\[39, 5\].*found"):
    mulo.convert(arrays, LAYOUT, hidden=5)


def test_other_arrays(tmp_path):
  path = tmp_path / "theta.state"
  tree = {"a": np.ones(3, ml_dtypes.bfloat16), "b": {"c": 2}}
  path.write_bytes(fuzz.flax_bytes(tree))
  arrays = mulo.read_arrays(path)
  assert arrays["a"].dtype == ml_dtypes.bfloat16 and arrays["b/c"] == 2
  path.write_bytes(fuzz.artifact_bytes(fuzz.sample()))  # safetensors
  assert set(mulo.read_arrays(path)) == set(fuzz.sample())


def array(*values) -> bytes:
  """Return msgpack of an array "a" with the given shape, dtype and data."""
  return msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(values))})


@pytest.mark.parametrize("content, message", [
    (b"", "Unpack"), (b"\xc1", "."), (msgpack.packb([1]), "list"),
    (msgpack.packb({"a": "text"}), "'a' it has str, not an array"),
    (msgpack.packb({"a": {"b": 1}, "a/b": 2}), "two arrays at 'a/b'"),
    (msgpack.packb({b"a": 1}), "name b'a'"),
    (msgpack.packb({"a": msgpack.ExtType(2, b"x")}), "data of kind 2"),
    (array([2], "float32", b"\0" * 4), "4 bytes, not 8"),
    (array([-1], "float32", b"\0" * 4), r"shape \[-1\]"),
    (array([1], "object", b"\0" * 8), "dtype 'object'; known: float16"),
    (b"\xdd\xff\xff\xff\xff" * 1000, "exceeds max_array_len"),
    (b"\xdc\x00\x10" + (b"\xdc\x00\x10" + b"\x80" * 16) * 16 * 100, "."),
    (b"\x81\xa1a" * 2000, "."),
    (b"".join(
        b"\x81\xda\x08\x00" + b"k" * 2048 for _ in range(3)) + b"\x80",
     "name of more than 4096"),
    (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(
        {str(i): {} for i in range(15000)}))}), "20000 entries"),
    (msgpack.packb({str(i): {} for i in range(15000)}), "20000 entries")])
def test_hostile_msgpack(tmp_path, content, message):
  path = tmp_path / "theta.state"
  path.write_bytes(content)
  with pytest.raises(mulo.ArtifactError, match=message) as e:
    mulo.read_arrays(path)
  assert str(e.value).startswith(f"{path} was refused")


def test_msgpack_is_missing(tmp_path, monkeypatch):
  (tmp_path / "x").write_bytes(b"\x80")
  monkeypatch.setitem(sys.modules, "msgpack", None)
  with pytest.raises(ImportError, match=r"pip install 'mulo\[hub\]'"):
    mulo.read_arrays(tmp_path / "x")


class NotThere(OSError):
  """The repository does not have this file."""


class Unknown(NotThere):
  """It is unknown whether the repository has this file."""


@pytest.fixture
def repository(tmp_path, monkeypatch):
  """Replacement of huggingface_hub.

  Its `files` are {name: content, path or error to raise}. It keeps the
  arguments of calls in `requests`.
  """
  cache = tmp_path / "cache"
  cache.mkdir()
  files: dict = {"README.md": NotThere("no card")}
  requests = []

  def hf_hub_download(repo_id, filename, *, revision, cache_dir):
    requests.append((repo_id, filename, revision))
    content = files[filename]
    if isinstance(content, Exception):
      raise content
    if isinstance(content, pathlib.Path):
      return str(content)
    path = pathlib.Path(cache_dir) / filename.replace("/", "--")
    path.write_bytes(content)
    return str(path)

  errors = types.SimpleNamespace(
      EntryNotFoundError=NotThere, LocalEntryNotFoundError=Unknown)
  constants = types.SimpleNamespace(HF_HUB_CACHE=str(cache))
  module = types.SimpleNamespace(
      hf_hub_download=hf_hub_download, errors=errors, constants=constants)
  monkeypatch.setitem(sys.modules, "huggingface_hub", module)
  for name, part in (("constants", constants), ("errors", errors)):
    monkeypatch.setitem(sys.modules, f"huggingface_hub.{name}", part)
  return types.SimpleNamespace(files=files, requests=requests)


def test_hugging_face(repository):
  content = fuzz.artifact_bytes(fuzz.sample())
  repository.files["theta.safetensors"] = content
  assert mulo.read("hf://someone/thing").settings["hidden"] == 3
  mulo.load("hf://someone/thing@v1.0")
  assert repository.requests[::2] == [  # every other request is for the card
      ("someone/thing", "theta.safetensors", None),
      ("someone/thing", "theta.safetensors", "v1.0")]
  digest = hashlib.sha256(content).hexdigest()
  card = lambda digest: f"# x\n| sha256 of the file | {digest} |\n".encode()
  repository.files["README.md"] = card(digest)
  mulo.read("hf://someone/thing")
  repository.files["README.md"] = card("0" * 64)
  with pytest.raises(mulo.ArtifactError, match=f"{digest}, its card says 000"):
    mulo.read("hf://someone/thing")
  repository.files["README.md"] = Unknown("offline")
  with pytest.raises(OSError, match="offline"):
    mulo.read("hf://someone/thing")


def test_other_files_of_a_repository(repository):
  repository.files["runs/theta.state"] = fuzz.flax_bytes(nested(published()))
  arrays = mulo.read_arrays("hf://someone/thing/runs/theta.state")
  assert set(arrays) == set(published())


def test_nothing_outside_of_the_cache(repository, tmp_path):
  outside = tmp_path / "theta.safetensors"
  outside.write_bytes(fuzz.artifact_bytes(fuzz.sample()))
  repository.files["theta.safetensors"] = outside
  with pytest.raises(mulo.ArtifactError, match="outside of the cache"):
    mulo.read("hf://someone/thing")


@pytest.mark.parametrize("name", [
    "hf://", "hf://x", "hf://x/", "hf:///etc/passwd", "hf://../x", "hf://x/..",
    "hf://x/y/../../z", "hf://x/y@../z", "hf://x/.y", "hf://x/y\\z",
    "hf://x/y@",
    "hf://x/a..b", "hf://x/y/\x00", "hf://x/y\n", "hf://x/" + "y" * 200])
def test_names_that_lead_elsewhere(name, repository):
  with pytest.raises(mulo.ArtifactError, match="was refused"):
    mulo.read(name)
  assert not repository.requests


def test_huggingface_hub_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ImportError, match="needs the package huggingface_hub"):
    mulo.load("hf://someone/thing")


def test_the_real_package_has_the_functions_used():
  huggingface_hub = pytest.importorskip("huggingface_hub")
  from huggingface_hub import constants
  from huggingface_hub import errors
  assert issubclass(errors.LocalEntryNotFoundError, errors.EntryNotFoundError)
  assert constants.HF_HUB_CACHE and huggingface_hub.hf_hub_download


def save(path, optimizer="adafac_mlp", **record):
  theta = optimizers.get(optimizer, hidden=3).init(jax.random.key(0))
  mulo.save(path, fuzz.artifact_lib.Artifact(
      optimizer, {"hidden": 3}, "mup", conftest.perturbed(theta, 0), record))


RECORD = {"horizon": [10, 100], "tasks": {
    "a": {"width": 2, "batch_size": 8}, "b": {"width": 4, "name": "mlp"}}}


def test_range_of_meta_training(tmp_path):
  path = tmp_path / "a.safetensors"
  save(path, **RECORD)
  assert mulo.read(path).trained == ((10, 100), (2, 4), (8, 8))
  for record in ({}, {"horizon": "x", "tasks": 3}, {"horizon": [], "tasks": {
      "a": 1, "b": {"width": "4", "batch_size": True}}}):
    save(path, **record)
    assert mulo.read(path).trained == (None, None, None)
  assert mulo.read("mulo-s").trained == ((100, 1000), (8, 32), (16, 32))


def test_warnings_of_use_beyond_meta_training(tmp_path):
  path = tmp_path / "a.safetensors"
  save(path, **RECORD)
  shapes = lambda n: {"w": jax.ShapeDtypeStruct((500, n), np.float32)}
  load = lambda **settings: mulo.load(path, base_shapes=shapes(2), **settings)
  init = lambda n: jax.eval_shape(load().init, shapes(n))
  # Warnings are errors in these tests, so these calls cause none.
  load(num_steps=100)
  init(256)
  jax.eval_shape(lambda n: load(num_steps=n).init(shapes(8)), np.int32(3))
  with pytest.warns(mulo.BeyondTrainingWarning,
                    match="at most 100 steps.*take 101") as caught:
    load(num_steps=101)
  assert caught[0].filename == __file__
  with pytest.warns(mulo.BeyondTrainingWarning, match="axis of 257") as caught:
    init(257)
  save(path)  # without a record
  load(num_steps=10**6)
  init(10**5)


def test_width_without_base_shapes():
  shape = lambda *n: jax.ShapeDtypeStruct(n, np.float32)
  params = {"in": shape(784, 64), "hidden": shape(64, 64), "b": shape(9999),
            "conv": shape(3, 3, 16, 32), "vocabulary": shape(5000, 64)}
  assert mulo._warnings.network_width(params, None) == 64
  assert mulo._warnings.network_width({}, None) == 0


def test_names_with_revision_and_file():
  assert hub.parse("hf://a/b@main/c/d.state") == ("a/b", "main", "c/d.state")
