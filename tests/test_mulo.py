"""Tests of the public API, as a practitioner uses it."""

import chex
import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
import mulo

LAYOUT = "learned_optimization/adafac_mlp_lopt"


def init(key, n):
  keys = jax.random.split(key, 3)
  shapes = {"w0": (6, n), "w1": (n, n), "b1": (n,)}
  return {name: jax.random.normal(k, s)
          for k, (name, s) in zip(keys, shapes.items())}


PARAMS = init(jax.random.key(0), 16)
BASE_SHAPES = jax.eval_shape(lambda key: init(key, 4), jax.random.key(0))


@pytest.fixture
def path(tmp_path):
  lopt = optimizers.get("mulo", hidden=4)
  theta = conftest.perturbed(lopt.init(jax.random.key(0)), 1)
  mulo.save(tmp_path / "a.safetensors", artifact_lib.Artifact(
      "mulo", {"hidden": 4}, "mup", theta))
  return tmp_path / "a.safetensors"


def first_updates(tx):
  updates, _ = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
  return updates


def test_load_is_the_learned_update_times_the_parametrization(path):
  artifact = mulo.read(path)
  raw = first_updates(artifact.lopt.opt_fn(artifact.theta))
  updates = first_updates(mulo.load(path, base_shapes=BASE_SHAPES))
  for name, mult in (("w0", 1), ("w1", 1 / 16), ("b1", 1)):
    np.testing.assert_allclose(updates[name], mult * raw[name], rtol=1e-6)


def test_learning_rate_and_weight_decay(path):
  plain = first_updates(mulo.load(path, base_shapes=BASE_SHAPES))
  updates = first_updates(mulo.load(
      path, base_shapes=BASE_SHAPES, learning_rate=0.5, weight_decay=0.1))
  for name, decay in (("w0", 0.1), ("w1", 0.1), ("b1", 0.0)):  # not of vectors
    np.testing.assert_allclose(
        updates[name], 0.5 * (plain[name] - decay * PARAMS[name]), rtol=1e-5)


def test_learning_rate_schedule(path):
  tx = mulo.load(path, base_shapes=BASE_SHAPES,
                 learning_rate=optax.piecewise_constant_schedule(1, {1: 0}))
  update = jax.jit(tx.update)
  updates, state = update(PARAMS, tx.init(PARAMS), PARAMS)
  assert np.any(updates["w0"] != 0)
  updates, _ = update(PARAMS, state, PARAMS)
  np.testing.assert_array_equal(updates["w0"], 0)


def test_in_a_jitted_chain_that_learns(path):
  tx = optax.chain(optax.clip_by_global_norm(1.0),
                   mulo.load(path, base_shapes=BASE_SHAPES))
  loss = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))

  @jax.jit
  def step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params, value=value, other=1)
    return optax.apply_updates(params, updates), state

  params, state = PARAMS, tx.init(PARAMS)
  for _ in range(20):
    params, state = step(params, state)
  assert loss(params) < loss(PARAMS)


def test_mup_needs_base_shapes(path):
  with pytest.raises(ValueError, match="base_shapes=mulo.scaling.base_shapes"):
    mulo.load(path)
  tx = mulo.load(path, base_shapes=PARAMS)
  with pytest.raises(ValueError, match="another width"):
    tx.init(PARAMS)


def test_unknown_name():
  with pytest.raises(FileNotFoundError, match="pretrained optimizer"):
    mulo.load("mulo-xxl")
  assert mulo.list_pretrained() == sorted(mulo.list_pretrained())


def test_start_of_meta_training():
  """Its MLP adds nothing yet, so one without hidden units is the same rule."""
  params = {"w": np.ones((4, 6), np.float32), "b": np.ones(6, np.float32)}
  base = {"w": np.ones((4, 3)), "b": np.ones(3)}
  grads = jax.tree.map(lambda x: np.linspace(
      -1, 2, x.size, dtype=x.dtype).reshape(x.shape), params)
  updates = []
  for settings in ({}, {"hidden": 0}):
    tx = mulo.load("untrained:mulo2/natural", base_shapes=base, num_steps=10,
                   **settings)
    updates.append(jax.jit(tx.update)(grads, tx.init(params), params)[0])
  chex.assert_trees_all_close(*updates, rtol=1e-5)
  assert np.all(updates[0]["w"] != 0)
  trained, start = mulo.read("mulo-s"), mulo.read("untrained:mulo-s")
  assert start.settings == trained.settings
  assert start.parametrization == trained.parametrization
  assert np.any(start.theta["w0"] != trained.theta["w0"])


@pytest.mark.parametrize("name, error, message", [
    ("nope/natural", FileNotFoundError, "neither a file nor a pretrained"),
    ("mulo2", FileNotFoundError, "neither a file nor a pretrained"),
    ("mulo2/nope", ValueError, "Unknown name 'nope'")])
def test_start_of_nothing(name, error, message):
  with pytest.raises(error, match=message):
    mulo.load(f"untrained:{name}", num_steps=10)


def published(hidden=4):
  """Return the theta of adafac_mlp under its published names."""
  lopt = optimizers.get("adafac_mlp", hidden=hidden)
  theta = lopt.init(jax.random.key(0))
  return {f"nn/~/{k}" if k[0] in "wb" else k: np.asarray(v)
          for k, v in theta.items()}


def test_convert_then_save_then_load(tmp_path):
  artifact = mulo.convert(published(), LAYOUT, step_mult=0.01)
  # All settings are stored, so that new defaults do not change old artifacts.
  assert artifact.settings == {
      "hidden": 4, "step_mult": 0.01, "exp_mult": 0.001,
      "accumulator_dtype": "float32"}
  mulo.save(tmp_path / "b.safetensors", artifact)
  first_updates(mulo.load(tmp_path / "b.safetensors"))


@pytest.mark.parametrize("change, layout, settings, message", [
    ({}, "torch", {}, "Unknown layout 'torch'; available: learned_opt"),
    ({"nn/~/w9": np.ones(3)}, LAYOUT, {}, r"unexpected: \['nn/~/w9'\]"),
    ({"nn/~/w0": np.ones((30, 4))}, LAYOUT, {}, r"Expected .*\[39, 4\]"),
    ({"nn/~/w1": np.float32(1)}, LAYOUT, {}, "Expected"),
    ({"nn/~/w0": np.full((39, 4), np.nan)}, LAYOUT, {}, "not finite"),
    ({}, LAYOUT, {"hidden": 8}, r"Expected .*\[39, 8\]"),
    ({}, LAYOUT, {"steps": 8}, "does not take the settings")])
def test_convert_refuses(change, layout, settings, message):
  with pytest.raises(ValueError, match=message):
    mulo.convert(dict(published(), **change), layout, **settings)
