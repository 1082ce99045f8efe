"""The study learned_rule."""

import types

import chex
import jax
import numpy as np
import optax
import pytest
import test_transfer

from experiments import gates
from experiments.studies import learned_rule
from learned_opt.scaling import parametrizations
import mulo
from tasks import families


@pytest.fixture(scope="module")
def task():
  return families.get("mlp", parametrizations.get("standard"), width=16,
                      depth=2, batch_size=16)


def test_adam_is_adam(task):
  measured = learned_rule.follow(task, optax.adam(0.1), jax.random.key(0), 6)
  rows = learned_rule.by_role(measured, task)
  assert set(rows.role) == {"input", "hidden", "output", "vector"}
  assert sorted(set(rows.part)) == pytest.approx(np.arange(1, 7) / 6)
  np.testing.assert_allclose(rows["learning rate of Adam"], 0.1, rtol=1e-4)
  np.testing.assert_allclose(rows["cosine, Adam"], 1, atol=1e-5)
  assert np.all(rows["cosine, gradient"] < 0.999)


def test_directions(task):
  rows = learned_rule.by_role(
      learned_rule.follow(task, optax.sgd(0.1), jax.random.key(0), 4), task)
  np.testing.assert_allclose(rows["cosine, gradient"], 1, atol=1e-5)
  first = rows[rows.part == 0.25]  # here momentum = 0.1 * gradient
  np.testing.assert_allclose(first["cosine, momentum"], 1, atol=1e-5)
  assert np.all(rows[rows.part == 1]["cosine, momentum"] < 0.999)


def test_chunks(task, monkeypatch):
  """The result does not depend on the number of steps per call."""
  def follow():
    done = []
    measured = learned_rule.follow(
        task, optax.sgd(0.1), jax.random.key(0), 4, done.append)
    return measured, done

  once, done = follow()
  assert done == [4]
  monkeypatch.setattr(learned_rule, "CHUNK", 2)
  in_chunks, done = follow()
  assert done == [2, 2]
  chex.assert_trees_all_equal(in_chunks, once)


def asked(tmp_path, **flags):
  """Return flags of the command, with defaults for all others."""
  return types.SimpleNamespace(**{
      "trust": [], "optimizer": str(tmp_path / "a.safetensors"),
      "workdir": str(tmp_path / "out"), "data_dir": None, "task": "mlp",
      "settings": ["width=4", "depth=1", "batch_size=4"], "num_steps": 5,
      **flags})


def test_command(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(gates, "NUM_STEPS", 100)
  mulo.save(tmp_path / "a.safetensors", test_transfer.simple_artifact())
  learned_rule.main(asked(tmp_path))
  assert "hidden" not in (tmp_path / "out" / "table.md").read_text()
  assert (tmp_path / "out" / "rule.png").read_bytes()[:4] == b"\x89PNG"
  printed = capsys.readouterr().out
  assert "| input" in printed and "| noise" in printed


def test_error_of_the_command(tmp_path):
  mulo.save(tmp_path / "a.safetensors", test_transfer.artifact())
  with pytest.raises(ValueError, match="has no width"):
    learned_rule.main(asked(tmp_path, task="quadratic", settings=[]))
  assert not (tmp_path / "out").exists()
