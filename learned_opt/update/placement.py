"""States and updates on several devices, split as the parameters are.

JAX says how an array is split in two ways. On a mesh of explicit axes it is
part of the array's type, inside of jit, too, and each operation must have a
sharding that follows from its arguments, which products of features and
Newton-Schulz iterations do not have. On one of automatic axes only arrays
outside of jit know it, and the compiler decides for all others. So updates are
left to the compiler, and what comes out is split as gradients and state were.
Arrays that are on no mesh are left alone.

Reference:
  https://docs.jax.dev/en/latest/notebooks/explicit-sharding.html
"""

from typing import Any, Callable

import jax
import numpy as np
import optax

from learned_opt import base

_Spec = jax.sharding.PartitionSpec


def _sharding(x) -> jax.sharding.NamedSharding | None:
  """How x is split over a mesh, as far as one can know; None if it is not."""
  if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
    typed = jax.typeof(x).sharding
    return typed if any(axis is not None for axis in typed.spec) else None
  # Not its type, which does not name devices where no mesh is set.
  concrete = x.sharding
  if isinstance(concrete, jax.sharding.NamedSharding):
    return concrete if concrete.mesh.size > 1 else None
  return None


def _follow(shape: tuple, param, sharding) -> jax.sharding.NamedSharding:
  """Sharding of an array whose last axes are those of a parameter.

  Axes of another size than the parameter's, as those of factors, are not
  split, nor are the leading axes.
  """
  spec = (*sharding.spec, *[None] * (param.ndim - len(sharding.spec)))
  own = len(shape) - param.ndim
  axes = [axis if own >= 0 and n == shape[own + i] else None
          for i, (axis, n) in enumerate(zip(spec, param.shape))]
  return jax.sharding.NamedSharding(
      sharding.mesh, _Spec(*[None] * own, *(axes if own >= 0 else [])))


def made(make: Callable[[], Any], param) -> Any:
  """`make()`, a tree of arrays, each split as the parameter's last axes are.

  Args:
    make: e.g. makes the state of the parameter.
    param: array, or what stands for one inside of jit.
  """
  sharding = _sharding(param)
  if sharding is None:
    return make()
  return _placed(make, param, lambda x: _follow(x.shape, param, sharding))


def whole(make: Callable[[], Any], params: Any) -> Any:
  """`make()`, a tree of arrays, whole on each device of the parameters.

  Args:
    make: makes what is not the state of one parameter.
    params: tree of arrays; if none of them is on a mesh, nothing is moved.
  """
  for param in jax.tree.leaves(params):
    sharding = _sharding(param)
    if sharding is not None:
      everywhere = jax.sharding.NamedSharding(sharding.mesh, _Spec())
      return _placed(make, param, lambda x: everywhere)
  return make()


def _placed(make, param, sharding_of):
  """`make()`, its arrays as said; param tells whether this is inside of jit."""
  shardings = jax.tree.map(sharding_of, jax.eval_shape(make))
  if isinstance(param, jax.core.Tracer):
    return jax.tree.map(jax.sharding.reshard, make(), shardings)
  # Compiled, so that no device ever holds all of it.
  return jax.jit(make, out_shardings=shardings)()


def on_mesh() -> bool:
  """Whether arrays may be split by axes of the mesh in use (`jax.set_mesh`)."""
  mesh = jax.sharding.get_abstract_mesh()
  return any(kind != jax.sharding.AxisType.Manual and size > 1
             for kind, size in zip(mesh.axis_types, mesh.axis_sizes))


def _explicit_axes(mesh) -> tuple[str, ...]:
  return tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types)
               if kind == jax.sharding.AxisType.Explicit)


def _mesh_of(arrays):
  """The mesh of explicit axes in use, or that which arrays are typed with."""
  meshes = [jax.sharding.get_abstract_mesh(), *(
      jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arrays))]
  return next((mesh for mesh in meshes if _explicit_axes(mesh)), meshes[0])


def automatic(lopt: base.LearnedOptimizer) -> base.LearnedOptimizer:
  """The same optimizer, with updates that explicit meshes do not disturb."""

  def opt_fn(theta, *, num_steps=None):
    tx = lopt.opt_fn(theta, num_steps=num_steps)

    def update(grads, state, params=None, **extra_args):
      typed = jax.tree.map(lambda x: jax.typeof(x).sharding, (grads, state))
      mesh = _mesh_of((grads, state, params))
      axes = _explicit_axes(mesh)
      if not axes or all(x.mesh.empty for x in jax.tree.leaves(typed)):
        return tx.update(grads, state, params, **extra_args)
      # Arrays must come as arguments, also those that `tx` was made from.
      leaves, treedef = jax.tree.flatten(
          (theta, num_steps, grads, state, params, extra_args))
      arrays = {i: x for i, x in enumerate(leaves)
                if isinstance(x, (jax.Array, np.ndarray))}

      def compute(arrays):
        theta, num_steps, *args, extra_args = jax.tree.unflatten(
            treedef, [arrays.get(i, x) for i, x in enumerate(leaves)])
        return lopt.opt_fn(theta, num_steps=num_steps).update(
            *args, **extra_args)

      whole = jax.sharding.NamedSharding(mesh, _Spec())
      shardings = jax.tree.map(lambda x: whole if x.mesh.empty else x, typed)
      with jax.sharding.use_abstract_mesh(mesh):
        return jax.sharding.auto_axes(
            compute, axes=axes, out_sharding=shardings)(arrays)

    return optax.GradientTransformationExtraArgs(tx.init, update)

  return base.LearnedOptimizer(lopt.init, opt_fn)
