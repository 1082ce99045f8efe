"""Layers in flax that several networks share, and checks of settings.

Parameters with two axes or more start at zero: `tasks.networks` draws them.
"""

from typing import Any, Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "silu": jax.nn.silu,
               "tanh": jnp.tanh, "elu": jax.nn.elu}
NORMS = ("none", "layer", "rms", "group")
# Channels normalised together. A wider network has more groups of this size.
GROUP_SIZE = 4
ZEROS = nn.initializers.zeros_init()


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
  """Return an elementwise function; raise ValueError for an unknown name."""
  if name not in ACTIVATIONS:
    raise ValueError(f"Unknown activation {name!r}; available: "
                     f"{', '.join(ACTIVATIONS)}.")
  return ACTIVATIONS[name]


def check(**numbers: Any) -> None:
  """Raise ValueError unless each number is an integer of at least 1."""
  for name, number in numbers.items():
    if type(number) is not int or number < 1:
      raise ValueError(
          f"{name} must be a whole number of at least 1, got {number!r}.")


def check_choice(setting: str, name: str, known: tuple[str, ...]) -> None:
  """Raise ValueError unless the name is known; `setting` is for the message."""
  if name not in known:
    raise ValueError(
        f"Unknown {setting} {name!r}; available: {', '.join(known)}.")


def dense(features: int, bias: bool = True) -> nn.Dense:
  """Return a layer `x @ kernel + bias`, kernel [fan-in, features]."""
  return nn.Dense(features, use_bias=bias, kernel_init=ZEROS)


def norm(name: str) -> Callable[[jax.Array], jax.Array]:
  """Return a normalisation within each example, without running averages."""
  check_choice("norm", name, NORMS)
  if name == "none":
    return lambda x: x
  if name == "group":
    return nn.GroupNorm(num_groups=None, group_size=GROUP_SIZE)
  return nn.LayerNorm() if name == "layer" else nn.RMSNorm()


class Conv(nn.Module):
  """A 3 x 3 convolution with padding, kernel [3, 3, channels, features].

  On a CPU, the convolution is a matrix product with patches. Under vmap over
  networks, as in meta-training, this product takes half the time of XLA's
  grouped convolution.
  """

  features: int
  stride: int = 1
  bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, height, width, channels]
    kernel = self.param("kernel", ZEROS, (3, 3, x.shape[-1], self.features))
    if jax.default_backend() == "cpu":
      x = self.product(x, kernel)
    else:
      x = jax.lax.conv_general_dilated(
          x, kernel, (self.stride, self.stride), [(1, 1), (1, 1)],
          dimension_numbers=("NHWC", "HWIO", "NHWC"))
    if self.bias:
      x = x + self.param("bias", ZEROS, (self.features,))[None, None, None]
    return x

  def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the convolution as one matrix product with all patches."""
    height, width = (-(-n // self.stride) for n in x.shape[1:3])  # of outputs
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        x[:, i:i + height * self.stride:self.stride,
          j:j + width * self.stride:self.stride]
        for i in range(3) for j in range(3)]  # 9 x [n, height, width, channels]
    return jnp.concatenate(shifted, -1) @ kernel.reshape(-1, self.features)


def patches(x: jax.Array, size: int) -> jax.Array:
  """Cut images [n, height, width, channels] into squares.

  Returns:
    Pixels [n, number of squares, size * size * channels].
  """
  n, height, width, channels = x.shape
  rows, columns = height // size, width // size
  x = x.reshape(n, rows, size, columns, size, channels)
  return x.swapaxes(2, 3).reshape(n, rows * columns, -1)


def check_patch(patch: int, shape: tuple[int, ...]) -> None:
  """Raise ValueError unless squares of size patch fill an image of a shape."""
  check(patch=patch)
  if shape[0] % patch or shape[1] % patch:
    raise ValueError(f"patch ({patch}) must divide height and width of the "
                     f"images, {shape[0]} and {shape[1]}.")


def rotate(x: jax.Array) -> jax.Array:
  """Rotate x [n, length, heads, head size] by the angles of its positions.

  Entries i and i + head size / 2 of a head are one pair. Position p rotates
  pair i by the angle `p * 10000 ** (-2 * i / head size)`.

  Reference:
    Su et al., 2021, https://arxiv.org/abs/2104.09864.
  """
  length, size = x.shape[1], x.shape[-1]
  rates = 10000.0 ** (-jnp.arange(0, size, 2) / size)  # [head size / 2]
  angle = jnp.arange(length)[:, None] * rates[None]  # [length, head size / 2]
  sin, cos = (f(angle)[None, :, None].astype(x.dtype)
              for f in (jnp.sin, jnp.cos))
  a, b = jnp.split(x, 2, -1)
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
  """A transformer block: attention, then a two-layer network.

  Each of the two is a residual branch, `x = x + branch * f(norm(x))`.

  Attributes:
    head_size: size of a head; a wider network has more heads, of equal size.
    logit_scale: `logits = logit_scale * (query @ key)`.
    branch: factor on the outputs of a branch.
    causal: whether a position reads only itself and earlier positions.
    rotary: whether queries and keys are rotated by their positions.
    activation: see `activation`.
    norm: see `norm`.
    gated: whether the two-layer network multiplies its hidden layer, 3 instead
      of 4 times as wide, by a linear layer; if so, no layer has a bias.
  """

  head_size: int
  logit_scale: float
  branch: float = 1.0
  causal: bool = False
  rotary: bool = False
  activation: str = "gelu"
  norm: str = "layer"
  gated: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, length, width]
    width = x.shape[-1]
    h = norm(self.norm)(x)
    # No biases: without rotation, a bias on keys adds the same number to all
    # logits of a query, which softmax ignores.
    heads = lambda: dense(width, bias=False)(h).reshape(
        *x.shape[:2], -1, self.head_size)  # [n, length, heads, head size]
    query, key, value = heads(), heads(), heads()
    if self.rotary:
      query, key = rotate(query), rotate(key)
    # Logits for `Network.activations`; dot_product_attention hides its logits.
    if self.is_mutable_collection("intermediates"):
      self.sow("intermediates", "attention", self.logit_scale * jnp.einsum(
          "nqhd,nkhd->nhqk", query, key))
    h = jax.nn.dot_product_attention(
        query, key, value, scale=self.logit_scale, is_causal=self.causal)
    bias = not self.gated
    x = x + self.branch * dense(width, bias)(h.reshape(x.shape))
    h = norm(self.norm)(x)
    hidden = activation(self.activation)(
        dense((3 if self.gated else 4) * width, bias)(h))
    if self.gated:
      hidden = hidden * dense(3 * width, bias)(h)
    return x + self.branch * dense(width, bias)(hidden)


def check_heads(width: int, head_size: int) -> None:
  """Raise ValueError unless width is a multiple of head_size."""
  check(width=width, head_size=head_size)
  if width % head_size:
    raise ValueError(f"width ({width}) must be a multiple of head_size "
                     f"({head_size}).")
