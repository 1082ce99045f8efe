"""Nowcasting: published vectors, jumps, meshes and resumption."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learned_opt import nowcasting
import mulo

PATH = pathlib.Path(__file__).parent / "golden" / "nowcast" / "wnn_h32.npz"
EXACT = 1e-5
PARAMS = {"w": np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3),
          "b": np.linspace(0, 1, 8, dtype=np.float32), "s": np.float32(1)}


@pytest.fixture(scope="module")
def golden():
  with np.load(PATH) as file:
    return dict(file)


def published(golden):
  return mulo.convert(
      {k.removeprefix("w/"): x for k, x in golden.items()
       if k.startswith("w/")}, "nino/wnn", licence="MIT")


def test_published_outputs(golden):
  theta = jax.tree.map(jnp.asarray, published(golden).theta)
  one = lambda x, kind: nowcasting.apply(theta, x, kind)
  actual = jax.vmap(one)(golden["x"], golden["layer_type"])
  np.testing.assert_allclose(actual, golden["delta_f64"], atol=EXACT, rtol=0)


def test_published_weights_as_a_file(golden, tmp_path):
  """Published matrices are transposed, which the file must not show."""
  artifact = published(golden)
  mulo.save(tmp_path / "wnn.safetensors", artifact)
  read = mulo.read(tmp_path / "wnn.safetensors")
  chex.assert_trees_all_equal(read.theta, artifact.theta)
  assert read.licence == "MIT" and read.optimizer == "nowcast_adam"


@pytest.mark.parametrize("name", ["fc", "bias", "conv", "const"])
def test_published_jumps(golden, name):
  theta, states = published(golden).theta, golden[f"tensor_{name}_states"]
  kind = int(golden[f"tensor_{name}_type"])
  for k in (1, 5, 16, 40):
    actual = nowcasting.predict(theta, list(states), kind, jnp.int32(k))
    np.testing.assert_allclose(
        actual, golden[f"tensor_{name}_k{k}"], atol=EXACT, rtol=0)


def test_published_schedules(golden):
  names = [x for x in golden if x.startswith("kschedule_seq40")]
  assert len(names) == 6
  for name in names:
    power, jumps = (int(x[1:]) for x in name.split("_")[2:])
    actual = nowcasting.reach(jnp.arange(jumps), jumps, 40, power)
    np.testing.assert_array_equal(actual, golden[name])


def grads_of(params):
  return jax.tree.map(lambda p: 0.5 * p + 0.1, params)


def train(tx, num_steps, params, state):
  step = jax.jit(lambda params, state: tx.update(
      grads_of(params), state, params))
  seen = [params]
  for _ in range(num_steps):
    updates, state = step(params, state)
    params = optax.apply_updates(params, updates)
    seen.append(params)
  return seen, state


def test_steps_and_jumps_by_hand():
  """Snapshots are taken before the update; the state inside stays."""
  inner = optax.adam(0.1)
  tx = mulo.nowcast(inner, every=10, num_steps=20)
  seen, state = train(tx, 20, PARAMS, tx.init(PARAMS))
  plain, inner_state = PARAMS, inner.init(PARAMS)
  snapshots = []
  for call in range(1, 21):
    if call % 2 == 0:
      snapshots.append(plain)
    if call % 10:
      updates, inner_state = inner.update(grads_of(plain), inner_state)
      plain = optax.apply_updates(plain, updates)
    else:
      reach = {10: 5, 20: 1}[call]
      weights = np.float32([-2, -1, 0, 1, 2]) / 10
      plain = jax.tree.map(lambda *x: x[-1] + reach * sum(
          a * y for a, y in zip(weights, x)), *snapshots[-5:])
    chex.assert_trees_all_close(seen[call], plain, atol=1e-6)
  assert int(state.inner[0].count) == 18
  chex.assert_trees_all_close(state.inner[0].mu, inner_state[0].mu, atol=1e-6)


def test_jump_of_the_published_weights(golden):
  """Types come from axes, or are declared."""
  artifact = published(golden)
  tx = mulo.nowcast(optax.sgd(0.1), artifact, every=5, num_steps=10,
                    types={"b*": "norm"})
  seen, _ = train(tx, 5, PARAMS, tx.init(PARAMS))
  for name, kind in {"w": 1, "b": 4, "s": 2}.items():
    expected = nowcasting.predict(
        artifact.theta, [x[name] for x in seen[:5]], kind, jnp.int32(40))
    np.testing.assert_allclose(seen[5][name], expected, atol=1e-6)
    assert np.abs(seen[5][name] - seen[4][name]).max() > 1e-3


def test_eight_devices(golden):
  tx = mulo.nowcast(optax.adam(0.1), published(golden), every=5, num_steps=10)
  params = {"w": PARAMS["w"], "b": PARAMS["b"]}
  one, _ = train(tx, 7, params, tx.init(params))
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("x",))
  split = jax.device_put(params, jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec("x")))
  many, state = train(tx, 7, split, tx.init(split))
  chex.assert_trees_all_close(
      jax.device_get(many), jax.device_get(one), atol=1e-6)
  assert state.snapshots[4]["w"].addressable_shards[0].data.shape == (1, 3)


def test_resumes_between_snapshots(golden):
  tx = mulo.nowcast(optax.adam(0.1), published(golden), every=5, num_steps=10)
  whole, end = train(tx, 8, PARAMS, tx.init(PARAMS))
  first, state = train(tx, 3, PARAMS, tx.init(PARAMS))
  rest, again = train(tx, 5, *jax.device_get((first[-1], state)))
  chex.assert_trees_all_equal((rest[-1], again), (whole[-1], end))


def test_snapshots_in_bfloat16():
  tx = mulo.nowcast(optax.adam(0.01), every=5, num_steps=10, dtype="bfloat16")
  seen, state = train(tx, 5, PARAMS, tx.init(PARAMS))
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state.snapshots))
  assert seen[5]["w"].dtype == jnp.float32
  np.testing.assert_allclose(seen[5]["w"], seen[4]["w"], atol=0.1)


@pytest.mark.parametrize("settings, message", [
    ({"every": 7}, "multiple of 5"), ({"every": 50}, "at most num_steps"),
    ({"dtype": "int8"}, "Unknown dtype 'int8'"),
    ({"power": 0.0}, "power must be a positive number"),
    ({"types": {"w": "dense"}}, "Unknown types"),
    ({"types": {"q/*": "query"}}, "No parameter is at"),
    ({"weights": "mulo-s"}, "needs weights of nowcast_adam")])
def test_errors(settings, message):
  with pytest.raises(ValueError, match=message):
    mulo.nowcast(optax.sgd(0.1), **{
        "every": 5, "num_steps": 10, **settings}).init(PARAMS)


def test_params_are_needed():
  tx = mulo.nowcast(optax.sgd(0.1), every=5, num_steps=10)
  with pytest.raises(ValueError, match="reads the parameters"):
    tx.update(PARAMS, tx.init(PARAMS))
