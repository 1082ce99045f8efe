"""States that are sharded as the parameters are, whatever the mesh.

Where the axes of a mesh are Auto, the compiler finds the shardings of what is
computed from parameters, and nothing has to be done but to start with zeros
that have one. Where they are Explicit, each operation must have a sharding that
follows from its arguments, which products of features and slices of a parameter
do not have: an update is left to the compiler as a whole, and its results have
the shardings of parameters and state.
"""

import jax
import numpy as np
import optax

from learned_opt import base


def _explicit_axes(mesh) -> tuple[str, ...]:
  return tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types)
               if kind == jax.sharding.AxisType.Explicit)


def like(x: jax.Array, param: jax.Array) -> jax.Array:
  """x, sharded as a parameter is, as far as that is known.

  Args:
    x: [..., *S], where S is the parameter's shape with any axis replaced by 1;
      leading axes are whole on every device. Others are left as they are.
    param: of shape S. While a program is traced, its sharding is known if the
      mesh is Explicit.
  """
  known = jax.typeof(param).sharding
  explicit = bool(_explicit_axes(known.mesh))
  if not explicit:
    traced = isinstance(param, jax.core.Tracer)
    known = None if traced else getattr(param, "sharding", None)
  own = x.ndim - param.ndim
  if not isinstance(known, jax.sharding.NamedSharding) or own < 0 or any(
      n not in (1, size) for n, size in zip(x.shape[own:], param.shape)):
    return x
  names = [name if n > 1 else None for n, name in zip(
      x.shape[own:], (*known.spec, *[None] * param.ndim))]
  sharding = jax.sharding.NamedSharding(
      known.mesh, jax.sharding.PartitionSpec(*[None] * own, *names))
  put = jax.sharding.reshard if explicit else jax.device_put
  return put(x, sharding)


def automatic(lopt: base.LearnedOptimizer) -> base.LearnedOptimizer:
  """The same optimizer, with updates that explicit meshes do not disturb."""

  def opt_fn(theta, *, num_steps=None):
    tx = lopt.opt_fn(theta, num_steps=num_steps)

    def update(grads, state, params=None, **extra_args):
      axes = _explicit_axes(jax.sharding.get_abstract_mesh())
      if not axes:
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

      shardings = jax.tree.map(
          lambda x: jax.typeof(x).sharding, (grads, state))
      return jax.sharding.auto_axes(
          compute, axes=axes, out_sharding=shardings)(arrays)

    return optax.GradientTransformationExtraArgs(tx.init, update)

  return base.LearnedOptimizer(lopt.init, opt_fn)
