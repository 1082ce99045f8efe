"""What each parameter is, from the shapes of a network at two widths.

Nothing is stored on arrays, and no name is looked at unless the user names it.
Where shapes do not tell, there is an error that says what to declare. Shapes do
not tell a bias or gain of two axes from a matrix, and no error says so: a bias
(heads, head size) is known for one only if it is alone beside its kernel, and
those stacked over layers are known by `deeper_shapes`; all else has to be
declared a "vector", or counts as a matrix.
"""

import collections
import fnmatch
import math
from typing import Any, Callable, Mapping, NamedTuple

import jax

from learned_opt.scaling import residual_depth
from learned_opt.scaling import width

LAYOUTS = ("in_out", "out_in")
ROLES = ("input", "hidden", "output", "vector", "fixed", "embedding", "tied")
HOW = ("Declare it: overrides={%r: scaling.Override(inputs=(...), "
       "outputs=(...))}, its axes, or one of the roles " + ", ".join(ROLES) +
       ".")


class Override(NamedTuple):
  """What a user says about a parameter; None for what shapes tell.

  Attributes:
    role: one of ROLES. "embedding" is a table of which rows are looked up,
      "tied" one that is the readout as well.
    inputs: axes summed over where the parameter is used.
    outputs: the axes of the result.
    stack: axes of layers, experts or copies, each a parameter of its own.
    depth: residual blocks in a row, of which this parameter is in one; 1
      outside of blocks.
  """

  role: str | None = None
  inputs: tuple[int, ...] | None = None
  outputs: tuple[int, ...] | None = None
  stack: tuple[int, ...] = ()
  depth: int | None = None


class ParamInfo(NamedTuple):
  """What is known about one parameter.

  Attributes:
    role: one of ROLES.
    shape: what counts of its shape: (outputs,) for a vector, else (inputs,
      outputs), or (places, inputs, outputs) for a convolution.
    base_shape: the same at the base width.
    grows: which of these axes do.
    inputs: axes of the parameter itself.
    outputs: axes of the parameter itself.
    stack: axes of the parameter itself.
    depth: blocks in a row that it is in one of, 1 outside of blocks.
    base_depth: the same of the base network.
    open: what shapes left undecided, and only absolute numbers depend on; ""
      for nothing.
  """

  role: str
  shape: tuple[int, ...]
  base_shape: tuple[int, ...]
  grows: tuple[bool, ...]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  stack: tuple[int, ...] = ()
  depth: int = 1
  base_depth: int = 1
  open: str = ""

  def at(self, rule: Callable, base: bool = False) -> Any:
    """A function of `base.Parametrization` at this width, or the base width."""
    shape = self.base_shape if base else self.shape
    other = tuple(2 * n if g else n for n, g in zip(shape, self.grows))
    return rule(shape, other)

  def ratio(self, rule: Callable) -> float:
    """That at this width over that at the base width; 1 if both are zero."""
    found, before = self.at(rule), self.at(rule, base=True)
    return 1.0 if found == before else found / before

  @property
  def fan_in(self) -> int:
    """Inputs summed into one output."""
    return int(self.at(width.fan_in))

  @property
  def fan_out(self) -> int:
    """Outputs."""
    return int(self.at(width.fan_out))


def by_path(tree: Any) -> dict[str, tuple[int, ...]]:
  """Shapes by path ("block/dense/kernel"), of leaves that are arrays."""
  return {path_of(path): tuple(x.shape)
          for path, x in jax.tree_util.tree_leaves_with_path(tree)
          if hasattr(x, "shape")}


def path_of(path: tuple) -> str:
  """Keys of a tree joined by "/".

  The last one of a flax nnx variable, "value", is left out: inside of nnx's own
  optimizer it is missing.
  """
  if len(path) > 1 and isinstance(
      path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
    path = path[:-1]
  return jax.tree_util.keystr(path, simple=True, separator="/")


def infer(params: Any, base_shapes: Any, *, delta_shapes: Any = None,
          deeper_shapes: Any = None, base_depth: int = 1,
          overrides: Mapping[str, str | Override] | None = None,
          layout: str = "in_out", readout: bool = True) -> dict[str, ParamInfo]:
  """What each parameter is, by path.

  Args:
    params: the network at hand, arrays or `jax.ShapeDtypeStruct`; may lack
      leaves that base_shapes has (as inside `optax.masked`).
    base_shapes: the same of the network at the base width, as
      `jax.eval_shape(init, key)` returns them.
    delta_shapes: that of a third width, for networks of the base width
      itself; axes that differ from base_shapes grow. Default: params.
    deeper_shapes: that of the base network with more residual blocks, so that
      it is known which parameters are in blocks, and which axes are layers.
    base_depth: residual blocks at which factors for depth are 1.
    overrides: by path, or pattern with * and ?, a role or an `Override`.
    layout: "in_out": kernels are (inputs, outputs), as in flax and haiku;
      "out_in": (outputs, inputs, places), as in equinox.
    readout: whether some parameter must be a readout.

  Biases and gains of two axes may have to be declared, see the module.

  Raises:
    ValueError: shapes that do not fit or do not say what a parameter is, and
      overrides that contradict them or match nothing.
  """
  if layout not in LAYOUTS:
    raise ValueError(
        f"Unknown layout {layout!r}; available: {', '.join(LAYOUTS)}.")
  shapes, bases = by_path(params), by_path(base_shapes)
  deltas = shapes if delta_shapes is None else by_path(delta_shapes)
  _check(shapes, bases, delta_shapes)
  declared = _declared(overrides or {}, bases)
  depths, stacks = ({}, {}) if deeper_shapes is None else residual_depth.find(
      bases, by_path(deeper_shapes), {
          path for path, x in declared.items() if x.depth is not None})
  pairs = _pairs(bases)
  found = {}
  for path, shape in shapes.items():
    said = declared.get(path, Override())
    pair = [(tree[kernel], tree[bias]) for kernel, bias in pairs.get(path, ())
            for tree in (bases, deltas) if kernel in tree and bias in tree]
    is_bias = any(path == bias for _, bias in pairs.get(path, ()))
    try:
      found[path] = _one(
          path, shape, bases[path], deltas.get(path, shape), said,
          said.stack or stacks.get(path, ()), pair, is_bias, layout)
    except ValueError as e:
      raise ValueError(f"Parameter {path}: {e}") from e
    if path in stacks:
      depths[path] = shape[stacks[path][0]]
    if said.depth is not None and said.depth > 1:
      depths[path] = said.depth
    if path in depths:
      found[path] = found[path]._replace(
          depth=depths[path], base_depth=base_depth)
  if readout and not any(
      x.role in ("output", "tied") for x in found.values()) and any(
          any(x.grows) for x in found.values()):
    raise ValueError(
        "No parameter reads out: none has a growing number of inputs and a "
        "fixed number of outputs. If an embedding is the readout as well, "
        "declare it: overrides={'path of the embedding': 'tied'}. If the "
        "outputs of the network grow with its width, say readout=False.")
  return found


def _check(shapes: dict, bases: dict, delta_shapes: Any) -> None:
  """Raises ValueError unless the trees fit and some axis grows."""
  missing = sorted(set(shapes) - set(bases))
  if missing:
    raise ValueError(
        f"base_shapes has no entry for {missing[0]} (and {len(missing) - 1} "
        f"more); it has {', '.join(sorted(bases)) or 'no entries'}. It must be "
        "the tree of the same network at another width.")
  matrices = [path for path, shape in shapes.items() if len(shape) > 1]
  if delta_shapes is None and matrices and all(
      shapes[path] == bases[path] for path in matrices):
    raise ValueError(
        "base_shapes are the shapes of the network itself, so no axis can be "
        "seen to grow. Make them from the same network at another width, or "
        "give delta_shapes, those at a third width.")


def _declared(overrides, bases) -> dict[str, Override]:
  """The override of each path; raises ValueError."""
  found: dict[str, Override] = {}
  for pattern, said in overrides.items():
    said = Override(said) if isinstance(said, str) else said
    if said.role is not None and said.role not in ROLES:
      raise ValueError(f"Unknown role {said.role!r} for {pattern!r}; "
                       f"available: {', '.join(ROLES)}.")
    matching = [path for path in bases if fnmatch.fnmatchcase(path, pattern)]
    if not matching:
      raise ValueError(f"The override {pattern!r} fits none of the paths "
                       f"{', '.join(sorted(bases))}.")
    for path in matching:
      if found.setdefault(path, said) != said:
        raise ValueError(f"Two overrides fit {path}: {found[path]} and {said}.")
  return found


def _pairs(bases) -> dict[str, list[tuple[str, str]]]:
  """Of containers of two parameters, for each of them: [(larger, smaller)].

  As a bias lies beside the kernel whose outputs it is added to.
  """
  containers = collections.defaultdict(list)
  for path in bases:
    containers[path.rpartition("/")[0]].append(path)
  found = {}
  for paths in containers.values():
    if len(paths) == 2:
      size = lambda path: math.prod(bases[path])
      small, large = sorted(paths, key=size)
      if len(bases[large]) > 1 and size(small) < size(large):
        found[small] = found[large] = [(large, small)]
  return found


def _one(path, shape, base, delta, said, stack, pair, is_bias, layout) -> ParamInfo:
  """What one parameter is; raises ValueError."""
  for other in (base, delta):
    width.growing_axes(shape, other)  # raises if ranks differ
  stack = [i % len(shape) for i in stack]
  axes = [i for i in range(len(shape)) if i not in stack]
  grows = {i for i in width.growing_axes(delta, base) if i not in stack}
  unclear = ""
  if said.role in ("vector", "embedding", "tied"):
    outputs = axes if said.role == "vector" else axes[-1:]
    inputs = [i for i in axes if i not in outputs]
    if grows & set(inputs):
      raise ValueError(f"Declared {said.role}, but axis {min(grows)} of "
                       f"{shape} grows, which is not its last.")
  elif said.inputs is not None or said.outputs is not None:
    inputs, outputs = _split(said, axes, shape)
  elif len(axes) <= 1:
    inputs, outputs = [], axes
  else:
    inputs, outputs, unclear = _axes(
        path, shape, base, axes, sorted(grows), pair, is_bias, layout,
        said.role)
  places: list[int] = []
  growing_inputs = [i for i in inputs if i in grows]
  if growing_inputs:  # those outside of what grows, on the side away from it
    places = [i for i in inputs if (i < growing_inputs[0] if layout == "in_out"
                                    else i > growing_inputs[-1])]
  table = said.role in ("embedding", "tied")  # of fan-in 1
  rest = [] if table else [i for i in inputs if i not in places]
  groups = [outputs]
  if inputs or table:
    groups = [*([places] if places else []), rest, outputs]
  canonical = lambda s: tuple(
      math.prod(s[i] for i in group) for group in groups)
  growing = tuple(
      x != y for x, y in zip(canonical(delta), canonical(base)))
  result = ParamInfo("", canonical(shape), canonical(base), growing, tuple(inputs),
                 tuple(outputs), tuple(stack), open=unclear)
  role = str(result.at(width.role))
  if said.role not in (None, role, "embedding", "tied"):
    raise ValueError(
        f"Declared {said.role}, but with inputs {tuple(inputs)} and outputs "
        f"{tuple(outputs)} of {shape} (base {base}) it is {role}.")
  return result._replace(role=said.role or role)


def _split(said, axes, shape):
  """Inputs and outputs of an override that names one or both."""
  inputs = [i % len(shape) for i in said.inputs or ()]
  outputs = [i % len(shape) for i in said.outputs or ()]
  if said.inputs is None:
    inputs = [i for i in axes if i not in outputs]
  if said.outputs is None:
    outputs = [i for i in axes if i not in inputs]
  if sorted(inputs + outputs) != axes:
    raise ValueError(
        f"inputs {tuple(inputs)} and outputs {tuple(outputs)} must be all axes "
        f"of {shape} that are not in the stack, {tuple(axes)}, each once.")
  return inputs, outputs


def _axes(path, shape, base, axes, grows, pair, is_bias, layout, role):
  """(inputs, outputs, what is open) of a parameter of two axes or more."""
  num_outputs = _outputs_beside(pair, layout)
  if num_outputs:
    if is_bias:
      return [], axes, ""
    if layout == "in_out":
      return axes[:-num_outputs], axes[-num_outputs:], ""
    return axes[num_outputs:], axes[:num_outputs], ""
  unknown = ValueError(
      f"shape {shape} (base {base}) does not tell inputs from outputs: "
      f"{'no axis' if not grows else f'of its axes {tuple(grows)}'} "
      f"{'grow' if len(grows) > 1 else 'grows'}. " + HOW % path)
  if len(grows) > 2:
    raise unknown
  if layout == "out_in":
    if any(i > axes[1] for i in grows):
      raise unknown
    if role is None and grows == [axes[1]] and len(axes) == 2:
      raise ValueError(
          f"shape {shape} (base {base}) may be an embedding or a readout "
          "without a bias. " + HOW % path)
    return axes[1:], axes[:1], ""
  first, last = axes[0], axes[-1]
  if len(axes) == 2 or not grows or grows == [last]:
    several = len(axes) == 3 and grows == [last]
    return axes[:-1], [last], "which axes are outputs" if several else ""
  if len(grows) == 1:
    if grows == [first]:
      return axes[:-1], [last], "which axes are inputs"
    if len(axes) >= 4 and grows == axes[-2:-1]:
      return axes[:-1], [last], ""
    raise unknown
  one, two = grows
  before = [i for i in axes if i < one]
  between = [i for i in axes if one < i < two]
  unclear = "which side axes between belong to" if between else (
      "whether its first axis is places or a stack" if len(before) == 1 else "")
  return ([i for i in axes if i < two], [i for i in axes if i >= two], unclear)


def _outputs_beside(pair, layout) -> int:
  """How many axes of a kernel are outputs, by the bias beside it; 0: unknown.

  Args:
    pair: the shapes of (kernel, bias) at several widths.
    layout: see `infer`.
  """
  found: dict[str, set[int]] = {name: set() for name in LAYOUTS}
  for kernel, bias in pair:
    while layout == "out_in" and len(bias) > 1 and bias[-1] == 1:
      bias = bias[:-1]  # (outputs, 1, 1) beside a convolution
    n = len(bias) if len(bias) < len(kernel) else 0
    found["in_out"].add(n if n and kernel[-n:] == bias else 0)
    found["out_in"].add(n if n and kernel[:n] == bias else 0)
  (other,) = set(LAYOUTS) - {layout}
  if found[layout] == {0} and found[other] == {1}:
    raise ValueError(
        f"beside the kernel {pair[0][0]} there is a bias {pair[0][1]}, the "
        f"size of its inputs under the layout {layout!r}. If kernels are "
        f"stored the other way round, say layout={other!r}.")
  return min(found[layout], default=0)
