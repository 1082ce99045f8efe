"""Roles and multipliers from shapes, and the optax transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learned_opt.scaling import fan
from learned_opt.scaling import multipliers
from learned_opt.scaling import parametrizations


@pytest.mark.parametrize("shape, base_shape, role, fan_in", [
    ((64, 256), (64, 8), "input", 64),
    ((256, 256), (8, 8), "hidden", 256),
    ((256, 1024), (8, 32), "hidden", 256),
    ((1024, 256), (32, 8), "hidden", 1024),
    ((256, 10), (8, 10), "output", 256),
    ((256,), (8,), "vector", 1),
    ((10,), (10,), "vector", 1),
    ((), (), "vector", 1),
    ((5, 7), (5, 7), "fixed", 5),
    ((3, 3, 3, 64), (3, 3, 3, 8), "input", 27),  # convolution stem
    ((3, 3, 64, 128), (3, 3, 8, 16), "hidden", 576),  # convolution
    ((64, 4, 16), (16, 1, 16), "hidden", 64),  # attention, query kernel
    ((4, 16, 64), (1, 16, 16), "hidden", 64),  # attention, output kernel
    ((1000, 64), (1000, 8), "input", 1000)])  # embedding
def test_roles(shape, base_shape, role, fan_in):
  assert fan.role(shape, base_shape) == role
  assert fan.fan_in(shape, base_shape) == fan_in


@pytest.mark.parametrize("name", parametrizations.names())
def test_every_parametrization(name):
  """Multipliers are positive and finite; an init std may be zero."""
  parametrization = parametrizations.get(name)
  for shapes in (((64, 256), (64, 8)), ((256, 256), (8, 8)),
                 ((256, 10), (8, 10)), ((256,), (8,)), ((), ()),
                 ((3, 3, 64, 128), (3, 3, 8, 16))):
    assert 0 < parametrization.update_mult(*shapes) < np.inf
    assert 0 < parametrization.output_mult(*shapes) < np.inf
    assert 0 <= parametrization.init_std(*shapes) < np.inf


def test_mup():
  mup = parametrizations.get("mup")
  mults = lambda *x: (
      mup.init_std(*x), mup.output_mult(*x), mup.update_mult(*x))
  assert mults((64, 256), (64, 8)) == (1 / 8, 1, 1)
  assert mults((256, 1024), (8, 32)) == (1 / 16, 1, 1 / 256)
  assert mults((256, 10), (8, 10)) == (0, 1 / 256, 1)
  assert mults((256,), (8,))[1:] == (1, 1)


def test_balanced_mup():
  """Update multipliers are those of mup times numbers independent of width."""
  both = [parametrizations.get(name) for name in ("mup_balanced", "mup")]
  for shapes, constant in (
      (((64, 256), (64, 8)), 2 / 8), (((256, 1024), (8, 32)), 1),
      (((256, 10), (8, 10)), 3), (((256,), (8,)), 1 / 12),
      (((25, 7), (25, 7)), 2 / 5), (((3, 3, 4, 8), (3, 3, 4, 16)), 2 / 6),
      (((3, 3, 64, 128), (3, 3, 8, 16)), 9),  # places are not counted
      (((64, 4, 16), (16, 1, 16)), 1), (((4, 16, 64), (1, 16, 16)), 1)):
    update, published = (x.update_mult(*shapes) for x in both)
    assert update == pytest.approx(constant * published)
    for field in ("init_std", "output_mult"):
      assert len({getattr(x, field)(*shapes) for x in both}) == 1


def test_standard():
  standard = parametrizations.get("standard")
  for shapes in (((64, 256), (64, 8)), ((256, 256), (8, 8)),
                 ((256, 10), (8, 10))):
    assert standard.init_std(*shapes) == shapes[0][0]**-0.5
    assert standard.output_mult(*shapes) == 1
    assert standard.update_mult(*shapes) == 1


def params_of(n):
  return {"w0": jnp.ones((6, n)), "w1": jnp.ones((n, n), jnp.bfloat16),
          "w2": jnp.ones((n, 3)), "b": jnp.ones((n,)), "none": None}


def test_link_scales_hidden_matrices_only():
  params = params_of(16)
  tx = multipliers.scale_by_parametrization(
      parametrizations.get("mup"), jax.eval_shape(lambda: params_of(4)),
      forward=True)
  updates, _ = jax.jit(tx.update)(params, tx.init(params))
  assert updates["w1"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(updates.pop("w1"), 1 / 16)
  for x in jax.tree.leaves(updates):
    np.testing.assert_array_equal(x, 1)


def test_link_inside_masked():
  params = params_of(16)
  link = multipliers.scale_by_parametrization(
      parametrizations.get("mup"), jax.eval_shape(lambda: params_of(4)))
  mask = jax.tree.map(lambda p: p.ndim > 1, params)
  tx = optax.masked(link, mask)
  updates, _ = tx.update(params, tx.init(params), params)
  np.testing.assert_array_equal(updates["w1"], 1 / 16)


@pytest.mark.parametrize("bases, message", [
    ({"w0": np.ones((6, 4))}, r"no entry for b \(and 2 more\)"),
    (params_of(16), "another width"),
    (dict(params_of(16), more=np.ones((3, 3))), "another width"),
    (dict(params_of(4), w1=np.ones(4)), "w1: .*number of axes"),
    (dict(params_of(4), w1=np.ones((4, 4, 4))), "w1: .*number of axes")])
def test_base_shapes_that_do_not_fit(bases, message):
  tx = multipliers.scale_by_parametrization(parametrizations.get("mup"), bases)
  with pytest.raises(ValueError, match=message):
    tx.init(params_of(16))


def test_three_growing_axes_are_an_error():
  with pytest.raises(ValueError, match="cannot be told apart"):
    fan.role((64, 8, 16), (32, 4, 8))
