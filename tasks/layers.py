"""Layers that several networks are made of, in flax.

Parameters of at least two axes start at zero: `tasks.networks` draws them.
"""

from typing import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "silu": jax.nn.silu,
               "tanh": jnp.tanh, "elu": jax.nn.elu}
NORMS = ("none", "layer", "rms", "group")
GROUP_SIZE = 4  # channels that are normalised together, however wide
ZEROS = nn.initializers.zeros_init()


def activation(name: str):
  """A function of elements; raises ValueError for an unknown name."""
  if name not in ACTIVATIONS:
    raise ValueError(f"Unknown activation {name!r}; available: "
                     f"{', '.join(ACTIVATIONS)}.")
  return ACTIVATIONS[name]


def check(**numbers) -> None:
  """Raises ValueError for what is not a whole number of at least 1."""
  for name, number in numbers.items():
    if type(number) is not int or number < 1:
      raise ValueError(
          f"{name} must be a whole number of at least 1, got {number!r}.")


def check_choice(what: str, name: str, known: tuple[str, ...]) -> None:
  """Raises ValueError for a name that is not among the known ones."""
  if name not in known:
    raise ValueError(
        f"Unknown {what} {name!r}; available: {', '.join(known)}.")


def dense(features: int, bias: bool = True) -> nn.Dense:
  """x @ kernel + bias, kernel [in, out]."""
  return nn.Dense(features, use_bias=bias, kernel_init=ZEROS)


def norm(name: str) -> Callable[[jax.Array], jax.Array]:
  """A normalisation of one example alone, without any running average."""
  check_choice("norm", name, NORMS)
  if name == "none":
    return lambda x: x
  if name == "group":
    return nn.GroupNorm(num_groups=None, group_size=GROUP_SIZE)
  return nn.LayerNorm() if name == "layer" else nn.RMSNorm()


class Conv(nn.Module):
  """A 3 x 3 convolution with padding, kernel [3, 3, in, out].

  On CPUs a product with patches: under vmap over networks, as in meta-training,
  that takes half the time of XLA's convolution with groups.
  """

  features: int
  stride: int = 1
  bias: bool = True

  @nn.compact
  def __call__(self, x):  # [n, height, width, in]
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

  def product(self, x, kernel):
    """The same by one matrix product with all patches."""
    height, width = (-(-n // self.stride) for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        x[:, i:i + height * self.stride:self.stride,
          j:j + width * self.stride:self.stride]
        for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, -1) @ kernel.reshape(-1, self.features)


def rotate(x: jax.Array) -> jax.Array:
  """Rotary position embedding of x [n, length, heads, head size].

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
  """Attention and a two-layer network, each after a norm, each added to x.

  Attributes:
    head_size: the number of heads grows with the width, not their size.
    logit_scale: factor on query times key.
    branch: factor on what is added.
    causal: positions see themselves and earlier ones only.
    rotary: queries and keys are rotated by their position.
    activation: see `activation`.
    norm: see `norm`.
  """

  head_size: int
  logit_scale: float
  branch: float = 1.0
  causal: bool = False
  rotary: bool = False
  activation: str = "gelu"
  norm: str = "layer"

  @nn.compact
  def __call__(self, x):  # [n, length, width]
    width = x.shape[-1]
    h = norm(self.norm)(x)
    # Without bias: without rotation, one on keys would change nothing.
    heads = lambda: dense(width, bias=False)(h).reshape(
        *x.shape[:2], -1, self.head_size)
    query, key, value = heads(), heads(), heads()
    if self.rotary:
      query, key = rotate(query), rotate(key)
    if self.is_mutable_collection("intermediates"):  # somebody looks
      self.sow("intermediates", "attention", self.logit_scale * jnp.einsum(
          "nqhd,nkhd->nhqk", query, key))
    h = jax.nn.dot_product_attention(
        query, key, value, scale=self.logit_scale, is_causal=self.causal)
    x = x + self.branch * dense(width)(h.reshape(x.shape))
    h = dense(4 * width)(norm(self.norm)(x))
    return x + self.branch * dense(width)(activation(self.activation)(h))


def check_heads(width: int, head_size: int) -> None:
  """Raises ValueError unless there is a whole number of heads."""
  check(width=width, head_size=head_size)
  if width % head_size:
    raise ValueError(f"width ({width}) must be a multiple of head_size "
                     f"({head_size}).")
