"""Uploads to Hugging Face, without a network."""

import dataclasses
import hashlib
import inspect
import json
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

import mulo
from mulo import _hub as hub

ROOT = pathlib.Path(__file__).parents[1]
OWN = json.dumps("hf://me/thing")


def test_weights_card_and_licence(uploads, tmp_path):
  artifact = mulo.read("mulo-s")
  assert mulo.push("me/thing", artifact, private=True) == "hf://me/thing@ab12"
  created, (name, files) = uploads
  assert created == ("me/thing", True, True) and name == "me/thing"
  assert set(files) == {"theta.safetensors", "README.md", "LICENSE"}
  path = tmp_path / "x.safetensors"
  path.write_bytes(files["theta.safetensors"])
  back = mulo.read(path)
  jax.tree.map(np.testing.assert_array_equal, back.theta, artifact.theta)
  assert back.record == artifact.record
  card = files["README.md"].decode()
  digest = hashlib.sha256(files["theta.safetensors"]).hexdigest()
  assert hub._HASH.findall(card) == [digest]
  assert f"mulo.load({OWN}, base_shapes=..., num_steps=...)" in card
  assert '"seed": 0' in card
  assert files["LICENSE"].decode() == (ROOT / "LICENSE").read_text()


def test_hugging_face_reads_the_cards():
  huggingface_hub = pytest.importorskip("huggingface_hub")
  artifact = mulo.read("mulo-s")
  other = dataclasses.replace(artifact, licence="LicenseRef-mine: a")
  for text in (hub.card("me/thing", artifact, "0"), *(
      path.read_text() for path in (ROOT / "mulo" / "pretrained").glob(
          "*-*.md"))):
    data = huggingface_hub.ModelCard(text).data
    assert data.license == "apache-2.0" and data.library_name == "mulo"
  data = huggingface_hub.ModelCard(hub.card("me/thing", other, "0")).data
  assert (data.license, data.license_name, data.license_link) == (
      "other", "licenseref-mine: a", "LICENSE")


def test_a_card_of_ones_own(uploads):
  artifact = mulo.read("mulo-s")
  mulo.push("me/thing", artifact)
  card = uploads[-1][1]["README.md"].decode() + "\n## Results\n"
  mulo.push("me/thing", artifact, card_text=card)
  assert uploads[-1][1]["README.md"].decode() == card
  mulo.push("me/thing", artifact, card_text="# Mine\n")
  assert uploads[-1][1]["README.md"].decode() == (
      f"{hub.front_matter(artifact)}\n# Mine\n")
  wrong = re.sub(r"(of the file \| )\w+", r"\g<1>" + "0" * 64, card)
  with pytest.raises(mulo.ArtifactError, match="its card says 0000"):
    mulo.push("me/thing", artifact, card_text=wrong)
  assert len(uploads) == 6


def test_another_licence(uploads):
  artifact = dataclasses.replace(mulo.read("mulo-s"), licence="MIT")
  with pytest.raises(ValueError, match="'MIT', whose text.*licence_text"):
    mulo.push("me/thing", artifact)
  assert not uploads
  mulo.push("me/thing", artifact, licence_text="MIT License")
  files = uploads[-1][1]
  assert files["LICENSE"] == b"MIT License"
  assert b"license: mit\n" in files["README.md"]


@pytest.mark.parametrize("name", [
    "thing", "me/thing/x", "me/thing@main", "hf://me/thing", "../thing"])
def test_wrong_names(name, uploads):
  with pytest.raises(mulo.ArtifactError, match="was refused"):
    mulo.push(name, mulo.read("mulo-s"))
  assert not uploads


def test_no_package_and_no_token(uploads, monkeypatch):
  artifact = mulo.read("mulo-s")
  sys.modules["huggingface_hub"].get_token = lambda: None
  with pytest.raises(PermissionError, match="hf auth login.*HF_TOKEN"):
    mulo.push("me/thing", artifact)
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ImportError, match=r"pip install 'mulo\[hub\]'"):
    mulo.push("me/thing", artifact)
  assert not uploads


def test_the_real_package_has_the_functions_used():
  huggingface_hub = pytest.importorskip("huggingface_hub")
  assert callable(huggingface_hub.get_token)
  for function, names in (
      (huggingface_hub.HfApi.create_repo, {"private", "exist_ok"}),
      (huggingface_hub.HfApi.upload_folder,
       {"repo_id", "folder_path", "commit_message"})):
    assert names <= set(inspect.signature(function).parameters)
  assert "oid" in huggingface_hub.CommitInfo.__dataclass_fields__
