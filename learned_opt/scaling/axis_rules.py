"""Decide which axes of a parameter are inputs and which are outputs.

The decision is the table AXIS_RULES: the first rule that applies decides. Where
shapes leave the decision open, a rule raises ValueError and asks the user to
declare the axes.

Inputs are the axes that are summed over where the parameter is used. Outputs
are the axes of the result. Places are the spatial axes of a convolution; they
count as inputs. A stack is an axis of layers, experts or copies.
"""

import dataclasses
import functools
from typing import Callable, NamedTuple, TypeAlias

from learned_opt import base
from learned_opt.scaling import beside
from learned_opt.scaling import fan

Axes: TypeAlias = tuple[int, ...]

LAYOUTS = ("in_out", "out_in")
TABLES = ("embedding", "tied")  # roles of parameters whose rows are looked up
ROLES = ("input", "hidden", "output", "vector", "fixed", *TABLES)
HOW = ("Declare it: overrides={%r: scaling.Override(inputs=(...), "
       "outputs=(...))}, its axes, or one of the roles " + ", ".join(ROLES) +
       ".")


def from_front(axes: Axes | None, rank: int) -> Axes:
  """Return the axes counted from the front: -1 becomes rank - 1."""
  return tuple(i % rank for i in axes or ())


@dataclasses.dataclass(frozen=True)
class Evidence:
  """Everything that the decision about one parameter depends on.

  Attributes:
    shape: shape in the network at hand.
    base_shape: shape at the base width.
    delta_shape: shape at a width other than the base width: axes in which it
      differs from `base_shape` grow. None for `shape`.
    path: path of the parameter, for error messages.
    stack: axes that are a stack; nothing is decided about these axes.
    layout: one of LAYOUTS.
    role: role that the user declared, one of ROLES, or None.
    inputs: inputs that the user declared, or None.
    outputs: outputs that the user declared, or None.
    pairs: (shape of the kernel, shape of the bias) at several widths, if this
      parameter is one of them, see `beside.partners`; otherwise empty.
    is_bias: whether this parameter is the bias of the pairs.
    partner_stack: axes of the other parameter of the pairs that are a stack.
  """

  shape: base.Shape
  base_shape: base.Shape
  delta_shape: base.Shape | None = None
  path: str = ""
  stack: Axes = ()
  layout: str = "in_out"
  role: str | None = None
  inputs: Axes | None = None
  outputs: Axes | None = None
  pairs: tuple[beside.Pair, ...] = ()
  is_bias: bool = False
  partner_stack: Axes = ()

  @property
  def delta(self) -> base.Shape:
    """Shape that is compared with `base_shape`."""
    return self.shape if self.delta_shape is None else self.delta_shape

  @functools.cached_property
  def _stacks(self) -> tuple[Axes, Axes]:
    """Known stacks of the kernel and of the bias."""
    stack = from_front(self.stack, len(self.shape))
    return ((self.partner_stack, stack) if self.is_bias else
            (stack, self.partner_stack))

  @functools.cached_property
  def reading(self) -> beside.Reading | None:
    """Facts that the kernel and its bias show about each other."""
    return beside.read(self.pairs, self.layout, self._stacks)

  @functools.cached_property
  def whole_stack(self) -> Axes:
    """Axes that are a stack, as declared or as the bias shows."""
    stack = from_front(self.stack, len(self.shape))
    if self.role == "vector" or (self.inputs, self.outputs) != (None, None):
      return stack
    if self.reading is None:
      return stack
    return tuple(sorted({*stack, *(
        self.reading.bias_stack if self.is_bias else self.reading.stack)}))

  @functools.cached_property
  def axes(self) -> Axes:
    """Axes to decide about: all but the stack."""
    return tuple(i for i in range(len(self.shape)) if i not in self.whole_stack)

  @functools.cached_property
  def grows(self) -> Axes:
    """Axes to decide about that grow."""
    return tuple(i for i in fan.growing_axes(self.delta, self.base_shape)
                 if i in self.axes)

  @property
  def is_out_in(self) -> bool:
    """True if kernels have their outputs first."""
    return self.layout == "out_in"

  @property
  def other_layout(self) -> str:
    """The layout that was not chosen."""
    return LAYOUTS[1 - LAYOUTS.index(self.layout)]

  @property
  def bias_fits_inputs(self) -> bool:
    """True if the bias has the size of the axis that the layout calls inputs.
    """
    return beside.shows_other_layout(self.pairs, self.layout, self._stacks)

  @property
  def is_twin(self) -> bool:
    """True if the module has exactly two parameters, of one shape."""
    return self.pairs != () and all(
        x == y for x, y in self.pairs if None not in (x, y))

  @property
  def is_flat(self) -> bool:
    """True if all axes but the one that grows have size 1."""
    return len(self.grows) == 1 and all(
        self.shape[i] == 1 for i in self.axes if i not in self.grows)


Split: TypeAlias = tuple[Axes, Axes]  # (inputs, outputs)


# Results of rules. Each function takes the evidence and returns a split, or
# raises ValueError.

def _all_outputs(e: Evidence) -> Split:
  return (), e.axes


def _first_is_output(e: Evidence) -> Split:
  return e.axes[1:], e.axes[:1]


def _last_is_output(e: Evidence) -> Split:
  return e.axes[:-1], e.axes[-1:]


def _by_layout(e: Evidence) -> Split:
  return _first_is_output(e) if e.is_out_in else _last_is_output(e)


def _second_growing_is_output(e: Evidence) -> Split:
  second = e.grows[1]
  return (tuple(i for i in e.axes if i < second),
          tuple(i for i in e.axes if i >= second))


def _bias_tells(e: Evidence) -> Split:
  assert e.reading is not None
  return e.reading.inputs, e.reading.outputs


def _declared(e: Evidence) -> Split:
  """Return the declared axes; if only one side is declared, complete it."""
  inputs = from_front(e.inputs, len(e.shape))
  outputs = from_front(e.outputs, len(e.shape))
  if e.inputs is None:
    inputs = tuple(i for i in e.axes if i not in outputs)
  if e.outputs is None:
    outputs = tuple(i for i in e.axes if i not in inputs)
  if sorted(inputs + outputs) != list(e.axes):
    raise ValueError(
        f"inputs {inputs} and outputs {outputs} must be all axes "
        f"of {e.shape} that are not in the stack, {e.axes}, each once.")
  return inputs, outputs


def _rows_grow(e: Evidence) -> Split:
  raise ValueError(f"Declared {e.role}, but axis {min(e.grows)} of "
                   f"{e.shape} grows, which is not its last.")


def _wrong_layout(e: Evidence) -> Split:
  kernel, bias = e.pairs[0]
  raise ValueError(
      f"beside the kernel {kernel} there is a bias {bias}, the "
      f"size of its inputs under the layout {e.layout!r}. If kernels are "
      f"stored the other way round, say layout={e.other_layout!r}; if not, "
      f"declare its axes: overrides={{{e.path!r}: scaling.Override(inputs="
      "(...), outputs=(...))}.")


def _table_or_readout(e: Evidence) -> Split:
  raise ValueError(
      f"shape {e.shape} (base {e.base_shape}) may be an embedding or a readout "
      "without a bias. " + HOW % e.path)


def _norm_or_kernels(e: Evidence) -> Split:
  raise ValueError(
      f"another parameter beside it has the same shape {e.shape} (base "
      f"{e.base_shape}): gain and offset of a norm, or two kernels. " +
      HOW % e.path)


def _unknown(e: Evidence) -> Split:
  raise ValueError(
      f"shape {e.shape} (base {e.base_shape}) does not tell inputs from "
      f"outputs: {'no axis' if not e.grows else f'of its axes {e.grows}'} "
      f"{'grow' if len(e.grows) > 1 else 'grows'}. " + HOW % e.path)


class AxisRule(NamedTuple):
  """One rule of the table.

  Attributes:
    applies: condition.
    split: result: returns inputs and outputs, or raises ValueError.
    network: the example in words: the parameter in a real network.
    example: a parameter for which this rule is the first that applies.
    expected: (inputs, outputs) of the example, or a regular expression that
      its error message matches.
    reason: reason for the result, or for leaving it open.
    open: question that shapes leave open, "" for none. Multipliers relative to
      the base width do not depend on the answer, except for decay; fan-in and
      fan-out do.
  """

  applies: Callable[[Evidence], bool]
  split: Callable[[Evidence], Split]
  network: str
  example: Evidence
  expected: Split | str
  reason: str
  open: str = ""


# Shapes of (kernel, bias) for the examples, at two widths.
_QUERIES = ((16, 4, 4), (4, 4)), ((64, 16, 4), (16, 4))
_LINEAR = ((16, 5), (16,)), ((64, 5), (64,))


def _twins(*first: int) -> tuple[beside.Pair, ...]:
  """Return two parameters of one shape, whose last axis grows."""
  return tuple(((*first, n), (*first, n)) for n in (16, 64))


# Condition, result, example, expected result, reason. The first rule decides.
AXIS_RULES = (
    # 1. The user has declared what the parameter is.
    AxisRule(lambda e: e.role == "vector", _all_outputs,
             "gain of every head", Evidence((16, 4), (4, 4), role="vector"),
             ((), (0, 1)), "Looks like a matrix; only the user knows."),
    AxisRule(lambda e: e.role in TABLES and e.grows in ((), e.axes[-1:]),
             _last_is_output, "embedding (vocabulary, width)",
             Evidence((50, 64), (50, 16), role="embedding"), ((0,), (1,)),
             "A row is looked up; its entries are the outputs."),
    AxisRule(lambda e: e.role in TABLES, _rows_grow,
             "transposed embedding (width, vocabulary)",
             Evidence((64, 50), (16, 50), role="embedding"),
             "which is not its last", "A table has the axes (rows, width)."),
    AxisRule(lambda e: (e.inputs, e.outputs) != (None, None), _declared,
             "keys (width, heads, head size), head size grows",
             Evidence((64, 4, 8), (16, 4, 2), inputs=(0,)), ((0,), (1, 2)),
             "From shapes alone, heads could be inputs as well."),
    # 2. The number of axes tells, or the bias in the same module.
    AxisRule(lambda e: len(e.axes) <= 1, _all_outputs,
             "bias of a dense layer", Evidence((64,), (16,)), ((), (0,)),
             "Biases, gains and scalars have no axis to sum over."),
    AxisRule(lambda e: e.bias_fits_inputs, _wrong_layout,
             "equinox Linear (outputs, inputs), layout left at in_out",
             Evidence((64, 5), (16, 5), pairs=_LINEAR), "layout='out_in'",
             "The bias has the size of the inputs."),
    AxisRule(lambda e: e.reading is not None and e.is_bias, _all_outputs,
             "bias of queries (heads, head size)",
             Evidence((16, 4), (4, 4), pairs=_QUERIES, is_bias=True),
             ((), (0, 1)), "It is added to the outputs of its kernel."),
    AxisRule(lambda e: e.reading is not None, _bias_tells,
             "queries (width, heads, head size) with a bias",
             Evidence((64, 16, 4), (16, 4, 4), pairs=_QUERIES), ((0,), (1, 2)),
             "The bias has the shape of the outputs, after that of a stack."),
    AxisRule(lambda e: e.is_twin and e.is_flat, _all_outputs,
             "scale of haiku's BatchNorm (1, 1, 1, width), beside its offset",
             Evidence((1, 1, 1, 64), (1, 1, 1, 16), pairs=_twins(1, 1, 1)),
             ((), (0, 1, 2, 3)), "No layer has two kernels of one input."),
    AxisRule(lambda e: e.is_twin and len(e.grows) == 1 and e.grows != (
                 e.axes[:1] if e.is_out_in else e.axes[-1:]), _norm_or_kernels,
             "gain of heads (heads, head size) beside its offset",
             Evidence((16, 4), (4, 4), pairs=(((4, 4),) * 2, ((16, 4),) * 2)),
             "gain and offset of a norm, or two kernels",
             "Two readouts of one module have the same shape."),
    AxisRule(lambda e: e.is_twin and len(e.grows) == 1,
             _by_layout,
             "scale of a LayerNorm over all axes (height, width, channels)",
             Evidence((8, 8, 64), (8, 8, 16), pairs=_twins(8, 8)),
             ((0, 1), (2,)), "Two tables of positions have the same shape.",
             open="whether it is a gain or offset, a \"vector\""),
    # 3. The axes that grow tell.
    AxisRule(lambda e: len(e.grows) > 2, _unknown,
             "queries, number and size of heads grow",
             Evidence((64, 8, 8), (16, 4, 4)), r"axes \(0, 1, 2\) grow",
             "Heads may be inputs or outputs."),
    # 3a. Layout (outputs, inputs, places), as in equinox.
    AxisRule(lambda e: e.is_out_in and max(e.grows, default=0) > e.axes[1],
             _unknown, "flax keys (width, heads, head size), head size grows",
             Evidence((64, 4, 8), (16, 4, 2), layout="out_in"),
             r"axes \(0, 2\) grow", "Places of a convolution do not grow."),
    AxisRule(lambda e: e.is_out_in and e.role is None and (
                 len(e.axes) == 2 and e.grows == e.axes[1:]),
             _table_or_readout, "readout (classes, width) without a bias",
             Evidence((10, 64), (10, 16), layout="out_in"), "an embedding or a",
             "An embedding (vocabulary, width) has the same shape."),
    AxisRule(lambda e: e.is_out_in, _first_is_output,
             "convolution (outputs, inputs, height, width)",
             Evidence((64, 16, 3, 3), (16, 4, 3, 3), layout="out_in"),
             ((1, 2, 3), (0,)), "The layout has outputs first."),
    # 3b. Layout (places, inputs, outputs), as in flax and haiku.
    AxisRule(lambda e: len(e.axes) == 2, _last_is_output,
             "dense kernel (inputs, outputs)", Evidence((64, 256), (16, 64)),
             ((0,), (1,)), "The layout has outputs last."),
    AxisRule(lambda e: not e.grows, _last_is_output,
             "filters of fixed size (height, width, colours, filters)",
             Evidence((3, 3, 3, 8), (3, 3, 3, 8)), ((0, 1, 2), (3,)),
             "The layout has outputs last; nothing here depends on width."),
    AxisRule(lambda e: len(e.axes) == 3 and e.grows == e.axes[-1:],
             _last_is_output, "1-D stem (place, channels, outputs)",
             Evidence((5, 3, 64), (5, 3, 16)), ((0, 1), (2,)),
             "Queries (channels, heads, head size) look alike if heads grow.",
             open="which axes are outputs"),
    AxisRule(lambda e: len(e.axes) >= 4 and (
                 e.grows in (e.axes[-1:], e.axes[-2:-1])), _last_is_output,
             "2-D stem (height, width, channels, outputs)",
             Evidence((3, 3, 3, 64), (3, 3, 3, 16)), ((0, 1, 2), (3,)),
             "Kernels of four axes or more are convolutions."),
    AxisRule(lambda e: e.grows == e.axes[:1], _last_is_output,
             "readout (heads, head size, classes)",
             Evidence((16, 4, 10), (4, 4, 10)), ((0, 1), (2,)),
             "A readout (width, places, classes) has the same shape.",
             open="which axes are inputs"),
    AxisRule(lambda e: len(e.grows) == 1, _unknown,
             "queries of a first layer (channels, heads, head size)",
             Evidence((3, 16, 4), (3, 4, 4)), r"axes \(1,\) grows",
             "A 1-D readout (place, width, classes) has the same shape."),
    # 3c. Exactly two axes grow: one axis of the inputs and one of the outputs.
    AxisRule(lambda e: e.axes.index(e.grows[1]) - e.axes.index(e.grows[0]) > 1,
             _second_growing_is_output,
             "attention outputs (heads, head size, width)",
             Evidence((16, 4, 64), (4, 4, 16)), ((0, 1), (2,)),
             "Keys (width, heads, head size), head size grows, look alike.",
             open="which side axes between belong to"),
    AxisRule(lambda e: e.axes.index(e.grows[0]) == 1, _second_growing_is_output,
             "1-D convolution (place, inputs, outputs)",
             Evidence((5, 64, 128), (5, 16, 32)), ((0, 1), (2,)),
             "Dense kernels stacked over layers have the same shape.",
             open="whether its first axis is places or a stack"),
    AxisRule(lambda e: True, _second_growing_is_output,
             "2-D convolution (height, width, inputs, outputs)",
             Evidence((3, 3, 64, 128), (3, 3, 16, 32)), ((0, 1, 2), (3,)),
             "Outputs begin at the second axis that grows."))


def find(evidence: Evidence) -> AxisRule:
  """Return the first rule of AXIS_RULES that applies."""
  return next(x for x in AXIS_RULES if x.applies(evidence))
