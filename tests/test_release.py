"""Cards, the optimizers that ship with mulo, and the examples."""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
import test_transfer

from experiments import gates
from experiments import release
from learned_opt import artifact as artifact_lib
import mulo

ROOT = pathlib.Path(__file__).parents[1]
MNIST = pathlib.Path(os.environ.get("MULO_DATA_DIR", "")) / "mnist"


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Write the files of a meta-training run that a release reads."""
  # tests/test_gates.py tests the gates.
  monkeypatch.setattr(gates, "measure", lambda artifact: pd.DataFrame(
      [{"gate": "noise", "value": 0.1, "limit": 0.5, "passed": "yes"}]))
  folder = tmp_path / "run"
  folder.mkdir()
  record = {
      "config": {"estimator": {"name": "pes"}, "copies": 2}, "seed": 7,
      "steps": 40, "tasks": {"digits": {"name": "mlp", "width": 3}},
      "horizon": [100, 1000], "software": [{"jax": "0.10.2", "cpu": "x"}]}
  artifact = test_transfer.artifact()
  mulo.save(folder / "theta.safetensors", artifact_lib.Artifact(
      artifact.optimizer, artifact.settings, artifact.parametrization,
      artifact.theta, record))
  (folder / "metrics.jsonl").write_text(
      "".join(json.dumps({"step": i, "seconds": 1800.0}) + "\n"
              for i in range(3)))
  return folder


@pytest.fixture
def study(tmp_path):
  """Write a study: one target lost, one target won, and one run diverged."""
  folder = tmp_path / "width"
  folder.mkdir()
  (folder / "command.txt").write_text(
      "python -m experiments.studies.transfer\n")
  row = {"schedule": "", "learning_rate": np.nan, "grid_edge": False,
         "mean_train_loss": 1.0, "test_loss": 1.0, "speedup": 1.0}
  rows = [
      {**row, "target": target, "method": method, "final_train_loss": loss,
       "outer_valid_loss": loss}
      for target, method, loss in (
          ("a", "ours", 0.5), ("a", "AdamW", 0.4), ("a", "rival", 0.1),
          ("b", "ours", 0.3), ("b", "AdamW", 0.4),
          ("c", "ours", np.inf), ("c", "AdamW", 0.4))]
  pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
  return folder


def test_release(tmp_path, run, study):
  out = tmp_path / "out"
  out.mkdir()
  release.release(run, "ours", "ours", [study], out)
  content = (out / "ours.safetensors").read_bytes()
  assert content == (run / "theta.safetensors").read_bytes()
  text = (out / "ours.md").read_text()
  for part in (
      "1.50 hours", "cpu x, jax 0.10.2", "episodes of 100 to 1000",
      "Apache-2.0", "does not claim that the run was repeated",
      hashlib.sha256(content).hexdigest(), "| digits | mlp", "width=3",
      artifact_lib.sha256(mulo.read(out / "ours.safetensors").theta),
      "- a: final train loss 0.5 against 0.4, validation loss 0.5 against 0.4",
      "- c: 1 of 1 runs diverged", "experiments.studies.transfer", "AdamW"):
    assert part in text, part
  assert "- b" not in text
  assert "rival" not in text  # not released and not a baseline


def test_a_run_that_was_repeated(tmp_path, run, study):
  path = run / "theta.safetensors"
  artifact = mulo.read(path)
  other = dataclasses.replace(artifact, record=artifact.record | {
      "software": [{"git_revision": "abc"}]})
  mulo.save(tmp_path / "other.safetensors", other)
  arguments = run, "ours", "ours", [study], tmp_path
  release.release(*arguments, repeats=str(tmp_path / "other.safetensors"))
  text = (tmp_path / "ours.md").read_text()
  assert "Another run made\nthe same theta (git revision abc)." in text
  with pytest.raises(ValueError, match="cannot repeat itself"):
    release.release(*arguments, repeats=str(path))
  mulo.save(tmp_path / "other.safetensors", dataclasses.replace(
      other, theta=jax.tree.map(lambda x: x + 1, artifact.theta)))
  with pytest.raises(ValueError, match="another theta than"):
    release.release(*arguments, repeats=str(tmp_path / "other.safetensors"))
  assert text == (tmp_path / "ours.md").read_text()


def test_release_writes_both_files_or_none(tmp_path, run, study):
  with pytest.raises(ValueError, match="no optimizer 'theirs'; it has ours"):
    release.release(run, "ours", "theirs", [study], tmp_path)
  with pytest.raises(OSError):
    release.release(run, "ours", "ours", [tmp_path / "none"], tmp_path)
  assert not list(tmp_path.glob("ours.*"))


@pytest.mark.parametrize("name", mulo.list_pretrained())
def test_pretrained(name):
  """Files fit their hashes and their cards, and a step reduces a loss."""
  artifact = mulo.read(name)
  path = release.FOLDER / f"{name}.safetensors"
  card = path.with_suffix(".md").read_text()
  assert hashlib.sha256(path.read_bytes()).hexdigest() in card
  assert artifact_lib.sha256(artifact.theta) in card
  assert artifact.licence == "Apache-2.0" and path.stat().st_size < 2**15
  shapes = lambda width: {"w": jax.ShapeDtypeStruct((4, width), np.float32)}
  params = {"w": jax.random.normal(jax.random.key(0), (4, 8))}
  tx = mulo.load(name, base_shapes=shapes(2), num_steps=100)
  update, _ = tx.update(params, tx.init(params), params)
  # The update goes down, but not exactly along the gradient, whose singular
  # values are unequal.
  cosine = np.vdot(update["w"], params["w"]) / (
      np.linalg.norm(update["w"]) * np.linalg.norm(params["w"]))
  assert cosine < -0.6
  assert 1e-5 < np.abs(update["w"]).max() < 1


@pytest.mark.skipif(not MNIST.is_dir(), reason="MULO_DATA_DIR has no MNIST")
def test_example():
  """A network that is not from tasks/ learns MNIST without a learning rate."""
  done = subprocess.run(
      [sys.executable, "examples/mnist_flax.py", f"--data_dir={MNIST}",
       "--width=32", "--num_steps=150", "--batch_size=64"], cwd=ROOT,
      capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  accuracy = float(done.stdout.split("accuracy: ")[1].rstrip("%\n"))
  assert accuracy > 90
