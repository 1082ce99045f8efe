"""Tests of learned optimizers: against a naive oracle, and common to all."""

import functools

import chex
import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import naive_optimizers
from learned_opt import optimizers
from learned_opt.optimizers import mulo as mulo_lib
from learned_opt.update import blocks


def run(tx, params, grads):
  """Return the parameters after each update."""
  update = jax.jit(tx.update)
  state, after = tx.init(params), []
  for grad in grads:
    updates, state = update(grad, state, params)
    params = optax.apply_updates(params, updates)
    after.append(params)
  return after


def run_oracle(name, theta, params, grads):
  """Return the parameters after each update, by numpy in float64.

  step_mult is 1.
  """
  wide = lambda x: np.float64(x).reshape(np.shape(x) or (1,))
  rule = naive_optimizers.OPTIMIZERS[name](np, step_mult=1.0)
  theta, params = jax.tree.map(np.float64, theta), jax.tree.map(wide, params)
  states = {k: naive_optimizers.start(p.shape, np) for k, p in params.items()}
  after = []
  for t, grad in enumerate(grads):
    new = {k: rule(theta, wide(grad[k]), p, states[k], t)
           for k, p in params.items()}
    states = {k: state for k, (_, state) in new.items()}
    params = {k: p + new[k][0] for k, p in params.items()}
    after.append({k: p.reshape(np.shape(grad[k])) for k, p in params.items()})
  return after


def deviation(after, expected, start):
  """Return the largest deviation in any step / the total movement."""
  worst = 0.0
  for k in start:
    movement = np.max(np.abs(np.float64(expected[-1][k]) - start[k]))
    difference = max(np.max(np.abs(np.float64(a[k]) - np.float64(e[k])))
                     for a, e in zip(after, expected))
    worst = max(worst, difference / movement)
  return worst


# Steps are large, so that rounding of the parameters does not matter.
@pytest.mark.parametrize("hidden, lowering", [
    (4, None), (9, None), (4, "blocked"), (9, "pallas")])
@pytest.mark.parametrize("name", ["adafac_mlp", "mulo"])
def test_oracle(name, hidden, lowering, monkeypatch):
  monkeypatch.setattr(blocks, "CPU_SIZE", 100)  # several blocks, overlapping
  lopt = optimizers.get(
      name, hidden=hidden, step_mult=1.0, lowering=lowering)
  theta = conftest.perturbed(lopt.init(jax.random.key(0)), 1)
  names = conftest.SHAPES if lowering is None else (*conftest.FEW, "square")
  params = conftest.normal_tree(2, names=names)
  # Gradients rise and fall: mulo converts its statistics to new units.
  grads = [conftest.normal_tree(10 + t, scale, names)
           for t, scale in enumerate((0.01, 1.0, 10.0, 0.1))]
  grads[0]["tall"][:] = 0  # as behind a readout that starts at zero
  for grad in grads:
    grad["square"][2] = 0  # a dead input
    grad["conv"][0, 0] = 0
  after = run(lopt.opt_fn(theta), params, grads)
  expected = run_oracle(name, theta, params, grads)
  assert deviation(after, expected, params) <= 1e-4  # float32 rounding


@pytest.mark.parametrize("name, lowering", [
    ("adafac_mlp", "unrolled"), ("mulo", "unrolled"), ("mulo", "blocked"),
    ("mulo", "pallas")])
def test_vmap_over_theta(name, lowering):
  lopt = optimizers.get(name, hidden=4, step_mult=1.0, lowering=lowering)
  thetas = [conftest.perturbed(lopt.init(jax.random.key(0)), i)
            for i in range(2)]
  params = {k: v for k, v in conftest.normal_tree(2).items()
            if k in ("vector", "tall", "conv")}
  grad = {k: v for k, v in conftest.normal_tree(3).items() if k in params}

  def updates(theta):
    tx = lopt.opt_fn(theta)
    return tx.update(grad, tx.init(params), params)[0]

  together = jax.jit(jax.vmap(updates))(
      jax.tree.map(lambda *x: jnp.stack(x), *thetas))
  for i, theta in enumerate(thetas):
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[i], together), jax.jit(updates)(theta),
        rtol=1e-4, atol=1e-5)


def test_derivatives_of_the_unrolled_lowering():
  """They are those of the values, by a program of a modest size."""
  lopt = optimizers.get("mulo", hidden=4, lowering="unrolled")
  theta = conftest.perturbed(lopt.init(jax.random.key(0)), 1)
  params = {"w": conftest.normal_tree(2)["matrix"]}
  grad = {"w": conftest.normal_tree(3)["matrix"]}

  def total(theta):
    tx = lopt.opt_fn(theta)
    return jnp.vdot(grad["w"], tx.update(grad, tx.init(params), params)[0]["w"])

  direction = conftest.perturbed(jax.tree.map(jnp.zeros_like, theta), 4, 1.0)
  at = jax.jit(lambda h: total(jax.tree.map(
      lambda x, d: x + h * d, theta, direction)))
  derivative = jax.jit(jax.grad(total)).lower(theta).compile()
  slope = sum(jnp.vdot(x, d) for x, d in zip(
      jax.tree.leaves(derivative(theta)), jax.tree.leaves(direction)))
  differences = [(at(h) - at(-h)) / (2 * h) for h in (1e-3, 3e-3)]
  np.testing.assert_allclose(slope, differences, rtol=2e-2)
  # Before, the derivative had 43 times the lines.
  lines = lambda program: len(program.as_text().splitlines())
  value = jax.jit(total).lower(theta).compile()
  assert lines(derivative) < 8 * lines(value)


@functools.cache
def mulo_of_seed(**settings):
  """Return one mulo for several tests: it is compiled once."""
  lopt = optimizers.get("mulo", **settings)
  return lopt.opt_fn(conftest.perturbed(lopt.init(jax.random.key(0)), 1))


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 2.0**20, 1e6])
def test_mulo_ignores_the_scale_of_gradients(scale):
  params = conftest.small_tree(2)
  grads = [conftest.small_tree(10 + t, 1e-3 * 3.0**-t) for t in range(4)]
  scaled = [jax.tree.map(lambda g: np.float32(scale) * g, g) for g in grads]
  tx = mulo_of_seed(step_mult=1.0)
  after, expected = run(tx, params, scaled), run(tx, params, grads)
  # Powers of two change exponents only, so nothing may change.
  exponent = np.log2(scale)
  tolerance = 0 if exponent == int(exponent) else 2e-6
  assert deviation(after, expected, params) <= tolerance


def test_adafac_mlp_does_not_ignore_the_scale_of_gradients():
  """Absolute epsilons break the invariance, so the test above can fail."""
  lopt = optimizers.get("adafac_mlp", hidden=4, step_mult=1.0)
  tx = lopt.opt_fn(conftest.perturbed(lopt.init(jax.random.key(0)), 1))
  params = conftest.small_tree(2)
  grads = [conftest.small_tree(3, 1e-3)]
  scaled = [jax.tree.map(lambda g: np.float32(1e-6) * g, g) for g in grads]
  assert deviation(run(tx, params, scaled), run(tx, params, grads),
                   params) > 0.01


@pytest.mark.parametrize("name", ["adafac_mlp", "mulo"])
def test_zero_gradients_and_parameters(name):
  lopt = optimizers.get(name, hidden=4)
  tx = lopt.opt_fn(conftest.perturbed(lopt.init(jax.random.key(0)), 1))
  params = jax.tree.map(np.zeros_like, conftest.small_tree(0))
  zero, some = params, conftest.small_tree(1, 1e-3)
  for after in run(tx, params, [zero, zero, some, zero]):
    chex.assert_tree_all_finite(after)


@jax.jit
def many_steps(last):
  """Return the last state of mulo, and the largest updates."""
  tx = mulo_of_seed()
  rng = np.random.default_rng(0)
  params = {"w": rng.normal(size=(4, 6)).astype(np.float32),
            "b": np.ones(3, np.float32), "s": np.float32(1)}

  def step(state, t):
    scale = jnp.where(t < 500, 0.01**(t / 500), last)
    keys = jax.random.split(jax.random.key(t), 3)
    grads = {k: scale * jax.random.normal(key, p.shape)
             for key, (k, p) in zip(keys, params.items())}
    updates, state = tx.update(grads, state, params)
    return state, jax.tree.map(lambda u: jnp.max(jnp.abs(u)), updates)

  return jax.lax.scan(step, tx.init(params), jnp.arange(3000))


@pytest.mark.parametrize("last", [0.0, 1e-20, 1e-6, 1.0, 1e10])
def test_mulo_over_many_steps(last):
  """Gradients fall 100-fold, then are zero, tiny, or suddenly large."""
  state, largest = many_steps(last)
  chex.assert_tree_all_finite((state, largest))
  assert max(np.max(x) for x in largest.values()) < 10


def test_mulo_starts_as_adam():
  """Updates equal Adam's up to one multiplier per tensor."""
  lopt = optimizers.get("mulo", step_mult=1.0)
  tx = lopt.opt_fn(lopt.init(jax.random.key(0)))
  reference = optax.scale_by_adam(eps=0.0)
  params = conftest.small_tree(0)
  state, reference_state = tx.init(params), reference.init(params)
  update = jax.jit(tx.update)
  for t in range(5):
    grad = conftest.small_tree(t)
    updates, state = update(grad, state, params)
    expected, reference_state = reference.update(grad, reference_state)
  for k, x in updates.items():
    ratio = np.asarray(x / -expected[k])
    np.testing.assert_allclose(ratio, np.mean(ratio), rtol=1e-4)
    assert 0.3 < np.mean(ratio) < 3


@pytest.mark.parametrize("lowering", ["unrolled", "blocked", "pallas"])
def test_mulo_with_a_horizon(lowering, monkeypatch):
  """Before meta-training, a horizon multiplies updates by a schedule."""
  plain, lopt = (optimizers.get("mulo", hidden=4, horizon=x,
                                lowering=lowering) for x in (False, True))
  key = jax.random.key(0)
  theta = lopt.init(key)
  assert sum(x.size for x in jax.tree.leaves(theta)) == 2 * 4 + 1 + sum(
      x.size for x in jax.tree.leaves(plain.init(key)))
  params = {"w": jax.random.normal(key, (5, 6))}
  grads = [{"w": g} for g in jax.random.normal(key, (8, 5, 6))]
  moves = lambda lopt, theta, **settings: np.diff([
      p["w"] for p in [params, *run(
          lopt.opt_fn(theta, **settings), params, grads)]], axis=0)
  reference = moves(plain, plain.init(key))
  np.testing.assert_allclose(moves(lopt, theta), reference, rtol=1e-4)
  # The peak of 8 steps; the warm-up takes 2 steps.
  peak = (1000 / 8)**0.3
  monkeypatch.setattr(mulo_lib, "WARMUP", 0.25)
  schedule = lambda power: (
      peak * np.minimum(1, np.arange(1, 9) / 2) * (1 - np.arange(8) / 8)**power
  )[:, None, None]
  steep = dict(theta, power=jnp.float32(2.0))
  for num_steps, x, power in ((8, theta, 1), (jnp.int32(8), steep, 2)):
    # The parameters differ, too; the MLP's output ignores them at first.
    np.testing.assert_allclose(
        moves(lopt, x, num_steps=num_steps), schedule(power) * reference,
        rtol=1e-3, atol=1e-5)
  # After the horizon, the schedule keeps its last value.
  late = moves(lopt, theta, num_steps=2)
  np.testing.assert_allclose(
      late[5], 0.5 * 500**0.3 * reference[5], rtol=1e-3, atol=1e-5)


def test_deep_networks_get_smaller_updates():
  params = {f"w{i}": jax.random.normal(jax.random.key(i), (3, 4))
            for i in range(16)} | {"b": jnp.ones(4)}
  theta = optimizers.get("mulo", hidden=3).init(jax.random.key(0))
  plain, deep = (optimizers.get("mulo", hidden=3, depth=x).opt_fn(theta)
                 for x in (False, True))
  # 16 matrices, and 4, at which the multiplier is 1.
  for names, mult in ((params, 0.5), (("w0", "w1", "w2", "w3", "b"), 1)):
    part = {k: params[k] for k in names}
    updates = [jax.jit(tx.update)(part, tx.init(part), part)[0]
               for tx in (plain, deep)]
    for k, x in updates[0].items():
      np.testing.assert_allclose(updates[1][k], mult * x, rtol=1e-6)


def test_with_a_horizon_long_runs_look_like_short_ones():
  params = {"w": jax.random.normal(jax.random.key(0), (5, 6))}
  changes = {}
  for horizon in (False, True):
    lopt = optimizers.get("mulo", hidden=4, horizon=horizon)
    theta = conftest.perturbed(lopt.init(jax.random.key(0)), 0)
    # Noise features depend on the true time, by their bias correction.
    noise = mulo_lib.NOISE_FEATURE + np.arange(3)
    theta["w0"] = theta["w0"].at[noise].set(0)
    tx = lopt.opt_fn(theta)
    update = jax.jit(tx.update)
    _, state = update(params, tx.init(params), params)
    early, late = (update(params, state._replace(step=jnp.int32(step)),
                          params)[0]["w"] for step in (101, 10**5))
    changes[horizon] = np.max(np.abs(late - early)) / np.max(np.abs(early))
  assert changes[True] < 1e-5 < 1e-2 < changes[False]


@pytest.mark.parametrize("name, settings, count", [
    ("adafac_mlp", {"hidden": 4}, 197), ("adafac_mlp", {}, 2409),
    ("celo2", {}, 347), ("hyperparam_adam", {}, 4), ("mlp_lopt", {}, 1762),
    ("mulo", {"hidden": 8}, 441), ("nn_adam", {}, 6856),
    ("velo", {}, 2320385), ("velo", {"lstm_hidden": 64, "bank": 32}, 46337)])
def test_number_of_meta_parameters(name, settings, count):
  shapes = jax.eval_shape(
      optimizers.get(name, **settings).init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("name", ["adafac_mlp", "mulo"])
def test_state_size(name):
  lopt = optimizers.get(name)
  tx = lopt.opt_fn(lopt.init(jax.random.key(0)))
  state = tx.init({"w": jnp.ones((40, 30))})
  # Per element three momenta and a second moment; then factors, step and unit.
  numbers = sum(x.size for x in jax.tree.leaves(state))
  assert numbers <= 4 * 40 * 30 + 3 * (40 + 30) + 2


def transformation(name):
  """Return any optimizer, small, as an optax transformation."""
  settings = {"velo": {"lstm_hidden": 8, "bank": 4}}.get(name, {})
  lopt = optimizers.get(name, **settings)
  return lopt.opt_fn(lopt.init(jax.random.key(0)), num_steps=10)


@pytest.mark.parametrize("name", optimizers.names())
def test_state_and_updates_keep_their_dtypes(name):
  tx = transformation(name)
  params = {"w": jnp.ones((40, 30), jnp.bfloat16)}
  state = tx.init(params)
  updates, new = jax.jit(tx.update)(params, state, params, value=1.0)
  chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


@pytest.mark.parametrize("name", optimizers.names())
def test_parameters_without_elements_and_none(name):
  tx = transformation(name)
  params = {"w": jnp.ones((3, 2)), "empty": jnp.ones((0, 3)), "none": None}
  updates, state = jax.jit(tx.update)(
      params, tx.init(params), params, value=1.0)
  chex.assert_trees_all_equal_structs(state, tx.init(params))
  chex.assert_trees_all_equal_shapes(updates, params)
  chex.assert_tree_all_finite(updates)


@pytest.mark.parametrize("name", optimizers.names())
def test_update_needs_params(name):
  tx = transformation(name)
  params = {"w": jnp.ones((3, 2))}
  with pytest.raises(ValueError, match="update.grads, state, params"):
    tx.update(params, tx.init(params))


def test_unknown_names_and_settings():
  known = ", ".join(optimizers.names())
  with pytest.raises(ValueError, match=f"available: {known}"):
    optimizers.get("adam")
  with pytest.raises(ValueError, match="does not take the .*'width'"):
    optimizers.get("mulo", width=3)


def test_settings_of_earlier_versions():
  for name, retired in optimizers.RETIRED.items():
    assert not set(retired) & set(optimizers.all_settings(name))
  stored = {"hidden": 4, "normalize": False, "vector_mult": 1.0}
  assert optimizers.current_settings("mulo", stored) == {"hidden": 4}
  assert optimizers.current_settings("velo", stored) == stored
  assert len(stored) == 3
  for name, value in (("normalize", True), ("vector_mult", 0.1)):
    with pytest.raises(ValueError, match=f"{name} = {value}.*no longer has"):
      optimizers.current_settings("mulo", {**stored, name: value})


@pytest.mark.parametrize("settings, message", [
    ({"hidden": 2}, ">= 3, got 2"), ({"hidden": 4.0}, "integer"),
    ({"hidden": True}, "integer"), ({"step_mult": 0}, "step_mult.*positive"),
    ({"step_mult": "1"}, "positive"), ({"exp_mult": float("nan")}, "positive")])
def test_settings_that_make_no_sense(settings, message):
  with pytest.raises(ValueError, match=message):
    optimizers.get("mulo", **settings)
