"""Language modelling by causal convolutions."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from tasks import base
from tasks import layers
from tasks import networks
from tasks import text_tasks


class CausalConv(nn.Module):
  """A convolution over a position and an earlier one, kernel [2, in, out]."""

  distance: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, length, width]
    kernel = self.param("kernel", layers.ZEROS, (2, x.shape[-1], x.shape[-1]))
    bias = self.param("bias", layers.ZEROS, x.shape[-1:])
    length = x.shape[1]
    earlier = jnp.pad(x, ((0, 0), (self.distance, 0), (0, 0)))[:, :length]
    return earlier @ kernel[0] + x @ kernel[1] + bias[None, None]


class ConvLM(nn.Module):
  """Embedding, residual blocks of a dilated convolution, and a readout."""

  width: int
  depth: int
  branch: float
  activation: str
  norm: str
  vocab_size: int

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:  # int32 [n, length]
    act = layers.activation(self.activation)
    embed = self.param("embed", layers.ZEROS, (self.vocab_size, self.width))
    x = embed[tokens]  # [n, length, width]
    for block in range(self.depth):
      h = CausalConv(2**block)(layers.norm(self.norm)(x))
      x = x + self.branch * layers.dense(self.width)(act(h))
    return layers.dense(self.vocab_size)(layers.norm(self.norm)(x))


@text_tasks.language_model
def make(parametrization: base.Parametrization, text: text_tasks.Text,
         width: int = 32, depth: int = 3, activation: str = "relu",
         norm: str = "layer", init_scale: float = 1.0) -> networks.Network:
  """Make a network of dilated causal convolutions.

  Args:
    parametrization: see `tasks.families.get`.
    text: see `tasks.text_tasks.load`.
    width: channels of each layer, and size of the embedding.
    depth: number of residual blocks. Block i reads position p - 2**i and p; a
      token reads 2**depth tokens.
    activation: see `tasks.layers.activation`.
    norm: see `tasks.layers.norm`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width or depth below 1, or an unknown name.

  Reference:
    van den Oord et al., WaveNet, 2016, https://arxiv.org/abs/1609.03499,
    section 2.1; Bai et al., 2018, https://arxiv.org/abs/1803.01271.
  """
  layers.check(width=width, depth=depth)
  branch = parametrization.branch_mult(depth)
  build = lambda width: ConvLM(
      width, depth, branch, activation, norm, text.vocab_size)
  in_blocks = {f"{layer}_{i}/*": depth for i in range(depth)
               for layer in ("CausalConv", "Dense")}
  if norm != "none":
    in_blocks |= {f"*Norm_{i}/*": depth for i in range(depth)}
  return networks.from_flax(
      parametrization, build, width, text.batch, init_scale, in_blocks,
      {"embed": "embedding"})
