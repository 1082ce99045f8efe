"""Symmetries of a network under permutations of its hidden units.

The axes of parameters have names. Axes of one name are permuted together: the
outputs of a layer, its bias, and the inputs of the next layer. `sites` finds
the names, `Sites.terms` and `reduce` are the parts of linear maps that commute
with all such permutations.

Reference:
  Zhou et al., 2024, https://arxiv.org/abs/2402.05232, section 3 (the maps).
  Zhou et al., 2023, https://arxiv.org/abs/2302.14040 (weights that are shared
  by all layers, so that depth is free).
"""

import functools
import itertools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from learned_opt import base
from learned_opt import kinds as kinds_lib

# What a parameter is, by its axes: biases and gains; matrices; kernels, whose
# places are summed over.
VECTOR, MATRIX, KERNEL = "vector", "matrix", "kernel"
AXES = {VECTOR: "o", MATRIX: "io", KERNEL: "pio"}
PLACES, INPUTS, OUTPUTS = range(3)  # axes of a view


class Site(NamedTuple):
  """One parameter, or one layer of a stack.

  Attributes:
    leaf: index of the parameter in the tree.
    layer: index in the stack; 0 for a single parameter.
    whole: shape of the parameter.
    stack: its axes of the stack.
    order: of the axes of a layer: those of places, inputs and outputs.
    shape: of its view, (places, inputs, outputs).
    what: VECTOR, MATRIX or KERNEL.
    names: {axis, one of AXES: name}.
  """

  leaf: int
  layer: int
  whole: base.Shape
  stack: tuple[int, ...]
  order: tuple[int, ...]
  shape: tuple[int, int, int]
  what: str
  names: dict[str, str]


class Term(NamedTuple):
  """A part of a linear map from the input site to the output site.

  It is the mean of the input over all axes but those of `pairs`, along each of
  which input and output have the same index.

  Attributes:
    pairs: ((axis of the output, axis of the input), ...), of AXES.
    own: whether both are the same parameter, along the same axes.
  """

  pairs: tuple[tuple[str, str], ...]
  own: bool


@functools.cache
def all_terms() -> tuple[tuple[str, str, Term], ...]:
  """Return each (what the output is, what the input is, term)."""
  found = []
  for output, source in itertools.product(AXES, AXES):
    found += [(output, source, Term(pairs, False))
              for pairs in _matchings(AXES[output], AXES[source])
              if not any("p" in pair for pair in pairs)]
    if output == source:
      found += [(output, source, Term(tuple((x, x) for x in kept), True))
                for n in range(len(AXES[output]) + 1)
                for kept in itertools.combinations(AXES[output], n)]
  return tuple(found)


def _matchings(outputs: str, sources: str) -> list[tuple[tuple[str, str], ...]]:
  """Return all sets of pairs of axes, each axis at most once."""
  if not outputs:
    return [()]
  rest = _matchings(outputs[1:], sources)
  return rest + [
      ((outputs[0], x), *pairs) for x in sources
      for pairs in _matchings(outputs[1:], sources.replace(x, ""))]


def terms(output: Site, source: Site) -> list[Term]:
  """Return the terms of maps between two sites that commute with permutations.

  The terms of a parameter to itself along its own axes have weights of their
  own, see `Term.own`. Without parameters of which two axes have one name, such
  as those of recurrent networks, these are all.
  """
  same = output is source
  allowed = lambda term: (
      same if term.own else all(output.names[x] == source.names[y]
                                for x, y in term.pairs) and not (
          same and all(x == y for x, y in term.pairs)))
  return [term for what, of, term in all_terms()
          if (what, of) == (output.what, source.what) and allowed(term)]


def view(x: jax.Array, site: Site) -> jax.Array:
  """Return the values of a site, [places, inputs, outputs].

  Args:
    x: the parameter of the site, or an array of as many elements.
    site: of one layer.
  """
  x = x.reshape(site.whole)
  if site.stack:
    x = kinds_lib.to_front(x, site.whole, site.stack)[site.layer]
  return jnp.transpose(x, site.order).reshape(site.shape)


def from_views(views: list[jax.Array], layers: list[Site]) -> jax.Array:
  """Return one parameter from the views of all its layers, in their order."""
  site = layers[0]
  shape = kinds_lib.layer_shape(site.whole, site.stack)
  inverse = sorted(range(len(shape)), key=site.order.__getitem__)
  x = jnp.stack([jnp.transpose(
      x.reshape([shape[i] for i in site.order]), inverse) for x in views])
  if site.stack:
    return kinds_lib.from_front(x, site.whole, site.stack)
  return x.reshape(site.whole)


def reduce(x: jax.Array, kept: str) -> jax.Array:
  """Return the mean over the axes that are not kept: [1 or n, ..., channels].

  Args:
    x: [places, inputs, outputs, channels].
    kept: axes, of "pio".
  """
  axes = tuple(i for i, axis in enumerate("pio") if axis not in kept)
  return jnp.mean(x, axes, keepdims=True) if axes else x


def placed(x: jax.Array, term: Term) -> jax.Array:
  """Return a reduced input along the axes of the output, to be broadcast.

  Args:
    x: [places, inputs, outputs], of size 1 along axes not in the term.
    term: for which x was reduced.
  """
  order = {"pio".index(out): "pio".index(source) for out, source in term.pairs}
  rest = [i for i in range(3) if i not in order.values()]
  return jnp.transpose(x, [
      order[i] if i in order else rest.pop(0) for i in range(3)])


def sites(tree: Any, kinds: kinds_lib.Kinds | None = None, axes: str = ""
          ) -> list[Site]:
  """Return the sites of all parameters with elements.

  Layers follow each other in the order of their paths, numbers by size. The
  inputs of a layer have the name of the outputs of the layer before it if they
  are as many; so have the channels of a kernel. A bias or a gain has the name
  of the outputs beside it, or else of the last outputs of its size. All other
  axes have names of their own: inputs, classes, places.

  Args:
    tree: of arrays.
    kinds: tells stacks and which axes are outputs.
    axes: names for parameters to which this does not apply, such as those of
      residual networks: "path=inputs,outputs path=outputs ...".

  Raises:
    ValueError: `axes` is malformed or names a parameter that does not exist.
  """
  told = _told(axes)
  paths = [base.path_of(path)
           for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
  if unknown := sorted(set(told) - set(paths)):
    raise ValueError(f"axes names {unknown[0]!r}; the parameters are "
                     f"{', '.join(paths)}.")
  entries = _entries(tree, paths, kinds_lib.of(tree, kinds))
  found: list[Site] = []
  # {(parent, layer) of a weight: name and size of its outputs}.
  names: dict[tuple, tuple[str, int]] = {}
  last = ("", 0)  # name and size of the outputs of the last weight
  # Biases after the weights, whose names they take.
  for vectors in (False, True):
    for entry in entries:
      if (len(entry.inputs) == 0) != vectors:
        continue
      own = f"{entry.path} {entry.layer}"
      if vectors:
        near = names.get(entry.beside, ("", 0))
        name = next((x for x, n in [near, *reversed(names.values())]
                     if n == entry.size(entry.outputs)), f"{own} outputs")
        given = told.get(entry.path, (name,))
        found.append(entry.site((), (), VECTOR, {"o": given[-1]}))
        continue
      places, inputs = entry.split(last[1])
      name = last[0] if last[1] == entry.size(inputs) else f"{own} inputs"
      given = told.get(entry.path, (name, f"{own} outputs"))
      if len(given) != 2:
        raise ValueError(f"axes gives {entry.path!r} one name; it has inputs "
                         "and outputs.")
      found.append(entry.site(
          places, inputs, KERNEL if places else MATRIX,
          {"p": f"{own} places", "i": given[0], "o": given[1]}))
      last = given[1], entry.size(entry.outputs)
      names[entry.beside] = last
  return sorted(found, key=lambda site: (site.leaf, site.layer))


class _Entry(NamedTuple):
  """A layer before its axes have names."""

  path: str
  leaf: int
  layer: int
  whole: base.Shape
  stack: tuple[int, ...]
  shape: base.Shape  # of the layer
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  beside: tuple

  def size(self, axes) -> int:
    return math.prod(self.shape[i] for i in axes)

  def split(self, before: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return axes of (places, inputs), given the outputs of the layer before.

    Several axes of inputs are heads if they are as many as these, and otherwise
    places and channels.
    """
    if len(self.inputs) == 1 or self.size(self.inputs) == before:
      return (), self.inputs
    return self.inputs[:-1], self.inputs[-1:]

  def site(self, places, inputs, what, names) -> Site:
    order = (*places, *inputs, *self.outputs)
    shape = self.size(places), self.size(inputs), self.size(self.outputs)
    return Site(self.leaf, self.layer, self.whole, self.stack, order, shape,
                what, names)


def _entries(tree, paths, kinds) -> list[_Entry]:
  """Return the layers in the order in which a network applies them."""
  stacked = [path.split("/") for path, kind in zip(paths, kinds) if kind.stack]
  common = 0
  while stacked and len({tuple(x[:common + 1]) for x in stacked}) == 1 and (
      common + 1 < min(map(len, stacked))):
    common += 1
  entries = []
  for leaf, (path, x, kind) in enumerate(
      zip(paths, jax.tree.leaves(tree), kinds)):
    if not x.size:
      continue
    shape = kinds_lib.layer_shape(x.shape, kind.stack)
    count = math.prod(kinds_lib.sizes(x.shape, kind.stack))
    keys = path.split("/")
    for layer in range(count):
      outputs = (len(shape) - 1,) if kind.outputs is None else tuple(
          axis - sum(i < axis for i in kind.stack) for axis in kind.outputs)
      inputs = tuple(i for i in range(len(shape)) if i not in outputs)
      if kind.role == "vector" or len(shape) < 2:
        inputs, outputs = (), tuple(range(len(shape)))
      at = [str(layer)] if kind.stack else []
      entries.append(_Entry(
          path, leaf, layer, x.shape, kind.stack, shape, inputs, outputs,
          tuple(keys[:common] + at + keys[common:-1])))
  return sorted(entries, key=lambda e: [_natural(x) for x in (
      *e.beside, e.path.split("/")[-1])])


def _natural(text: str) -> list[tuple[int, int, str]]:
  """Return a key that sorts "layer_10" after "layer_9"."""
  return [(0, int(x), "") if x.isdigit() else (1, 0, x)
          for x in re.split(r"(\d+)", text) if x]


def _told(axes: str) -> dict[str, tuple[str, ...]]:
  """Return {path: names} of the setting `axes`."""
  told = {}
  for part in axes.split():
    path, _, names = part.partition("=")
    given = tuple(names.split(","))
    if not path or not all(given) or len(given) > 2:
      raise ValueError(
          f"axes has {part!r}; expected path=inputs,outputs or path=outputs.")
    told[path] = given
  return told
