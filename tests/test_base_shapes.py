"""Base shapes of networks of every library, and configs that are scaled."""

import dataclasses
import types

import chex
import equinox as eqx
from flax import linen
from flax import nnx
import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import mulo
from mulo import scaling

X = np.ones((2, 3), np.float32)


class Linen(linen.Module):
  width: int
  classes: int = 5

  @linen.compact
  def __call__(self, x):
    return linen.Dense(self.classes)(linen.relu(linen.Dense(self.width)(x)))


class Nnx(nnx.Module):

  def __init__(self, width, rngs):
    self.hidden = nnx.Linear(3, width, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)  # has a random state
    self.readout = nnx.Linear(width, 5, rngs=rngs)


def linen_params(width):
  return Linen(width).init(jax.random.key(0), X)


def partitioned(width):
  kernel = linen.with_partitioning(linen.initializers.ones, (None, "x"))
  return linen.Dense(width, kernel_init=kernel).init(jax.random.key(0), X)


def nnx_params(width):
  return nnx.state(Nnx(width, nnx.Rngs(0)), nnx.Param)


def equinox_module(width):
  return eqx.nn.MLP(3, 5, width, depth=1, key=jax.random.key(0))


def equinox_params(width):
  return eqx.filter(equinox_module(width), eqx.is_inexact_array)


def haiku_params(width):
  network = hk.transform(lambda x: hk.nets.MLP([width, 5])(x))
  return network.init(jax.random.key(0), X)


@pytest.mark.parametrize("init", [
    linen_params, partitioned, nnx_params, equinox_params, haiku_params])
def test_shapes_are_those_of_the_parameters(init):
  shapes = scaling.base_shapes(init, width=8)
  assert all(isinstance(x, jax.ShapeDtypeStruct)
             for x in jax.tree.leaves(shapes))
  chex.assert_trees_all_equal_shapes_and_dtypes(shapes, init(8))


def test_whole_module_of_equinox():
  """Leaves that are no arrays, such as functions, are left out."""
  expected, actual = (
      scaling.base_shapes(init, width=8)
      for init in (equinox_params, equinox_module))
  assert actual.layers[0].weight.shape == (8, 3)
  assert actual.activation is None
  chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)


@pytest.mark.parametrize("init, layout", [
    (linen_params, "in_out"), (nnx_params, "in_out"),
    (equinox_params, "out_in"), (haiku_params, "in_out")])
def test_roles(init, layout):
  infos = scaling.infer(
      init(16), scaling.base_shapes(init, width=8), layout=layout)
  assert sorted(x.role for x in infos.values()) == [
      "input", "output", "vector", "vector"]
  tx = mulo.load("mulo-s", base_shapes=scaling.base_shapes(init, width=8),
                 num_steps=10, layout=layout)
  jax.eval_shape(tx.init, init(16))


def test_nothing_is_allocated():
  shapes = scaling.base_shapes(lambda width: jnp.ones((width, width)), 10**9)
  assert shapes.shape == (10**9, 10**9)


@pytest.mark.parametrize("width", [0, -8, 8.0, True])
def test_wrong_widths(width):
  with pytest.raises(ValueError, match=f"width is {width}. Pass a positive"):
    scaling.base_shapes(linen_params, width)


def test_results_without_arrays():
  with pytest.raises(ValueError, match=r"init\(8\) returned no arrays"):
    scaling.base_shapes(lambda width: None, 8)


@dataclasses.dataclass(frozen=True)
class Config:
  width: int = 64
  mlp: tuple[int, ...] = (256, 64)
  classes: int = 10
  dropout: float = 0.5
  head: int = dataclasses.field(default=8, init=False)


def config_dict():
  """A ConfigDict that is locked, and whose `mlp` follows its `width`."""
  config = ml_collections.ConfigDict({"width": 64, "classes": 10})
  config.mlp = 4 * config.get_ref("width")
  return config.lock()


def test_dataclass():
  config = Config()
  assert scaling.scale_config(config, 1/16, ["width", "mlp"]) == Config(
      4, (16, 4))
  assert config == Config()


def test_flax_module():
  narrow = scaling.scale_config(Linen(64), 1/8, ["width"])
  assert narrow.width == 8 and narrow.classes == 5
  shapes = scaling.base_shapes(
      lambda net: net.init(jax.random.key(0), X), narrow)
  chex.assert_trees_all_equal_shapes_and_dtypes(shapes, linen_params(8))


def test_dict():
  config = {"width": 64, "sizes": [64, 32], "classes": 10}
  assert scaling.scale_config(config, 2, ("width", "sizes")) == {
      "width": 128, "sizes": [128, 64], "classes": 10}
  assert config["width"] == 64


@pytest.mark.parametrize("fields", [["width"], ["width", "mlp"]])
def test_config_dict(fields):
  """References follow, whether they are named or not."""
  config = config_dict()
  narrow = scaling.scale_config(config, 1/8, fields)
  assert (narrow.width, narrow.mlp, narrow.classes) == (8, 32, 10)
  assert (config.width, config.mlp, narrow.is_locked) == (64, 256, True)


def test_other_objects():
  config = types.SimpleNamespace(width=64, classes=10)
  assert scaling.scale_config(config, 0.5, "width") == types.SimpleNamespace(
      width=32, classes=10)


@pytest.mark.parametrize("size", [3, 49, 768, 1_000_003])
def test_rounded_products(size):
  assert scaling.scale_config({"x": size}, 1 / size, "x") == {"x": 1}


@pytest.mark.parametrize("factor", [1/3, 1/128, 0, -1, 0.1, np.nan, np.inf])
def test_products_that_are_no_sizes(factor):
  with pytest.raises(ValueError, match="'width' is 64, times .* Choose"):
    scaling.scale_config(Config(), factor, ["width"])


@pytest.mark.parametrize("config, field, message", [
    (Config(), "depth", "no field 'depth'. Its fields are width, mlp, classes"),
    (Config(), "head", "no field 'head'"),
    (Config(), "dropout", "'dropout' is 0.5. Only positive integers"),
    (Config(mlp=(0, 8)), "mlp", "'mlp' is 0. Only positive integers"),
    ({"bias": True}, "bias", "'bias' is True"),
    (config_dict(), "depth", "no field 'depth'"),
    (Linen(8), "depth", "no field 'depth'"),
    (Config, "width", "is the class Config. Pass an instance")])
def test_wrong_fields(config, field, message):
  with pytest.raises(ValueError, match=message):
    scaling.scale_config(config, 0.5, [field])
