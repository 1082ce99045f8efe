"""Networks around a layer, and short ways to state what parameters are."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from mulo import scaling

WIDTH, BASE = 16, 64
# Inputs and outputs of the layer in a network of a width.
POSITIONS = {"first": lambda width: (3, width),
             "middle": lambda width: (width, 2 * width),
             "last": lambda width: (width, 12)}
HEAD = 4  # size of a head; the number of heads grows
ROWS = 30  # of an embedding
RANK = 2  # of LoRA
KEY = jax.random.key(0)

Expected = dict[str, tuple[Any, ...]]


class Layer(NamedTuple):
  """One type of layer.

  Attributes:
    framework: module that has it.
    name: its name, and what is special about this use.
    make: `(inputs, outputs) -> shapes` of its parameters.
    expected: `(inputs, outputs) -> {path: (fan-in, fan-out)}`; fan-in is None
      for a vector. A third entry is the role where the user declares it.
    positions: of `POSITIONS`, where the layer makes sense.
    declare: overrides, {path: role or `Override`}, where shapes do not tell.
    otherwise: what `infer` does without `declare`: "error", or what the shapes
      look like.
  """

  framework: str
  name: str
  make: Callable[[int, int], Any]
  expected: Callable[[int, int], Expected]
  positions: tuple[str, ...] = tuple(POSITIONS)
  declare: dict[str, Any] = {}
  otherwise: str = ""

  @property
  def layout(self) -> str:
    return "out_in" if self.framework == "equinox" else "in_out"


def shape(*axes: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(axes, jnp.float32)


def network(layer: Layer, position: str, width: int) -> dict[str, Any]:
  """Shapes of a network with the layer at a position."""
  turn = -1 if layer.layout == "out_in" else 1
  dense = lambda *axes: {"w": shape(*axes[::turn]), "b": shape(axes[1])}
  inputs, outputs = POSITIONS[position](width)
  before = {} if position == "first" else {"before": dense(5, inputs)}
  after = {} if position == "last" else {"after": dense(outputs, 7)}
  return {**before, "layer": layer.make(inputs, outputs), **after}


def inferred(layer: Layer, position: str, declare: bool = True) -> Expected:
  """{path: (role, fan-in, fan-out)} at WIDTH."""
  overrides = {f"layer/{path}": x for path, x in layer.declare.items()}
  infos = scaling.infer(
      network(layer, position, WIDTH), network(layer, position, BASE),
      layout=layer.layout, overrides=overrides if declare else {},
      readout=False)
  return {path.removeprefix("layer/"): (x.role, x.fan_in, x.fan_out)
          for path, x in infos.items() if path.startswith("layer/")}


def stated(layer: Layer, position: str) -> Expected:
  """{path: (role, fan-in, fan-out)} at WIDTH, from what is stated by hand."""
  here, base = (layer.expected(*POSITIONS[position](width))
                for width in (WIDTH, BASE))
  result = {}
  for path, (inputs, outputs, *declared) in here.items():
    grows = tuple(n != m for n, m in zip((inputs, outputs), base[path]))
    role = {(True, True): "hidden", (False, True): "input",
            (True, False): "output", (False, False): "fixed"}[grows]
    role = declared[0] if declared else "vector" if inputs is None else role
    result[path] = (role, inputs or 1, outputs)
  return result


# How to make the shapes of a layer in each framework.

def linen(make, *example):
  """`make(inputs, outputs)` returns a module; examples have shapes."""
  def shapes(i, o):
    from flax import linen
    inputs = [shape(*x[:-1], i) for x in example or ((2, None),)]
    return jax.eval_shape(make(linen, i, o).init, KEY, *inputs)["params"]
  return shapes


def cell(make, *places):
  """A recurrent cell of flax.linen."""
  def shapes(i, o):
    from flax import linen
    module, x = make(linen, o), shape(2, *places, i)
    carry = jax.eval_shape(
        lambda: module.initialize_carry(KEY, x.shape))
    return jax.eval_shape(module.init, KEY, carry, x)["params"]
  return shapes


def nnx(make):
  """`make(library, inputs, outputs, rngs)` returns a module."""
  def shapes(i, o):
    from flax import nnx as lib
    return lib.state(lib.eval_shape(lambda: make(lib, i, o, lib.Rngs(0))),
                     (lib.Param, lib.LoRAParam))
  return shapes


def equinox(make):
  """`make(library, inputs, outputs, key)` returns a module."""
  def shapes(i, o):
    import equinox as lib
    return lib.filter_eval_shape(lambda: make(lib.nn, i, o, KEY))
  return shapes


def haiku(make, *before):
  """A layer of haiku; `before` are the axes of its input before the last."""
  def shapes(i, o):
    import haiku
    fn = haiku.transform_with_state(lambda x: make(haiku, i, o, x))
    params, _ = jax.eval_shape(fn.init, KEY, shape(*(before or (2,)), i))
    names = {name.split("/")[0] for name in params}
    assert len(names) == 1
    # Paths begin below the layer's own name.
    return {name.partition("/")[2] or ".": x for name, x in params.items()}
  return shapes


# What parameters are, by hand.

VECTOR = None
MIDDLE = ("middle",)
NOT_LAST = ("first", "middle")


def matrix(kernel="kernel", bias="bias", places=1):
  """A kernel and its bias: each output is a sum over places and inputs."""
  return lambda i, o: {kernel: (places * i, o), bias: (VECTOR, o)}


def vectors(*names):
  """Gains and biases, one entry for each input."""
  return lambda i, o: {name: (VECTOR, i) for name in names}


def gates(inputs, hidden, biases, n=1):
  """Kernels of a cell by name: from inputs, from its state; biases."""
  return lambda i, o: {
      **{f"{x}/kernel": (i, n * o) for x in inputs},
      **{f"{x}/kernel": (o, n * o) for x in hidden},
      **{f"{x}/bias": (VECTOR, n * o) for x in biases}}


def attention(i, o, bias="bias"):
  """Flax's attention: heads are the outputs of q, k, v and inputs of out."""
  del i
  return {**{f"{x}/kernel": (o, o) for x in ("query", "key", "value", "out")},
          **({f"{x}/bias": (VECTOR, o) for x in (
              "query", "key", "value", "out")} if bias else {})}


def heads(i, o):
  """Number and size of heads that have `o` entries together."""
  del i
  return o // HEAD, HEAD


LIN, NNX = "flax.linen", "flax.nnx"
IMAGE, IMAGES = (2, 8, 8, None), (2, 8, 8)
TEXT, VOLUME = (2, 6, None), (2, 6, 6, 6, None)
ROLE_OF_GAIN = {"*": "vector"}
CONV_LOOK = "a convolution (places, inputs, outputs)"
