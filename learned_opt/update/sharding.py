"""States and updates on several devices, split as the parameters are.

JAX states in one of two ways how an array is split over a mesh:

* Explicit axes: the sharding is part of the array's type, inside of jit, too.
  The sharding of each operation must follow from its arguments. It does not in
  products of features or in Newton-Schulz iterations.
* Automatic axes: only arrays outside of jit have a sharding. The compiler
  chooses the shardings inside of jit.

Updates are therefore left to the compiler, and their results are split like
gradients and state. Arrays on no mesh are left alone.

Parameters of flax may be in boxes, with names that say how each axis is split:
`nn.Partitioned` and `nn.LogicallyPartitioned` of flax.linen, or Variables of
flax.nnx. A box is a node of a tree with one array in it. State that is made by
`jax.tree.map` comes in the boxes of its parameters; state of another shape
needs other names. The code reads the attributes that boxes have, and does not
import flax.

Reference:
  https://docs.jax.dev/en/latest/notebooks/explicit-sharding.html
"""

import dataclasses
from typing import Any, Callable

import jax
import numpy as np
import optax

from learned_opt import base
from learned_opt import kinds as kinds_lib

_Spec = jax.sharding.PartitionSpec
# Where a Variable of nnx keeps names of axes, in several versions of flax.
_NAMES = ("out_sharding", "sharding_names", "sharding")


def _sharding(x) -> jax.sharding.NamedSharding | None:
  """Return the sharding of x over a mesh, if known; None if x is not split."""
  if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
    typed = jax.typeof(x).sharding
    return typed if any(axis is not None for axis in typed.spec) else None
  # The type of an array outside of jit names no devices if no mesh is set.
  concrete = x.sharding
  if isinstance(concrete, jax.sharding.NamedSharding):
    return concrete if concrete.mesh.size > 1 else None
  return None


def _follow(shape: tuple, param, sharding) -> jax.sharding.NamedSharding:
  """Return the sharding of an array whose last axes are a parameter's axes.

  Leading axes are not split. Neither are axes of another size than in the
  parameter, such as the axes of size 1 of row and column factors.
  """
  # A spec may be shorter than the rank; the axes that it lacks are not split.
  spec = (*sharding.spec, *[None] * (param.ndim - len(sharding.spec)))
  leading = len(shape) - param.ndim
  axes = [axis if leading >= 0 and n == shape[leading + i] else None
          for i, (axis, n) in enumerate(zip(spec, param.shape))]
  return jax.sharding.NamedSharding(sharding.mesh, _Spec(
      *[None] * leading, *(axes if leading >= 0 else [])))


def made(make: Callable[[], Any], param) -> Any:
  """Return `make()`, a tree of arrays, each split like the parameter.

  Args:
    make: for example, makes the state of the parameter.
    param: array, or its tracer inside of jit.
  """
  sharding = _sharding(param)
  if sharding is None:
    return make()
  return _placed(make, param, lambda x: _follow(x.shape, param, sharding))


def whole(make: Callable[[], Any], params: Any) -> Any:
  """Return `make()`, a tree of arrays, whole on each device of the parameters.

  Args:
    make: makes a state that belongs to no single parameter.
    params: tree of arrays; if none of them is on a mesh, nothing is moved.
  """
  for param in jax.tree.leaves(params):
    sharding = _sharding(param)
    if sharding is not None:
      everywhere = jax.sharding.NamedSharding(sharding.mesh, _Spec())
      return _placed(make, param, lambda x: everywhere)
  return make()


def _placed(make, param, sharding_of):
  """Return `make()`, its arrays split by `sharding_of(shape and dtype)`.

  A tracer as `param` means that this is inside of jit.
  """
  shardings = jax.tree.map(sharding_of, jax.eval_shape(make))
  if isinstance(param, jax.core.Tracer):
    return jax.tree.map(jax.sharding.reshard, make(), shardings)
  # Compiled, so that no device ever holds a whole array.
  return jax.jit(make, out_shardings=shardings)()


def is_box(x: Any) -> bool:
  """Return whether x is a box."""
  return hasattr(x, "replace_boxed") or hasattr(x, "get_metadata")


def tree_map(fn: Callable[[Any], Any], tree: Any) -> Any:
  """Return `fn` of each array, in the boxes of the tree.

  An axis of a result keeps its name if the array has this axis, too, and in the
  same size. A result of another rank has no box.

  Args:
    fn: `array -> array`.
    tree: of arrays or boxes.
  """

  def map_one(x):
    if not is_box(x):
      return fn(x)
    array, = jax.tree.leaves(x)
    result = fn(array)
    if result.shape == array.shape:
      return jax.tree.map(lambda _: result, x)
    return _renamed(x, array.shape, result)

  return jax.tree.map(map_one, tree, is_leaf=is_box)


def _renamed(box: Any, shape: tuple, result: Any) -> Any:
  """Return the result in a box whose names fit its shape, or without a box.

  Args:
    box: of an array.
    shape: of this array.
    result: an array.
  """
  if len(result.shape) != len(shape):
    return result
  fit = lambda names: names and tuple(
      name if n == m else None
      for name, n, m in zip((*names, *[None] * len(shape)), shape,
                            result.shape))
  if hasattr(box, "names") and hasattr(box, "replace_boxed"):
    renamed = dataclasses.replace(box, names=fit(box.names))
    return renamed.replace_boxed(result)
  if hasattr(box, "get_metadata"):
    metadata = box.get_metadata()
    return box.replace(result, **{
        key: fit(metadata[key]) for key in _NAMES if key in metadata})
  return result


def on_mesh() -> bool:
  """Return whether arrays may be split over the mesh set by `jax.set_mesh`."""
  mesh = jax.sharding.get_abstract_mesh()
  # Manual axes are those of shard_map, which sees arrays of one device.
  return any(kind != jax.sharding.AxisType.Manual and size > 1
             for kind, size in zip(mesh.axis_types, mesh.axis_sizes))


def _explicit_axes(mesh) -> tuple[str, ...]:
  return tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types)
               if kind == jax.sharding.AxisType.Explicit)


def _mesh_of(arrays):
  """Return the first mesh with explicit axes: the set one or one of a type."""
  meshes = [jax.sharding.get_abstract_mesh(), *(
      jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arrays))]
  return next((mesh for mesh in meshes if _explicit_axes(mesh)), meshes[0])


def _using(mesh, arrays):
  """Return a context in which arrays of this abstract mesh can be computed.

  Outside of jit, JAX must know the devices, too, where some of the arrays are
  on no mesh.
  """
  leaves: Any = [
      x for x in jax.tree.leaves(arrays) if isinstance(x, jax.Array)]
  if any(isinstance(x, jax.core.Tracer) for x in leaves):
    return jax.sharding.use_abstract_mesh(mesh)
  concrete: Any = next(
      x.sharding.mesh for x in leaves
      if isinstance(x.sharding, jax.sharding.NamedSharding) and
      x.sharding.mesh.abstract_mesh == mesh)
  return jax.set_mesh(concrete)


def automatic(lopt: base.LearnedOptimizer) -> base.LearnedOptimizer:
  """Return the optimizer with updates that work on meshes of explicit axes."""

  def opt_fn(theta, *, num_steps=None, kinds=None):
    own_opt_fn = kinds_lib.told(lopt.opt_fn, kinds)
    tx = own_opt_fn(theta, num_steps=num_steps)

    def update(grads, state, params=None, **extra_args):
      typed = jax.tree.map(lambda x: jax.typeof(x).sharding, (grads, state))
      mesh = _mesh_of((grads, state, params))
      axes = _explicit_axes(mesh)
      if not axes or all(x.mesh.empty for x in jax.tree.leaves(typed)):
        return tx.update(grads, state, params, **extra_args)
      # `auto_axes` converts the types of arguments only. An array that `tx`
      # closes over would keep its explicit type, so theta is an argument and
      # the transformation is made again inside.
      leaves, treedef = jax.tree.flatten(
          (theta, num_steps, grads, state, params, extra_args))
      arrays = {i: x for i, x in enumerate(leaves)
                if isinstance(x, (jax.Array, np.ndarray))}

      def compute(arrays):
        theta, num_steps, *args, extra_args = jax.tree.unflatten(
            treedef, [arrays.get(i, x) for i, x in enumerate(leaves)])
        return own_opt_fn(theta, num_steps=num_steps).update(
            *args, **extra_args)

      # Updates and new state are split like gradients and state.
      whole = jax.sharding.NamedSharding(mesh, _Spec())
      shardings = jax.tree.map(lambda x: whole if x.mesh.empty else x, typed)
      with _using(mesh, (grads, state, params)):
        return jax.sharding.auto_axes(
            compute, axes=axes, out_sharding=shardings)(arrays)

    return optax.GradientTransformationExtraArgs(tx.init, update)

  return base.LearnedOptimizer(lopt.init, opt_fn)
