"""Published optimizers whose implementations gave no golden vectors."""

import contextlib

import chex
import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt.optimizers import nn_adam
from learned_opt.update import blocks
import mulo

# Parameters of one shape share a program, so "b" stands between two of them.
SHAPES = {"a": (3, 4), "b": (4,), "c": (3, 4), "d": (), "e": (5,)}


def trees(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return {k: np.float32(scale * rng.normal(size=s)) for k, s in SHAPES.items()}


def nn_adam_oracle(theta, params, grads):
  """Return parameters and hyperparameters after each update, in float64."""
  log = lambda x: 0.5 * np.clip(np.log(1e-8 + np.abs(x)), -5, 5)
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  limits = [(np.log(1e-8), np.log(1e3)), (-10, 0), (-10, 0),
            (np.log(1e-11), np.log(1e4))]
  low, high = np.transpose(limits) / 10
  theta = jax.tree.map(np.float64, theta)
  u = {k: np.array([theta[name] for name in nn_adam.NAMES]) for k in params}
  h, c = ({k: theta["initial"][name][0] for k in params}
          for name in ("hidden", "cell"))
  m = {k: np.zeros(np.shape(p)) for k, p in params.items()}
  v, after = dict(m), []
  for grad in grads:
    params = dict(params)
    for k, p in params.items():
      g = np.clip(np.float64(grad[k]), -1000, 1000)
      rate, b1, b2, eps = np.exp(10 * u[k])
      b1, b2 = 1 - b1, 1 - b2
      m[k] = b1 * m[k] + (1 - b1) * g
      v[k] = b2 * v[k] + (1 - b2) * g**2
      means = {"m": m[k].mean(), "p": p.mean(), "g": g.mean()}
      hyper = np.clip(u[k], -5, 5) / 5
      x = np.array([
          hyper[1], hyper[2], hyper[3], 2 * (np.ndim(p) == 1) - 1,
          2 * (np.ndim(p) == 0) - 1, hyper[0], log(means["g"]),
          np.sign(means["g"]), log(np.abs(g).mean()), log(means["m"]),
          np.sign(means["m"]), log(means["p"]), np.sign(means["p"]),
          log(v[k].mean()), np.sign(v[k].mean()), log(g.var()), log(m[k].var()),
          log(p.var()), log(v[k].var())])
      z = np.concatenate([x, h[k]]) @ theta["lstm"]["w"] + theta["lstm"]["b"]
      i, candidate, f, o = np.split(z, 4)
      c[k] = sigmoid(f + 1) * c[k] + sigmoid(i) * np.tanh(candidate)
      h[k] = sigmoid(o) * np.tanh(c[k])
      moved = h[k] @ theta["controls"]["w"] + theta["controls"]["b"]
      u[k] = np.clip(u[k] + 0.01 * moved, low, high)
      params[k] = p - rate * (1 + eps) / (eps + np.sqrt(v[k] + 1e-10)) * m[k]
    after.append((params, np.stack(list(u.values()))))
  return after


@pytest.mark.parametrize("size", [10**6, 1])  # in one block, and one by one
def test_nn_adam(size, monkeypatch):
  monkeypatch.setattr(blocks, "CPU_SIZE", size)
  lopt = optimizers.get("nn_adam", lstm_hidden=4, learning_rate=0.1)
  theta = conftest.perturbed(lopt.init(jax.random.key(0)), 1)
  theta["controls"]["b"] = np.float32([0.5, -3, 3, 100])  # some hit limits
  tx, params = lopt.opt_fn(theta), trees(0)
  grads = [trees(1 + t, 3.0**t) for t in range(3)]
  expected = nn_adam_oracle(theta, params, grads)
  state, update = tx.init(params), jax.jit(tx.update)
  for grad, (after, hyperparameters) in zip(grads, expected):
    updates, state = update(grad, state, params)
    params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(params, after, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        list(state.hyperparameters.values()), hyperparameters, atol=1e-6)


def test_hyperparam_adam_is_adam():
  settings = dict(learning_rate=0.03, b1=0.8, b2=0.95)
  lopt = optimizers.get("hyperparam_adam", epsilon=1e-3, **settings)
  tx = lopt.opt_fn(lopt.init(jax.random.key(0)))
  reference = optax.adam(eps=1e-3, **settings)
  params = trees(0)
  state, reference_state = tx.init(params), reference.init(params)
  for t in range(3):
    grads = trees(t + 1, 10.0**-t)
    updates, state = tx.update(grads, state, params)
    expected, reference_state = reference.update(grads, reference_state)
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)


def test_celo2_normalizes_matrices_and_gives_adam_the_rest():
  lopt = optimizers.get("celo2", step_mult=0.01, newton_schulz=1)
  tx = lopt.opt_fn(lopt.init(jax.random.key(0)))
  params, grads = trees(0), trees(1)
  updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
  for k, g in grads.items():
    if g.ndim > 1:
      np.testing.assert_allclose(
          np.sqrt(np.mean(updates[k]**2)), 0.01, rtol=1e-4)
    else:
      np.testing.assert_allclose(updates[k], -0.2 * 0.1 * g / np.sqrt(
          0.05 * g**2 + 1e-8), rtol=1e-4)
  vectors = {"b": params["b"]}  # nothing for the learned part
  updates, _ = tx.update(vectors, tx.init(vectors), vectors)
  assert np.all(updates["b"] != 0)


def test_velo_needs_a_horizon_and_the_loss():
  lopt = optimizers.get("velo", lstm_hidden=2, bank=1)
  theta = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype),
                       jax.eval_shape(lopt.init, jax.random.key(0)))
  with pytest.raises(ValueError, match=r"mulo.load\(..., num_steps=10_000"):
    lopt.opt_fn(theta)
  with pytest.raises(ValueError, match="at least 1, got 0"):
    lopt.opt_fn(theta, num_steps=0)
  tx, params = lopt.opt_fn(theta, num_steps=10), trees(0)
  state = tx.init(params)
  with pytest.raises(ValueError, match=r"update\(.*params, value=loss\)"):
    tx.update(params, state, params)
  with pytest.raises(ValueError, match=r"a scalar; its shape is \(2,\)"):
    tx.update(params, state, params, value=jnp.ones(2))


@pytest.mark.parametrize("name, settings, message", [
    ("velo", {"bank": 0}, "bank must be a positive integer, got 0"),
    ("nn_adam", {"lstm_hidden": 2.0}, "positive integer, got 2.0"),
    ("hyperparam_adam", {"b2": 1.0}, "b2 must be less than 1, got 1.0"),
    ("celo2", {"newton_schulz": -1}, "not a number of iterations")])
def test_settings_that_make_no_sense(name, settings, message):
  with pytest.raises(ValueError, match=message):
    optimizers.get(name, **settings)


@pytest.mark.parametrize("in_use", [True, False])
def test_on_a_mesh_of_explicit_axes(in_use):
  """Newton-Schulz sums over both axes, and no operation may be ambiguous."""
  lopt = optimizers.get("celo2", newton_schulz=1, lowering="blocked")
  tx = lopt.opt_fn(lopt.init(jax.random.key(0)))
  params = {"a": np.ones((4, 8), np.float32), "b": np.ones(4, np.float32)}
  step = jax.jit(lambda params: tx.update(params, tx.init(params), params))
  expected, _ = step(params)
  mesh = jax.make_mesh((4, 2), ("x", "y"), devices=jax.devices()[:8],
                       axis_types=(jax.sharding.AxisType.Explicit,) * 2)
  specs = {"a": jax.P("x", "y"), "b": jax.P("x")}
  split = {k: jax.device_put(x, jax.sharding.NamedSharding(mesh, specs[k]))
           for k, x in params.items()}
  with jax.set_mesh(mesh) if in_use else contextlib.nullcontext():
    updates, state = step(split)
  assert jax.tree.map(lambda x: x.sharding.spec, updates) == specs
  matrices = [x for x in jax.tree.leaves(state) if x.shape == (4, 8)]
  assert len(matrices) == 4  # momenta and second moment
  assert all(tuple(x.sharding.spec) == ("x", "y") for x in matrices)
  chex.assert_trees_all_close(updates, expected, rtol=1e-4)


def test_mu_velo_is_velo_times_the_update_multipliers(tmp_path):
  settings = {"lstm_hidden": 4, "bank": 2, "interpolation": 1.0,
              "param_scale": False}
  lopt = optimizers.get("velo", **settings)
  theta = jax.device_get(lopt.init(jax.random.key(0)))
  shapes = lambda n: {"in": (3, n), "hidden": (n, n), "b": (n,)}
  params = {k: jnp.ones(shape) for k, shape in shapes(8).items()}
  bases = {k: jax.ShapeDtypeStruct(shape, jnp.float32)
           for k, shape in shapes(4).items()}
  updates = {}
  for parametrization in ("standard", "mup"):
    path = tmp_path / f"{parametrization}.safetensors"
    mulo.save(path, artifact_lib.Artifact(
        "velo", settings, parametrization, theta))
    tx = mulo.load(path, num_steps=10, base_shapes=bases)
    updates[parametrization], _ = jax.jit(tx.update)(
        params, tx.init(params), params, value=1.0)
  for name, multiplier in (("in", 1), ("hidden", 1 / 8), ("b", 1)):
    assert np.any(updates["standard"][name])
    np.testing.assert_allclose(
        updates["mup"][name], multiplier * updates["standard"][name], rtol=1e-6)


def test_arrays_on_no_mesh_while_a_mesh_is_set():
  lopt = optimizers.get("hyperparam_adam")
  tx = lopt.opt_fn(lopt.init(jax.random.key(0)))
  params = {"w": np.ones((4, 4), np.float32)}
  expected, _ = tx.update(params, tx.init(params), params)
  mesh = jax.make_mesh((8,), ("x",), devices=jax.devices()[:8],
                       axis_types=(jax.sharding.AxisType.Explicit,))
  before = tx.init(params)
  with jax.set_mesh(mesh):
    for state in (before, tx.init(params)):
      updates, _ = tx.update(params, state, params)
      np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)


def test_state_of_no_parameter_is_not_split():
  lopt = optimizers.get("velo", lstm_hidden=16, bank=2)
  tx = lopt.opt_fn(lopt.init(jax.random.key(0)), num_steps=10)
  mesh = jax.make_mesh((8,), ("x",), devices=jax.devices()[:8])
  split = lambda x, spec: jax.device_put(
      x, jax.sharding.NamedSharding(mesh, spec))
  params = {"a": jnp.ones((16, 3)),  # on one device
            "b": split(jnp.ones(16), jax.P("x"))}  # as long as the LSTM's state
  state = tx.init(params)
  for x in jax.tree.leaves((state.step, state.lstm, state.loss)):
    assert x.sharding.is_fully_replicated and len(x.sharding.device_set) == 8
