"""Tests of Newton-Schulz iterations against a singular value decomposition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learned_opt import optimizers
from learned_opt.update import blocks
from learned_opt.update import orthogonal
from meta_train.configs import mulo_s


def oracle(x, iterations):
  """Return the polynomial of the singular values, in float64."""
  matrix = np.float64(x).reshape(-1, x.shape[-1])
  u, s, vt = np.linalg.svd(matrix, full_matrices=False)
  norm = np.sqrt(np.sum(s**2))
  a, b, c = orthogonal.COEFFICIENTS
  s = s / norm
  for _ in range(iterations):
    s = a * s + b * s**3 + c * s**5
  return (u * s @ vt).reshape(x.shape) * norm / 4


@pytest.mark.parametrize("shape", [
    (5, 9), (9, 5), (3, 3, 2, 8), (1, 4), (4, 1)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_against_singular_values(shape, scale):
  x = jax.random.normal(jax.random.key(0), shape) * scale
  for iterations in (1, 3, 5):
    equalized = orthogonal.equalize(x, iterations)
    np.testing.assert_allclose(
        equalized / scale, oracle(np.float64(x), iterations) / scale, atol=2e-5)


@pytest.mark.parametrize("shape, ends", [
    ((10, 9), [3, 6]), ((3, 3, 8), [4]), ((5, 11), [3]), ((5, 5), [3]),
    ((4, 30), [])])
def test_blocks_of_the_shorter_side(shape, ends, monkeypatch):
  monkeypatch.setattr(orthogonal, "BLOCK", 4)
  x = np.asarray(jax.random.normal(jax.random.key(0), shape))
  matrix = x.reshape(-1, shape[-1])
  matrix = matrix if len(matrix) <= shape[-1] else matrix.T
  expected = np.concatenate(
      [oracle(block, 3) for block in np.split(matrix, ends)])
  equalized = np.asarray(orthogonal.equalize(x, 3)).reshape(-1, shape[-1])
  equalized = equalized if equalized.shape == matrix.shape else equalized.T
  np.testing.assert_allclose(equalized, expected, atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_iterations_of_gram_matrices(iterations, rank):
  keys = jax.random.split(jax.random.key(0))
  y = jax.random.normal(keys[0], (2, 32, rank)) @ jax.random.normal(
      keys[1], (2, rank, 128))
  y /= jnp.linalg.norm(y, axis=(1, 2), keepdims=True)
  assert iterations <= orthogonal.MAX_GRAM_ITERATIONS
  results = []  # (value, gradient) of both forms
  for fn in (orthogonal.iterate, orthogonal.iterate_grams):
    gradient = jax.grad(lambda y, fn=fn: jnp.sum(jnp.sin(fn(y, iterations))))
    results.append((fn(y, iterations), gradient(y)))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, atol=1e-4 * np.abs(x).max()), *results)


def test_many_iterations_of_a_block_of_low_rank(monkeypatch):
  monkeypatch.setattr(orthogonal, "BLOCK", 8)
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (16, 2)) @ jax.random.normal(keys[1], (2, 40))
  assert np.linalg.norm(orthogonal.equalize(x, 12)) < np.linalg.norm(x)


def test_values_are_about_equal_and_grow_as_those_of_rank_one():
  x = jax.random.normal(jax.random.key(0), (64, 256))
  rank_one = jnp.ones((64, 256))
  for matrix in (x, rank_one):
    values = np.linalg.svd(orthogonal.equalize(matrix, 5), compute_uv=False)
    values = values[values > 1e-3] / (0.25 * np.linalg.norm(matrix))
    assert 0.6 < values.min() <= values.max() < 1.25


def test_zero_stays_zero_and_has_a_gradient():
  zero = jnp.zeros((4, 6))
  assert not np.any(orthogonal.equalize(zero, 3))
  gradient = jax.grad(lambda x: jnp.sum(orthogonal.equalize(x, 3)**2))(zero)
  assert np.all(np.isfinite(gradient))


def test_mulo_equalizes_only_matrices():
  params = {"w0": (6, 4), "w1": (6, 4), "conv": (2, 2, 3, 5), "b": (4,)}
  params = {k: jax.random.normal(jax.random.key(i), shape)
            for i, (k, shape) in enumerate(params.items())}
  updates = []
  for iterations in (0, 3):
    lopt = optimizers.get("mulo", hidden=4, newton_schulz=iterations)
    tx = lopt.opt_fn(lopt.init(jax.random.key(0)))
    updates.append(jax.jit(tx.update)(params, tx.init(params), params)[0])
  expected = {k: orthogonal.equalize(u, 3) if u.ndim > 1 else u
              for k, u in updates[0].items()}
  for k, u in updates[1].items():
    np.testing.assert_allclose(u, expected[k], atol=1e-6)
    assert u.ndim == 1 or not np.allclose(u, updates[0][k], rtol=0.01)


def test_a_materialized_array_is_computed_once():
  def clamps(materialize):
    """Return how often the compiled program computes the clip."""
    def fn(x, count):
      x = materialize(jnp.clip(3 * x, -1, 1), count)
      return orthogonal.equalize(x, 3)
    x = jnp.ones((40, 30))
    return jax.jit(fn).lower(x, jnp.int32(0)).compile().as_text().count(
        " clamp(")

  assert clamps(lambda x, count: x) > clamps(blocks.materialize) == 1


def test_a_materialized_array_has_the_same_gradient():
  square = lambda x: jnp.sum(blocks.materialize(x**2, jnp.int32(3)))
  x = jnp.arange(4.0)
  assert np.array_equal(jax.jit(jax.grad(square))(x), 2 * x)
  assert np.array_equal(jax.jit(square)(x), np.sum(x**2))


def test_recomputing_changes_nothing_but_rounding():
  params = {"w": jax.random.normal(jax.random.key(0), (6, 4))}
  settings = {"hidden": 4, "newton_schulz": 3}
  updates = []
  for recompute in (False, True):
    lopt = optimizers.get("mulo", recompute=recompute, **settings)
    tx = lopt.opt_fn(lopt.init(jax.random.key(0)))
    updates.append(jax.jit(tx.update)(params, tx.init(params), params)[0]["w"])
    program = str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
    assert ("while" in program) != recompute
  np.testing.assert_allclose(*updates, rtol=1e-4, atol=1e-8)
  assert "recompute" not in optimizers.all_settings("mulo", **settings)
  # The published theta of mulo-s depends on the rounding of this setting.
  assert mulo_s.get_config().optimizer.recompute


@pytest.mark.parametrize("iterations", [-1, 1.5, True])
def test_iterations_that_make_no_sense(iterations):
  with pytest.raises(ValueError, match=f"newton_schulz = {iterations}"):
    optimizers.get("mulo", newton_schulz=iterations)
