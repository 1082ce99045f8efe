"""Reconstruction of images from noisy images by an autoencoder."""

import functools

from tasks import base
from tasks import image_tasks
from tasks import networks
from tasks import task_decorator
from tasks.families import autoencoder


@task_decorator.decorator(image_tasks.load, functools.partial(
    image_tasks.reconstruct, corruption=1.0))
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         width: int = 64, depth: int = 1, squeeze: int = 1,
         activation: str = "relu", init_scale: float = 1.0) -> networks.Network:
  """Make a denoising autoencoder, trained on the mean squared error.

  The setting corruption, 1 by default, is described at
  `tasks.image_tasks.reconstruct`. Evaluation adds noise, too.

  Args:
    parametrization: see `tasks.families.get`.
    images: see `tasks.image_tasks.load`.
    width: units of each hidden layer.
    depth: hidden layers on each side of the middle layer.
    squeeze: the middle layer has width // squeeze units.
    activation: see `tasks.layers.activation`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: see `tasks.families.autoencoder`.

  Reference:
    Vincent et al., Extracting and composing robust features with denoising
    autoencoders, 2008.
  """
  return autoencoder.network(
      parametrization, images, width, depth, squeeze, activation, init_scale)
