"""Data, losses and batches of tasks on images.

A family is a function `(parametrization, images, **settings) -> Network` with
the decorator `classification` or `reconstruction`. The decorators add three
groups of settings:

* the settings of `load`,
* batch_size: examples per batch, drawn with replacement,
* compute_dtype: see `tasks.networks.computed_in`.
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
  """A data set of images, ready for a network.

  Attributes:
    splits: see `tasks.data.images.ImageData`.
    shape: (height, width, channels).
    num_classes: number of classes.
    pixels: `(uint8 [..., height, width, channels]) -> float32`, of equal shape.
  """

  splits: dict[str, dict[str, np.ndarray]]
  shape: tuple[int, int, int]
  num_classes: int
  pixels: Callable[[jax.Array], jax.Array]

  @property
  def batch(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a batch of one image."""
    return jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)


def load(dataset: str = "digits", image_size: int = 0, greyscale: bool = False,
         standardize: bool = False, label_noise: float = 0.0,
         pixel_noise: float = 0.0, data_dir: str | None = None) -> Images:
  """Load a data set of images, and add noise.

  Args:
    dataset: `name` of `tasks.data.images.image_data`.
    image_size: `size` of `tasks.data.images.image_data`.
    greyscale: see `tasks.data.images.image_data`.
    standardize: whether to shift and scale each channel to mean 0 and variance
      1 in the train split. Otherwise pixels are from 0 to 1.
    label_noise: fraction of the labels in the train split that are replaced by
      random labels, drawn once with a fixed seed.
    pixel_noise: standard deviation of normal noise on the pixels of all splits,
      in units of the largest pixel value, drawn once with a fixed seed. Sums
      are clipped to the range of pixels.
    data_dir: see `tasks.data.images.image_data`.

  Raises:
    ValueError: label_noise is not from 0 to 1, pixel_noise is negative, or see
      `tasks.data.images.image_data`.
  """
  if not 0 <= label_noise <= 1:
    raise ValueError(f"label_noise must be from 0 to 1, got {label_noise}.")
  if not 0 <= pixel_noise < math.inf:
    raise ValueError(f"pixel_noise must not be negative, got {pixel_noise}.")
  data = images_lib.image_data(dataset, data_dir, image_size, greyscale)
  splits = dict(data.splits)  # a copy, because image_data returns a cached dict
  if pixel_noise:
    # The seeds of noise are fixed: a setting always means the same data set.
    noise = np.random.default_rng(3)
    splits = {name: {**split, "image": _noisy(
        split["image"], pixel_noise * data.max_value, data.max_value, noise)}
              for name, split in splits.items()}
  train = splits["train"]
  if label_noise:
    rng = np.random.RandomState(2)
    noisy = rng.uniform(size=len(train["label"])) < label_noise
    random = rng.randint(data.num_classes, size=len(noisy)).astype(np.int32)
    splits["train"] = {**train, "label": np.where(
        noisy, random, train["label"])}
  mean: Any = 0.0
  std: Any = 1.0
  if standardize:
    mean, std = moments(train["image"], (0, 1, 2), data.max_value)
    std = np.maximum(std, 1e-3)  # a channel may be constant

  def pixels(image: jax.Array) -> jax.Array:
    x = image.astype(jnp.float32) / data.max_value
    # [channels] to [1, ..., 1, channels]
    channels = lambda y: jnp.reshape(y, (1,) * (x.ndim - 1) + (-1,))
    return (x - channels(mean)) / channels(std) if standardize else x

  return Images(splits, train["image"].shape[1:], data.num_classes, pixels)


def _chunks(image: np.ndarray) -> list[np.ndarray]:
  """Split images into chunks of about 1000, to bound the memory of floats."""
  return np.array_split(image, max(1, len(image) // 1000))


def _noisy(image: np.ndarray, std: float, max_value: int,
           rng: np.random.Generator) -> np.ndarray:
  """Add normal noise to uint8 images; round and clip to 0 ... max_value."""
  chunks = [np.clip(np.rint(chunk + std * rng.standard_normal(
      chunk.shape, np.float32)), 0, max_value).astype(image.dtype)
            for chunk in _chunks(image)]
  return np.concatenate(chunks)


def moments(image: np.ndarray, axes: tuple[int, ...], max_value: float
            ) -> tuple[np.ndarray, np.ndarray]:
  """Return the mean and the standard deviation of `image / max_value`.

  Args:
    image: uint8 images [n, height, width, channels].
    axes: axes to average over, with axis 0.
    max_value: the pixel value that means 1.0.

  Returns:
    Mean and standard deviation, float32 of the shape of the other axes.
  """
  parts = _chunks(image)
  sums = [(part.sum(axes, dtype=np.float64),
           np.square(part, dtype=np.float64).sum(axes)) for part in parts]
  n = math.prod(image.shape[axis] for axis in axes)
  mean, square = (sum(x) / n for x in zip(*sums))
  # Rounding can make a variance slightly negative.
  std = np.sqrt(np.maximum(square - mean**2, 0))
  return ((mean / max_value).astype(np.float32),
          (std / max_value).astype(np.float32))


def sampler(images: Images, batch_size: int
            ) -> Callable[[jax.Array, dict[str, jax.Array]], base.Batch]:
  """Return `Task.sample_batch`: examples drawn with replacement."""

  def sample_batch(key: jax.Array, split: dict[str, jax.Array]) -> base.Batch:
    # One draw; randint would make three. The remainder prefers small rows by at
    # most n / 2**32 for n examples, which is negligible.
    rows = jax.random.bits(key, (batch_size,)) % len(split["label"])
    return {"image": images.pixels(split["image"][rows]),
            "label": split["label"][rows]}

  return sample_batch


def classify(network: networks.Network, images: Images, batch_size: int = 64,
             compute_dtype: str = "float32") -> base.Task:
  """Return the task with the softmax cross-entropy of logits [n, classes].

  Args:
    network: `(params, pixels [n, height, width, channels]) -> logits`.
    images: data set.
    batch_size: examples per batch.
    compute_dtype: see `tasks.networks.computed_in`.

  Raises:
    ValueError: batch_size is not an integer of at least 1, or an unknown dtype.
  """
  layers.check(batch_size=batch_size)
  network = networks.computed_in(network, compute_dtype)

  def loss(params: base.Params, key: jax.Array, batch: base.Batch
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
    del key
    logits = network.apply(params, batch["image"])
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch["label"])
    correct = jnp.argmax(logits, 1) == batch["label"]
    return jnp.mean(losses), {"accuracy": jnp.mean(correct)}

  chance = math.log(images.num_classes)  # every class with equal probability
  return base.Task(
      network.init, loss, sampler(images, batch_size), images.splits,
      network.base_shapes, normalizers.bounded(chance), chance,
      activations=networks.of_batches(network, lambda batch: batch["image"]),
      blocks=network.blocks, tables=network.tables)


def mean_image(images: Images) -> tuple[jax.Array, float]:
  """Return the mean image of the train split, and the loss of guessing it.

  Returns:
    Mean [height, width, channels], and the mean squared difference from it.
  """
  image = images.splits["train"]["image"]
  mean = images.pixels(jnp.asarray(moments(image, (0,), 1)[0]))
  return mean, float(np.mean([
      jnp.mean(jnp.square(images.pixels(jnp.asarray(part)) - mean[None]))
      for part in _chunks(image)]))


def reconstruct(network: networks.Network, images: Images, batch_size: int = 64,
                compute_dtype: str = "float32", corruption: float = 0.0
                ) -> base.Task:
  """Return the task with the mean squared error of reconstructed images.

  The network receives and returns differences from the mean image of the train
  split. A network whose output is 0 thus predicts the mean image.

  Args:
    network: `(params, x) -> y`, x and y [n, height, width, channels].
    images: data set.
    batch_size: examples per batch.
    compute_dtype: see `tasks.networks.computed_in`.
    corruption: standard deviation of normal noise on the inputs, drawn again
      for every batch, in units of the standard deviation of pixels around the
      mean image.

  Raises:
    ValueError: batch_size is not an integer of at least 1, a negative
      corruption, or an unknown dtype.
  """
  layers.check(batch_size=batch_size)
  if not 0 <= corruption < math.inf:
    raise ValueError(f"corruption must not be negative, got {corruption}.")
  network = networks.computed_in(network, compute_dtype)
  mean, chance = mean_image(images)

  def loss(params: base.Params, key: jax.Array, batch: base.Batch
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
    x = corrupted = batch["image"] - mean[None]
    if corruption:
      std = corruption * chance**0.5
      corrupted = x + std * jax.random.normal(key, x.shape)
    return jnp.mean(jnp.square(network.apply(params, corrupted) - x)), {}

  return base.Task(
      network.init, loss, sampler(images, batch_size), images.splits,
      network.base_shapes, normalizers.bounded(chance, 1 / chance), chance,
      activations=networks.of_batches(
          network, lambda batch: batch["image"] - mean[None]),
      blocks=network.blocks, tables=network.tables)


classification = task_decorator.decorator(load, classify)
reconstruction = task_decorator.decorator(load, reconstruct)
