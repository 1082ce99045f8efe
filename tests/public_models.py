"""Networks as people write them, with what each of their parameters is.

`MODELS` has, by name, functions of a width that give shapes, and by path what
`mulo.scaling.infer` should say: role, inputs and outputs at width 16.
"""

from typing import Any, Callable, NamedTuple

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp

from mulo import scaling

TOKENS = jax.ShapeDtypeStruct((2, 6), jnp.int32)
IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
VECTORS = jax.ShapeDtypeStruct((2, 8), jnp.float32)
VOCAB = 30


class Model(NamedTuple):
  """A network, and what its parameters are.

  Attributes:
    shapes: `(width) -> tree` of shapes.
    expected: {path: (role, inputs, outputs)} at width 16.
    settings: of `infer`.
  """

  shapes: Callable[[int], Any]
  expected: dict[str, tuple[str, int, int]]
  settings: dict[str, Any] = {}


def tree(**shapes):
  return {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}


def linen(make: Callable[..., nn.Module], example) -> Callable[..., Any]:
  """Shapes of a linen module."""
  return lambda *size: jax.eval_shape(
      make(*size).init, jax.random.key(0), example)["params"]


class Mlp(nn.Module):
  """Two hidden layers."""

  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(self.width)(x))
    x = nn.relu(nn.LayerNorm()(nn.Dense(4 * self.width)(x)))
    return nn.Dense(10)(x)


class PartitionedMlp(nn.Module):
  """With the axes of a mesh in boxes around the arrays."""

  width: int

  @nn.compact
  def __call__(self, x):
    boxed = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    x = nn.relu(nn.Dense(self.width, kernel_init=boxed)(x))
    x = nn.relu(nn.Dense(self.width, kernel_init=boxed)(x))
    return nn.Dense(10, kernel_init=boxed)(x)


class Cnn(nn.Module):
  """Convolutions, one of them depthwise, and a convolution as the readout."""

  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.GroupNorm(2)(nn.Conv(self.width, (3, 3))(x)))
    x = nn.Conv(self.width, (3, 3), feature_group_count=self.width,
                use_bias=False)(x)
    x = nn.relu(nn.Conv(2 * self.width, (3, 3), use_bias=False)(x))
    return nn.Conv(5, (1, 1), use_bias=False)(x).mean((1, 2))


class Vit(nn.Module):
  """flax's own attention, with biases; heads of 4."""

  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(self.width, (4, 4), (4, 4))(x)
    x = x.reshape(len(x), 4, -1)
    cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
    x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], 1)
    x = x + self.param("pos", nn.initializers.normal(), (1, 5, self.width))
    h = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(self.width // 4)(h, h)
    h = nn.gelu(nn.Dense(4 * self.width)(x))
    x = x + nn.Dense(self.width)(h)
    return nn.Dense(10, use_bias=False)(x[:, 0])


class Attention(nn.Module):
  """Attention without biases, with fewer heads for keys than for queries."""

  heads: int
  key_heads: int
  head_size: int

  @nn.compact
  def __call__(self, x):
    project = lambda heads, name: nn.DenseGeneral(
        (heads, self.head_size), use_bias=False, name=name)(x)
    q = project(self.heads, "q")
    k, v = (jnp.repeat(project(self.key_heads, name),
                       self.heads // self.key_heads, 2) for name in "kv")
    h = nn.dot_product_attention(q, k, v)
    return nn.DenseGeneral(x.shape[-1], (-2, -1), use_bias=False, name="o")(h)


class Block(nn.Module):
  """Attention and a gated network, as in Llama; the carry of a scan."""

  width: int
  head_size: int = 4

  @nn.compact
  def __call__(self, x, _=None):
    heads = self.width // self.head_size
    x = x + Attention(heads, heads // 2, self.head_size)(nn.RMSNorm()(x))
    h = nn.RMSNorm()(x)
    gate = nn.silu(nn.Dense(3 * self.width, use_bias=False, name="gate")(h))
    up = nn.Dense(3 * self.width, use_bias=False, name="up")(h)
    return x + nn.Dense(
        self.width, use_bias=False, name="down")(gate * up), None


class Gpt(nn.Module):
  """A language model; tied, or with layers stacked by a scan, if asked."""

  width: int
  depth: int = 2
  tied: bool = False
  scan: bool = False
  head_size: int = 4

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(VOCAB, self.width)
    x = embed(tokens)
    if self.scan:
      stack = nn.scan(Block, {"params": 0}, split_rngs={"params": True},
                      length=self.depth)
      x, _ = stack(self.width, self.head_size, name="blocks")(x, None)
    else:
      for _ in range(self.depth):
        x, _ = Block(self.width, self.head_size)(x)
    x = nn.RMSNorm()(x)
    return embed.attend(x) if self.tied else nn.Dense(
        VOCAB, use_bias=False, name="head")(x)


class Moe(nn.Module):
  """A router and four experts, stacked by vmap."""

  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.width)(x)
    weights = nn.softmax(nn.Dense(4, use_bias=False, name="router")(x))
    experts = nn.vmap(
        nn.Dense, {"params": 0}, {"params": True}, in_axes=None, axis_size=4)
    h = experts(self.width, use_bias=False, name="experts")(x)
    return nn.Dense(10)(jnp.einsum("ebd,be->bd", h, weights))


class Lstm(nn.Module):
  """An embedding, a recurrent layer, and a readout."""

  width: int

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(VOCAB, self.width // 2)(tokens)
    x = nn.RNN(nn.OptimizedLSTMCell(self.width))(x)
    return nn.Dense(VOCAB)(x)


class NnxMlp(nnx.Module):
  """Two hidden layers, one in a list."""

  def __init__(self, width, rngs):
    self.first = nnx.Linear(8, width, rngs=rngs)
    self.rest = nnx.List([nnx.Linear(width, width, rngs=rngs)])
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)
    self.head = nnx.Linear(width, 10, use_bias=False, rngs=rngs)


class NnxTransformer(nnx.Module):
  """nnx's own attention and embedding."""

  def __init__(self, width, rngs):
    self.embed = nnx.Embed(VOCAB, width, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(width // 4, width, rngs=rngs)
    self.head = nnx.Linear(width, VOCAB, rngs=rngs)


def of_nnx(make) -> Callable[[int], Any]:
  """Shapes of the parameters of an nnx module."""
  return lambda width: nnx.state(
      nnx.eval_shape(lambda: make(width, nnx.Rngs(0))), nnx.Param)


def haiku_style(width):
  """Nested dicts with slashes in their names, w beside b."""
  shape = lambda *x: jax.ShapeDtypeStruct(x, jnp.float32)
  return {"mlp/~/linear_0": {"w": shape(8, width), "b": shape(width)},
          "mlp/~/linear_1": {"w": shape(width, width), "b": shape(width)},
          "mlp/~/head": {"w": shape(width, 1), "b": shape(1)}}


def of_equinox(make) -> Callable[[int], Any]:
  """Shapes of an equinox module, functions among its leaves."""
  import equinox  # not installed everywhere
  return lambda width: equinox.filter_eval_shape(
      make, equinox, width, jax.random.key(0))


def equinox_mlp(eqx, width, key):
  return eqx.nn.MLP(8, 10, width, 2, key=key)


def equinox_cnn(eqx, width, key):
  return [eqx.nn.Conv2d(3, width, 3, key=key),
          eqx.nn.Conv2d(width, 2 * width, 3, key=key),
          eqx.nn.GroupNorm(2, 2 * width), eqx.nn.Linear(2 * width, 5, key=key)]


def equinox_lm(eqx, width, key):
  return {"embed": eqx.nn.Embedding(VOCAB, width, key=key),
          "attention": eqx.nn.MultiheadAttention(width // 4, width, key=key),
          "cell": eqx.nn.LSTMCell(width, width, key=key),
          "head": eqx.nn.Linear(width, VOCAB, use_bias=False, key=key)}


VECTOR = lambda n: ("vector", 1, n)
_ATTENTION = {  # 4 heads of 4, 2 for keys
    "q/kernel": ("hidden", 16, 16), "k/kernel": ("hidden", 16, 8),
    "v/kernel": ("hidden", 16, 8), "o/kernel": ("hidden", 16, 16)}
_BLOCK = {
    **{f"Attention_0/{path}": x for path, x in _ATTENTION.items()},
    "RMSNorm_0/scale": VECTOR(16), "RMSNorm_1/scale": VECTOR(16),
    "gate/kernel": ("hidden", 16, 48), "up/kernel": ("hidden", 16, 48),
    "down/kernel": ("hidden", 48, 16)}
_ENDS = {"Embed_0/embedding": ("input", 30, 16), "RMSNorm_0/scale": VECTOR(16),
         "head/kernel": ("output", 16, 30)}
_BLOCKS = {f"Block_{i}/{path}": x for i in range(2)
           for path, x in _BLOCK.items()}


def _with_biases(prefix, paths):
  """Attention of flax with biases."""
  return {
      **{f"{prefix}/{p}/kernel": ("hidden", 16, 16) for p in paths},
      **{f"{prefix}/{p}/bias": VECTOR(16) for p in paths}}


MODELS = {
    "linen mlp": Model(linen(Mlp, VECTORS), {
        "Dense_0/kernel": ("input", 8, 16), "Dense_0/bias": VECTOR(16),
        "Dense_1/kernel": ("hidden", 16, 64), "Dense_1/bias": VECTOR(64),
        "LayerNorm_0/scale": VECTOR(64), "LayerNorm_0/bias": VECTOR(64),
        "Dense_2/kernel": ("output", 64, 10), "Dense_2/bias": VECTOR(10)}),
    "linen mlp, partitioned": Model(linen(PartitionedMlp, VECTORS), {
        "Dense_0/kernel": ("input", 8, 16), "Dense_0/bias": VECTOR(16),
        "Dense_1/kernel": ("hidden", 16, 16), "Dense_1/bias": VECTOR(16),
        "Dense_2/kernel": ("output", 16, 10), "Dense_2/bias": VECTOR(10)}),
    "linen cnn": Model(linen(Cnn, IMAGES), {
        "Conv_0/kernel": ("input", 27, 16), "Conv_0/bias": VECTOR(16),
        "GroupNorm_0/scale": VECTOR(16), "GroupNorm_0/bias": VECTOR(16),
        "Conv_1/kernel": ("input", 9, 16),  # depthwise: 9 inputs each
        "Conv_2/kernel": ("hidden", 144, 32),
        "Conv_3/kernel": ("output", 32, 5)}),
    "linen vit": Model(linen(Vit, IMAGES), {
        "Conv_0/kernel": ("input", 48, 16), "Conv_0/bias": VECTOR(16),
        "cls": ("embedding", 1, 16), "pos": ("embedding", 1, 16),
        "LayerNorm_0/scale": VECTOR(16), "LayerNorm_0/bias": VECTOR(16),
        **_with_biases("MultiHeadDotProductAttention_0",
                       ("query", "key", "value", "out")),
        "Dense_0/kernel": ("hidden", 16, 64), "Dense_0/bias": VECTOR(64),
        "Dense_1/kernel": ("hidden", 64, 16), "Dense_1/bias": VECTOR(16),
        "Dense_2/kernel": ("output", 16, 10)},
                       {"overrides": {"cls": "embedding", "pos": "embedding"}}),
    "gpt, gqa": Model(linen(Gpt, TOKENS), {**_ENDS, **_BLOCKS}),
    "gpt, tied": Model(
        linen(lambda width: Gpt(width, 1, tied=True), TOKENS), {
            "Embed_0/embedding": ("tied", 1, 16), "RMSNorm_0/scale": VECTOR(16),
            **{f"Block_0/{path}": x for path, x in _BLOCK.items()}},
        {"overrides": {"Embed_0/*": "tied"}}),
    "gpt, scan": Model(
        linen(lambda width: Gpt(width, 3, scan=True), TOKENS),
        {**_ENDS, **{f"blocks/{path}": x for path, x in _BLOCK.items()}},
        {"deeper_shapes": linen(
            lambda width: Gpt(width, 5, scan=True), TOKENS)(64)}),
    "moe": Model(linen(Moe, VECTORS), {
        "Dense_0/kernel": ("input", 8, 16), "Dense_0/bias": VECTOR(16),
        "router/kernel": ("output", 16, 4),
        "experts/kernel": ("hidden", 16, 16),
        "Dense_1/kernel": ("output", 16, 10), "Dense_1/bias": VECTOR(10)},
                 {"overrides": {"experts/*": scaling.Override(stack=(0,))}}),
    "linen lstm": Model(linen(Lstm, TOKENS), {
        "Embed_0/embedding": ("input", 30, 8),
        **{f"OptimizedLSTMCell_0/{x}{gate}/kernel": (
            "hidden", n, 16) for x, n in (("i", 8), ("h", 16))
           for gate in "ifgo"},
        **{f"OptimizedLSTMCell_0/h{gate}/bias": VECTOR(16) for gate in "ifgo"},
        "Dense_0/kernel": ("output", 16, 30), "Dense_0/bias": VECTOR(30)}),
    "nnx mlp": Model(of_nnx(NnxMlp), {
        "first/kernel": ("input", 8, 16), "first/bias": VECTOR(16),
        "rest/0/kernel": ("hidden", 16, 16), "rest/0/bias": VECTOR(16),
        "norm/scale": VECTOR(16), "norm/bias": VECTOR(16),
        "head/kernel": ("output", 16, 10)}),
    "nnx transformer": Model(of_nnx(NnxTransformer), {
        "embed/embedding": ("input", 30, 16),
        **_with_biases("attention", ("query", "key", "value", "out")),
        "head/kernel": ("output", 16, 30), "head/bias": VECTOR(30)}),
    "haiku style": Model(haiku_style, {
        "mlp/~/linear_0/w": ("input", 8, 16), "mlp/~/linear_0/b": VECTOR(16),
        "mlp/~/linear_1/w": ("hidden", 16, 16), "mlp/~/linear_1/b": VECTOR(16),
        "mlp/~/head/w": ("output", 16, 1), "mlp/~/head/b": VECTOR(1)}),
}
EQUINOX_MODELS = {
    "mlp": (equinox_mlp, {
        "layers/0/weight": ("input", 8, 16), "layers/0/bias": VECTOR(16),
        "layers/1/weight": ("hidden", 16, 16), "layers/1/bias": VECTOR(16),
        "layers/2/weight": ("output", 16, 10), "layers/2/bias": VECTOR(10)},
            {}),
    "cnn": (equinox_cnn, {
        "0/weight": ("input", 27, 16), "0/bias": VECTOR(16),
        "1/weight": ("hidden", 144, 32), "1/bias": VECTOR(32),
        "2/weight": VECTOR(32), "2/bias": VECTOR(32),
        "3/weight": ("output", 32, 5), "3/bias": VECTOR(5)}, {}),
    "language model": (equinox_lm, {
        "embed/weight": ("embedding", 1, 16),
        **{f"attention/{x}_proj/weight": ("hidden", 16, 16)
           for x in ("query", "key", "value", "output")},
        "cell/weight_ih": ("hidden", 16, 64),
        "cell/weight_hh": ("hidden", 16, 64), "cell/bias": VECTOR(64),
        "head/weight": ("output", 16, 30)},
                       {"embed/weight": "embedding", "head/weight": "output"})}
