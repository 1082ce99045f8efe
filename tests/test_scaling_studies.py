"""The studies epsilon_study and lr_transfer."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments.studies import epsilon_study
from experiments.studies import lr_transfer


@pytest.mark.parametrize("form", epsilon_study.FORMS)
def test_reading_a_feature_of_small_gradients(form):
  """Only absolute epsilons make the feature small."""
  lopt, theta = epsilon_study.optimizer(form, "normalised gradient")
  tx = lopt.opt_fn(theta)
  params = {"w": jnp.ones((8, 9))}
  grads = {"w": jax.random.normal(jax.random.key(0), (8, 9))}
  update = jax.jit(lambda scale: tx.update(
      {"w": scale * grads["w"]}, tx.init(params), params)[0]["w"])
  large, small = [-update(scale) / epsilon_study.SETTINGS["step_mult"]
                  for scale in (1.0, 1e-5)]
  rms = jnp.sqrt(jnp.mean(grads["w"]**2))
  np.testing.assert_allclose(large, grads["w"] / rms, rtol=1e-4)
  if form == "as published":
    assert np.max(np.abs(small)) < 0.02
  else:
    np.testing.assert_allclose(small, large, rtol=1e-4)


def test_random_weights_are_the_same():
  (_, first), (_, second) = (epsilon_study.optimizer(form, "random")
                             for form in epsilon_study.FORMS)
  np.testing.assert_array_equal(first["w0"], second["w0"][:len(first["w0"])])
  assert not np.any(second["w0"][len(first["w0"]):])
  for name in ("b0", "w1", "b1", "w2", "b2"):
    np.testing.assert_array_equal(first[name], second[name])


def rows(method, width, losses):
  """Return a row per loss and seed, with falling learning rates."""
  return [{"method": method, "width": width, "learning rate": 2.0**-i,
           "seed": seed, "loss": loss + 0.1 * seed}
          for i, loss in enumerate(losses) for seed in (0, 1)]


def test_best_learning_rates():
  results = pd.DataFrame([
      *rows("Adam", 64, (5, 1, 2, 3, 4)), *rows("Adam", 128, (5, 4, 3, 1, 2)),
      *rows("muAdam", 64, (5, 1, 2, 3, 4)),
      *rows("muAdam", 128, (np.nan, 2, 1, 3, 4))])
  chosen = lr_transfer.best(results)
  assert list(chosen["learning rate"]) == [1 / 2, 1 / 8, 1 / 2, 1 / 4]
  assert list(chosen.moved) == [0, -2, 0, -1] and not chosen.edge.any()
  assert lr_transfer.complaints(chosen) == []
  far = chosen.assign(moved=[0, -1, 0, -2], edge=[False, True, False, False])
  lines = lr_transfer.complaints(far)
  assert len(lines) == 3 and "edge" in lines[0]
  assert "muAdam's best learning rate moves by 2" in lines[1]
  assert "tells nothing" in lines[2]


def test_adam_and_mu_adam_are_the_same_at_the_base_width():
  section = {"name": "mlp", "depth": 1, "batch_size": 8}
  adam, mu_adam, wide = (
      [row["loss"] for row in lr_transfer.scores(
          method, section, 8, width, [0.01, 0.1], 1, 8, None)]
      for method, width in (("Adam", 8), ("muAdam", 8), ("muAdam", 16)))
  np.testing.assert_allclose(adam, mu_adam, rtol=1e-5)
  assert np.all(np.isfinite(wide)) and len(wide) == 2


@pytest.mark.parametrize("form", epsilon_study.FORMS)
def test_sizes_of_features(form):
  """Features of a hidden matrix, at two widths."""
  narrow, wide = ({row["feature"]: row["rms"] for row in
                   epsilon_study.feature_sizes(form, width)}
                  for width in (64, 512))
  ratios = {name: wide[name] / narrow[name] for name in narrow}
  if form == "as published":
    assert ratios["gradient"] < 0.3 and ratios["row factor"] < 0.1
  else:
    assert all(0.4 < x < 2 for x in [*narrow.values(), *wide.values()])
    assert all(0.7 < x < 1.4 for x in ratios.values()), ratios


@pytest.mark.parametrize("study, flags, message", [
    (epsilon_study, {"widths": ["256", "64"]}, "in increasing order"),
    (epsilon_study, {"widths": ["64"]}, "at least two integers"),
    (epsilon_study, {"widths": ["64", "wide"]}, "--widths=64,wide: expected"),
    (lr_transfer, {"exponents": ["-3"]}, "first and the last exponent"),
    (lr_transfer, {"widths": ["8", "x"]}, "--widths=8,x: expected"),
    (lr_transfer, {"settings": ["dpeth=2"]}, "dpeth"),
    (lr_transfer, {"task": "quadratic"}, "width")])
def test_errors_of_the_commands(tmp_path, study, flags, message):
  """A wrong flag leaves nothing on disk."""
  folder = tmp_path / "study"
  with pytest.raises(ValueError, match=message):
    study.main(types.SimpleNamespace(**{
        "workdir": str(folder), "data_dir": None, "task": "mlp",
        "settings": [], "widths": ["8", "16"], "exponents": ["-4", "-3"],
        "num_steps": 8, "seeds": 1, **flags}))
  assert not folder.exists()
