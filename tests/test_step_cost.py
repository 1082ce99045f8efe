"""Cost of a step, as far as it can be tested without a clock."""

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmarks import step_cost
from experiments.benchmarks import timing
from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt.update import accumulators
from learned_opt.update import blocks
import mulo

NAMES = ["adafac_mlp", "mulo"]


def lowered(tx, params):
  """Return one lowered step that donates its state, and the parameter count."""
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = jax.eval_shape(tx.init, params)
  count = sum(x.size for x in jax.tree.leaves(params))
  return jax.jit(step, donate_argnums=(0, 1)).lower(
      params, state, params), count


# In the transformer, whose shapes take long to compile, one size for each
# lowering.
@pytest.mark.parametrize("name, hidden, network", [
    ("adafac_mlp", 32, "MLP"), ("mulo", 4, "MLP"), ("mulo", 32, "MLP"),
    ("mulo", 4, "transformer"), ("mulo", 32, "transformer")])
def test_temporary_memory(name, hidden, network):
  params = step_cost.networks(2048)[network]
  lopt = optimizers.get(name, hidden=hidden)
  theta = conftest.perturbed(lopt.init(jax.random.key(0)), 1)
  program, count = lowered(lopt.opt_fn(theta), params)
  assert count > 2e6
  analysis = program.compile().memory_analysis()
  assert analysis.temp_size_in_bytes <= 8 * count


@pytest.mark.parametrize("name", NAMES)
def test_programs_grow_with_distinct_shapes(name):
  lopt = optimizers.get(name, hidden=4)
  tx = lopt.opt_fn(lopt.init(jax.random.key(0)))
  lines = lambda n: len(lowered(tx, {
      str(i): jnp.ones((64, 32)) for i in range(n)})[0].as_text().splitlines())
  few, more, many = lines(2), lines(12), lines(22)
  # Parameters of one shape are stacked: another one adds only a few lines.
  assert many - more < 0.4 * few
  assert lines(1) > 200


def test_large_parameters_of_one_shape_are_updated_one_by_one(monkeypatch):
  lopt = optimizers.get("mulo", hidden=4)
  tx = lopt.opt_fn(lopt.init(jax.random.key(0)))
  rng = np.random.default_rng(0)
  params = [rng.normal(size=(20, 10)).astype(np.float32) for _ in range(3)]
  together, _ = jax.jit(tx.update)(params, tx.init(params), params)
  monkeypatch.setattr(blocks, "CPU_SIZE", 300)
  in_turn, _ = jax.jit(tx.update)(params, tx.init(params), params)
  for i, p in enumerate(params):
    alone, _ = jax.jit(tx.update)(p, tx.init(p), p)
    np.testing.assert_allclose(together[i], alone, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(in_turn[i], alone, rtol=1e-4, atol=1e-6)


def test_state_of_other_parameters():
  lopt = optimizers.get("mulo")
  tx = lopt.opt_fn(lopt.init(jax.random.key(0)))
  state = tx.init({"w": jnp.ones((3, 2)), "v": jnp.ones((3, 2))})
  params = {"w": jnp.ones((3, 2))}
  with pytest.raises(ValueError, match=r"at v its shape.*Call init"):
    tx.update(params, state, params)


@pytest.mark.parametrize("shape, size, expected", [
    ((7,), 100, (7,)), ((300,), 100, (100,)), ((301,), 100, (76,)),
    ((40, 9), 100, (10, 9)), ((5, 400), 100, (1, 100)),
    ((3, 3, 4, 8), 40, (1, 1, 4, 8)), ((2, 1009), 100, (1, 92))])
def test_block_shape(shape, size, expected):
  assert blocks.block_shape(shape, size) == expected


@pytest.mark.parametrize("shape", [(300,), (7, 45), (3, 5, 31), (2, 3, 50, 3)])
def test_blocks_cover_every_element_once(shape):
  rng = np.random.default_rng(0)
  x, row = rng.normal(size=(2, *shape)), rng.normal(size=(1, *shape[:-1], 1))
  inputs = {"x": np.float32(x), "row": np.float32(row)}
  fn = lambda b: b["x"] * b["row"]
  mean_squares = blocks.mean_squares(lambda b: (fn(b),), inputs, shape, 40)
  expected = np.mean((x * row)**2, axis=tuple(range(1, x.ndim)))
  np.testing.assert_allclose(mean_squares, expected, rtol=1e-5)
  products = blocks.elementwise(lambda b: fn(b)[1], inputs, shape, 40)
  np.testing.assert_allclose(products, (x * row)[1], rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("name", NAMES)
def test_pallas_kernels_lower_to_triton(name, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  lopt = optimizers.get(name, lowering="pallas")
  tx = lopt.opt_fn(lopt.init(jax.random.key(0)))
  params = {"w": jnp.ones((30, 50)), "b": jnp.ones(50)}
  state = tx.init(params)
  try:
    text = jax.jit(tx.update).trace(params, state, params).lower(
        lowering_platforms=("cuda",)).as_text()
  except RuntimeError as e:  # jax 0.11 asks for the kind of GPU
    if "No supported GPU" not in str(e):
      raise
    pytest.skip("This jax lowers to Triton only on a machine with a GPU.")
  assert text.count("triton") >= 4  # two kernels, two shapes


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_accumulators(name):
  """bfloat16 halves the state and keeps updates close to those in float32."""
  params = {"w": jnp.full((64, 32), 0.1), "b": jnp.ones(32)}
  keys = jax.random.split(jax.random.key(0), 50)

  def train(dtype):
    lopt = optimizers.get(name, step_mult=1.0, accumulator_dtype=dtype)
    tx = lopt.opt_fn(lopt.init(jax.random.key(0)))

    def step(state, key):
      grads = jax.tree.map(
          lambda p: 1 + jax.random.normal(key, p.shape), params)
      updates, state = tx.update(grads, state, params)
      return state, updates

    return jax.jit(lambda state: jax.lax.scan(step, state, keys))(
        tx.init(params))

  (state, updates), (half_state, half_updates) = (
      train("float32"), train("bfloat16"))
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  assert size(half_state) < 0.6 * size(state)
  difference = jax.tree.map(jnp.subtract, half_updates, updates)
  assert optax.tree.norm(difference) < 0.05 * optax.tree.norm(updates)


def test_random_rounding_is_unbiased():
  """With rounding to the nearest bfloat16, this average would never move."""
  decays = accumulators.Decays(
      jnp.full(3, 0.999), jnp.float32(0.999), jnp.full(3, 0.999))
  grad = jnp.linspace(0.5, 2, 10000).reshape(100, 100)
  acc = accumulators.init(grad.shape, "bfloat16")
  acc = jax.lax.fori_loop(0, 3000, lambda t, acc: accumulators.update(
      acc, grad, decays, t), acc)
  expected = 1 - 0.999**3000
  for x, limit in ((acc.momentum[0], grad), (acc.second, grad**2)):
    assert x.dtype == jnp.bfloat16
    ratio = np.mean(np.asarray(x, np.float32) / limit)
    assert abs(ratio / expected - 1) < 0.003


@pytest.mark.parametrize("settings, message", [
    ({"lowering": "naive"}, "Unknown lowering 'naive'; available: .*pallas"),
    ({"accumulator_dtype": "float16"}, "available: float32, bfloat16")])
def test_unknown_lowering_and_dtype(settings, message):
  with pytest.raises(ValueError, match=message):
    optimizers.get("mulo", **settings)


def test_lowerings_are_not_saved_but_can_be_chosen(tmp_path):
  lopt = optimizers.get("mulo")
  settings = optimizers.all_settings("mulo", lowering="blocked")
  assert "lowering" not in settings
  path = tmp_path / "a.safetensors"
  mulo.save(path, artifact_lib.Artifact(
      "mulo", settings, "standard", lopt.init(jax.random.key(0))))
  params = {"w": jnp.ones((40, 30))}
  plain, half = mulo.load(path), mulo.load(
      path, accumulator_dtype="bfloat16", lowering="blocked")
  size = lambda tx: sum(x.nbytes for x in jax.tree.leaves(tx.init(params)))
  assert size(half) < 0.6 * size(plain)
  with pytest.raises(ValueError, match="does not take the settings"):
    mulo.load(path, dtype="bfloat16")


def test_table_and_plot(tmp_path):
  all_cases = {name: case for name, case in step_cost.cases([4], None).items()
               if name in ("adamw", "mulo H=4", "mulo H=4 naive")}
  table = step_cost.measure(
      "MLP", step_cost.networks(16)["MLP"], all_cases, 1,
      timing.Roofline(1e11, 1e10))
  assert list(table["optimizer"]) == list(all_cases)
  row = table.set_index("optimizer").loc["mulo H=4"]
  assert row["ns per parameter"] > 0 and row["compile s"] > 0
  assert 16 <= row["state bytes per parameter"] < 20
  step_cost.plot(table, tmp_path / "plot.png")
  assert (tmp_path / "plot.png").stat().st_size > 1000
