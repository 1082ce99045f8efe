"""Read from the parameters beside a parameter what its shape leaves open.

A bias has the axes of its kernel's outputs, after those of a stack, if there is
one. So a kernel and its bias show what the axes of both are:

  kernel              | bias          | inputs | outputs | stack
  (16, 4, 8)          | (4, 8)        | 0      | 1, 2    |
  (layers, 16, 32)    | (layers, 32)  | 1      | 2       | 0
  (3, 3, 32, 16)      | (32,)         | 0 1 3  | 2       |

The last is a transposed convolution. Axes of size 1 in a bias are left out.
Names are not looked at. Below, the size of an axis is a tuple: its sizes at
several widths.
"""

import collections
import math
from typing import NamedTuple, Sequence, TypeAlias

from learned_opt import base

Axes: TypeAlias = tuple[int, ...]
Size: TypeAlias = tuple[int, ...]  # of one axis, at several widths
Shapes: TypeAlias = dict[str, base.Shape]  # by path
# Shapes of a kernel and its bias; None where the network at hand lacks one.
Pair: TypeAlias = tuple[base.Shape | None, base.Shape | None]


class Reading(NamedTuple):
  """Facts that a kernel and its bias show about each other.

  Attributes:
    inputs: axes of the kernel that are inputs.
    outputs: axes of the kernel that are outputs.
    stack: axes of the kernel that are a stack, besides those declared.
    bias_stack: axes of the bias that are a stack, besides those declared.
  """

  inputs: Axes
  outputs: Axes
  stack: Axes = ()
  bias_stack: Axes = ()


def _sizes(shapes: Sequence[base.Shape | None], stack: Axes = ()
           ) -> tuple[Axes, list[Size]]:
  """Return the axes that are not in the stack, and their sizes."""
  known = [shape for shape in shapes if shape is not None]
  if len({len(shape) for shape in known}) != 1:
    return (), []
  sizes = list(zip(*known))
  axes = tuple(i for i in range(len(sizes)) if i not in stack)
  return axes, [sizes[i] for i in axes]


def _sizes_of(path: str, trees: Sequence[Shapes]) -> list[Size]:
  """Return the sizes of all axes of a parameter."""
  return _sizes([shapes[path] for shapes in trees if path in shapes])[1]


def _grows(size: Size) -> bool:
  return len(set(size)) > 1


def _same(sizes: list[Size], others: list[Size]) -> bool:
  """Return whether sizes are equal at all widths at which both are known."""
  return len(sizes) == len(others) and all(
      n == m for x, y in zip(sizes, others) for n, m in zip(x, y))


def _growing(sizes: list[Size]) -> list[int]:
  """Return the indices of the sizes that grow."""
  return [i for i, size in enumerate(sizes) if _grows(size)]


def _without_ones(axes: Axes, sizes: list[Size]) -> tuple[Axes, list[Size]]:
  """Return axes and sizes without those of size 1; at least one remains."""
  kept = [i for i, size in enumerate(sizes) if set(size) != {1}]
  kept = kept or list(range(len(sizes)))[-1:]
  return tuple(axes[i] for i in kept), [sizes[i] for i in kept]


def read(pairs: Sequence[Pair], layout: str, stacks: tuple[Axes, Axes]
         ) -> Reading | None:
  """Return what a kernel and its bias show; None if they do not fit.

  Args:
    pairs: shapes of the kernel and of the bias, at several widths.
    layout: see `learned_opt.scaling.axis_rules.LAYOUTS`.
    stacks: axes of the kernel and of the bias known to be a stack.

  Raises:
    ValueError: they fit in two ways.
  """
  kernels, biases = zip(*pairs) if pairs else ((), ())
  if kernels == biases:
    return None
  kernel = _sizes(kernels, stacks[0])
  bias = _sizes(biases, stacks[1])
  # A bias in which two axes grow would be a matrix.
  if sum(map(_grows, bias[1])) > 1:
    return None
  fit = _fit_last if layout == "in_out" else _fit_first
  for candidate in (bias, _without_ones(*bias)):
    if 0 < len(candidate[1]) < len(kernel[1]):
      reading = fit(kernel, candidate)
      if reading is not None:
        return reading
  return None


def _fit_last(kernel: tuple[Axes, list[Size]], bias: tuple[Axes, list[Size]]
              ) -> Reading | None:
  """Return the reading of a kernel (stack, places, inputs, outputs)."""
  (axes, sizes), (bias_axes, bias_sizes) = kernel, bias
  rank, n = len(axes), len(bias_axes)
  fits = [s for s in range(n) if _same(bias_sizes, [
      *sizes[:s], *sizes[rank - n + s:]])]
  if len(fits) > 1:
    raise ValueError(
        f"beside the kernel of sizes {sizes} there is a bias of sizes "
        f"{bias_sizes}, whose first axis may be outputs or a stack. Declare "
        "the kernel and the bias: overrides={path: scaling.Override(inputs="
        "(...), outputs=(...), stack=(...))}.")
  if fits:
    first = range(fits[0])
    # Layers and experts do not grow with width; heads do.
    stack = [i for i in first
             if not _grows(sizes[i]) and not _grows(bias_sizes[i])]
    outputs = [i for i in first if i not in stack]
    outputs += range(rank - n + fits[0], rank)
  elif rank > 2 and n == 1 and _same(bias_sizes, [sizes[-2]]) and not any(
      map(_grows, sizes[:-2])):
    stack, outputs = [], [rank - 2]  # (places, outputs, inputs)
  else:
    return None
  inputs = [i for i in range(rank) if i not in (*stack, *outputs)]
  return Reading(tuple(axes[i] for i in inputs), tuple(
      axes[i] for i in outputs), tuple(axes[i] for i in stack),
                 tuple(bias_axes[i] for i in stack))


def _fit_first(kernel: tuple[Axes, list[Size]], bias: tuple[Axes, list[Size]]
               ) -> Reading | None:
  """Return the reading of a kernel (stack, outputs, inputs, places)."""
  (axes, sizes), (bias_axes, bias_sizes) = kernel, bias
  n = len(bias_axes)
  if not _same(bias_sizes, sizes[:n]):
    return None
  s = 0
  while s < n - 1 and not _grows(sizes[s]) and not _grows(bias_sizes[s]):
    s += 1
  return Reading(axes[n:], axes[s:n], axes[:s], bias_axes[:s])


def shows_other_layout(pairs: Sequence[Pair], layout: str,
                       stacks: tuple[Axes, Axes]) -> bool:
  """Return whether the bias has the size of the kernel's inputs only."""
  if not pairs:
    return False
  kernels, biases = zip(*pairs)
  _, kernel = _sizes(kernels, stacks[0])
  _, bias = _without_ones(*_sizes(biases, stacks[1]))
  if len(bias) != 1 or len(kernel) < 2:
    return False
  if layout == "out_in":
    return _same(bias, kernel[-1:]) and not _same(bias, kernel[:1])
  # Places of a convolution (outputs, inputs, places) do not grow.
  return _same(bias, kernel[:1]) and not _same(bias, kernel[-1:]) and not any(
      map(_grows, kernel[2:])) and read(pairs, layout, stacks) is None


def partners(trees: Sequence[Shapes], layout: str
             ) -> dict[str, tuple[str, str]]:
  """Return {path: (kernel, bias)}, for parameters that stand beside another.

  Two parameters of a module are such a pair until their shapes say no (see
  `read`); the kernel is the larger one. Two of one shape are a pair as well
  (see `learned_opt.scaling.axis_rules.Evidence.is_twin`).

  Args:
    trees: shapes of all parameters, at several widths. The first has all paths.
    layout: see `learned_opt.scaling.axis_rules.LAYOUTS`.
  """
  modules = collections.defaultdict(list)
  for path in trees[0]:
    modules[path.rpartition("/")[0]].append(path)
  found: dict[str, tuple[str, str]] = {}
  for module, paths in modules.items():
    if len(paths) == 2:
      small, large = sorted(paths, key=lambda path: math.prod(trees[0][path]))
      shapes = trees[0][small], trees[0][large]
      if len(shapes[1]) > 1 and (shapes[0] == shapes[1] or (
          math.prod(shapes[0]) < math.prod(shapes[1]))):
        found[small] = found[large] = (large, small)
    elif len(paths) > 2:
      found |= _among_many(paths, trees, layout)
    else:
      found |= _gain_of_child(paths[0], [
          path for child in modules if child.rpartition("/")[0] == module != ""
          for path in modules[child]], trees[0])
  return found


def pairs_of(kernel: str, bias: str, trees: Sequence[Shapes]
             ) -> tuple[Pair, ...]:
  """Return the shapes of a kernel and its bias, at several widths."""
  return tuple((shapes.get(kernel), shapes.get(bias)) for shapes in trees)


def _among_many(paths: list[str], trees: Sequence[Shapes], layout: str
                ) -> dict[str, tuple[str, str]]:
  """Return the pairs in a module of more than two parameters.

  A bias here has several axes, as that of heads has, and its kernel grows in
  inputs and outputs. The vector of a cell is beside both of its matrices, and
  pairs with them only where it shows that their layout is the other one.
  """
  found: dict[str, tuple[str, str]] = {}
  shapes = trees[0]
  for bias in paths:
    for kernel in paths:
      if 1 < len(shapes[bias]) < len(shapes[kernel]):
        pairs = pairs_of(kernel, bias, trees)
        reading = read(pairs, layout, ((), ()))
        _, sizes = _sizes([pair[0] for pair in pairs])
        if reading and (kernel not in trees[-1] or all(
            any(_grows(sizes[i]) for i in side) for side in reading[:2])):
          found.setdefault(bias, (kernel, bias))
          found.setdefault(kernel, (kernel, bias))
  matrices = [path for path in paths if len(shapes[path]) == 2]
  for vector in paths:
    if len(shapes[vector]) == 1 and len(matrices) > 1 and all(
        shows_other_layout(pairs_of(path, vector, trees), layout, ((), ()))
        for path in matrices):
      found |= {path: (path, vector) for path in matrices}
  return found


def _gain_of_child(path: str, below: list[str], shapes: Shapes
                   ) -> dict[str, tuple[str, str]]:
  """Return the pair of a gain with axes of size 1 and the kernel it scales.

  Args:
    path: the only parameter of a module.
    below: parameters of the modules in this module.
    shapes: shapes of all parameters.
  """
  shape = shapes[path]
  kernels = [other for other in below if len(shapes[other]) == len(shape) > 1
             and shapes[other] != shape and all(
                 n in (1, m) for n, m in zip(shape, shapes[other]))]
  if len(kernels) != 1 or sum(n != 1 for n in shape) != 1:
    return {}
  return {path: (kernels[0], path)}


def inputs_of_heads(path: str, trees: Sequence[Shapes]) -> Axes | None:
  """Return the inputs of queries, keys or values; None if shapes tell.

  They may be (width, heads, head size) or (heads, width, head size), and the
  number of heads may be fixed. The outputs of the attention, (heads, head size,
  width), tell which axis is the width.

  Args:
    path: path of the parameter.
    trees: see `partners`.
  """
  sizes = _sizes_of(path, trees)
  if len(sizes) != 3 or _growing(sizes) not in ([0, 1], [0], [1]):
    return None
  others = [_sizes_of(other, trees) for other, shape in trees[0].items()
            if len(shape) == 3]
  widths = [x[2] for x in others
            if _growing(x) == [0, 2] and x[1] == sizes[2]]
  inputs = [i for i in (0, 1) if sizes[i] in widths]
  return (inputs[0],) if len(inputs) == 1 else None


def part_of_a_kernel(path: str, trees: Sequence[Shapes]) -> str:
  """Return a kernel in which both axes of a parameter follow each other; or "".

  Such a parameter (heads, head size) may be a gain of heads, or a matrix.

  Args:
    path: path of the parameter.
    trees: see `partners`.
  """
  sizes = _sizes_of(path, trees)
  for other, shape in trees[0].items():
    if len(shape) > 2 == len(sizes):
      found = _sizes_of(other, trees)
      if len(_growing(found)) == 2 and any(
          found[i:i + 2] == sizes for i in range(len(found) - 1)):
        return other
  return ""
