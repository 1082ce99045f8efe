"""Weights files that readers could understand differently, or that overflow."""

import dataclasses
import json

import jax
import msgpack
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from experiments.robustness import fuzz
from learned_opt import artifact as artifact_lib
import mulo


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "x.safetensors"
  path.write_bytes(fuzz.artifact_bytes(fuzz.sample()))
  return mulo.read(path)


def refused(path, content, message):
  path.write_bytes(content)
  with pytest.raises(mulo.ArtifactError, match=message) as error:
    mulo.read(path)
  assert str(error.value).startswith(str(path))


def with_header(text):
  """Return an artifact with another text of its metadata."""
  return safetensors_numpy.save(fuzz.sample(), {"mulo": text})


def header(**changes):
  content = fuzz.artifact_bytes(fuzz.sample(), **changes)
  size = int.from_bytes(content[:8], "little")
  return json.loads(content[8:8 + size])["__metadata__"]["mulo"]


@pytest.mark.parametrize("old, new, message", [
    ('"licence": "unknown"', '"licence": "a", "licence": "unknown"',
     "the key 'licence' occurs twice"),
    ('"horizon": [10, 100]', '"horizon": [10, 100], "horizon": [10, 100]',
     "the key 'horizon' occurs twice"),
    ("[10, 100]", "[NaN, 100]", "the number NaN is not finite"),
    ("[10, 100]", "[-Infinity, 100]", "the number -Infinity is not finite"),
    ("[10, 100]", "[1e999, 100]", "the number 1e999 is not finite"),
    ("[10, 100]", "[9007199254740993, 100]", "is more than 2..53"),
    ('"unknown"', '"\\ud800"', "surrogates not allowed")])
def test_metadata_that_readers_understand_differently(
    old, new, message, tmp_path):
  text = header()
  assert old in text
  refused(tmp_path / "x.safetensors", with_header(text.replace(old, new)),
          message)


def framed(text):
  return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize("text, message", [
    (b"[]", "header is not a table"), (b"3", "header is not a table"),
    (b'{"__metadata__": 3}', "header is not a table"),
    (b'{"__metadata__": {}, "__metadata__": {}}', "occurs twice")])
def test_headers(text, message, tmp_path):
  refused(tmp_path / "x.safetensors", framed(text), message)


def test_a_tensor_that_is_there_twice(tmp_path):
  content = fuzz.artifact_bytes(fuzz.sample())
  size = int.from_bytes(content[:8], "little")
  text, rest = content[8:8 + size].strip(), content[8 + size:]
  entry = json.dumps(json.loads(text)["w0"]).encode()
  twice = text[:-1] + b',"w0":' + entry + b"}"
  refused(tmp_path / "x.safetensors", framed(twice) + rest,
          "the key 'w0' occurs twice")


@pytest.mark.parametrize("settings", [
    {"step_mult": 1e308}, {"step_mult": -1e7}, {"exp_mult": 1e30}])
def test_settings_that_only_give_infinities(sample, settings, tmp_path):
  with pytest.raises(mulo.ArtifactError, match="not within 1e.06"):
    dataclasses.replace(sample, settings={**sample.settings, **settings})
  refused(tmp_path / "x.safetensors", fuzz.artifact_bytes(
      fuzz.sample(), settings={"hidden": 3, **settings}), "not within 1e.06")


def test_theta_that_only_gives_infinities(sample):
  huge = jax.tree.map(lambda x: np.full_like(x, 3e38), sample.theta)
  with pytest.raises(mulo.ArtifactError, match="numbers beyond 1e.06"):
    dataclasses.replace(sample, theta=huge)


def test_no_nan_is_written(sample, tmp_path):
  bad = dataclasses.replace(sample, record={"note": float("nan")})
  with pytest.raises(ValueError, match="not JSON compliant"):
    artifact_lib.write(tmp_path / "x.safetensors", bad)
  assert not list(tmp_path.iterdir())


def test_the_size_is_asked_for_first(tmp_path, monkeypatch):
  """Nothing of a file that is too large is read."""
  path = tmp_path / "x.safetensors"
  with path.open("wb") as file:
    file.truncate(artifact_lib.MAX_BYTES + 1)  # takes no space
  monkeypatch.setattr(
      artifact_lib, "open", lambda *args: Unread(path), raising=False)
  with pytest.raises(mulo.ArtifactError, match="more than 268435456 bytes"):
    mulo.read(path)


class Unread:
  """A file that must not be read."""

  def __init__(self, path):
    self.file = path.open("rb")
    self.fileno = self.file.fileno

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.file.close()


def test_refusals_have_a_reason(tmp_path):
  """Also where the parser gives none, as for deep msgpack."""
  with pytest.raises(mulo.ArtifactError) as error:
    with artifact_lib.refusing("x"):
      raise ValueError
  assert str(error.value) == "x was refused: ValueError"
  path = tmp_path / "theta.state"
  path.write_bytes(b"\x81\xa1a" * 5000)
  with pytest.raises(mulo.ArtifactError, match=r"was refused: \w+"):
    mulo.read_arrays(path)


def test_a_name_twice_in_a_published_file(tmp_path):
  x = fuzz.flax_bytes(np.ones(2, np.float32))
  path = tmp_path / "theta.state"
  path.write_bytes(b"\x82" + (msgpack.packb("a") + x) * 2)
  with pytest.raises(mulo.ArtifactError, match="one name twice"):
    mulo.read_arrays(path)
