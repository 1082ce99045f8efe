"""Every type of layer with parameters, and what its parameters are.

A layer stands first, in the middle or last in a small network: between a matrix
that leads to its inputs and one that leads from its outputs. `expected` is
stated by hand. `python -m tests.layer_types` prints docs/layer_types.md.
"""

import argparse
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from learned_opt.scaling import roles
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

LINEN = [
    (LIN, "Dense", linen(lambda nn, i, o: nn.Dense(o)), matrix()),
    (LIN, "DenseGeneral to heads", linen(
        lambda nn, i, o: nn.DenseGeneral(heads(i, o))), matrix(), NOT_LAST),
    (LIN, "DenseGeneral to heads, without bias", linen(
        lambda nn, i, o: nn.DenseGeneral(heads(i, o), use_bias=False)),
     lambda i, o: {"kernel": (i, o)}, MIDDLE),
    (LIN, "DenseGeneral to heads, without bias", linen(
        lambda nn, i, o: nn.DenseGeneral(heads(i, o), use_bias=False)),
     lambda i, o: {"kernel": (i, o)}, ("first",),
     {"kernel": scaling.Override(inputs=(0,))}, "error"),
    (LIN, "DenseGeneral with a batch axis", linen(
        lambda nn, i, o: nn.DenseGeneral(o, batch_dims=(0,))), matrix()),
    (LIN, "DenseGeneral with a batch axis, without bias", linen(
        lambda nn, i, o: nn.DenseGeneral(o, batch_dims=(0,), use_bias=False)),
     lambda i, o: {"kernel": (i, o)}, NOT_LAST,
     {"kernel": scaling.Override(stack=(0,))}, CONV_LOOK),
    (LIN, "Einsum to heads first", linen(
        lambda nn, i, o: nn.Einsum(
            (o // HEAD, i, HEAD), "bta,hac->bthc"), TEXT), matrix(), NOT_LAST),
    *[(LIN, f"Conv, {n}-D", linen(
        lambda nn, i, o, n=n: nn.Conv(o, (3,) * n), (2, *(6,) * n, None)),
       matrix(places=3**n)) for n in (1, 2, 3)],
    (LIN, "Conv, without bias", linen(
        lambda nn, i, o: nn.Conv(o, (3, 3), use_bias=False), IMAGE),
     lambda i, o: {"kernel": (9 * i, o)}),
    (LIN, "Conv, 1-D, without bias", linen(
        lambda nn, i, o: nn.Conv(o, (3,), use_bias=False), TEXT),
     lambda i, o: {"kernel": (3 * i, o)}, NOT_LAST),
    (LIN, "Conv, depthwise", linen(
        lambda nn, i, o: nn.Conv(o, (3, 3), feature_group_count=i), IMAGE),
     lambda i, o: {"kernel": (9, o), "bias": (VECTOR, o)}, MIDDLE),
    (LIN, "Conv, 4 groups", linen(
        lambda nn, i, o: nn.Conv(o, (3, 3), feature_group_count=4), IMAGE),
     lambda i, o: {"kernel": (9 * i // 4, o), "bias": (VECTOR, o)},
     ("middle", "last")),
    (LIN, "Conv, groups of 4", linen(
        lambda nn, i, o: nn.Conv(o, (3, 3), feature_group_count=i // 4), IMAGE),
     lambda i, o: {"kernel": (36, o), "bias": (VECTOR, o)}, MIDDLE),
    (LIN, "ConvTranspose", linen(
        lambda nn, i, o: nn.ConvTranspose(o, (3, 3)), IMAGE), matrix(places=9)),
    (LIN, "ConvTranspose, transpose_kernel", linen(
        lambda nn, i, o: nn.ConvTranspose(o, (3, 3), transpose_kernel=True),
        IMAGE), matrix(places=9)),
    (LIN, "ConvTranspose, transpose_kernel, without bias", linen(
        lambda nn, i, o: nn.ConvTranspose(
            o, (3, 3), transpose_kernel=True, use_bias=False), IMAGE),
     lambda i, o: {"kernel": (9 * i, o)}, tuple(POSITIONS),
     {"kernel": scaling.Override(outputs=(2,))}, CONV_LOOK),
    (LIN, "ConvLocal", linen(
        lambda nn, i, o: nn.ConvLocal(o, (3, 3)), IMAGE), matrix(places=9)),
    (LIN, "ConvLocal, 1-D", linen(
        lambda nn, i, o: nn.ConvLocal(o, (3,)), TEXT), matrix(places=3)),
    (LIN, "ConvLocal, without bias", linen(
        lambda nn, i, o: nn.ConvLocal(o, (3, 3), use_bias=False), IMAGE),
     lambda i, o: {"kernel": (9 * i, o)}, tuple(POSITIONS),
     {"kernel": scaling.Override(stack=(0, 1))}, CONV_LOOK),
    (LIN, "Dense, stacked by vmap", linen(
        lambda nn, i, o: nn.vmap(
            nn.Dense, {"params": 0}, {"params": True}, in_axes=None,
            axis_size=5)(o)), matrix()),
    (LIN, "DenseGeneral to heads, stacked by vmap", linen(
        lambda nn, i, o: nn.vmap(
            nn.DenseGeneral, {"params": 0}, {"params": True}, in_axes=None,
            axis_size=5)(heads(i, o))), matrix(), NOT_LAST),
    (LIN, "Embed", lambda i, o: {"embedding": shape(ROWS, o)},
     lambda i, o: {"embedding": (ROWS, o)}, ("first",)),
    *[(LIN, name, linen(lambda nn, i, o, name=name: getattr(nn, name)(), IMAGE),
       vectors("scale", "bias")) for name in ("LayerNorm", "InstanceNorm")],
    (LIN, "RMSNorm", linen(lambda nn, i, o: nn.RMSNorm()), vectors("scale")),
    (LIN, "GroupNorm", linen(
        lambda nn, i, o: nn.GroupNorm(None, 1), IMAGE),
     vectors("scale", "bias")),
    (LIN, "BatchNorm", linen(lambda nn, i, o: nn.BatchNorm(False), IMAGE),
     vectors("scale", "bias")),
    (LIN, "LayerNorm over heads and their entries",
     lambda i, o: {x: shape(*heads(i, o)) for x in ("scale", "bias")},
     lambda i, o: {x: (VECTOR, o, "vector") for x in ("scale", "bias")},
     MIDDLE, ROLE_OF_GAIN, "error"),
    (LIN, "RMSNorm over heads and their entries, beside queries",
     lambda i, o: {"norm": {"scale": shape(*heads(i, o))},
                   "query": {"kernel": shape(i, *heads(i, o))}},
     lambda i, o: {"norm/scale": (VECTOR, o, "vector"),
                   "query/kernel": (i, o)},
     MIDDLE, {"norm/scale": "vector"}, "error"),
    (LIN, "WeightNorm of Dense", linen(
        lambda nn, i, o: nn.WeightNorm(nn.Dense(o))),
     lambda i, o: {"layer_instance/kernel": (i, o),
                   "layer_instance/bias": (VECTOR, o),
                   "layer_instance/kernel/scale": (VECTOR, o)}),
    (LIN, "SpectralNorm of Conv",
     lambda i, o: {"layer_instance": linen(
         lambda nn, i, o: nn.Conv(o, (3, 3)), IMAGE)(i, o)},
     matrix("layer_instance/kernel", "layer_instance/bias", 9)),
    (LIN, "MultiHeadDotProductAttention", linen(
        lambda nn, i, o: nn.MultiHeadDotProductAttention(
            o // HEAD, qkv_features=o, out_features=o), TEXT),
     lambda i, o: attention(i, o) | {
         f"{x}/kernel": (i, o) for x in ("query", "key", "value")}, NOT_LAST),
    (LIN, "MultiHeadDotProductAttention, normalize_qk, without biases", linen(
        lambda nn, i, o: nn.MultiHeadDotProductAttention(
            i // HEAD, use_bias=False, normalize_qk=True), TEXT),
     lambda i, o: attention(o, i, "") | {
         f"{x}_ln/scale": (VECTOR, HEAD) for x in ("query", "key")}, MIDDLE),
    (LIN, "PReLU", linen(lambda nn, i, o: nn.PReLU()),
     lambda i, o: {"negative_slope": (VECTOR, 1)}),
    *[(LIN, name, cell(lambda nn, o, name=name: getattr(nn, name)(o)),
       gates(["ii", "if", "ig", "io"], ["hi", "hf", "hg", "ho"],
             ["hi", "hf", "hg", "ho"]), NOT_LAST)
      for name in ("LSTMCell", "OptimizedLSTMCell")],
    (LIN, "GRUCell", cell(lambda nn, o: nn.GRUCell(o)),
     gates(["ir", "iz", "in"], ["hr", "hz", "hn"], ["ir", "iz", "in", "hn"]),
     NOT_LAST),
    (LIN, "MGUCell", cell(lambda nn, o: nn.MGUCell(o)),
     gates(["if", "in"], ["hf", "hn"], ["if", "in", "hn"]), NOT_LAST),
    (LIN, "SimpleCell", cell(lambda nn, o: nn.SimpleCell(o)),
     gates(["i"], ["h"], ["i"]), NOT_LAST),
    (LIN, "ConvLSTMCell", cell(lambda nn, o: nn.ConvLSTMCell(o, (3, 3)), 8, 8),
     lambda i, o: {"ih/kernel": (9 * i, 4 * o), "ih/bias": (VECTOR, 4 * o),
                   "hh/kernel": (9 * o, 4 * o), "hh/bias": (VECTOR, 4 * o)},
     NOT_LAST)]

NNX_LAYERS = [
    (NNX, "Linear", nnx(lambda nn, i, o, r: nn.Linear(i, o, rngs=r)), matrix()),
    (NNX, "LinearGeneral to heads", nnx(
        lambda nn, i, o, r: nn.LinearGeneral(i, heads(i, o), rngs=r)), matrix(),
     NOT_LAST),
    (NNX, "LinearGeneral to heads with a batch axis", nnx(
        lambda nn, i, o, r: nn.LinearGeneral(
            i, heads(i, o), batch_axis={0: 5}, rngs=r)), matrix(), NOT_LAST),
    (NNX, "LinearGeneral from heads, without bias", nnx(
        lambda nn, i, o, r: nn.LinearGeneral(
            heads(o, i), o, axis=(-2, -1), use_bias=False, rngs=r)),
     lambda i, o: {"kernel": (i, o)}, ("middle", "last")),
    (NNX, "Einsum to heads first, its bias with an axis of 1", nnx(
        lambda nn, i, o, r: nn.Einsum(
            "nta,hac->nhtc", (o // HEAD, i, HEAD), (o // HEAD, 1, HEAD),
            rngs=r)), matrix(), NOT_LAST),
    (NNX, "Einsum to heads first and from heads, without biases", nnx(
        lambda nn, i, o, r: nn.Dict(
            q=nn.Einsum("bta,hac->bthc", (i // HEAD, i, HEAD), rngs=r),
            out=nn.Einsum("bthc,hca->bta", (i // HEAD, HEAD, i), rngs=r))),
     lambda i, o: {"q/kernel": (i, i), "out/kernel": (i, i)}, MIDDLE),
    (NNX, "Einsum, keys of 2 heads and the outputs of heads, without biases",
     nnx(lambda nn, i, o, r: nn.Dict(
         k=nn.Einsum("bta,hac->bthc", (2, i, HEAD), rngs=r),
         out=nn.Einsum("bthc,hca->bta", (i // HEAD, HEAD, i), rngs=r))),
     lambda i, o: {"k/kernel": (i, 2 * HEAD), "out/kernel": (i, i)}, MIDDLE),
    (NNX, "LinearGeneral, keys of 2 heads and the outputs of heads, without "
     "biases", nnx(lambda nn, i, o, r: nn.Dict(
         k=nn.LinearGeneral(i, (2, HEAD), use_bias=False, rngs=r),
         out=nn.LinearGeneral((i // HEAD, HEAD), i, axis=(-2, -1),
                              use_bias=False, rngs=r))),
     lambda i, o: {"k/kernel": (i, 2 * HEAD), "out/kernel": (i, i)}, MIDDLE),
    (NNX, "Conv", nnx(
        lambda nn, i, o, r: nn.Conv(i, o, (3, 3), rngs=r)), matrix(places=9)),
    (NNX, "Conv, depthwise, 1-D, without bias", nnx(
        lambda nn, i, o, r: nn.Conv(
            i, o, (5,), feature_group_count=i, use_bias=False, rngs=r)),
     lambda i, o: {"kernel": (5, o)}, MIDDLE),
    (NNX, "ConvTranspose", nnx(
        lambda nn, i, o, r: nn.ConvTranspose(i, o, (3, 3), rngs=r)),
     matrix(places=9)),
    (NNX, "ConvTranspose, 1-D, transpose_kernel", nnx(
        lambda nn, i, o, r: nn.ConvTranspose(
            i, o, (5,), transpose_kernel=True, rngs=r)), matrix(places=5)),
    (NNX, "Embed", nnx(lambda nn, i, o, r: nn.Embed(ROWS, o, rngs=r)),
     lambda i, o: {"embedding": (ROWS, o)}, ("first",)),
    *[(NNX, name, nnx(lambda nn, i, o, r, name=name: getattr(nn, name)(
        i, rngs=r)), vectors("scale", "bias"))
      for name in ("LayerNorm", "BatchNorm", "InstanceNorm")],
    (NNX, "GroupNorm", nnx(
        lambda nn, i, o, r: nn.GroupNorm(i, None, group_size=1, rngs=r)),
     vectors("scale", "bias")),
    (NNX, "RMSNorm", nnx(lambda nn, i, o, r: nn.RMSNorm(i, rngs=r)),
     vectors("scale")),
    (NNX, "WeightNorm of Linear", nnx(
        lambda nn, i, o, r: nn.WeightNorm(nn.Linear(i, o, rngs=r), rngs=r)),
     matrix("layer_instance/kernel", "layer_instance/bias")),
    (NNX, "SpectralNorm of Linear", nnx(
        lambda nn, i, o, r: nn.SpectralNorm(nn.Linear(i, o, rngs=r), rngs=r)),
     matrix("layer_instance/kernel", "layer_instance/bias")),
    (NNX, "MultiHeadAttention", nnx(
        lambda nn, i, o, r: nn.MultiHeadAttention(
            i // HEAD, i, normalize_qk=True, rngs=r)),
     lambda i, o: attention(o, i) | {
         f"{x}_ln/scale": (VECTOR, HEAD) for x in ("query", "key")}, MIDDLE),
    (NNX, "MultiHeadAttention, keys of fixed size", nnx(
        lambda nn, i, o, r: nn.MultiHeadAttention(
            i // HEAD, i, in_kv_features=6, rngs=r)),
     lambda i, o: attention(o, i) | {
         f"{x}/kernel": (6, i) for x in ("key", "value")}, MIDDLE),
    (NNX, "PReLU", nnx(lambda nn, i, o, r: nn.PReLU()),
     lambda i, o: {"negative_slope": (VECTOR, 1)}),
    (NNX, "LSTMCell", nnx(lambda nn, i, o, r: nn.LSTMCell(i, o, rngs=r)),
     gates(["ii", "if_", "ig", "io"], ["hi", "hf", "hg", "ho"],
           ["hi", "hf", "hg", "ho"]), NOT_LAST),
    (NNX, "OptimizedLSTMCell", nnx(
        lambda nn, i, o, r: nn.OptimizedLSTMCell(i, o, rngs=r)),
     gates(["dense_i"], ["dense_h"], ["dense_h"], 4), NOT_LAST),
    (NNX, "GRUCell", nnx(lambda nn, i, o, r: nn.GRUCell(i, o, rngs=r)),
     gates(["dense_i"], ["dense_h"], ["dense_i"], 3), NOT_LAST),
    (NNX, "SimpleCell", nnx(lambda nn, i, o, r: nn.SimpleCell(i, o, rngs=r)),
     gates(["dense_i"], ["dense_h"], ["dense_i"]), NOT_LAST),
    (NNX, "LoRA", nnx(lambda nn, i, o, r: nn.LoRA(i, RANK, o, rngs=r)),
     lambda i, o: {"lora_a": (i, RANK), "lora_b": (RANK, o)}),
    (NNX, "LoRALinear", nnx(
        lambda nn, i, o, r: nn.LoRALinear(i, o, lora_rank=RANK, rngs=r)),
     lambda i, o: matrix()(i, o) | {
         "lora/lora_a": (i, RANK), "lora/lora_b": (RANK, o)})]

EQX = "equinox"
WEIGHT = matrix("weight")
EQUINOX = [
    (EQX, "Linear", equinox(lambda nn, i, o, k: nn.Linear(i, o, key=k)),
     WEIGHT),
    (EQX, "Linear, without bias", equinox(
        lambda nn, i, o, k: nn.Linear(i, o, use_bias=False, key=k)),
     lambda i, o: {"weight": (i, o)}, NOT_LAST),
    (EQX, "Linear, without bias", equinox(
        lambda nn, i, o, k: nn.Linear(i, o, use_bias=False, key=k)),
     lambda i, o: {"weight": (i, o, "output")}, ("last",),
     {"weight": "output"}, "error"),
    (EQX, "Linear of a scalar", equinox(
        lambda nn, i, o, k: nn.Linear("scalar", o, key=k)),
     lambda i, o: {"weight": (1, o), "bias": (VECTOR, o)}, ("first",)),
    (EQX, "Linear, stacked by vmap",
     lambda i, o: {"weight": shape(5, o, i), "bias": shape(5, o)}, WEIGHT),
    *[(EQX, f"Conv{n}d", equinox(
        lambda nn, i, o, k, n=n: getattr(nn, f"Conv{n}d")(i, o, 3, key=k)),
       matrix("weight", places=3**n)) for n in (1, 2, 3)],
    *[(EQX, f"ConvTranspose{n}d", equinox(
        lambda nn, i, o, k, n=n: getattr(nn, f"ConvTranspose{n}d")(
            i, o, 3, key=k)), matrix("weight", places=3**n))
      for n in (1, 2, 3)],
    (EQX, "Conv2d, without bias", equinox(
        lambda nn, i, o, k: nn.Conv2d(i, o, 3, use_bias=False, key=k)),
     lambda i, o: {"weight": (9 * i, o)}),
    (EQX, "Conv2d, depthwise", equinox(
        lambda nn, i, o, k: nn.Conv2d(i, o, 3, groups=i, key=k)),
     lambda i, o: {"weight": (9, o), "bias": (VECTOR, o)}, MIDDLE),
    (EQX, "Embedding", equinox(
        lambda nn, i, o, k: nn.Embedding(ROWS, o, key=k)),
     lambda i, o: {"weight": (1, o, "embedding")}, ("first",),
     {"weight": "embedding"}, "error"),
    (EQX, "LayerNorm", equinox(lambda nn, i, o, k: nn.LayerNorm(i)),
     vectors("weight", "bias")),
    (EQX, "LayerNorm over channels and places", equinox(
        lambda nn, i, o, k: nn.LayerNorm((i, 8, 8))),
     lambda i, o: {x: (VECTOR, 64 * i, "vector") for x in ("weight", "bias")},
     MIDDLE, ROLE_OF_GAIN, "a table, which decays"),
    (EQX, "RMSNorm", equinox(lambda nn, i, o, k: nn.RMSNorm(i)),
     vectors("weight", "bias")),
    (EQX, "GroupNorm", equinox(lambda nn, i, o, k: nn.GroupNorm(1, i)),
     vectors("weight", "bias")),
    (EQX, "BatchNorm",
     lambda i, o: {"weight": shape(i), "bias": shape(i)},
     vectors("weight", "bias")),
    (EQX, "WeightNorm of Linear", equinox(
        lambda nn, i, o, k: nn.WeightNorm(nn.Linear(i, o, key=k))),
     lambda i, o: matrix("layer/weight", "layer/bias")(i, o) | {
         "g": (VECTOR, o)}),
    (EQX, "WeightNorm of Conv2d", equinox(
        lambda nn, i, o, k: nn.WeightNorm(nn.Conv2d(i, o, 3, key=k))),
     lambda i, o: matrix("layer/weight", "layer/bias", 9)(i, o) | {
         "g": (VECTOR, o)}),
    (EQX, "SpectralNorm of Linear",
     lambda i, o: {"layer": {"weight": shape(o, i), "bias": shape(o)}},
     matrix("layer/weight", "layer/bias")),
    (EQX, "MultiheadAttention, with biases", equinox(
        lambda nn, i, o, k: nn.MultiheadAttention(
            i // HEAD, i, use_query_bias=True, use_key_bias=True,
            use_value_bias=True, use_output_bias=True, key=k)),
     lambda i, o: {f"{x}_proj/{y}": (i if y == "weight" else VECTOR, i)
                   for x in ("query", "key", "value", "output")
                   for y in ("weight", "bias")}, MIDDLE),
    (EQX, "PReLU", equinox(lambda nn, i, o, k: nn.PReLU()),
     lambda i, o: {"negative_slope": (VECTOR, 1)}),
    (EQX, "LSTMCell", equinox(lambda nn, i, o, k: nn.LSTMCell(i, o, key=k)),
     lambda i, o: {"weight_ih": (i, 4 * o), "weight_hh": (o, 4 * o),
                   "bias": (VECTOR, 4 * o)}, NOT_LAST),
    (EQX, "GRUCell", equinox(lambda nn, i, o, k: nn.GRUCell(i, o, key=k)),
     lambda i, o: {"weight_ih": (i, 3 * o), "weight_hh": (o, 3 * o),
                   "bias": (VECTOR, 3 * o), "bias_n": (VECTOR, o)}, NOT_LAST)]

HK = "haiku"
W = matrix("./w", "./b")
RUN = lambda cell, x: cell(x, cell.initial_state(2))
HAIKU = [
    (HK, "Linear", haiku(lambda hk, i, o, x: hk.Linear(o)(x)), W),
    *[(HK, f"Conv{n}D", haiku(
        lambda hk, i, o, x, n=n: getattr(hk, f"Conv{n}D")(o, 3)(x),
        2, *(6,) * n), matrix("./w", "./b", 3**n)) for n in (1, 2, 3)],
    *[(HK, f"Conv{n}DTranspose", haiku(
        lambda hk, i, o, x, n=n: getattr(hk, f"Conv{n}DTranspose")(o, 3)(x),
        2, *(6,) * n), matrix("./w", "./b", 3**n)) for n in (1, 2, 3)],
    (HK, "Conv2DTranspose, without bias", haiku(
        lambda hk, i, o, x: hk.Conv2DTranspose(o, 3, with_bias=False)(x),
        *IMAGES), lambda i, o: {"./w": (9 * i, o)}, tuple(POSITIONS),
     {"./w": scaling.Override(outputs=(2,))}, CONV_LOOK),
    (HK, "Conv2D, channels first",
     lambda i, o: {".": {"w": shape(3, 3, i, o), "b": shape(o, 1, 1)}},
     matrix("./w", "./b", 9)),
    (HK, "Conv2DTranspose, channels first",
     lambda i, o: {".": {"w": shape(3, 3, o, i), "b": shape(o, 1, 1)}},
     matrix("./w", "./b", 9)),
    (HK, "DepthwiseConv2D", haiku(
        lambda hk, i, o, x: hk.DepthwiseConv2D(1, 3)(x), *IMAGES),
     lambda i, o: {"./w": (9, i), "./b": (VECTOR, i)}, MIDDLE),
    (HK, "SeparableDepthwiseConv2D", haiku(
        lambda hk, i, o, x: hk.SeparableDepthwiseConv2D(1, 3)(x), *IMAGES),
     lambda i, o: {"~/depthwise_conv2_d/w": (3, i),
                   "~/depthwise_conv2_d_1/w": (3, i),
                   "~/depthwise_conv2_d_1/b": (VECTOR, i)}, MIDDLE),
    (HK, "Bias of channels", haiku(
        lambda hk, i, o, x: hk.Bias(bias_dims=[-1])(x), *IMAGES),
     vectors("./b")),
    (HK, "Bias of places and channels", haiku(
        lambda hk, i, o, x: hk.Bias()(x), *IMAGES),
     lambda i, o: {"./b": (VECTOR, 64 * i, "vector")}, MIDDLE,
     {"./b": "vector"}, "a table, which decays"),
    (HK, "Embed", lambda i, o: {".": {"embeddings": shape(ROWS, o)}},
     lambda i, o: {"./embeddings": (ROWS, o)}, ("first",)),
    (HK, "LayerNorm", haiku(
        lambda hk, i, o, x: hk.LayerNorm(-1, True, True)(x), *IMAGES),
     vectors("./scale", "./offset")),
    (HK, "RMSNorm", haiku(lambda hk, i, o, x: hk.RMSNorm(-1)(x)),
     vectors("./scale")),
    (HK, "GroupNorm", haiku(lambda hk, i, o, x: hk.GroupNorm(1)(x), *IMAGES),
     vectors("./scale", "./offset")),
    (HK, "InstanceNorm", haiku(
        lambda hk, i, o, x: hk.InstanceNorm(True, True)(x), *IMAGES),
     vectors("./scale", "./offset")),
    (HK, "BatchNorm", haiku(
        lambda hk, i, o, x: hk.BatchNorm(True, True, 0.9)(x, True), *IMAGES),
     vectors("./scale", "./offset"), MIDDLE),
    (HK, "BatchNorm of vectors", haiku(
        lambda hk, i, o, x: hk.BatchNorm(True, True, 0.9)(x, True)),
     vectors("./scale", "./offset"), MIDDLE),
    (HK, "BatchNorm, channels first",
     lambda i, o: {".": {x: shape(1, i, 1, 1) for x in ("scale", "offset")}},
     vectors("./scale", "./offset"), MIDDLE),
    (HK, "BatchNorm, without offset", haiku(
        lambda hk, i, o, x: hk.BatchNorm(True, False, 0.9)(x, True), *IMAGES),
     lambda i, o: {"./scale": (VECTOR, i, "vector")}, MIDDLE,
     {"./scale": "vector"}, "a table, which decays"),
    (HK, "MultiHeadAttention", haiku(
        lambda hk, i, o, x: hk.MultiHeadAttention(
            i // HEAD, HEAD, model_size=i, w_init=jnp.zeros)(x, x, x), 2, 6),
     lambda i, o: {f"{x}/{y}": (i if y == "w" else VECTOR, i)
                   for x in ("query", "key", "value", "linear")
                   for y in "wb"}, MIDDLE),
    (HK, "LSTM", haiku(lambda hk, i, o, x: RUN(hk.LSTM(o), x)),
     lambda i, o: {"linear/w": (i + o, 4 * o), "linear/b": (VECTOR, 4 * o)},
     NOT_LAST),
    (HK, "GRU", haiku(lambda hk, i, o, x: RUN(hk.GRU(o), x)),
     lambda i, o: {"./w_i": (i, 3 * o), "./w_h": (o, 3 * o),
                   "./b": (VECTOR, 3 * o)}, NOT_LAST),
    (HK, "VanillaRNN", haiku(lambda hk, i, o, x: RUN(hk.VanillaRNN(o), x)),
     lambda i, o: matrix("linear/w", "linear/b")(i, o) | matrix(
         "linear_1/w", "linear_1/b")(o, o), NOT_LAST),
    (HK, "Conv2DLSTM", haiku(
        lambda hk, i, o, x: RUN(hk.Conv2DLSTM((8, 8), o, 3), x), *IMAGES),
     lambda i, o: {"input_to_hidden/w": (9 * i, 4 * o),
                   "input_to_hidden/b": (VECTOR, 4 * o),
                   "hidden_to_hidden/w": (9 * o, 4 * o),
                   "hidden_to_hidden/b": (VECTOR, 4 * o)}, NOT_LAST)]

LAYERS = [Layer(*x) for x in (*LINEN, *NNX_LAYERS, *EQUINOX, *HAIKU)]
CASES = [(layer, position) for layer in LAYERS for position in layer.positions]


HEAD_OF_PAGE = f"""# Types of layers

What `mulo.scaling.infer` says about the parameters of each type of layer that
has parameters. Tests compare the table with answers stated by hand
(`tests/test_layer_types.py`). This command prints the page. It needs flax,
equinox and haiku:

```sh
.venv/bin/python -m tests.layer_types > docs/layer_types.md
```

Each layer stands in the middle of a network of width {WIDTH}, which is compared
with width {BASE}. It has {WIDTH} inputs, and {2 * WIDTH} outputs where the
numbers may differ. Layers marked "first" have 3 inputs and {WIDTH} outputs, and
layers marked "last" have {WIDTH} inputs and 12 outputs. Heads have size {HEAD},
embeddings have {ROWS} rows, and LoRA has rank {RANK}. Layers that stand first
or last are tested, too.

The last column says what to declare where neither the shape nor the parameters
beside it tell. Without the declaration there is an error, or the parameter is
taken for another one of the same shape. An embedding that is called an input
needs no declaration, because its multipliers are those of an input.
"""
COLUMNS = ("layer", "parameter", "shape", "role", "fan-in", "fan-out",
           "overrides")


def page() -> str:
  """docs/layer_types.md."""
  lines = [HEAD_OF_PAGE]
  for framework in dict.fromkeys(layer.framework for layer in LAYERS):
    lines += [f"## {framework}", "", f"| {' | '.join(COLUMNS)} |",
              f"|{'---|' * len(COLUMNS)}"]
    for layer in LAYERS:
      if layer.framework == framework:
        lines += rows(layer)
    lines.append("")
  return "\n".join(lines)


def rows(layer: Layer) -> list[str]:
  """Lines of the table, one for each parameter."""
  position = "middle" if "middle" in layer.positions else layer.positions[0]
  shapes = {path.removeprefix("layer/"): x for path, x in roles.by_path(
      network(layer, position, WIDTH)).items()}
  lines, name = [], layer.name + ("" if position == "middle" else
                                  f" ({position})")
  for path, (role, *fans) in inferred(layer, position).items():
    override = next((x for pattern, x in layer.declare.items()
                     if pattern in (path, "*")), None)
    cells = (name, f"`{path.removeprefix('./')}`", shapes[path], role, *fans,
             "" if override is None else said(override, layer.otherwise))
    lines.append(f"| {' | '.join(map(str, cells))} |")
    name = ""
  return lines


def said(override: Any, otherwise: str) -> str:
  """An override as one writes it, and what happens without it."""
  fields = {} if isinstance(override, str) else {
      name: x for name, x in override._asdict().items() if x}
  text = f'"{override}"' if isinstance(override, str) else (
      f"Override({', '.join(f'{k}={v}' for k, v in fields.items())})")
  return f"`{text}`; otherwise {otherwise.replace('error', 'an error')}"


if __name__ == "__main__":
  argparse.ArgumentParser(description=__doc__).parse_args()
  print(page(), end="")
