"""Contract: a state that is a tree like the parameters."""

from typing import Any
import unittest

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mulo.testing import kit

# Bytes of state on a device, relative to an eighth of all bytes. Factors of
# rows and columns are whole on each device where their axis is not split.
MAX_SHARE = 1.03


def _mesh() -> jax.sharding.Mesh:
  """Return a mesh of 8 devices; raise SkipTest if there are fewer."""
  if len(jax.devices()) < 8:
    raise unittest.SkipTest("needs 8 devices")
  return jax.sharding.Mesh(np.array(jax.devices()[:8]), ("x",),
                           axis_types=(jax.sharding.AxisType.Auto,))


@kit.contract
def map_params(factory: kit.Factory) -> None:
  """`optax.tree.map_params`, also inside of `optax.masked`."""
  params = kit.tree(0)
  plain = kit.make(factory, params)
  for tx in (plain, optax.masked(plain, {"a": True, "c": False})):
    _, state = jax.jit(tx.update)(
        params, tx.init(params), params, value=kit.VALUE)
    mapped = optax.tree.map_params(tx, jnp.zeros_like, state)
    kit.same_types(mapped, state, "the state mapped")
    kept = [x for x in jax.tree.leaves(mapped)
            if x.size >= 12 and np.any(x)]  # as large as a parameter
    kit.require(not kept, f"map_params leaves out a part of the state: {kept}")


@kit.contract
def names(factory: kit.Factory) -> None:
  """The state of renamed parameters is another tree, and is refused."""
  params = kit.tree(0)
  renamed = {"a": {"x": params["a"]["w"], "v": params["a"]["v"]},
             "c": params["c"]}
  tx, other = kit.make(factory, params), kit.make(factory, renamed)
  state = tx.init(params)
  if not any(x.shape for x in jax.tree.leaves(state)):
    return  # no statistics that could go to the wrong parameter
  before: Any = jax.tree.structure(state)
  after: Any = jax.tree.structure(other.init(renamed))
  kit.require(before != after,
              "parameters of other names have a state of the same structure")
  try:
    other.update(renamed, state, renamed, value=kit.VALUE)
  except (KeyError, TypeError, ValueError):
    return
  raise AssertionError("update takes the state of parameters of other names")


@kit.contract
def structure(factory: kit.Factory) -> None:
  """One structure of the state for all learning rates and weight decays."""
  params = kit.tree(0)
  values = {"learning_rate": (1.0, 0.5), "weight_decay": (0.0, 0.1)}
  taken = [name for name in values if kit.takes(factory, name)]
  if not taken:
    raise unittest.SkipTest("the factory takes no learning_rate")
  states = [kit.make(factory, params, **{name: value}).init(params)
            for name in taken for value in values[name]]
  for state in states[1:]:
    kit.same_tree(state, states[0], "the state with another value")


@kit.contract
def flax_partitioned(factory: kit.Factory) -> None:
  """Boxes of flax.linen, by the recipe of its guide: state is split like them.
  """
  linen: Any = kit.package("flax.linen")
  mesh = _mesh()
  names = {"w": ("x", None), "v": (None, "x")}
  params = {name: linen.Partitioned(jnp.ones((256, 256)), names[name])
            for name in names}
  tx = kit.make(factory, params)
  specs = linen.get_partition_spec(jax.eval_shape(tx.init, params))
  with jax.set_mesh(mesh):
    state = jax.jit(tx.init, out_shardings=jax.tree.map(
        lambda spec: jax.sharding.NamedSharding(mesh, spec), specs))(params)
    updates, after = jax.jit(tx.update)(
        params, state, params, value=kit.VALUE)
  kit.same_tree(updates, params, "updates")
  kit.same_tree(after, state, "the state after a step")
  leaves = jax.tree.leaves(state)
  total = sum(x.nbytes for x in leaves)
  here = sum(x.addressable_shards[0].data.nbytes for x in leaves)
  kit.require(total < 1000 or here <= MAX_SHARE * total / 8,
              f"a device has {here} of {total} bytes of the state")


@kit.contract
def flax_metadata(factory: kit.Factory) -> None:
  """Variables of flax.nnx: names of axes arrive in the state."""
  nnx: Any = kit.package("flax.nnx")
  with jax.set_mesh(_mesh()):
    model = nnx.Linear(
        8, 6, use_bias=False, rngs=nnx.Rngs(0),
        kernel_init=nnx.with_partitioning(
            nnx.initializers.lecun_normal(), ("x", None)))
    params = nnx.state(model, nnx.Param)
    tx = kit.make(factory, params)
    state = tx.init(params)
    spec, = jax.tree.leaves(nnx.get_partition_spec(params))
    found = [x for x in jax.tree.leaves(nnx.get_partition_spec(state))
             if x == spec]
  big = [x for x in jax.tree.leaves(state) if x.shape == (8, 6)]
  kit.require(len(found) >= len(big),
              f"of {len(big)} arrays like the parameter, {len(found)} have its "
              "names")
