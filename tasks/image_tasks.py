"""What tasks on images share: all but the network.

A family is a function `(parametrization, images, **settings) -> Network`,
decorated with `classification` or `reconstruction`; these add the settings of
`load`, batch_size (examples per batch, drawn with replacement) and
compute_dtype (see `tasks.networks.computed_in`).
"""

import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tasks import base
from tasks import layers
from tasks import networks
from tasks import normalizers
from tasks import task_decorator
from tasks.data import images as images_lib


class Images(NamedTuple):
  """A data set as a network sees it.

  Attributes:
    splits: see `tasks.data.images.ImageData`.
    shape: (height, width, channels).
    num_classes: number of classes.
    pixels: `(uint8 [..., height, width, channels]) -> float32`.
  """

  splits: dict[str, dict[str, np.ndarray]]
  shape: tuple[int, int, int]
  num_classes: int
  pixels: Callable[[jax.Array], jax.Array]

  @property
  def batch(self) -> jax.ShapeDtypeStruct:
    """An example of a batch, for shapes."""
    return jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)


def load(dataset: str = "digits", image_size: int = 0, greyscale: bool = False,
         standardize: bool = False, label_noise: float = 0.0,
         pixel_noise: float = 0.0, data_dir: str | None = None) -> Images:
  """A data set of images.

  Args:
    dataset: see `tasks.data.images.image_data`.
    image_size: see `tasks.data.images.image_data`.
    greyscale: see `tasks.data.images.image_data`.
    standardize: each channel has mean 0 and variance 1 in the train split,
      else pixels are from 0 to 1.
    label_noise: part of the labels in the train split that are replaced by
      random ones, once and for all.
    pixel_noise: standard deviation of normal noise on the pixels of all
      splits, in units of the largest pixel value, once and for all; the sum is
      clipped to the range of pixels.
    data_dir: see `tasks.data.images.image_data`.

  Raises:
    ValueError: label_noise is not from 0 to 1, pixel_noise is negative, or see
      `tasks.data.images.image_data`.
  """
  if not 0 <= label_noise <= 1:
    raise ValueError(f"label_noise must be from 0 to 1, got {label_noise}.")
  if not 0 <= pixel_noise < math.inf:
    raise ValueError(f"pixel_noise must not be negative, got {pixel_noise}.")
  found = images_lib.image_data(dataset, data_dir, image_size, greyscale)
  splits = dict(found.splits)
  if pixel_noise:
    noise = np.random.default_rng(3)
    splits = {name: {**split, "image": _noisy(
        split["image"], pixel_noise * found.max_value, found.max_value, noise)}
              for name, split in splits.items()}
  train = splits["train"]
  if label_noise:
    rng = np.random.RandomState(2)
    noisy = rng.uniform(size=len(train["label"])) < label_noise
    random = rng.randint(found.num_classes, size=len(noisy)).astype(np.int32)
    splits["train"] = {**train, "label": np.where(
        noisy, random, train["label"])}
  mean: Any = 0.0
  std: Any = 1.0
  if standardize:
    mean, std = moments(train["image"], (0, 1, 2), found.max_value)
    std = np.maximum(std, 1e-3)

  def pixels(image):
    x = image.astype(jnp.float32) / found.max_value
    channels = lambda y: jnp.reshape(y, (1,) * (x.ndim - 1) + (-1,))
    return (x - channels(mean)) / channels(std) if standardize else x

  return Images(splits, train["image"].shape[1:], found.num_classes, pixels)


def _noisy(image, std, max_value, rng):
  """uint8 images with normal noise, rounded and clipped."""
  parts = [np.clip(np.rint(part + std * rng.standard_normal(
      part.shape, np.float32)), 0, max_value).astype(image.dtype)
           for part in np.array_split(image, max(1, len(image) // 1000))]
  return np.concatenate(parts)


def moments(image: np.ndarray, axes: tuple[int, ...], max_value: float
            ) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation over axes, float32, the largest value 1."""
  parts = np.array_split(image, max(1, len(image) // 1000))
  sums = [(part.sum(axes, dtype=np.float64),
           np.square(part, dtype=np.float64).sum(axes)) for part in parts]
  n = math.prod(image.shape[axis] for axis in axes)
  mean, square = (sum(x) / n for x in zip(*sums))
  std = np.sqrt(np.maximum(square - mean**2, 0))
  return ((mean / max_value).astype(np.float32),
          (std / max_value).astype(np.float32))


def _sampler(images: Images, batch_size: int) -> Callable:
  def sample_batch(key, split):
    # One draw, where randint makes three; the bias of the remainder is nothing.
    rows = jax.random.bits(key, (batch_size,)) % len(split["label"])
    return {"image": images.pixels(split["image"][rows]),
            "label": split["label"][rows]}
  return sample_batch


def classify(network: networks.Network, images: Images, batch_size: int = 64,
             compute_dtype: str = "float32") -> base.Task:
  """Softmax cross-entropy of logits [n, classes]."""
  layers.check(batch_size=batch_size)
  network = networks.computed_in(network, compute_dtype)

  def loss(params, key, batch):
    del key
    logits = network.apply(params, batch["image"])
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch["label"])
    correct = jnp.argmax(logits, 1) == batch["label"]
    return jnp.mean(losses), {"accuracy": jnp.mean(correct)}

  chance = math.log(images.num_classes)
  return base.Task(
      network.init, loss, _sampler(images, batch_size), images.splits,
      network.base_shapes, normalizers.bounded(chance), chance,
      activations=networks.of_batches(network, lambda batch: batch["image"]),
      blocks=network.blocks)


def reconstruct(network: networks.Network, images: Images, batch_size: int = 64,
                compute_dtype: str = "float32") -> base.Task:
  """Mean squared error of images [n, height, width, channels]."""
  layers.check(batch_size=batch_size)
  network = networks.computed_in(network, compute_dtype)
  # Differences from the mean image, so that a network that says nothing
  # answers with the mean image.
  mean = images.pixels(jnp.asarray(
      moments(images.splits["train"]["image"], (0,), 1)[0]))

  def loss(params, key, batch):
    del key
    x = batch["image"] - mean[None]
    return jnp.mean(jnp.square(network.apply(params, x) - x)), {}

  train = images.splits["train"]["image"]
  chance = float(np.mean([
      jnp.mean(jnp.square(images.pixels(jnp.asarray(part)) - mean[None]))
      for part in np.array_split(train, max(1, len(train) // 1000))]))
  return base.Task(
      network.init, loss, _sampler(images, batch_size), images.splits,
      network.base_shapes, normalizers.bounded(chance, 1 / chance), chance,
      activations=networks.of_batches(
          network, lambda batch: batch["image"] - mean[None]),
      blocks=network.blocks)


classification = task_decorator.decorator(load, classify)
reconstruction = task_decorator.decorator(load, reconstruct)
