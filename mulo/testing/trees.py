"""Contract: parameter trees of every library, and trees without arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mulo.testing import kit


@kit.contract
def empty_leaves(factory: kit.Factory) -> None:
  """Parameters without elements, None, and a tree without parameters."""
  params = {"w": kit.tree(0)["c"]["w"], "empty": jnp.ones((0, 3)), "none": None}
  tx = kit.make(factory, params)
  [updates] = kit.updates(tx, params, [params])
  kit.same_types(updates, params, "updates")
  kit.require(np.all(np.isfinite(updates["w"])), f"updates are {updates['w']}")
  tx = kit.make(factory, {})
  kit.updates(tx, {}, [{}])


@kit.contract
def scalars(factory: kit.Factory) -> None:
  """Parameters without axes."""
  params = {"gain": jnp.float32(2.0)}
  tx = kit.make(factory, params)
  [updates] = kit.updates(tx, params, [params])
  kit.same_types(updates, params, "updates")
  kit.require(np.isfinite(updates["gain"]), f"the update is {updates['gain']}")


@kit.contract
def stacked_layers(factory: kit.Factory) -> None:
  """Layers on an axis of one array, declared, move as separate layers do."""
  shapes = {"dense": {"w": (3, 4), "b": (4,)}, "gain": ()}
  layers = [{**kit.tree(seed, shapes), "head": kit.tree(9, (4, 2))}
            for seed in range(3)]
  sizes = (1.0, 1e-2, 30.0)  # of gradients; no layer is measured by another
  axes = {"dense": {"w": 1, "b": 0}, "gain": 0}

  def stack(trees: list[kit.Tree]) -> kit.Tree:
    inner: Any = [{name: tree[name] for name in axes} for tree in trees]
    return {"head": trees[0]["head"], **jax.tree.map(
        lambda axis, *x: jnp.stack(x, axis), axes, *inner)}

  def listed(trees: list[kit.Tree]) -> kit.Tree:
    return {"head": trees[0]["head"], "layers": [
        {name: tree[name] for name in axes} for tree in trees]}

  params = stack(layers)
  given = {}
  if kit.takes(factory, "deeper_shapes"):
    given["deeper_shapes"] = jax.eval_shape(
        lambda: stack([*layers, layers[0]]))
    given["base_shapes"] = jax.eval_shape(lambda: params)
  grads = [kit.scaled(tree, size) for tree, size in zip(layers, sizes)]
  tx = optax.with_extra_args_support(factory(**given))
  actual = kit.updates(tx, params, [stack(grads)] * 2)
  expected = kit.updates(
      kit.make(factory, listed(layers)), listed(layers), [listed(grads)] * 2)
  for updates, others in zip(actual, expected):
    kit.same(updates, stack([
        {"head": others["head"], **layer} for layer in others["layers"]]),
             "updates")


def _moves(tx: optax.GradientTransformationExtraArgs, params: kit.Tree) -> None:
  """Raise unless a step changes each array and keeps its shape and dtype."""
  tx = kit.compiled(tx)
  grads = jax.tree.map(jnp.ones_like, params)
  updates, _ = tx.update(grads, tx.init(params), params, value=kit.VALUE)
  after = optax.apply_updates(params, updates)
  kit.same_tree(after, params, "parameters after a step")
  kit.same_types(after, params, "parameters after a step")
  for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(after)):
    kit.require(np.all(np.isfinite(new)) and not np.array_equal(old, new),
                f"a step from {old} led to {new}")


@kit.contract
def flax_linen(factory: kit.Factory) -> None:
  """Variables of a flax.linen module, also frozen."""
  flax, linen = kit.package("flax"), kit.package("flax.linen")
  params = linen.Dense(4, use_bias=False).init(
      jax.random.key(0), jnp.ones((2, 3)))
  for tree in (params, flax.core.freeze(params)):
    _moves(kit.make(factory, tree), tree)


@kit.contract
def flax_nnx(factory: kit.Factory) -> None:
  """A flax.nnx module in `nnx.Optimizer`."""
  nnx = kit.package("flax.nnx")
  model = nnx.Linear(3, 4, use_bias=False, rngs=nnx.Rngs(0))
  tx = kit.make(factory, nnx.state(model, nnx.Param))
  optimizer = nnx.Optimizer(model, kit.compiled(tx), wrt=nnx.Param)
  old = np.asarray(model.kernel[...])
  grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones((2, 3)))**2))(model)
  optimizer.update(model, grads, value=kit.VALUE)  # changes the model
  new = np.asarray(model.kernel[...])
  kit.require(np.all(np.isfinite(new)) and not np.array_equal(old, new),
              f"a step from {old} led to {new}")


@kit.contract
def equinox(factory: kit.Factory) -> None:
  """An equinox module, with None in place of everything but parameters."""
  eqx = kit.package("equinox")
  model = eqx.nn.Sequential([
      eqx.nn.Linear(4, 3, use_bias=False, key=jax.random.key(0)),
      eqx.nn.Lambda(jax.nn.relu)])
  params = eqx.filter(model, eqx.is_inexact_array)
  _moves(kit.make(factory, params), params)


@kit.contract
def haiku(factory: kit.Factory) -> None:
  """Nested dicts of haiku, with slashes in the names."""
  params = {"mlp/~/linear_0": kit.tree(0)["a"]}
  _moves(kit.make(factory, params), params)


@kit.contract
def other_leaves(factory: kit.Factory) -> None:
  """Complex, integer and other leaves: a right update, or an error with a name.
  """
  params = kit.tree(0)["c"]
  leaves: list[Any] = [
      jnp.ones((3, 3), jnp.complex64), jnp.arange(3), jax.nn.relu]
  for leaf in leaves:
    tree = {**params, "odd leaf": leaf}
    try:
      tx = kit.make(factory, params)
      state = tx.init(tree)
    except (ValueError, TypeError) as e:
      kit.require("odd leaf" in str(e) or leaf is jax.nn.relu,
                  f"the error does not name the leaf: {e}")
      continue
    kit.require(leaf is not jax.nn.relu, "init accepts a function")
    grads = {**params, "odd leaf": 1j * leaf if jnp.iscomplexobj(leaf)
             else leaf}
    updates, _ = tx.update(grads, state, tree, value=kit.VALUE)
    kit.require(not jnp.iscomplexobj(leaf) or np.any(
        np.imag(updates["odd leaf"])), "imaginary parts do not move")


@kit.contract
def params_none(factory: kit.Factory) -> None:
  """`update` without params works, or raises ValueError about params."""
  params = kit.tree(0)
  tx = kit.make(factory, params)
  try:
    jax.eval_shape(
        lambda state: tx.update(params, state, None, value=kit.VALUE),
        tx.init(params))
  except ValueError as e:
    kit.require("params" in str(e),
                f"without params, the error does not mention params: {e}")
