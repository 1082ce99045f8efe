"""Updates on meshes whose axes are Explicit.

There, each operation must have a sharding that follows from its arguments,
which products of features and slices of a parameter do not have. So an update
is left to the compiler as a whole, as on axes that are Auto, and what comes out
is sharded as the gradients and the state were.
"""

import jax
import numpy as np
import optax

from learned_opt import base


def _explicit_axes(mesh) -> tuple[str, ...]:
  return tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types)
               if kind == jax.sharding.AxisType.Explicit)


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
