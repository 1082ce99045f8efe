"""Looking at a learned rule."""

from absl.testing import flagsaver
import jax
import numpy as np
import optax
import pytest
import test_transfer

from experiments.studies import learned_rule
from learned_opt.scaling import parametrizations
import mulo
from tasks import families


@pytest.fixture(scope="module")
def task():
  return families.get("mlp", parametrizations.get("standard"), width=16, depth=2,
                   batch_size=16)


def test_adam_is_adam(task):
  found = learned_rule.follow(task, optax.adam(0.1), jax.random.key(0), 6)
  rows = learned_rule.by_role(found, task)
  assert set(rows.role) == {"input", "hidden", "output", "vector"}
  assert sorted(set(rows.part)) == pytest.approx(np.arange(1, 7) / 6)
  np.testing.assert_allclose(rows["learning rate of Adam"], 0.1, rtol=1e-4)
  np.testing.assert_allclose(rows["cosine, Adam"], 1, atol=1e-5)
  assert np.all(rows["cosine, gradient"] < 0.999)


def test_directions(task):
  rows = learned_rule.by_role(
      learned_rule.follow(task, optax.sgd(0.1), jax.random.key(0), 4), task)
  np.testing.assert_allclose(rows["cosine, gradient"], 1, atol=1e-5)
  first = rows[rows.part == 0.25]  # momentum is the gradient's, ten times less
  np.testing.assert_allclose(first["cosine, momentum"], 1, atol=1e-5)
  assert np.all(rows[rows.part == 1]["cosine, momentum"] < 0.999)


def test_command(tmp_path, capsys):
  mulo.save(tmp_path / "a.safetensors", test_transfer.artifact())
  learned_rule.define_flags()
  learned_rule.flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(
      optimizer=str(tmp_path / "a.safetensors"), workdir=str(tmp_path / "out"),
      settings=["width=4", "depth=1", "batch_size=4"], num_steps=5):
    learned_rule.main([])
  assert "hidden" not in (tmp_path / "out" / "table.md").read_text()
  assert (tmp_path / "out" / "rule.png").read_bytes()[:4] == b"\x89PNG"
  assert "| input" in capsys.readouterr().out
