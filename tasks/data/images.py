"""Data sets of images, split and resized.

The training part is split once, by a fixed permutation. Pixels stay uint8 until
they are used.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.data import base

FORMATS = "tasks.data.image_formats"
CHUNK = 4096  # images that are resized at a time


class ImageData(NamedTuple):
  """Images by split.

  Attributes:
    splits: {split: {"image": uint8 [n, height, width, channels],
      "label": int32 [n]}}.
    num_classes: number of classes.
    max_value: the pixel value that means 1.0.
  """

  splits: dict[str, dict[str, np.ndarray]]
  num_classes: int
  max_value: int


def image_data(name: str, data_dir: str | None = None, size: int = 0,
               greyscale: bool = False) -> ImageData:
  """Load a data set of images.

  "digits" comes with scikit-learn. "mnist" and "fashion_mnist" are read from
  `<data_dir>/<name>/`, four IDX files, gzipped or not; "cifar10" and "cifar100"
  from the binary version in `cifar-10-batches-bin/` and `cifar-100-binary/`;
  "imagenet32" and "imagenet64" from npz batches in `<name>/`. "hf://owner/name"
  is loaded by the library `datasets`. Each format is a file of
  tasks/data/image_formats.

  Args:
    name: data set.
    data_dir: folder of data sets. Default: environment variable MULO_DATA_DIR.
    size: images are resized to size x size, bilinearly; 0: as they are.
    greyscale: one channel, the mean of all.

  Raises:
    ValueError: unknown name, a negative size, or a file that is damaged or of
      another format.
    FileNotFoundError: no data_dir, or a file is missing.
    ImportError: hf:// without the library `datasets`.
  """
  module = base.find(FORMATS, name)
  if size < 0:
    raise ValueError(f"The image size must not be negative, got {size}.")
  folder = base.folder_of(module, name, data_dir)
  return _image_data(module, name, folder, size, greyscale)


@functools.lru_cache(maxsize=4)
def _image_data(module, name, folder, size, greyscale) -> ImageData:
  train, test, num_classes, max_value = module.load(name, folder, size)
  for _, label in (train, test):
    if len(label) < 10:
      raise ValueError(f"A part of {name} has {len(label)} images, too few to "
                       "be split.")
    if not 0 <= label.min() <= label.max() < num_classes:
      raise ValueError(
          f"{name} has the labels {label.min()} to {label.max()}; expected 0 "
          f"to {num_classes - 1}: its files are damaged.")
  parts = {"test": test}
  order = np.random.RandomState(0).permutation(len(train[0]))
  splits = np.split(order, base.bounds(len(order)))
  for split, rows in zip(base.FRACTIONS, splits):
    parts[split] = train[0][rows], train[1][rows]
  return ImageData(
      {split: {"image": _prepared(image, size, greyscale),
               "label": label.astype(np.int32)}
       for split, (image, label) in parts.items()}, num_classes, max_value)


def _prepared(image: np.ndarray, size: int, greyscale: bool) -> np.ndarray:
  """Greyscale and resizing, in chunks, to uint8."""
  if greyscale and image.shape[-1] > 1:
    image = np.concatenate([
        np.round(part.mean(-1, keepdims=True)).astype(np.uint8)
        for part in np.split(image, range(CHUNK, len(image), CHUNK))])
  if not size or image.shape[1:3] == (size, size):
    return image
  result = np.empty((len(image), size, size, image.shape[-1]), np.uint8)
  for first in range(0, len(image), CHUNK):
    part = image[first:first + CHUNK]
    shape = (len(part), *result.shape[1:])
    resized = jax.image.resize(jnp.asarray(part, jnp.float32), shape, "linear")
    result[first:first + CHUNK] = np.round(np.clip(resized, 0, 255))
  return result
