"""Role, fan-in and fan-out of each parameter, from a network at two widths.

Nothing is stored on arrays. Where shapes do not tell what a parameter is,
`infer` raises an error that says what to declare. Names of parameters matter in
three places only: in overrides, for the two parameters of one module, and for
`deeper_shapes`.

Limitation: a bias or gain of two axes looks like a matrix and is silently
treated as a matrix, unless

* it is the only other parameter in its kernel's module, such as a bias (heads,
  head size);
* `deeper_shapes` shows that one of its axes is a stack of layers;
* it is declared to be a "vector".
"""

import dataclasses
import fnmatch
import math
import numbers
from typing import Any, Callable, Mapping, NamedTuple, TypeVar

import jax
import optax

from learned_opt import base as base_lib
from learned_opt.scaling import axis_rules
from learned_opt.scaling import beside
from learned_opt.scaling import fan
from learned_opt.scaling import residual_depth

Shape = base_lib.Shape
T = TypeVar("T")

# Arguments of `infer` that say what shapes do not say. Whatever takes
# base_shapes takes these arguments, too.
SETTINGS = ("delta_shapes", "deeper_shapes", "base_depth", "overrides",
            "layout", "readout")


class Override(NamedTuple):
  """Declaration of the user about one parameter; None where shapes decide.

  Attributes:
    role: "input", "hidden", "output", "vector" (biases, gains), "fixed" (no
      axis grows), "embedding" (a table whose rows are looked up) or "tied" (an
      embedding that is the readout as well).
    inputs: axes that are summed over where the parameter is used.
    outputs: axes of the result.
    stack: axes of layers, experts or copies; each index of these axes is
      treated as a parameter of its own.
    depth: number of consecutive residual blocks; the parameter is in one of
      them. 1 outside of blocks.
  """

  role: str | None = None
  inputs: tuple[int, ...] | None = None
  outputs: tuple[int, ...] | None = None
  stack: tuple[int, ...] = ()
  depth: int | None = None


class ParamInfo(NamedTuple):
  """Role, canonical shapes and depth of one parameter.

  A canonical shape has one axis for all outputs, one for all inputs and one for
  all places of a convolution. Axes of the stack are left out.

  Attributes:
    role: see `Override.role`.
    shape: canonical shape: (outputs,) for a vector, otherwise (inputs,
      outputs), or (places, inputs, outputs) for a convolution.
    base_shape: canonical shape at the base width.
    grows: for each axis of `shape`, whether it depends on width.
    inputs: axes of the parameter itself that are inputs, places included.
    outputs: axes of the parameter itself that are outputs.
    stack: axes of the parameter itself that are a stack.
    depth: number of consecutive residual blocks; the parameter is in one of
      them. 1 outside of blocks.
    base_depth: number of blocks at which multipliers for depth are 1; 1 outside
      of blocks.
    open: question that shapes leave open, "" for none. Multipliers relative to
      the base width do not depend on the answer; fan-in and fan-out do.
  """

  role: str
  shape: Shape
  base_shape: Shape
  grows: tuple[bool, ...]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  stack: tuple[int, ...] = ()
  depth: int = 1
  base_depth: int = 1
  open: str = ""

  def at(self, fn: Callable[[Shape, Shape], T], base: bool = False) -> T:
    """Return `fn(shape, other_shape)`, where only axes that grow differ.

    Args:
      fn: a function of `learned_opt.base.Parametrization`, or of
        `learned_opt.scaling.fan`.
      base: whether `shape` is the shape at the base width, not at this width.
    """
    shape = self.base_shape if base else self.shape
    # Sizes of the other shape do not matter, only in which axes it differs.
    other_shape = tuple(2 * n if g else n for n, g in zip(shape, self.grows))
    return fn(shape, other_shape)

  def ratio(self, fn: base_lib.ShapeFn) -> float:
    """Return fn(this width) / fn(base width), or 1 if both are 0."""
    here, at_base = self.at(fn), self.at(fn, base=True)
    return 1.0 if here == at_base else here / at_base

  @property
  def fan_in(self) -> int:
    """Number of inputs that are summed into one output, places included."""
    return int(self.at(fan.fan_in))

  @property
  def fan_out(self) -> int:
    """Number of outputs."""
    return int(self.at(fan.fan_out))


def by_path(tree: Any) -> dict[str, Shape]:
  """Return {path: shape} of all leaves that are arrays.

  A path is the keys of the tree joined by "/", such as "block/dense/kernel".
  """
  return {path_of(path): tuple(x.shape)
          for path, x in jax.tree_util.tree_leaves_with_path(tree)
          if hasattr(x, "shape")}


def path_of(path: tuple[Any, ...]) -> str:
  """Return the keys of a tree joined by "/".

  The last key of a flax nnx variable, "value", is left out: it is missing
  inside of nnx's own optimizer.
  """
  if len(path) > 1 and isinstance(
      path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
    path = path[:-1]
  return jax.tree_util.keystr(path, simple=True, separator="/")


def infer(params: Any, base_shapes: Any, *, delta_shapes: Any = None,
          deeper_shapes: Any = None, base_depth: int = 1,
          overrides: Mapping[str, str | Override] | None = None,
          layout: str = "in_out", readout: bool = True) -> dict[str, ParamInfo]:
  """Return {path: ParamInfo}: role, fan-in, fan-out and depth of parameters.

  Declare a bias or gain of two axes "vector" if its module has more parameters
  than the kernel, or if it is stacked over layers: otherwise it is treated as a
  matrix.

  Args:
    params: parameters of the network at hand, arrays or `jax.ShapeDtypeStruct`.
      Leaves that base_shapes has may be missing, as inside `optax.masked`.
    base_shapes: parameters of the same network at the base width, as
      `jax.eval_shape(init, key)` returns them.
    delta_shapes: parameters of the same network at a third width; axes in which
      they differ from base_shapes grow. Needed for a network of the base width
      itself. Default: params.
    deeper_shapes: parameters of the base network with more residual blocks.
      They show which parameters are in blocks, and which axes are layers.
    base_depth: number of residual blocks at which multipliers for depth are 1.
    overrides: {path, or pattern with * and ?: role or `Override`}.
    layout: "in_out": kernels are (inputs, outputs), as in flax and haiku;
      "out_in": kernels are (outputs, inputs, places), as in equinox.
    readout: whether to raise an error if no parameter is a readout.

  Raises:
    ValueError: shapes do not fit each other or do not tell what a parameter is;
      or an override contradicts the shapes or matches no path.

  Examples:
    >>> import jax
    >>> import mulo
    >>> def shapes(width):
    ...   shape = lambda *axes: jax.ShapeDtypeStruct(axes, "float32")
    ...   return {"dense": {"kernel": shape(8, width), "bias": shape(width)},
    ...           "head": {"kernel": shape(width, 10)}}
    >>> infos = mulo.scaling.infer(shapes(1024), shapes(64))
    >>> for path, info in infos.items():
    ...   print(path, info.role, info.fan_in, info.fan_out)
    dense/bias vector 1 1024
    dense/kernel input 8 1024
    head/kernel output 1024 10
  """
  if layout not in axis_rules.LAYOUTS:
    raise ValueError(f"Unknown layout {layout!r}; available: "
                     f"{', '.join(axis_rules.LAYOUTS)}.")
  shapes, bases = by_path(params), by_path(base_shapes)
  deltas = shapes if delta_shapes is None else by_path(delta_shapes)
  _check(shapes, bases, delta_shapes)
  _check_extra(params, shapes, bases)
  declared = _declared(overrides or {}, bases)
  depths, layer_axes = ({}, {}) if deeper_shapes is None else residual_depth.find(
      bases, by_path(deeper_shapes), {
          path for path, x in declared.items() if x.depth is not None})
  trees = bases, deltas
  partners = beside.partners(trees, layout)
  stacks = {path: axis_rules.from_front(declared[path].stack if path in declared
                                        else layer_axes.get(path), len(shape))
            for path, shape in bases.items()}
  infos: dict[str, ParamInfo] = {}
  for path, shape in shapes.items():
    override = declared.get(path, Override())
    kernel, bias = partners.get(path, (path, path))
    partner = kernel if path == bias else bias
    evidence = axis_rules.Evidence(
        shape, bases[path], deltas.get(path, shape), path=path,
        stack=stacks[path], layout=layout, role=override.role,
        inputs=override.inputs, outputs=override.outputs,
        pairs=beside.pairs_of(kernel, bias, trees) if kernel != bias else (),
        is_bias=path == bias != kernel, partner_stack=stacks[partner])
    if override[:3] == (None, None, None) and layout == "in_out":
      evidence = dataclasses.replace(
          evidence, inputs=beside.inputs_after_heads(path, trees))
    try:
      info = _param_info(evidence)
      if info.role == "output" and not evidence.pairs and override == (
          Override()):
        _check_gain(path, trees)
    except ValueError as e:
      raise ValueError(f"Parameter {path}: {e}") from e
    depth = _depth(path, shape, override, depths, layer_axes)
    infos[path] = info if depth is None else info._replace(
        depth=depth, base_depth=base_depth)
  if readout:
    _check_readout(infos)
  return infos


def _check_gain(path: str, trees: tuple[dict[str, Shape], ...]) -> None:
  """Raise ValueError if a readout may as well be a gain of heads."""
  kernel = beside.part_of_a_kernel(path, trees)
  if kernel:
    raise ValueError(
        f"its axes {trees[0][path]} are two of the axes of {kernel}, "
        f"{trees[0][kernel]}: it may be a gain of heads or a matrix. " +
        axis_rules.HOW % path)


def _check_extra(params: Any, shapes: dict[str, Shape],
                 bases: dict[str, Shape]) -> None:
  """Raise ValueError if base_shapes has parameters that the network lacks.

  Parameters may be missing where the tree says so: by None, or by the empty
  nodes of `optax.masked` and `optax.partition`.
  """
  is_hole: Any = lambda x: x is None or isinstance(x, optax.MaskedNode)
  leaves: Any = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_hole)
  holes = [path_of(path) for path, x in leaves if is_hole(x)]
  extra = [path for path in bases if path not in shapes and not any(
      hole in ("", path) or path.startswith(f"{hole}/") for hole in holes)]
  if extra:
    raise ValueError(
        f"base_shapes has {extra[0]} (and {len(extra) - 1} more), which the "
        f"parameters lack; they have {', '.join(sorted(shapes)) or 'none'}. It "
        "must be the tree of the same network at another width.")


def _check(shapes: dict[str, Shape], bases: dict[str, Shape],
           delta_shapes: Any) -> None:
  """Raise ValueError unless the trees fit each other and some axis grows."""
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


def _check_readout(infos: dict[str, ParamInfo]) -> None:
  """Raise ValueError if parameters grow, but no parameter is a readout."""
  if not any(x.role in ("output", "tied") for x in infos.values()) and any(
      any(x.grows) for x in infos.values()):
    raise ValueError(
        "No parameter reads out: none has a growing number of inputs and a "
        "fixed number of outputs. If an embedding is the readout as well, "
        "declare it: overrides={'path of the embedding': 'tied'}. If the "
        "outputs of the network grow with its width, say readout=False.")


def _declared(overrides: Mapping[str, str | Override], bases: dict[str, Shape]
              ) -> dict[str, Override]:
  """Return {path: override}; raise ValueError if an override fits no path."""
  declared: dict[str, Override] = {}
  for pattern, value in overrides.items():
    override = Override(value) if isinstance(value, str) else value
    if not isinstance(override, Override):
      raise ValueError(f"The override of {pattern!r} must be a role or a "
                       f"scaling.Override, got {override!r}.")
    if override.role is not None and override.role not in axis_rules.ROLES:
      raise ValueError(f"Unknown role {override.role!r} for {pattern!r}; "
                       f"available: {', '.join(axis_rules.ROLES)}.")
    matching = [path for path in bases if fnmatch.fnmatchcase(path, pattern)]
    if not matching:
      raise ValueError(f"The override {pattern!r} fits none of the paths "
                       f"{', '.join(sorted(bases))}.")
    for path in matching:
      _check_override(path, override, bases[path])
      if declared.setdefault(path, override) != override:
        raise ValueError(f"Two overrides fit {path}: {declared[path]} and "
                         f"{override}.")
  return declared


def _check_override(path: str, override: Override, shape: Shape) -> None:
  """Raise ValueError unless axes are axes of the shape, and depth a number."""
  owners: dict[int, str] = {}
  for field in ("inputs", "outputs", "stack"):
    axes = getattr(override, field)
    say = f"The override of {path} has {field}={axes!r}, but "
    if axes is None:
      continue
    if not isinstance(axes, (tuple, list)) or not all(map(_is_int, axes)):
      raise ValueError(say + f"{field} must be a tuple of axes, such as (0,).")
    for axis in axes:
      if not -len(shape) <= axis < len(shape):
        have = (f"axes 0 to {len(shape) - 1}" if shape else "no axes")
        raise ValueError(say + f"the base shape {shape} has {have}.")
      if axis % len(shape) in owners:
        raise ValueError(
            say + f"axis {axis} is among its {owners[axis % len(shape)]}: name "
            "each axis once.")
      owners[axis % len(shape)] = field
  if override.depth is not None and not (
      _is_int(override.depth) and override.depth > 0):
    raise ValueError(
        f"The override of {path} has depth={override.depth!r}, but depth must "
        "be a number of residual blocks, 1 outside of blocks.")


def _is_int(x: Any) -> bool:
  return isinstance(x, numbers.Integral) and not isinstance(x, bool)


def _depth(path: str, shape: Shape, override: Override, depths: dict[str, int],
           stacks: dict[str, tuple[int, ...]]) -> int | None:
  """Return the number of blocks of the network at hand; None outside of blocks.
  """
  if override.depth is not None and override.depth > 1:
    return override.depth
  if path in stacks:
    # depths has the depth of the base network; here it may be another.
    return shape[stacks[path][0]]
  return depths.get(path)


def _param_info(evidence: axis_rules.Evidence) -> ParamInfo:
  """Return role and canonical shapes of one parameter; raise ValueError."""
  shape, base_shape, delta = (
      evidence.shape, evidence.base_shape, evidence.delta)
  for other in (base_shape, delta):
    fan.growing_axes(shape, other)  # raises if the number of axes differs
  axis_rule = axis_rules.find(evidence)
  inputs, outputs = axis_rule.split(evidence)
  groups = _groups(evidence, inputs, outputs)

  def canonical(shape: Shape) -> Shape:
    return tuple(math.prod(shape[i] for i in group) for group in groups)

  grows = tuple(n != m for n, m in zip(
      canonical(delta), canonical(base_shape)))
  info = ParamInfo(
      "", canonical(shape), canonical(base_shape), grows, inputs, outputs,
      evidence.whole_stack, open=axis_rule.open)
  role = info.at(fan.role)
  # A table counts as an input here; its declared role says more.
  if evidence.role not in (None, role, *axis_rules.TABLES):
    raise ValueError(
        f"Declared {evidence.role}, but with inputs {inputs} and outputs "
        f"{outputs} of {shape} (base {base_shape}) it is {role}.")
  return info._replace(role=evidence.role or role)


def _groups(evidence: axis_rules.Evidence, inputs: axis_rules.Axes,
            outputs: axis_rules.Axes) -> list[axis_rules.Axes]:
  """Return the axes that are multiplied to each axis of the canonical shape."""
  if evidence.role in axis_rules.TABLES:
    return [(), outputs]  # fan-in 1: one row at a time is looked up
  if not inputs:
    return [outputs]
  growing = [i for i in inputs if i in evidence.grows]
  if not growing:
    return [inputs, outputs]
  # Places are on the side of the growing inputs that is away from the outputs:
  # (height, width, inputs, outputs) or (outputs, inputs, height, width).
  places = tuple(i for i in inputs if (
      i > growing[-1] if evidence.is_out_in else i < growing[0]))
  dense = tuple(i for i in inputs if i not in places)
  return [*([places] if places else []), dense, outputs]
