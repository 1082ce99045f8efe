"""Role, fan-in and fan-out of a parameter, from its shapes at two widths.

Nothing is stored on arrays and no parameter name is read. The two shapes are
the shape in the network at hand and the shape in the same network at another
width. Shapes are canonical, see `learned_opt.scaling.roles.ParamInfo`: inputs
before outputs.

Reference:
  Yang et al., Tensor Programs V, 2022, https://arxiv.org/abs/2203.03466.
"""

import math

from learned_opt import base


def growing_axes(shape: base.Shape, base_shape: base.Shape) -> base.Shape:
  """Return the axes whose size differs between `shape` and `base_shape`.

  Raises:
    ValueError: the number of axes differs.
  """
  if len(shape) != len(base_shape):
    raise ValueError(
        f"A parameter of shape {shape} has base shape {base_shape}: the number "
        "of axes must not change with width.")
  return tuple(i for i, (n, b) in enumerate(zip(shape, base_shape)) if n != b)


def role(shape: base.Shape, base_shape: base.Shape) -> str:
  """Return the role of a parameter, from the axes that grow.

  Layers stacked on a leading axis, as by flax's nn.scan, look like a
  convolution here: fan-in would include the number of layers. Unstack them.

  Returns:
    "vector" (at most one axis: biases, gains), "fixed" (no axis grows),
    "input" (only the last axis grows), "output" (only an earlier axis grows)
    or "hidden" (two axes grow).

  Raises:
    ValueError: the number of axes differs, or more than two axes grow.
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


def fan_in(shape: base.Shape, base_shape: base.Shape) -> int:
  """Return the number of inputs summed into one output: absolute, not relative.

  JAX layout, inputs before outputs: (in, out), (height, width, in, out) or
  (heads, head size, out). Fan-in is the product of the axes before the output
  axis. The output axis of a hidden parameter is the last axis that grows; for
  other roles it is the last axis.
  """
  if len(shape) <= 1:
    return 1
  return math.prod(shape[:_output_axis(shape, base_shape)])


def fan_out(shape: base.Shape, base_shape: base.Shape) -> int:
  """Return the number of outputs: the product of the axes from the output axis.
  """
  if len(shape) <= 1:
    return math.prod(shape)
  return math.prod(shape[_output_axis(shape, base_shape):])


def _output_axis(shape: base.Shape, base_shape: base.Shape) -> int:
  """Return the first axis of the outputs of a matrix."""
  if role(shape, base_shape) == "hidden":
    # (width, heads, head size) at a growing number of heads: heads, not the
    # last axis, is where outputs begin.
    return growing_axes(shape, base_shape)[-1]
  return len(shape) - 1


def dense_fan_in(shape: base.Shape, base_shape: base.Shape) -> int:
  """Return `fan_in` of a hidden parameter without the places of a convolution.

  The product of the axes from the first that grows up to, but without, the
  output axis: (in) for (in, out) and for (height, width, in, out), heads times
  head size for (heads, head size, out).
  """
  first, last = growing_axes(shape, base_shape)
  return math.prod(shape[first:last])
