"""Contract: several devices, and checkpoints."""

import pathlib
import tempfile
import unittest

import jax
import numpy as np
import optax

from mulo.testing import kit


def _split(factory, kind) -> None:
  """Two steps on a mesh of 4 x 2 devices; nothing is split otherwise after."""
  if len(jax.devices()) < 8:
    raise unittest.SkipTest("needs 8 devices")
  spec = jax.sharding.PartitionSpec
  mesh = jax.sharding.Mesh(
      np.array(jax.devices()[:8]).reshape(4, 2), ("x", "y"),
      axis_types=(kind, kind))
  explicit = kind == jax.sharding.AxisType.Explicit
  # On explicit axes, two of one shape may be split in different ways.
  shapes = {"b": (16,), "kernel": (2, 8, 12), "other": (2, 8, 12)}
  specs = {"b": spec(("x", "y")), "kernel": spec(None, "x", "y"),
           "other": spec(None, *("yx" if explicit else "xy"))}
  whole = kit.tree(0, shapes), kit.tree(1, shapes)
  tx = kit.make(factory, whole[0])

  def two(place):
    params, grads = map(place, whole)
    start = params, tx.init(params)
    state = start[1]
    for _ in range(2):
      updates, state = jax.jit(tx.update)(grads, state, params, value=kit.VALUE)
      params = jax.jit(optax.apply_updates)(params, updates)
    return start, (params, state), updates

  expected = two(lambda tree: tree)[2]
  place = lambda tree: {
      name: jax.device_put(x, jax.sharding.NamedSharding(mesh, specs[name]))
      for name, x in tree.items()}
  if explicit:
    with jax.set_mesh(mesh):
      before, after, updates = two(place)
  else:
    before, after, updates = two(place)
  kit.same(jax.device_get(updates), jax.device_get(expected),
           "updates on a mesh")
  _follows(before[1], before[0])
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(before),
                          jax.tree.leaves(after)):
    kit.require(not x.ndim or x.sharding.is_equivalent_to(y.sharding, x.ndim),
                f"{jax.tree_util.keystr(path)} was split as {x.sharding}, "
                f"after two steps as {y.sharding}")


def _follows(state, params) -> None:
  """Raises unless state with the axes of a parameter is split as it is.

  As one of those of its shape, if there are several: they may be stacked.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    wanted = [
        jax.sharding.NamedSharding(p.sharding.mesh, jax.sharding.PartitionSpec(
            *[None] * (x.ndim - p.ndim), *p.sharding.spec))
        for p in params.values()
        if x.ndim >= p.ndim and x.shape[x.ndim - p.ndim:] == p.shape]
    kit.require(
        not wanted or any(x.sharding.is_equivalent_to(w, x.ndim)
                          for w in wanted),
        f"state{jax.tree_util.keystr(path)} of shape {x.shape} is split as "
        f"{x.sharding}, parameters of its shape as {wanted}")


@kit.contract
def sharding_automatic(factory):
  """State is split as parameters are, and stays; automatic mesh axes."""
  _split(factory, jax.sharding.AxisType.Auto)


@kit.contract
def sharding_explicit(factory):
  """State is split as parameters are, and stays; explicit mesh axes."""
  _split(factory, jax.sharding.AxisType.Explicit)


@kit.contract
def checkpoint(factory):
  """The state, saved by orbax, comes back with the same bits."""
  orbax = kit.package("orbax.checkpoint")
  params = kit.tree(0)
  tx = kit.make(factory, params)
  _, state = jax.jit(tx.update)(params, tx.init(params), params,
                                value=kit.VALUE)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder).resolve() / "state"
    with orbax.StandardCheckpointer() as checkpointer:
      checkpointer.save(path, state)
      checkpointer.wait_until_finished()
      found = checkpointer.restore(path, jax.eval_shape(tx.init, params))
  kit.same_types(found, state, "the state restored")
  for (name, x), y in zip(jax.tree_util.tree_leaves_with_path(found),
                          jax.tree.leaves(state)):
    kit.require(np.asarray(x).tobytes() == np.asarray(y).tobytes(),
                f"{jax.tree_util.keystr(name)} was {y}, came back as {x}")
