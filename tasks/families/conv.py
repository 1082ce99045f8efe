"""Image classification by a convolutional network."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from tasks import base
from tasks import image_tasks
from tasks import layers
from tasks import networks

POOLING = ("stride", "max", "average", "none")


class ConvNet(nn.Module):
  """Convolutions, the mean over all positions, and a readout."""

  width: int
  depth: int
  pooling: str
  activation: str
  norm: str
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, height, width, channels]
    for _ in range(self.depth):
      stride = 2 if self.pooling == "stride" else 1
      # A norm follows, with a bias of its own if it needs one.
      x = layers.Conv(self.width, stride, bias=self.norm == "none")(x)
      x = layers.activation(self.activation)(layers.norm(self.norm)(x))
      if self.pooling in ("max", "average") and min(x.shape[1:3]) > 1:
        pool = nn.max_pool if self.pooling == "max" else nn.avg_pool
        x = pool(x, (2, 2), (2, 2))
    return layers.dense(self.num_classes)(jnp.mean(x, (1, 2)))


@image_tasks.classification
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         width: int = 16, depth: int = 2, pooling: str = "stride",
         activation: str = "relu", norm: str = "none", init_scale: float = 1.0
         ) -> networks.Network:
  """Make a network of 3 x 3 convolutions with equal numbers of channels.

  Args:
    parametrization: see `tasks.families.get`.
    images: see `tasks.image_tasks.load`.
    width: channels of each convolution.
    depth: number of convolutions.
    pooling: how each convolution halves height and width: "stride" for a stride
      of 2; "max" or "average" of 2 x 2 positions; "none" keeps the size.
    activation: see `tasks.layers.activation`.
    norm: norm after each convolution, see `tasks.layers.norm`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width or depth below 1, or an unknown name.
  """
  layers.check(width=width, depth=depth)
  layers.check_choice("pooling", pooling, POOLING)
  build = lambda width: ConvNet(
      width, depth, pooling, activation, norm, images.num_classes)
  return networks.from_flax(
      parametrization, build, width, images.batch, init_scale)
