"""Signal and noise of meta-gradients: known answers, and the command."""

import ml_collections
import numpy as np
import pandas as pd
import pytest
import tiny_config

from experiments.studies import meta_gradient


def draws(seed, mean, std, count=4000):
  rng = np.random.default_rng(seed)
  return mean + std * rng.normal(size=(count, len(mean)))


def test_signal_noise_and_cosine_have_no_bias():
  a, b = np.array([3.0, 0, 0, 0]), np.array([3.0, 4.0, 0, 0])
  x, y = draws(0, a, 5.0), draws(1, b, 5.0)
  assert meta_gradient.pairs(x) == pytest.approx(9, rel=0.15)
  # Noise: 4 entries of variance 25.
  assert meta_gradient.signal_to_noise(x) == pytest.approx(0.09, rel=0.15)
  assert meta_gradient.cosine(x, y) == pytest.approx(0.6, abs=0.06)
  assert np.isnan(meta_gradient.cosine(
      draws(2, 0 * a, 1.0, 10), np.array([[1.0, 0, 0, 0], [-1, 0, 0, 0]])))


def test_intervals_cover():
  """The interval of the signal covers the truth about 90 times in 100."""
  mean, hits = np.array([1.0, 0, 0]), 0
  for seed in range(60):
    low, high = meta_gradient.interval(
        meta_gradient.pairs, draws(seed, mean, 2.0, 40))
    hits += low < 1 < high
  assert 45 <= hits <= 60


def test_means_of_blocks():
  x = np.arange(14.0).reshape(7, 2)
  np.testing.assert_array_equal(
      meta_gradient.blocks(x, 3), [[2, 3], [8, 9]])


def test_command(tmp_path, capsys, monkeypatch):
  config = tiny_config.get_config()
  args = ml_collections.ConfigDict(dict(
      workdir=str(tmp_path / "run"), data_dir=None, steps=8, tasks=["bowl"],
      variants="std=0.02;name=full_es,curriculum=None,same_length=True"))
  args.config = config
  meta_gradient.main(args)
  table = pd.read_csv(tmp_path / "run" / "results.csv")
  assert list(table["variant"]) == args.variants.split(";")
  # Three truncations are one estimate of PES.
  assert list(table["estimates"]) == [2, 8]
  assert "SNR of a minute" in capsys.readouterr().out
  monkeypatch.setattr(meta_gradient, "estimates", None)  # all is there
  meta_gradient.main(args)
  args.tasks = ["nope"]
  with pytest.raises(ValueError, match="no \\['nope'\\]; it has bowl, digits"):
    meta_gradient.main(args)
