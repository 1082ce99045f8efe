"""The 8 x 8 digits that come with scikit-learn."""

import pathlib

import numpy as np

from tasks.data import base

DATASETS = ("digits",)
LOCAL = False


def load(name: str, folder: pathlib.Path | None, size: int) -> base.ImageParts:
  """Load the digits; see `tasks.data.image_formats`."""
  del name, folder, size
  # Imported here, because other data sets do not need scikit-learn.
  from sklearn import datasets
  bunch = datasets.load_digits()
  image = bunch.images.astype(np.uint8)[..., None]  # [1797, 8, 8, 1]
  # There is no official test part: a fixed tenth of the examples is used. They
  # are permuted first, because they are sorted by writer.
  order = np.random.RandomState(1).permutation(len(image))
  test, train = np.split(order, [len(image) // 10])
  return base.ImageParts(
      train=(image[train], bunch.target[train]),
      test=(image[test], bunch.target[test]), num_classes=10, max_value=16)
