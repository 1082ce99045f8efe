"""`mulo.doctor` on a network of three layers, in the smallest sizes."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from experiments.around import doctor_study
from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt import schedules
import mulo
from mulo.diagnosis import doctor as doctor_lib
from mulo.diagnosis import speed

WIDTHS, WIDTH, STEPS = (4, 8), 16, 12


def init(key, width):
  keys = jax.random.split(key)
  return {"in": jax.random.normal(keys[0], (3, width)) / 2,
          "hidden": jax.random.normal(keys[1], (width, width)) / width**0.5,
          "out": jnp.zeros((width, 2)), "unused": jnp.ones(width)}


def loss(params, key, width):
  del width
  x = jax.random.normal(key, (8, 3))
  hidden = jnp.tanh(x @ params["in"]) @ params["hidden"]
  return jnp.mean((jnp.tanh(hidden) @ params["out"] - x[:, :2])**2)


def adamw(base_shapes, num_steps, rate=0.03):
  """Return AdamW exactly as the rival at its largest rate."""
  del base_shapes
  return optax.adamw(lambda step: rate * schedules.multiplier(
      "linear", 0.05, jnp.asarray(step), num_steps), weight_decay=0.1)


@functools.cache
def report():
  return mulo.doctor(init, loss, width=WIDTH, widths=WIDTHS, num_steps=100,
                     optimizer=adamw, trial_steps=STEPS)


def test_known_speedup():
  """An optimizer that is the tuned rival itself is exactly as fast."""
  assert set(report().rates["AdamW"]) == {0.03}
  assert report().speedups["AdamW"] == (1.0, 1.0, 1.0, (1.0, 1.0))
  np.testing.assert_allclose(
      report().losses["AdamW"], report().losses["optimizer"], rtol=1e-4)
  assert report().speedups["Muon"].copies[0] > 0


def test_sizes():
  count = WIDTH * (3 + WIDTH + 2 + 1)
  assert report().num_params == count
  assert 0 <= report().state_bytes - 8 * count <= 16  # and counts of steps
  assert report().update_ms > 0 and report().gradient_ms > 0


def test_warnings_and_text():
  assert [x.split()[0] for x in report().warnings] == ["unused"]
  text = report().text()
  assert "Speed-up in steps over AdamW (tuned): 1.00" in text
  assert "WARNING: unused has a gradient of exactly 0" in text
  assert "Coordinate check: none, because loss returns no layers" in text


@pytest.mark.parametrize("optimizer, verdict", [
    (lambda base_shapes, num_steps: mulo.scaling.mu_adamw(3e-3, base_shapes),
     "PASS"), (adamw, "FAIL")])
def test_layers_are_checked(optimizer, verdict):
  """Under muP they change as much at any width, under AdamW they do not."""
  def with_layers(params, key, width):
    x = jax.random.normal(key, (8, 3))
    hidden = jnp.tanh(x @ params["in"]) @ params["hidden"]
    return loss(params, key, width), {"hidden": hidden}

  found = mulo.doctor(
      init, with_layers, width=256, widths=(32, 64, 128), num_steps=100,
      optimizer=optimizer, trial_steps=STEPS)
  assert found.coord_check.layers["hidden"].kind == "hidden"
  assert f"Coordinate check: {verdict}" in found.text()


def test_warnings_before_training():
  """Horizons beyond meta-training, and axes that shapes do not tell."""
  shapes = lambda n: jax.eval_shape(lambda: {
      **init(jax.random.key(0), n), "heads": jnp.ones((n, 3, n // 2))})
  load = lambda base_shapes, num_steps: mulo.load(
      "mulo-s", base_shapes=base_shapes, num_steps=num_steps)
  _, state, found = doctor_lib.traced(load, shapes(16), shapes(8), 10**6, {})
  assert jax.tree.leaves(state)
  assert "is told to take 1000000" in found[0]
  assert found[1].startswith("heads: shapes do not tell which side axes")
  assert len(found) == 2
  declared = {"heads": mulo.scaling.Override(inputs=(0,), outputs=(1, 2))}
  assert not doctor_lib.traced(
      load, shapes(16), shapes(8), 100, {"overrides": declared})[2]


def test_kernels_the_other_way_round():
  """The layout also tells the rivals which axes are inputs."""
  def turned(key, width):
    return {"first": {"weight": init(key, width)["in"].T,
                      "bias": jnp.zeros(width)},
            "hidden": init(key, width)["hidden"],
            "last": {"weight": init(key, width)["out"].T,
                     "bias": jnp.zeros(2)}}

  def turned_loss(params, key, width):
    x = jax.random.normal(key, (8, 3))
    hidden = jnp.tanh(x @ params["first"]["weight"].T
                      + params["first"]["bias"][None])
    outputs = (jnp.tanh(hidden @ params["hidden"].T)
               @ params["last"]["weight"].T + params["last"]["bias"][None])
    return jnp.mean((outputs - x[:, :2])**2)

  found = mulo.doctor(
      turned, turned_loss, width=WIDTH, widths=WIDTHS, num_steps=100,
      trial_steps=STEPS, layout="out_in",
      optimizer=lambda layout, **shapes: adamw(**shapes))
  assert found.speedups["AdamW"].mean == 1 and found.warnings == ()


NETWORK = """
import jax
import jax.numpy as jnp


def init(key, width):
  return {"in": jax.random.normal(key, (3, width)), "out": jnp.zeros(width)}


def loss(params, key, width):
  x = jax.random.normal(key, (8, 3))
  return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - x[:, 0])**2)
"""


def test_study_of_predictions(tmp_path, monkeypatch, capsys):
  (tmp_path / "network_bowl.py").write_text(NETWORK)
  lopt = optimizers.get("hyperparam_adam")
  mulo.save(tmp_path / "a.safetensors", artifact_lib.Artifact(
      "hyperparam_adam", optimizers.all_settings("hyperparam_adam"), "mup",
      jax.device_get(lopt.init(jax.random.key(0)))))
  flags = types.SimpleNamespace(
      workdir=str(tmp_path / "study"), width=16, widths=["4", "8"],
      networks=[str(tmp_path / "network_bowl.py")], seeds=2, num_steps=20,
      optimizer=str(tmp_path / "a.safetensors"), trial_steps=10)
  doctor_study.main(flags)
  printed = capsys.readouterr().out
  results = pd.read_csv(tmp_path / "study" / "results.csv")
  assert list(results["rival"]) == ["AdamW", "Muon"]
  assert set(results["network"]) == {"bowl"}
  inside = results["mean"].between(results["low"], results["high"])
  assert list(inside) == list(results["inside"])
  assert f"{inside.sum()} of 2 measured speed-ups are inside" in printed
  assert (tmp_path / "study" / "prediction.png").exists()
  monkeypatch.setattr(doctor_study, "rows", print)  # whose result is no rows
  doctor_study.main(flags)
  assert capsys.readouterr().out == printed
  (tmp_path / "network_bowl.py").write_text("init = loss = 3")
  with pytest.raises(ValueError, match="it has no init"):
    doctor_study.main(flags)


def test_speedup_formula():
  steps = np.arange(1.0, 101)
  reference = 1 / steps
  assert speed.speedup(reference, reference) == 1
  assert speed.speedup(1 / (2 * steps), reference) == pytest.approx(2, rel=0.1)
  assert speed.speedup(2 / steps, reference) == pytest.approx(0.5, rel=0.1)
  stuck = np.maximum(1 / (2 * steps), 0.02)  # soon there, and never lower
  assert speed.speedup(stuck, reference) == pytest.approx(0.55, rel=0.1)
  assert speed.speedup(steps * np.nan, reference) == 0
  assert speed.speedup(reference, steps * np.nan) == math.inf


def test_prediction_interval():
  """The interval of n values holds one more in 95 of 100 cases."""
  rng = np.random.default_rng(0)
  hits = []
  for values in np.exp(rng.normal(size=(4000, 4))):
    x = speed.predicted(values[:3])
    hits.append(x.low <= values[3] <= x.high)
  assert np.mean(hits) == pytest.approx(0.95, abs=0.012)
  assert speed.predicted([0.0, 1.0])[1:3] == (0, math.inf)


@pytest.mark.parametrize("settings, message", [
    ({"widths": (8, 4)}, r"widths must be at least two increasing .*\[8, 4\]"),
    ({"widths": (4, 16)}, "without width 16"),
    ({"trial_steps": 5}, "trial_steps must be at least 10, got 5")])
def test_errors(settings, message):
  with pytest.raises(ValueError, match=message):
    mulo.doctor(init, loss, **{
        "width": WIDTH, "widths": WIDTHS, "num_steps": 10,
        "optimizer": adamw, **settings})
