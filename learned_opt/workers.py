"""Common parts of workers that train copies of a network.

Each worker has a difference: the parameters before its local steps minus those
after. The mean difference plays the gradient of an outer optimizer. The spread
says how far workers agree.
"""

from typing import Any, Callable, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

# Name of a mesh axis or of an axis of `jax.vmap`, several names, or None for a
# single worker.
AxisName: TypeAlias = str | tuple[str, ...] | None


class Spread(NamedTuple):
  """How the differences of workers spread, entry by entry; three trees.

  All entries are relative to the root of the mean square of the differences of
  this entry. So they have no unit, and links of a chain that scale the mean
  leave the spread as it is. They are 0 where all differences are 0. They do not
  depend on the order of workers, and their range hardly on the number.

  Attributes:
    agreement: the mean, from -1 to 1; 1 or -1 if all differences are equal.
    high: the largest difference.
    low: the smallest difference.
  """

  agreement: Any
  high: Any
  low: Any


def mean(tree: Any, axis_name: AxisName) -> Any:
  """Return the mean of each array over workers, computed in float32.

  Arrays of integers, such as counts of steps, are returned as they are.
  """
  leaves, treedef = jax.tree.flatten(tree)
  dtypes = list(map(jnp.result_type, leaves))
  real = [i for i, x in enumerate(dtypes) if jnp.issubdtype(x, jnp.floating)]
  means = _over(jax.lax.pmean, _wide([leaves[i] for i in real]), axis_name)
  for i, x in zip(real, means):
    leaves[i] = x.astype(dtypes[i])
  return jax.tree.unflatten(treedef, leaves)


def spread(differences: Any, axis_name: AxisName) -> Spread:
  """Return the spread of the differences of workers, in float32.

  Args:
    differences: of this worker, a tree of arrays.
    axis_name: of the workers.
  """
  x = _wide(differences)
  squares = jax.tree.map(jnp.square, x)
  middle, squares = _over(jax.lax.pmean, (x, squares), axis_name)
  high = _over(jax.lax.pmax, x, axis_name)
  low = _over(jax.lax.pmin, x, axis_name)
  # Two selects: the derivative of 1 / sqrt(0) would be NaN even if not chosen.
  inverse = jax.tree.map(lambda y: jnp.where(
      y > 0, jax.lax.rsqrt(jnp.where(y > 0, y, 1)), 0), squares)
  relative = lambda tree: jax.tree.map(jnp.multiply, tree, inverse)
  return Spread(relative(middle), relative(high), relative(low))


def _over(reduce: Callable[..., Any], tree: Any, axis_name: AxisName) -> Any:
  """Return the tree, reduced over workers; unchanged for a single worker."""
  return tree if axis_name is None else reduce(tree, axis_name)


def _wide(tree: Any) -> Any:
  """Return the tree in float32."""
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
