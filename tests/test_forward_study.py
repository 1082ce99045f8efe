"""The study forward_study: multipliers in the network or in the update."""

import types

import numpy as np
import pandas as pd
import pytest

from experiments.studies import forward_study
from experiments.studies import plain_networks

TINY = {
    "mlp": {"dataset": "digits", "batch_size": 8},
    "conv": {"dataset": "digits", "image_size": 8, "batch_size": 8},
    "transformer": {"batch_size": 2, "length": 4}}


@pytest.fixture(autouse=True)
def tiny_families(monkeypatch):
  for name, section in TINY.items():
    family = plain_networks.FAMILIES[name]
    monkeypatch.setitem(plain_networks.FAMILIES, name, family._replace(
        section={**family.section, **section}))


def curves(family, optimizer, form, readout, width=32, steps=6):
  networks = forward_study.networks_of(
      family, optimizer, form, readout, 16, None)
  return forward_study.curves(optimizer, networks, form, 16, width, 1, steps)[0]


@pytest.mark.parametrize("family, optimizer, readout", [
    ("mlp", "mulo-s", "ordinary"), ("mlp", "mu_adamw", "zero"),
    ("mlp", "mu_adamw", "ordinary"), ("conv", "mu_adamw", "zero"),
    ("transformer", "mu_adamw", "ordinary")])
def test_plain_and_divided_networks_compute_the_same(
    family, optimizer, readout):
  """Their losses are equal at every step, if both have muP's initial weights.
  """
  rescaled, divided = (curves(family, optimizer, form, readout)
                       for form in ("rescaled", "divided"))
  assert abs(rescaled[-1] / rescaled[0] - 1) > 0.01
  np.testing.assert_allclose(rescaled, divided, rtol=1e-3)


def test_ordinary_readouts_are_rescaled():
  """A wide network starts with smaller logits; the base network as in flax."""
  first = {(form, width): curves(
      "mlp", "mu_adamw", form, "ordinary", width, 1)[0]
           for form in ("plain", "rescaled") for width in (16, 256)}
  assert first["plain", 16] == pytest.approx(first["rescaled", 16])
  assert first["plain", 256] > 1.05 * first["rescaled", 256]


def flags(folder, **changed):
  return types.SimpleNamespace(**{
      "workdir": str(folder), "data_dir": None, "families": ["mlp"],
      "readouts": ["zero"], "forms": ["plain", "divided"],
      "optimizers": ["mu_adamw"], "widths": ["16", "32"], "num_steps": 4,
      "seeds": 2, **changed})


def test_command_is_resumable(tmp_path, monkeypatch, capsys):
  forward_study.main(flags(tmp_path))
  results = pd.read_csv(tmp_path / "results.csv")
  assert len(results) == 2 * 2 * 2  # forms, widths, seeds
  assert np.all(np.isfinite(results.loss))
  assert (tmp_path / "forward.png").exists()
  first = capsys.readouterr().out
  lines = first.splitlines()
  assert lines[0] == "mlp:"
  assert "width 16" in lines[2] and "(1.000)" in lines[4]
  monkeypatch.setattr(forward_study, "curves", None)
  forward_study.main(flags(tmp_path))
  assert capsys.readouterr().out == first


@pytest.mark.parametrize("changed, error, message", [
    ({"families": ["mpl"]}, ValueError, "--families=mpl: available are mlp"),
    ({"forms": []}, ValueError, "--forms=: available are plain"),
    ({"widths": ["64", "16"]}, ValueError, "in increasing order, got 64, 16"),
    ({"widths": ["8"]}, ValueError, "multiples of 16"),
    ({"optimizers": ["mulo-x"]}, FileNotFoundError, "Did you mean")])
def test_errors(tmp_path, changed, error, message):
  """A wrong flag leaves nothing on disk."""
  with pytest.raises(error, match=message):
    forward_study.main(flags(tmp_path / "study", **changed))
  assert not (tmp_path / "study").exists()
