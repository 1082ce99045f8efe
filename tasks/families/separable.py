"""Image classification by depthwise-separable convolutions."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from tasks import base
from tasks import image_tasks
from tasks import layers
from tasks import networks


class Depthwise(nn.Module):
  """A 3 x 3 convolution of each channel, kernel [3, 3, 1, channels].

  It is a sum of nine products with the shifted image: under vmap over networks,
  XLA's grouped convolution is slow on a CPU.
  """

  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, height, width, channels]
    kernel = self.param("kernel", layers.ZEROS, (3, 3, 1, x.shape[-1]))
    height, width = (-(-n // self.stride) for n in x.shape[1:3])  # of outputs
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum((
        x[:, i:i + height * self.stride:self.stride,
          j:j + width * self.stride:self.stride] * kernel[i, j][None, None]
        for i in range(3) for j in range(3)), start=jnp.zeros([], x.dtype))


class SeparableNet(nn.Module):
  """A convolution, separable convolutions, the mean, and a readout."""

  width: int
  depth: int
  activation: str
  norm: str
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, height, width, channels]
    act = layers.activation(self.activation)
    x = act(layers.norm(self.norm)(layers.Conv(self.width, 2)(x)))
    for layer in range(self.depth):
      x = Depthwise(2 if layer % 2 else 1)(x)
      x = act(layers.norm(self.norm)(layers.dense(self.width)(x)))
    return layers.dense(self.num_classes)(jnp.mean(x, (1, 2)))


@image_tasks.classification
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         width: int = 16, depth: int = 2, activation: str = "relu",
         norm: str = "layer", init_scale: float = 1.0) -> networks.Network:
  """Make a network of depthwise-separable convolutions.

  A separable convolution is a 3 x 3 convolution of each channel alone, then a
  dense layer over channels. Its first kernel, [3, 3, 1, width], has the role of
  an input: an output sums over 9 numbers at any width.

  Args:
    parametrization: see `tasks.families.get`.
    images: see `tasks.image_tasks.load`.
    width: channels of each layer.
    depth: number of separable convolutions, after one full convolution with a
      stride of 2. Every second one has a stride of 2.
    activation: see `tasks.layers.activation`.
    norm: norm after each dense layer, see `tasks.layers.norm`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width or depth below 1, or an unknown name.

  Reference:
    Howard et al., MobileNets, 2017, https://arxiv.org/abs/1704.04861.
  """
  layers.check(width=width, depth=depth)
  build = lambda width: SeparableNet(
      width, depth, activation, norm, images.num_classes)
  return networks.from_flax(
      parametrization, build, width, images.batch, init_scale)
