"""Gates of a release: each can fail, and an untrained mulo2 passes all."""

import dataclasses

import jax
import jax.numpy as jnp
import pandas as pd
import pytest

from experiments import gates
from experiments import release
from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
import mulo


def artifact(name, parametrization, **settings):
  settings = optimizers.all_settings(name, **settings)
  theta = optimizers.get(name, **settings).init(jax.random.key(0))
  return artifact_lib.Artifact(
      name, settings, parametrization, jax.device_get(theta))


@pytest.fixture(scope="module")
def ours():
  return artifact("mulo2", "natural", hidden=3, momenta=1, newton_schulz=1)


def failed(artifact):
  rows = gates.measure(artifact)
  assert list(rows["gate"]) == list(gates.LIMITS)
  return set(rows["gate"][rows["passed"] == "no"])


def test_the_untrained_rule_passes(ours):
  assert not failed(ours)


def test_each_gate_can_fail(ours):
  steady = dataclasses.replace(ours, settings={
      **ours.settings, "noise_power": 0.0, "schedule": None})
  large = dataclasses.replace(ours, theta={
      **ours.theta, "b2": 5 * ours.theta["b2"]})
  assert failed(steady) == {"noise", "end of run"}
  assert failed(large) == {"drift"}
  biased = artifact("mlp_lopt", "standard", hidden=3)
  biased.theta["b2"] = jnp.ones(2)
  assert "zero gradient" in failed(biased)


def test_release_refuses(tmp_path, monkeypatch):
  rows = pd.DataFrame([{"gate": gate, "value": 0.6, "limit": limit,
                        "passed": "no" if gate == "noise" else "yes"}
                       for gate, limit in gates.LIMITS.items()])
  monkeypatch.setattr(gates, "measure", lambda artifact: rows)
  mulo.save(tmp_path / "theta.safetensors",
            artifact("mulo2", "natural", hidden=3))
  with pytest.raises(ValueError, match="fails the gate 'noise': 0.6"):
    release.release(tmp_path, "ours", "ours", [], tmp_path)
  assert [x.name for x in tmp_path.iterdir()] == ["theta.safetensors"]
  with pytest.raises(ValueError, match="Unknown gates"):
    gates.check(None, ["nois"])
  assert "| no " in gates.table(gates.check(None, ["noise"]))
