"""Which axes of a parameter grow with width, and the optax link that uses it.

Nothing is stored on arrays and no parameter name is looked at: the facts
follow from two shape trees, that of the network at hand and that of the same
network at another width (`base_shapes`).

Reference:
  Yang et al., Tensor Programs V, 2022, https://arxiv.org/abs/2203.03466.
"""

import math

import jax
import optax

from learned_opt import base


def growing_axes(shape: tuple, base_shape: tuple) -> tuple[int, ...]:
  """Axes whose size differs between `shape` and `base_shape`."""
  if len(shape) != len(base_shape):
    raise ValueError(
        f"A parameter of shape {shape} has base shape {base_shape}: the number "
        "of axes must not change with width.")
  return tuple(i for i, (n, b) in enumerate(zip(shape, base_shape)) if n != b)


def role(shape: tuple, base_shape: tuple) -> str:
  """What a parameter is, judged by which of its axes grow.

  Layers stacked on a leading axis, as by flax's nn.scan, look like a
  convolution here: their fan-in would count the layers. Unstack them.

  Returns:
    "vector" (at most one axis: biases, gains), "fixed" (nothing grows),
    "input" (only the last axis grows), "output" (only an earlier axis grows)
    or "hidden" (two axes grow).

  Raises:
    ValueError: ranks differ, or more than two axes grow.
  """
  grows = growing_axes(shape, base_shape)
  if len(shape) <= 1:
    return "vector"
  if len(grows) > 2:
    raise ValueError(
        f"Axes {grows} of a parameter of shape {shape} (base {base_shape}) all "
        "grow, so inputs and outputs cannot be told apart. Choose base shapes "
        "in which at most two axes of each parameter differ: for attention, "
        "change the number of heads and keep the size of a head.")
  if not grows:
    return "fixed"
  if len(grows) == 2:
    return "hidden"
  return "input" if grows[0] == len(shape) - 1 else "output"


def fan_in(shape: tuple, base_shape: tuple) -> int:
  """Number of inputs summed into one output: absolute, not relative.

  JAX layout, inputs before outputs: (in, out), (height, width, in, out) or
  (heads, head size, out). The product of the axes before the output axis,
  which is the last axis that grows in a hidden parameter, else the last one.
  """
  if len(shape) <= 1:
    return 1
  last = len(shape) - 1
  if role(shape, base_shape) == "hidden":
    last = growing_axes(shape, base_shape)[-1]
  return math.prod(shape[:last])


def dense_fan_in(shape: tuple, base_shape: tuple) -> int:
  """`fan_in` of a hidden parameter, but the places of a convolution once.

  The product of the axes from the first that grows to the output axis: (in)
  for (in, out) and for (height, width, in, out), heads times head size for
  (heads, head size, out).
  """
  first, last = growing_axes(shape, base_shape)
  return math.prod(shape[first:last])


def _by_path(tree) -> dict[str, tuple]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path): tuple(x.shape) for path, x in leaves}


def update_multipliers(parametrization: base.Parametrization, params,
                       base_shapes) -> dict[str, float]:
  """Update multiplier of each parameter, by its path in the tree.

  Args:
    parametrization: see `learned_opt.parametrizations`.
    params: tree of arrays or `jax.ShapeDtypeStruct`; may lack leaves that
      base_shapes has (as inside `optax.masked`).
    base_shapes: such a tree of the same network at another width.

  Raises:
    ValueError: a parameter has no base shape or one of another rank, or no
      axis of any parameter differs, so that no role can be known.
  """
  shapes, bases = _by_path(params), _by_path(base_shapes)
  missing = sorted(set(shapes) - set(bases))
  if missing:
    raise ValueError(
        f"base_shapes has no entry for {missing[0]} (and {len(missing) - 1} "
        f"more); it has {', '.join(sorted(bases)) or 'no entries'}. It must be "
        "the tree of the same network at another width.")
  matrices = [path for path, shape in shapes.items() if len(shape) > 1]
  if parametrization.needs_base_shapes and matrices and all(
      shapes[path] == bases[path] for path in matrices):
    raise ValueError(
        "base_shapes are the shapes of the network itself, so no axis can be "
        "seen to grow. Make them from the same network at another width.")
  result = {}
  for path, shape in shapes.items():
    try:
      result[path] = parametrization.update_mult(shape, bases[path])
    except ValueError as e:
      raise ValueError(f"Parameter {path}: {e}") from e
  return result


def scale_by_parametrization(
    parametrization: base.Parametrization,
    base_shapes) -> optax.GradientTransformationExtraArgs:
  """Multiplies each update by its update multiplier; the last link of a chain.

  Args:
    parametrization: see `learned_opt.parametrizations`.
    base_shapes: tree of arrays or `jax.ShapeDtypeStruct`, the parameters of
      the same network at another width.

  Returns:
    A stateless transformation. `init` raises ValueError where base_shapes do
    not fit the parameters (see `update_multipliers`).
  """

  def init(params):
    update_multipliers(parametrization, params, base_shapes)
    return optax.EmptyState()

  def update(updates, state, params=None, **extra_args):
    del params, extra_args
    mults = update_multipliers(parametrization, updates, base_shapes)
    scale = lambda path, u: u * mults[jax.tree_util.keystr(path)]
    return jax.tree_util.tree_map_with_path(scale, updates), state

  return optax.GradientTransformationExtraArgs(init, update)
