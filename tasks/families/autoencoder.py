"""Reconstruction of images by an autoencoder."""

from flax import linen as nn
import jax
import numpy as np

from tasks import base
from tasks import image_tasks
from tasks import layers
from tasks import networks


class Autoencoder(nn.Module):
  """Hidden layers, a narrow layer, hidden layers, and the image."""

  width: int
  depth: int
  code: int
  activation: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, height, width, channels]
    act = layers.activation(self.activation)
    h = x.reshape(len(x), -1)
    hidden = [self.width] * self.depth
    for features in (*hidden, self.code, *hidden):
      h = act(layers.dense(features)(h))
    return layers.dense(int(np.prod(x.shape[1:])))(h).reshape(x.shape)


@image_tasks.reconstruction
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         width: int = 64, depth: int = 1, squeeze: int = 4,
         activation: str = "tanh", init_scale: float = 1.0) -> networks.Network:
  """Make a multilayer autoencoder, trained on the mean squared error.

  Args:
    parametrization: see `tasks.families.get`.
    images: see `tasks.image_tasks.load`.
    width: units of each hidden layer.
    depth: hidden layers on each side of the narrow layer.
    squeeze: the narrow layer has width // squeeze units. It grows with width.
      muP would treat a narrow layer of constant size as a readout, which starts
      at zero and passes no gradient.
    activation: see `tasks.layers.activation`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width, depth or squeeze below 1, or squeeze above width.
  """
  return network(
      parametrization, images, width, depth, squeeze, activation, init_scale)


def network(parametrization: base.Parametrization, images: image_tasks.Images,
            width: int, depth: int, squeeze: int, activation: str,
            init_scale: float) -> networks.Network:
  """Return the autoencoder; see `make`."""
  layers.check(width=width, depth=depth, squeeze=squeeze)
  if squeeze > width:
    raise ValueError(f"squeeze ({squeeze}) must be at most width ({width}).")
  build = lambda width: Autoencoder(width, depth, width // squeeze, activation)
  return networks.from_flax(
      parametrization, build, width, images.batch, init_scale)
