"""Role, fan-in and fan-out of each parameter, from a network at two widths.

Nothing is stored on arrays. Where its shapes do not tell what a parameter is,
the parameters beside it do, or `infer` raises an error that says what to
declare. Names of parameters matter in three places only: in overrides, for
which parameters are in one module, and for `deeper_shapes`.

Limitation: a bias or gain of several axes that stands alone in its module looks
like a table of positions or like a kernel, and is treated as one, unless

* it has the axes of heads in a kernel elsewhere: then it is an error;
* `deeper_shapes` shows that all but one of its axes are stacks of layers;
* it is declared to be a "vector".
"""

import math
from typing import Any, Callable, Mapping, NamedTuple, TypeVar

import jax
import optax

from learned_opt import base as base_lib
from learned_opt.scaling import axis_rules
from learned_opt.scaling import beside
from learned_opt.scaling import fan
from learned_opt.scaling import overrides as overrides_lib
from learned_opt.scaling import residual_depth

Shape = base_lib.Shape
Override = overrides_lib.Override
T = TypeVar("T")
path_of = base_lib.path_of

# Arguments of `infer` that say what shapes do not say. Whatever takes
# base_shapes takes these arguments, too.
SETTINGS = ("delta_shapes", "deeper_shapes", "base_depth", "overrides",
            "layout", "readout")


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
      the base width do not depend on the answer, except for decay; fan-in and
      fan-out do.
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


def infer(params: Any, base_shapes: Any, *, delta_shapes: Any = None,
          deeper_shapes: Any = None, base_depth: int = 1,
          overrides: Mapping[str, str | Override] | None = None,
          layout: str = "in_out", readout: bool = True) -> dict[str, ParamInfo]:
  """Return {path: ParamInfo}: role, fan-in, fan-out and depth of parameters.

  Declare a bias or gain of several axes "vector" if it is alone in its module:
  otherwise it is treated as a table or matrix.

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
  if not overrides_lib.is_int(base_depth) or base_depth < 1:
    raise ValueError("base_depth must be a number of residual blocks, at least "
                     f"1, got {base_depth!r}.")
  shapes, bases = by_path(params), by_path(base_shapes)
  deltas = shapes if delta_shapes is None else by_path(delta_shapes)
  _check(shapes, bases, delta_shapes)
  _check_extra(params, shapes, bases)
  declared = overrides_lib.by_path(overrides or {}, bases)
  depths, layers = _blocks(bases, deeper_shapes, declared)
  trees = bases, deltas
  evidence_of = _evidence(
      shapes, trees, layout, _known_stacks(bases, declared, layers), declared)
  infos: dict[str, ParamInfo] = {}
  for path, shape in shapes.items():
    override = declared.get(path, Override())
    try:
      evidence = evidence_of(path)
      info = _param_info(evidence)
      if info.role == "output" and not evidence.pairs and (
          override._replace(depth=None) == Override()):
        _check_gain(path, trees)
    except ValueError as e:
      raise ValueError(f"Parameter {path}: {e}") from e
    depth = _depth(path, shape, override, depths, layers)
    infos[path] = info if depth is None else info._replace(
        depth=depth, base_depth=base_depth)
  if readout:
    _check_readout(infos)
  return infos


def stacks(base_shapes: Any, *, deeper_shapes: Any = None,
           overrides: Mapping[str, str | Override] | None = None
           ) -> dict[str, tuple[int, ...]]:
  """Return {path: axes of the stack} of parameters that hold several layers.

  Arguments are those of `infer`, and so are the errors.
  """
  bases = by_path(base_shapes)
  declared = overrides_lib.by_path(overrides or {}, bases)
  _, layers = _blocks(bases, deeper_shapes, declared)
  return _known_stacks(bases, declared, layers)


def _known_stacks(
    bases: dict[str, Shape], declared: dict[str, Override],
    layers: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
  """Return {path: axes of the stack}, declared or in deeper_shapes."""
  axes = layers | {path: x.stack for path, x in declared.items() if x.stack}
  return {path: axis_rules.from_front(x, len(bases[path]))
          for path, x in axes.items()}


def _blocks(bases: dict[str, Shape], deeper_shapes: Any,
            declared: dict[str, Override]
            ) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
  """Return what `residual_depth.find` returns, empty without deeper_shapes."""
  if deeper_shapes is None:
    return {}, {}
  return residual_depth.find(bases, by_path(deeper_shapes), {
      path for path, x in declared.items() if x.depth is not None})


def _evidence(
    shapes: dict[str, Shape], trees: tuple[dict[str, Shape], ...], layout: str,
    stacks: dict[str, tuple[int, ...]], declared: dict[str, Override]
    ) -> Callable[[str], axis_rules.Evidence]:
  """Return a function of a path: the evidence about this parameter.

  Args:
    shapes: of the network at hand.
    trees: shapes at the base width, and at the width to compare with it.
    layout: see `infer`.
    stacks: known stacks.
    declared: see `overrides.by_path`.
  """
  partners = beside.partners(trees, layout)

  def evidence(path: str) -> axis_rules.Evidence:
    role, inputs, outputs, *_ = declared.get(path, Override())
    if (role, inputs, outputs, layout) == (None, None, None, "in_out"):
      inputs = beside.inputs_of_heads(path, trees)
    kernel, bias = partners.get(path, (path, path))
    return axis_rules.Evidence(
        shapes[path], trees[0][path], trees[1].get(path, shapes[path]),
        path=path, stack=stacks.get(path, ()), layout=layout, role=role,
        inputs=inputs, outputs=outputs, is_bias=path == bias != kernel,
        pairs=beside.pairs_of(kernel, bias, trees) if kernel != bias else (),
        partner_stack=stacks.get(kernel if path == bias else bias, ()))

  return evidence


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
