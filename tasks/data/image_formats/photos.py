"""Squares of the two photos that come with scikit-learn."""

import pathlib

import numpy as np

from tasks.data import base

DATASETS = ("photos",)
LOCAL = False
SIZE = 12  # pixels along each side of a square


def load(name: str, folder: pathlib.Path | None, size: int) -> base.ImageParts:
  """Cut both photos into squares; see `tasks.data.image_formats`.

  The label is the number of the photo. The squares do not overlap; those on the
  right are the test part. Needs the library Pillow.
  """
  del name, folder, size
  # Imported here, because other data sets do not need scikit-learn.
  from sklearn import datasets
  parts: tuple[list[np.ndarray], list[np.ndarray]] = [], []
  for photo in (datasets.load_sample_image(f"{x}.jpg")
                for x in ("china", "flower")):
    rows, columns = (n // SIZE for n in photo.shape[:2])
    squares = photo[:rows * SIZE, :columns * SIZE].reshape(
        rows, SIZE, columns, SIZE, 3).transpose(2, 0, 1, 3, 4)
    cut = round(0.9 * columns)
    for part, columns_of_part in zip(parts, (squares[:cut], squares[cut:])):
      part.append(columns_of_part.reshape(-1, SIZE, SIZE, 3))
  train, test = (
      (np.concatenate(part), np.repeat([0, 1], [len(x) for x in part]))
      for part in parts)
  return base.ImageParts(train, test, num_classes=2)
