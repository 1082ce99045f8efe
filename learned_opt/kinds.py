"""Facts about parameters that an optimizer is told besides their shapes.

A parameter may be a stack: several layers in one array, as flax's nn.scan
makes. A layer of a stack is treated as a parameter of its own: the axes of the
stack count the layers, experts or copies, and the other axes are those of one
layer.
"""

import functools
import inspect
from typing import Any, Callable, Mapping, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from learned_opt import base

Axes: TypeAlias = tuple[int, ...]


class Kind(NamedTuple):
  """Facts about one parameter.

  Attributes:
    stack: axes of the stack, counted from the front; () for a single parameter.
    role: see `learned_opt.scaling.roles.ParamInfo`; "" if it is unknown.
    outputs: axes of the outputs, counted from the front; the other axes that
      are not of the stack are inputs. None: the last axis.
  """

  stack: Axes = ()
  role: str = ""
  outputs: Axes | None = None


# Parameters, or a tree of the same structure -> {path, see `base.path_of`:
# kind}; a path that is missing stands for `Kind()`.
Kinds: TypeAlias = Callable[[Any], Mapping[str, Kind]]


def of(tree: Any, kinds: Kinds | None) -> list[Kind]:
  """Return the kind of each leaf; nothing is known if `kinds` is None."""
  known = kinds(tree) if kinds else {}
  return [known.get(base.path_of(path), Kind())
          for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def told(opt_fn: Callable[..., Any], kinds: Kinds | None) -> Callable[..., Any]:
  """Return `opt_fn` with its argument `kinds`.

  An `opt_fn` that looks at shapes alone may lack the argument; it is returned
  as it is.
  """
  if kinds is None or "kinds" not in inspect.signature(opt_fn).parameters:
    return opt_fn
  return functools.partial(opt_fn, kinds=kinds)


def stacks(tree: Any, kinds: Kinds | None) -> list[Axes]:
  """Return the axes of the stack for each leaf; () for a single parameter."""
  return [kind.stack for kind in of(tree, kinds)]


def tree_map(fn: Callable[[Any, Kind], Any], tree: Any, kinds: Kinds | None
             ) -> Any:
  """Return `fn(leaf, kind)` for each leaf of the tree."""
  leaves, treedef = jax.tree.flatten(tree)
  return jax.tree.unflatten(treedef, map(fn, leaves, of(tree, kinds)))


def layer_shape(shape: base.Shape, axes: Axes) -> base.Shape:
  """Return the shape of one layer."""
  return tuple(n for i, n in enumerate(shape) if i not in axes)


def sizes(shape: base.Shape, axes: Axes) -> base.Shape:
  """Return the sizes of the axes of the stack."""
  return tuple(shape[i] for i in axes)


def to_front(x: jax.Array, shape: base.Shape, axes: Axes) -> jax.Array:
  """Return x with the layers along one axis, the first: [k, ...].

  Args:
    x: the parameter, or an array that `from_front` has returned.
    shape: shape of the parameter.
    axes: of the stack.
  """
  if x.ndim == len(shape):
    x = jnp.moveaxis(x, axes, range(len(axes)))
  return x.reshape(-1, *x.shape[len(axes):])


def from_front(x: jax.Array, shape: base.Shape, axes: Axes) -> jax.Array:
  """Return x [k, ...] with the axes of the stack where the parameter has them.

  An array whose layers have fewer axes than those of the parameter, such as one
  number for each layer, has the axes of the stack first.

  Args:
    x: an array for each of k layers.
    shape: shape of the parameter.
    axes: of the stack.
  """
  x = x.reshape(*sizes(shape, axes), *x.shape[1:])
  if x.ndim == len(shape):
    x = jnp.moveaxis(x, range(len(axes)), axes)
  return x


def likely(params: Any) -> dict[str, Axes]:
  """Return parameters that look like stacks: {path: (axis,)}.

  They are all parameters of one part of the tree. They have one size along axis
  0, or all along axis 1. Without this axis, one of them is as large as the last
  or the first axes of another, as a bias or a gain is.

  Args:
    params: tree of arrays.
  """
  parts: dict[str, dict[str, base.Shape]] = {}
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    for i in range(len(path)):
      parts.setdefault(base.path_of(path[:i]), {})[
          base.path_of(path)] = tuple(getattr(x, "shape", ()))
  found: dict[str, Axes] = {}
  for shapes in parts.values():
    for axis in (0, 1):
      if _is_stack(list(shapes.values()), axis):
        found |= {path: (axis,) for path in shapes if path not in found}
  return found


def _is_stack(shapes: list[base.Shape], axis: int) -> bool:
  """Return whether parameters of a part seem to be stacked along an axis."""
  lengths = {shape[axis] if len(shape) > axis else 1 for shape in shapes}
  if min(map(len, shapes)) < 2 or len(lengths) > 1 or lengths == {1}:
    return False
  first = lambda small, large: small == large[:len(small)]
  last = lambda small, large: small == large[len(large) - len(small):]
  pairs = [(small, large) for small in shapes for large in shapes
           if len(small) < len(large)]
  layer = lambda shape: layer_shape(shape, (axis,))
  # Not `last` of the whole shapes: the bias of a layer whose outputs have
  # several axes, such as heads.
  return any((first(layer(small), layer(large)) or
              last(layer(small), layer(large))) and not last(small, large)
             for small, large in pairs)
