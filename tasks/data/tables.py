"""Tables of numbers, split at random with a fixed seed."""

import functools
import pathlib
from typing import Callable, NamedTuple

import numpy as np

from tasks.data import base

FORMATS = "tasks.data.table_formats"


class TableData(NamedTuple):
  """A table by split.

  Attributes:
    splits: {split: {"x": float32 or int32 (ids) [n, inputs], "y": int32 [n]
      (classes) or float32 [n, outputs]}}.
    num_classes: number of classes; 0 if targets are numbers.
  """

  splits: dict[str, dict[str, np.ndarray]]
  num_classes: int


def table_data(name: str, data_dir: str | None = None) -> TableData:
  """Load a table, or draw it with a fixed seed.

  * "breast_cancer", "digits", "wine" (classes), "diabetes" (numbers): come with
    scikit-learn.
  * "friedman1", "friedman2", "friedman3": functions with noise.
  * "student_t", "low_rank", "scales": difficult inputs of a random network.
  * "china", "flower", "waves", "sources": functions of a position in the plane.
  * "points" (classes): sets of points.
  * "ratings": ratings of items by users, whose inputs are ids.

  A random tenth is the test split.

  Args:
    name: name of the table.
    data_dir: see `tasks.data.images.image_data`.

  Raises:
    ValueError: an unknown name.
    ImportError: a photo without the library Pillow.
  """
  table_format = base.find(FORMATS, name)
  folder = base.folder_of(table_format, name, data_dir)
  return _table_data(table_format.load, name, folder)


@functools.lru_cache(maxsize=16)
def _table_data(load: Callable[..., base.TableParts], name: str,
                folder: pathlib.Path | None) -> TableData:
  """Load and split a table; see `table_data`."""
  (x, y), num_classes = load(name, folder)
  # The seed is fixed: all runs must have the same splits.
  order = np.random.RandomState(0).permutation(len(x))
  test, rest = np.split(order, [len(x) // 10])
  rows = dict(zip(base.FRACTIONS, np.split(rest, base.bounds(len(rest)))),
              test=test)
  return TableData(
      {split: {"x": _small(x[i]), "y": _small(y[i])}
       for split, i in rows.items()}, num_classes)


def _small(x: np.ndarray) -> np.ndarray:
  """Return an array as float32, or as int32 if it has integers."""
  return x.astype(
      np.int32 if np.issubdtype(x.dtype, np.integer) else np.float32)
