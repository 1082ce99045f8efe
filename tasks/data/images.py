"""Data sets of images, split and resized.

A fixed permutation splits the published training part. Pixels stay uint8 until
a network reads them, which takes a quarter of the memory of float32.
"""

import functools
import pathlib
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.data import base

FORMATS = "tasks.data.image_formats"
CHUNK = 4096  # images converted at a time, to bound the memory in float32


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

  * "digits", "photos" (squares of two photos): come with scikit-learn.
  * "shapes": drawings of eight shapes.
  * "mnist", "fashion_mnist": IDX files in `<data_dir>/<name>/`, gzipped or not.
  * "cifar10": the binary version in `<data_dir>/cifar-10-batches-bin/`.
  * "cifar100": the binary version in `<data_dir>/cifar-100-binary/`.
  * "imagenet32", "imagenet64": npz batches in `<data_dir>/<name>/`.
  * "hf://owner/name": from Hugging Face, by the library `datasets`.

  Each file in tasks/data/image_formats adds data sets of one format.

  Args:
    name: name of the data set.
    data_dir: folder of data sets. Default: environment variable MULO_DATA_DIR.
    size: height and width to which images are resized, bilinearly; 0 keeps
      their size.
    greyscale: whether to average the channels to one channel.

  Raises:
    ValueError: an unknown name, a negative size, or a file that is damaged or
      of another format.
    FileNotFoundError: data_dir is not given, or a file is missing.
    ImportError: hf:// without the library `datasets`.
  """
  image_format = base.find(FORMATS, name)
  if size < 0:
    raise ValueError(f"The image size must not be negative, got {size}.")
  folder = base.folder_of(image_format, name, data_dir)
  return _image_data(image_format.load, name, folder, size, greyscale)


# Several tasks of a suite share a data set, and must share its memory, too.
@functools.lru_cache(maxsize=4)
def _image_data(load: Callable[..., base.ImageParts], name: str,
                folder: pathlib.Path | None, size: int, greyscale: bool
                ) -> ImageData:
  """Load, check, split and resize a data set; see `image_data`."""
  parts = load(name, folder, size)
  for _, label in (parts.train, parts.test):
    _check_labels(name, label, parts.num_classes)
  examples = {"test": parts.test}
  image, label = parts.train
  # The seed is fixed: all runs must have the same splits.
  order = np.random.RandomState(0).permutation(len(image))
  rows_of_splits = np.split(order, base.bounds(len(order)))
  for split, rows in zip(base.FRACTIONS, rows_of_splits):
    examples[split] = image[rows], label[rows]
  return ImageData(
      {split: {"image": _prepared(image, size, greyscale),
               "label": label.astype(np.int32)}
       for split, (image, label) in examples.items()},
      parts.num_classes, parts.max_value)


def _check_labels(name: str, label: np.ndarray, num_classes: int) -> None:
  """Raise ValueError for too few labels, or labels out of range."""
  if len(label) < 10:
    raise ValueError(f"A part of {name} has {len(label)} images, too few to "
                     "be split.")
  if not 0 <= label.min() <= label.max() < num_classes:
    raise ValueError(
        f"{name} has the labels {label.min()} to {label.max()}; expected 0 "
        f"to {num_classes - 1}: its files are damaged.")


def _prepared(image: np.ndarray, size: int, greyscale: bool) -> np.ndarray:
  """Convert uint8 images to grey if asked to, and resize them unless size is 0.
  """
  if greyscale and image.shape[-1] > 1:
    image = np.concatenate([
        np.round(part.mean(-1, keepdims=True)).astype(np.uint8)
        for part in np.split(image, range(CHUNK, len(image), CHUNK))])
  if not size or image.shape[1:3] == (size, size):
    return image
  result = np.empty((len(image), size, size, image.shape[-1]), np.uint8)
  for first in range(0, len(image), CHUNK):
    part = image[first:first + CHUNK]  # [chunk, height, width, channels]
    shape = (len(part), *result.shape[1:])
    resized = jax.image.resize(jnp.asarray(part, jnp.float32), shape, "linear")
    result[first:first + CHUNK] = np.round(np.clip(resized, 0, 255))
  return result
