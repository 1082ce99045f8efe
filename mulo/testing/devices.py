"""Contract: several devices, and checkpoints."""

import contextlib
import pathlib
import tempfile
from typing import Any
import unittest

import jax
import numpy as np
import optax

from mulo.testing import kit

_spec: Any = jax.sharding.PartitionSpec  # Any: jax does not annotate it


def _two_steps(tx: optax.GradientTransformationExtraArgs, params: kit.Tree,
               grads: kit.Tree) -> tuple[kit.Tree, kit.Tree, kit.Tree]:
  """Take two steps with the same gradient.

  Returns:
    ((params, state) before, (params, state) after, last updates).
  """
  start = params, tx.init(params)
  state = start[1]
  for _ in range(2):
    updates, state = jax.jit(tx.update)(grads, state, params, value=kit.VALUE)
    params = jax.jit(optax.apply_updates)(params, updates)
  return start, (params, state), updates


def _split(factory: kit.Factory, kind: jax.sharding.AxisType) -> None:
  """Check two steps on a mesh of 4 x 2 devices.

  Raises:
    AssertionError: updates on the mesh and on one device differ, state is not
      split like its parameter, or a step changes how an array is split.
    SkipTest: fewer than 8 devices.
  """
  if len(jax.devices()) < 8:
    raise unittest.SkipTest("needs 8 devices")
  mesh = jax.sharding.Mesh(
      np.array(jax.devices()[:8]).reshape(4, 2), ("x", "y"),
      axis_types=(kind, kind))
  explicit = kind == jax.sharding.AxisType.Explicit
  # Arrays of one shape are split in two ways only with explicit axes. With
  # automatic axes, the compiler may change how such arrays are split.
  shapes = {"b": (16,), "kernel": (2, 8, 12), "other": (2, 8, 12)}
  specs = {"b": _spec(("x", "y")), "kernel": _spec(None, "x", "y"),
           "other": _spec(None, *("yx" if explicit else "xy"))}
  params, grads = kit.tree(0, shapes), kit.tree(1, shapes)
  tx = kit.make(factory, params)
  expected = _two_steps(tx, params, grads)[2]
  # With explicit axes, the types of arrays name the axes, so the mesh must be
  # set. With automatic axes, it need not be.
  with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
    before, after, updates = _two_steps(tx, *(
        {name: jax.device_put(x, jax.sharding.NamedSharding(mesh, specs[name]))
         for name, x in tree.items()} for tree in (params, grads)))
  kit.same(jax.device_get(updates), jax.device_get(expected),
           "updates on a mesh")
  _follows(before[1], before[0])
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(before),
                          jax.tree.leaves(after)):
    kit.require(not x.ndim or x.sharding.is_equivalent_to(y.sharding, x.ndim),
                f"{jax.tree_util.keystr(path)} was split as {x.sharding}, and "
                f"after two steps it is split as {y.sharding}")


def _follows(state: kit.Tree, params: kit.Tree) -> None:
  """Raise unless each array of the state is split like its parameter.

  The parameter of an array is the one whose shape is the last axes of the
  array. Further leading axes must not be split. If several parameters have this
  shape, the array may be their stack, and must be split like one of them.
  Arrays without such a parameter are not checked.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    wanted = [
        jax.sharding.NamedSharding(p.sharding.mesh, _spec(
            *[None] * (x.ndim - p.ndim), *p.sharding.spec))
        for p in params.values()
        if x.ndim >= p.ndim and x.shape[x.ndim - p.ndim:] == p.shape]
    kit.require(
        not wanted or any(x.sharding.is_equivalent_to(w, x.ndim)
                          for w in wanted),
        f"state{jax.tree_util.keystr(path)} of shape {x.shape} is split as "
        f"{x.sharding}. It must be split like one of its parameters: {wanted}")


@kit.contract
def sharding_automatic(factory: kit.Factory) -> None:
  """State is split like its parameters and stays so; automatic mesh axes."""
  _split(factory, jax.sharding.AxisType.Auto)


@kit.contract
def sharding_explicit(factory: kit.Factory) -> None:
  """State is split like its parameters and stays so; explicit mesh axes."""
  _split(factory, jax.sharding.AxisType.Explicit)


@kit.contract
def sharding_partial(factory: kit.Factory) -> None:
  """A step outside of jit, a part of the tree on explicit mesh axes."""
  if len(jax.devices()) < 8:
    raise unittest.SkipTest("needs 8 devices")
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("x",),
                           axis_types=(jax.sharding.AxisType.Explicit,))
  plain = kit.tree(0, {"split": (16,), "whole": (3,)})
  params = dict(plain, split=jax.device_put(
      plain["split"], jax.sharding.NamedSharding(mesh, _spec("x"))))
  tx = kit.make(factory, params)
  updates, _ = tx.update(params, tx.init(params), params, value=kit.VALUE)
  expected = kit.updates(tx, plain, [plain])[0]
  kit.same(jax.device_get(updates), jax.device_get(expected), "updates")
  kit.require(updates["split"].sharding.is_equivalent_to(
      params["split"].sharding, 1), f"the update of a split parameter is split "
              f"as {updates['split'].sharding}")


@kit.contract
def checkpoint(factory: kit.Factory) -> None:
  """The state, saved by orbax, comes back with the same bits."""
  orbax: Any = kit.package("orbax.checkpoint")
  params = kit.tree(0)
  tx = kit.make(factory, params)
  _, state = jax.jit(tx.update)(params, tx.init(params), params,
                                value=kit.VALUE)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder).resolve() / "state"
    with orbax.StandardCheckpointer() as checkpointer:
      checkpointer.save(path, state)
      checkpointer.wait_until_finished()
      restored = checkpointer.restore(path, jax.eval_shape(tx.init, params))
  kit.same_types(restored, state, "the state restored")
  for (name, x), y in zip(jax.tree_util.tree_leaves_with_path(restored),
                          jax.tree.leaves(state)):
    kit.require(np.asarray(x).tobytes() == np.asarray(y).tobytes(),
                f"{jax.tree_util.keystr(name)} was {y}, came back as {x}")
