"""The formulas of mulo2 and its symmetries."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learned_opt import artifact as artifact_lib
from learned_opt import kinds as kinds_lib
from learned_opt import optimizers
from learned_opt import schedules
from learned_opt.optimizers import mulo2 as mulo2_lib
from learned_opt.update import orthogonal
import mulo

SHAPES = {"w": (12, 20), "conv": (3, 2, 4, 5), "heads": (6, 2, 5), "b": (7,),
          "table": (9, 4), "scalar": ()}
KINDS = {"w": kinds_lib.Kind(role="input", outputs=(1,)),
         "heads": kinds_lib.Kind(role="hidden", outputs=(1, 2)),
         "table": kinds_lib.Kind(role="embedding", outputs=(1,)),
         "b": kinds_lib.Kind(role="vector", outputs=(0,))}


def tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return {name: np.float32(scale * rng.normal(size=shape))
          for name, shape in SHAPES.items()}


def make(**settings):
  lopt = optimizers.get("mulo2", **{"hidden": 4, **settings})
  theta = lopt.init(jax.random.key(0))
  noise = np.random.default_rng(1)
  theta = jax.tree.map(
      lambda x: x + np.float32(0.2 * noise.normal(size=x.shape)), theta)
  theta |= {"momentum_decays": 0.1 * theta["momentum_decays"],
            "second_decay": 0.1 * theta["second_decay"],
            "size": 0.3 * theta["size"], "share": 0.3 * theta["share"],
            "exponent": 0.5 * theta["exponent"]}
  return lopt, theta


def transformation(lopt, theta, **settings):
  return lopt.opt_fn(theta, kinds=lambda tree: {
      name: kind for name, kind in KINDS.items() if name in tree}, **settings)


@functools.cache
def usual():
  """Return one transformation for several tests: it is compiled once."""
  return transformation(*make())


def run(tx, grads, params):
  state, update, results = tx.init(params), jax.jit(tx.update), []
  for grad in grads:
    updates, state = update(grad, state, params)
    results.append(updates)
  return results


def test_flipping_all_signs_flips_the_update_exactly():
  grads, params = [tree(i) for i in range(3)], tree(9)
  minus = lambda x: jax.tree.map(np.negative, x)
  there = run(usual(), grads, params)
  back = run(usual(), [minus(g) for g in grads], minus(params))
  for x, y in zip(there, back):
    assert max(float(jnp.max(jnp.abs(u))) for u in jax.tree.leaves(x)) > 0.01
    chex.assert_trees_all_equal(x, minus(jax.device_get(y)))


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**40, 1e6])
def test_the_size_of_gradients_does_not_matter(scale):
  grads, params = [tree(i, 3.0**-i) for i in range(3)], tree(9)
  scaled = [jax.tree.map(lambda g: np.float32(scale) * g, g) for g in grads]
  for x, y in zip(run(usual(), grads, params), run(usual(), scaled, params)):
    if math.log2(scale) % 1 == 0:
      chex.assert_trees_all_equal(x, y)
    else:
      chex.assert_trees_all_close(x, y, rtol=2e-3, atol=1e-5)


def test_without_an_mlp_the_mixture_is_constant():
  lopt, theta = make()
  theta["w2"] = np.zeros_like(theta["w2"])
  without = optimizers.get("mulo2", hidden=0)
  assert "w0" not in without.init(jax.random.key(0))
  chex.assert_trees_all_equal_shapes(
      without.init(jax.random.key(0)),
      small := {k: v for k, v in theta.items()
                if k not in ("w0", "w1", "w2", "b0", "b1")})
  grads, params = [tree(i) for i in range(3)], tree(9)
  chex.assert_trees_all_close(
      run(transformation(without, small), grads, params),
      run(transformation(lopt, theta), grads, params), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lowering, names", [
    ("blocked", SHAPES), ("pallas", ("w", "b", "scalar"))])
def test_lowerings_agree(lowering, names):
  grads, params = [tree(i) for i in range(2)], tree(9)
  other = transformation(*make(lowering=lowering))
  part = lambda tree: {name: tree[name] for name in names}
  for x, y in zip(run(usual(), grads, params),
                  run(other, [part(g) for g in grads], part(params))):
    chex.assert_trees_all_close(part(x), y, rtol=1e-3, atol=1e-5)


def polar(x):
  u, _, vt = np.linalg.svd(x, full_matrices=False)
  return u @ vt


def naive(theta, grads, params, settings, num_steps):
  """Return the updates of one parameter, "w" or "b" or "table", in float64.

  Statistics here are in the units of the gradients: all features are divided by
  their RMS, so that the unit does not matter.
  """
  theta = {k: np.float64(v) for k, v in theta.items()}
  decay = lambda first, x: 1 - (1 - first) * np.exp(10 * x)
  b = decay(np.array(mulo2_lib.DECAYS), theta["momentum_decays"])
  b2 = decay(mulo2_lib.SECOND_DECAY, theta["second_decay"])
  results = {}
  for name, kind in KINDS.items():
    if name == "heads":
      continue
    p = np.float64(params[name])
    m, v = np.zeros((3, *p.shape)), np.zeros(p.shape)
    agreement = exponent = 0.0
    for t, grad in enumerate(grads):
      g = np.float64(grad[name])
      cosine = np.sum(g * m[0]) / np.sqrt(
          np.sum(g**2) * np.sum(m[0]**2)) if t else 0
      agreement = 0.9 * agreement + 0.1 * cosine
      m = np.stack([b[k] * m[k] + (1 - b[k]) * g for k in range(3)])
      v = b2 * v + (1 - b2) * g**2
      root = 1 / np.sqrt(v)
      x = [g * root, *(m * root), *m, p, *(g * root * m * root),
           np.minimum(root, 10 / np.sqrt(np.mean(v)))]
      rms = lambda x: np.sqrt(np.mean(x**2))
      x = np.stack([np.clip(f / rms(f), -5, 5) for f in x])
      noise = [np.log(rms(m[k]) / (1 - b[k]**(t + 1)) / np.sqrt(
          np.mean(v) / (1 - b2**(t + 1)))) for k in range(3)]
      fixed = natural = rank = 0.0
      if name == "w":
        fixed = np.log(p.shape[0]) / 10  # fan-in
        natural = np.log(rms(p) * np.sqrt(p.shape[0])) / 3
        s = np.linalg.svd(m[0])[1]
        rank = np.log(np.sum(s**2)**2 / np.sum(s**4)) / 3
      tensor = np.array([
          *noise, agreement / (1 - 0.9**(t + 1)), natural, rank, fixed, 0,
          *[kind.role == r for r in mulo2_lib.ROLES]])
      seen = np.concatenate([np.abs(x[:8]), x[8:]])
      h = np.tensordot(theta["w0"][:12].T, seen, 1) + (
          theta["b0"] + tensor @ theta["w0"][12:]).reshape(-1, *[1] * p.ndim)
      for i in (1, 2):
        h = np.tensordot(theta[f"w{i}"].T, np.maximum(h, 0), 1) + theta[
            f"b{i}"].reshape(-1, *[1] * p.ndim)
      direction = np.sum(h * x[:8], 0)
      warm = max(1, math.ceil(0.05 * num_steps))
      schedule = (t + 1) / warm if t < warm else 1 - (t - warm) / (
          num_steps - warm)
      if name == "w":
        rate = 0.05 * np.exp(10 * theta["exponent"][0]) * 500 / num_steps
        exponent += rate * max(0, 2 * schedule - 1) * (
            cosine - theta["exponent"][1])
      peak = (500 / num_steps)**settings["horizon_power"]
      size = settings["step_mult"] * schedule * peak * np.exp(
          settings["noise_power"] * min(noise[0], 0) +
          math.log(4) * np.tanh(5 * tensor @ theta["size"]) + exponent)
      if name == "w":
        share = np.tanh(5 * tensor @ theta["share"])
        direction = (1 - max(share, 0)) * polar(direction) * np.sqrt(
            p.size) + share * np.sqrt(p.shape[0]) * direction
      elif name == "b":
        size *= settings["vector_mult"]
      else:
        adam = m[0] * root * np.sqrt(1 - b2**(t + 1)) / (1 - b[0]**(t + 1))
        size *= settings["table_mult"] * rms(adam) * max(rms(p), 0.01)
      results[name, t] = -size * direction
  return results


def test_formulas():
  settings = dict(step_mult=0.3, vector_mult=0.4, table_mult=2.0,
                  noise_power=0.7, horizon_power=0.6)
  # Many iterations, of coefficients that converge to the polar factor.
  lopt, theta = make(newton_schulz=5, **settings)
  grads, params = [tree(i) for i in range(4)], tree(9)
  actual = run(transformation(lopt, theta, num_steps=30), grads, params)
  expected = naive(theta, grads, params, settings, 30)
  for (name, t), x in expected.items():
    # Five iterations leave singular values between 0.86 and 1.14.
    error = np.linalg.norm(actual[t][name] - x) / np.linalg.norm(x)
    assert error < (0.15 if name == "w" else 2e-4), (name, t, error)


@pytest.mark.parametrize("role, gain", [
    ("input", 12), ("hidden", 1), ("output", 20), ("fixed", 12)])
def test_a_share_of_one_is_an_update_entry_by_entry(role, gain):
  lopt = optimizers.get("mulo2", hidden=4, step_mult=0.1, noise_power=0.0)
  theta = lopt.init(jax.random.key(0))
  theta["share"] = theta["share"].at[
      -len(mulo2_lib.ROLES) + mulo2_lib.ROLES.index(role)].set(100.0)
  grad = {"w": tree(0)["w"]}
  tx = lopt.opt_fn(theta, kinds=lambda tree: {
      "w": kinds_lib.Kind(role=role, outputs=(1,))})
  update, _ = jax.jit(tx.update)(grad, tx.init(grad), grad)
  np.testing.assert_allclose(
      update["w"], -0.1 * math.sqrt(gain) * np.sign(grad["w"]), rtol=1e-3)


def test_zero_gradients_do_not_move():
  params, grad = tree(9), tree(0)
  grad["w"][3], grad["table"][2:5], grad["b"][:] = 0, 0, 0
  for updates in run(usual(), [grad] * 3, params):
    assert not np.any(updates["w"][3]) and not np.any(updates["table"][2:5])
    assert not np.any(updates["b"]) and np.all(updates["w"][4])


def test_untrained_matrices_have_the_natural_size():
  lopt = optimizers.get("mulo2", hidden=4, step_mult=0.1, vector_mult=0.2)
  theta = lopt.init(jax.random.key(0))
  params, grad = tree(9), tree(0)
  update = run(transformation(lopt, theta), [grad], params)[0]
  for name, (inputs, outputs) in {"w": (12, 20), "conv": (24, 5),
                                  "heads": (6, 10)}.items():
    sizes = np.linalg.svd(update[name].reshape(inputs, outputs))[1]
    np.testing.assert_allclose(
        sizes, 0.1 * math.sqrt(inputs * outputs), rtol=0.15)
  np.testing.assert_allclose(update["b"], -0.1 * 0.2 * np.sign(grad["b"]),
                             rtol=1e-5)


@pytest.mark.parametrize("spectrum", [0.0, -1.0, -1.5])
@pytest.mark.parametrize("schedule, least", [("polar_express", 0.98),
                                             ("muon", 0.92)])
def test_polar(schedule, spectrum, least):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(64, 64))
  u, _, vt = np.linalg.svd(x)
  x = (u * np.arange(1, 65.0)**spectrum) @ vt
  y = np.asarray(orthogonal.polar(jnp.float32(x), 5, schedule))
  assert np.vdot(y, u @ vt) / np.linalg.norm(y) / 8 > least
  assert not np.any(orthogonal.polar(jnp.zeros((4, 3)), 5, schedule))


def test_schedules():
  at = lambda name, step, total=100: float(
      schedules.multiplier(name, 0.1, jnp.int32(step), total))
  for name in schedules.names():
    assert at(name, 4) == pytest.approx(0.5) and at(name, 10) == 1
    assert at(name, 55) <= 1
    assert at(name, 100) == (1 if name == "constant" else 0)
  assert at("linear", 55) == pytest.approx(0.5)
  assert at("linear", 0, None) == at(None, 99) == 1
  assert schedules.peak(0.5, 2000) == 0.5 and schedules.peak(0.5, None) == 1
  for wrong in (dict(schedule="cosin"), dict(warmup=1.0), dict(momenta=4),
                dict(noise_power=-1),
                dict(horizon_power=-1), dict(coefficients="muo")):
    with pytest.raises(ValueError):
      optimizers.get("mulo2", **wrong)


def test_weight_decay_follows_the_schedule(tmp_path):
  settings = optimizers.all_settings("mulo2", hidden=4)
  lopt = optimizers.get("mulo2", **settings)
  path = tmp_path / "theta.safetensors"
  mulo.save(path, artifact_lib.Artifact(
      "mulo2", settings, "natural",
      jax.device_get(lopt.init(jax.random.key(0)))))
  base = {"w": np.zeros((6, 4)), "out": np.zeros((4, 2))}
  params = {"w": np.ones((6, 8), np.float32),
            "out": np.ones((8, 2), np.float32)}
  zeros = jax.tree.map(np.zeros_like, params)
  tx = mulo.load(path, base_shapes=base, num_steps=10, weight_decay=0.1)
  state, update, sizes = tx.init(params), jax.jit(tx.update), []
  for _ in range(10):
    updates, state = update(zeros, state, params)
    sizes.append(-float(updates["w"][0, 0]))
  expected = [0.1 * float(schedules.multiplier(
      "linear", 0.05, jnp.int32(t), 10)) for t in range(10)]
  np.testing.assert_allclose(sizes, expected, rtol=1e-5)


@pytest.mark.parametrize("role, axis", [
    ("input", 1), ("hidden", 0), ("hidden", 1), ("output", 0)])
def test_facts_do_not_depend_on_width(role, axis):
  kind = kinds_lib.Kind(role=role, outputs=(1,))
  narrow, wide = [6, 6], [6, 6]
  wide[axis] = 60
  facts = [mulo2_lib._facts(tuple(shape), kind) for shape in (narrow, wide)]
  np.testing.assert_array_equal(*facts)
  assert (facts[0][:2] > 0).tolist() == [role == "input", role == "output"]


@pytest.mark.parametrize("steady", [True, False])
def test_the_step_finds_its_size(steady):
  """It grows where gradients agree and shrinks where they alternate."""
  lopt = optimizers.get("mulo2", hidden=4, schedule="constant", warmup=0.0)
  theta = lopt.init(jax.random.key(0))
  tx = lopt.opt_fn(theta, num_steps=100, kinds=lambda tree: {
      "w": kinds_lib.Kind(role="hidden", outputs=(1,))})
  params = {"w": tree(0)["w"]}
  state, update = tx.init(params), jax.jit(tx.update)
  for _ in range(60):
    updates, state = update(params, state, params)  # the loss is |p|^2 / 2
    params = jax.tree.map(
        lambda p, u: p + (0.001 if steady else 2.0) * u, params, updates)
  exponent = float(state.statistics.exponent["w"])
  assert exponent > 1 if steady else exponent < -0.1


def test_the_exponent_moves_as_far_in_long_runs():
  lopt = optimizers.get("mulo2", hidden=0, schedule="constant", warmup=0.0)
  grad, exponents = {"w": tree(0)["w"]}, []
  for num_steps in (1000, 4000):
    tx = lopt.opt_fn(lopt.init(jax.random.key(0)), num_steps=num_steps)
    state, update = tx.init(grad), jax.jit(tx.update)
    for _ in range(3):
      _, state = update(grad, state, grad)
    exponents.append(float(state.statistics.exponent["w"]))
  assert exponents[0] == pytest.approx(4 * exponents[1], rel=1e-5)
  assert exponents[1] > 0


def test_without_a_schedule_the_exponent_stays():
  lopt = optimizers.get("mulo2", hidden=4)
  grad = {"w": tree(0)["w"]}
  for settings, moves in ((dict(num_steps=10), True), ({}, False)):
    tx = lopt.opt_fn(lopt.init(jax.random.key(0)), **settings)
    state, update = tx.init(grad), jax.jit(tx.update)
    for _ in range(3):
      _, state = update(grad, state, grad)
    assert bool(state.statistics.exponent["w"] != 0) == moves


@pytest.mark.parametrize("multiplier, change", [
    (1.0, mulo2_lib.RATE), (0.75, mulo2_lib.RATE / 2), (0.5, 0.0), (0.1, 0.0)])
def test_the_exponent_rests_in_the_second_half(multiplier, change):
  after = mulo2_lib._exponent(
      jnp.zeros(2), jnp.float32(0.5), jnp.float32(1), jnp.float32(multiplier),
      jnp.float32(0.1))
  assert float(after) == pytest.approx(0.5 + 0.1 * change)
