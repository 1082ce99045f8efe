"""Which axes of a parameter grow with width, and what it therefore is.

Nothing is stored on arrays and no parameter name is looked at: the facts
follow from two shapes, that in the network at hand and that in the same network
at another width.

Reference:
  Yang et al., Tensor Programs V, 2022, https://arxiv.org/abs/2203.03466.
"""

import math


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
  return math.prod(shape[:_output_axis(shape, base_shape)])


def fan_out(shape: tuple, base_shape: tuple) -> int:
  """Number of outputs: the product of the axes from the output axis on."""
  if len(shape) <= 1:
    return math.prod(shape)
  return math.prod(shape[_output_axis(shape, base_shape):])


def _output_axis(shape, base_shape) -> int:
  if role(shape, base_shape) == "hidden":
    return growing_axes(shape, base_shape)[-1]
  return len(shape) - 1


def dense_fan_in(shape: tuple, base_shape: tuple) -> int:
  """`fan_in` of a hidden parameter, but the places of a convolution once.

  The product of the axes from the first that grows to the output axis: (in)
  for (in, out) and for (height, width, in, out), heads times head size for
  (heads, head size, out).
  """
  first, last = growing_axes(shape, base_shape)
  return math.prod(shape[first:last])
