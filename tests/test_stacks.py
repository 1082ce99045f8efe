"""Layers in one array are parameters of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learned_opt import kinds as kinds_lib
from learned_opt import optimizers
from learned_opt.update import blocks
from learned_opt.update import groups
import mulo
from mulo import testing

KINDS = lambda tree: {"w": kinds_lib.Kind(stack=(0, 2))}


def normal(seed, *shape):
  return jnp.float32(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("axes, shape", [
    ((0,), (3, 4, 5)), ((1,), (4, 3, 5)), ((0, 2), (3, 4, 2, 5)), ((0,), (3,))])
def test_front_and_back(axes, shape):
  x = normal(0, *shape)
  front = kinds_lib.to_front(x, shape, axes)
  assert front.shape == (np.prod([shape[i] for i in axes]),
                         *kinds_lib.layer_shape(shape, axes))
  np.testing.assert_array_equal(kinds_lib.from_front(front, shape, axes), x)


@pytest.mark.parametrize("name, settings", [
    ("mulo", dict(hidden=3, newton_schulz=2, depth=True)),
    ("velo", dict(lstm_hidden=4, bank=2)), ("celo2", dict(hidden=3))])
def test_large_stacks_are_those_of_lists(name, settings, monkeypatch):
  """Layers that are too large to be stacked go through a loop."""
  lopt = optimizers.get(name, **settings)
  theta = lopt.init(jax.random.key(0))
  # Experts of layers: two axes, of which one is not the first.
  params = {"w": normal(0, 2, 6, 3, 7), "v": normal(1, 6, 7)}
  grads = {"w": normal(2, 2, 6, 3, 7), "v": normal(3, 6, 7)}
  split = lambda tree: {"v": tree["v"], "w": [
      tree["w"][i, :, j] for i in range(2) for j in range(3)]}

  def run(params, grads, **declared):
    tx = lopt.opt_fn(theta, num_steps=10, **declared)
    state = tx.init(params)
    for _ in range(2):
      updates, state = jax.jit(tx.update)(
          grads, state, params, value=jnp.float32(1))
    return updates, state

  expected, _ = run(split(params), split(grads))
  for size in (10**6, 10):
    monkeypatch.setattr(blocks, "default_size", lambda: size)
    updates, state = run(params, grads, kinds=KINDS)
    for x, y in zip(jax.tree.leaves(split(updates)), jax.tree.leaves(expected)):
      np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    again = jax.tree.map(jnp.shape, lopt.opt_fn(
        theta, num_steps=10, kinds=KINDS).init(params))
    assert again == jax.tree.map(jnp.shape, state)


def shapes(width, layers=5):
  shape = lambda *axes: jax.ShapeDtypeStruct(axes, jnp.float32)
  return {"in": {"kernel": shape(3, width), "bias": shape(width)},
          "blocks": {"dense": {"kernel": shape(layers, width, width),
                               "bias": shape(layers, width)},
                     "norm": {"scale": shape(layers, width)}},
          "out": {"kernel": shape(width, 2)}}


DECLARED = [{"deeper_shapes": shapes(4, 6)},
            {"overrides": {"blocks/*": mulo.scaling.Override(stack=(0,))}}]


def test_undeclared_stacks_warn():
  params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes(8))
  with pytest.warns(mulo.StackWarning, match=r"blocks/dense/bias \(and 2 more"):
    mulo.load("mulo-s-sp", num_steps=9).init(params)


@pytest.mark.parametrize(
    "name, declared", list(zip(["mulo-s", "mulo-s-sp"], DECLARED)))
def test_declared_stacks(name, declared, recwarn):
  """Statistics are those of layers, and biases in stacks do not decay."""
  params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes(8))
  zeros = jax.tree.map(jnp.zeros_like, params)
  tx = mulo.load(name, num_steps=9, base_shapes=shapes(4), weight_decay=0.5,
                 **declared)
  state = tx.init(params)
  assert not [x for x in recwarn if x.category is mulo.StackWarning]
  unit = state[0].statistics.unit["blocks"]["dense"]
  assert unit["kernel"].shape == unit["bias"].shape == (5,)
  updates, _ = jax.jit(tx.update)(zeros, state, params)
  moved = {name: float(jnp.abs(x).max()) for name, x in [
      *updates["blocks"]["dense"].items(),
      ("scale", updates["blocks"]["norm"]["scale"])]}
  assert moved == {"kernel": 0.5, "bias": 0, "scale": 0}


def test_stacks_need_base_shapes():
  with pytest.raises(ValueError, match="need base_shapes"):
    mulo.load("mulo-s-sp", num_steps=9, deeper_shapes=shapes(4))


@pytest.mark.parametrize("params", [
    # Heads: the bias has the axes of the outputs.
    {"query": {"kernel": (8, 2, 4), "bias": (2, 4)}},
    {"query": {"kernel": (2, 2, 4), "bias": (2, 4)}},
    {"conv": {"kernel": (3, 3, 4, 8), "bias": (8,)}},
    {"a": {"kernel": (8, 8)}, "b": {"kernel": (8, 8)}, "bias": (8,)},
    {"lora": {"a": (8, 2), "b": (2, 8)}}, {}])
def test_ordinary_layers_are_no_stacks(params):
  tree = jax.tree.map(jnp.ones, params, is_leaf=lambda x: isinstance(x, tuple))
  assert not kinds_lib.likely(tree)


@pytest.mark.parametrize("params, axis", [
    ({"query": {"kernel": (3, 8, 2, 4), "bias": (3, 2, 4)}}, 0),
    ({"mlp": {"weight": (3, 8, 5), "bias": (3, 8)}}, 0),  # (outputs, inputs)
    ({"norm": (8, 3), "wi": {"kernel": (8, 3, 16)},
      "wo": {"kernel": (16, 3, 8)}}, 1)])
def test_stacks_are_recognised(params, axis):
  tree = jax.tree.map(jnp.ones, params, is_leaf=lambda x: isinstance(x, tuple))
  assert set(kinds_lib.likely(tree).values()) == {(axis,)}
  assert len(kinds_lib.likely(tree)) == len(jax.tree.leaves(tree))


def test_the_check_sees_one_unit_for_all_layers():
  """LAMB's trust ratio is one for an array, and its layers differ."""
  with pytest.raises(AssertionError, match="dense/"):
    dict((c.__name__, c) for c in testing.CHECKS)["stacked_layers"](
        lambda: optax.lamb(0.1))


@pytest.mark.parametrize("layers, shape", [
    (False, (3, 4)), (False, ()), (True, (2, 3)), (True, (2,))])
def test_parameters_of_one_shape_are_traced_once(layers, shape):
  """The rule is most of the time that a program takes to be traced."""
  traces = []

  def step_one(grad, param, state, step, context):
    del param, step, context
    traces.append(grad.shape)
    return -grad, {"sum": state["sum"] + grad.reshape(state["sum"].shape)}

  each = [(normal(i, *shape), normal(i, *shape),
           {"sum": jnp.zeros(shape)}, None) for i in range(3)]
  results = jax.jit(lambda each, step: groups.apply(
      step_one, each, step, False, layers))(each, jnp.int32(0))
  assert traces == [shape[layers:] or (1,)]
  for (grad, *_), (update, state) in zip(each, results):
    np.testing.assert_array_equal(update.reshape(shape), -grad)
    np.testing.assert_array_equal(state["sum"], grad)
