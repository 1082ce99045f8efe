"""The interface of a data format, and how a data set is found and split."""

import fnmatch
import importlib
import os
import pathlib
from types import ModuleType
from typing import Callable, NamedTuple, TypeAlias

import numpy as np

from learned_opt import registry

FRACTIONS = {"train": 0.8, "inner_valid": 0.1, "outer_valid": 0.1}


Examples: TypeAlias = tuple[np.ndarray, np.ndarray]  # images and labels


class ImageParts(NamedTuple):
  """A data set of images as it is published.

  Attributes:
    train: (uint8 images [n, height, width, channels], integer labels [n]).
    test: the same of the test part.
    num_classes: labels are from 0 to num_classes - 1.
    max_value: the pixel value that means 1.0.
  """

  train: Examples
  test: Examples
  num_classes: int
  max_value: int = 255


class TextParts(NamedTuple):
  """A text as it is published.

  Attributes:
    train: uint8 [n], bytes in UTF-8.
    test: the same of the test part; None to split it off the end of train.
  """

  train: np.ndarray
  test: np.ndarray | None


def formats(package: str) -> dict[str, ModuleType]:
  """The format of each data set or pattern, by the files of a folder.

  Args:
    package: "tasks.data.image_formats" or "tasks.data.text_formats".

  Returns:
    {name or pattern: module}, names before patterns.
  """
  modules = [importlib.import_module(f"{package}.{name}")
             for name in registry.names(package)]
  pairs = [(name, module) for module in modules for name in module.DATASETS]
  return dict(sorted(pairs, key=lambda pair: "*" in pair[0]))


def find(package: str, name: str) -> ModuleType:
  """Return the format of a data set.

  Args:
    package: see `formats`.
    name: of the data set.

  Raises:
    ValueError: an unknown data set; the message lists the known ones.
  """
  known = formats(package)
  for pattern, module in known.items():
    if fnmatch.fnmatchcase(name, pattern):
      return module
  raise ValueError(f"Unknown data set {name!r}; available: "
                   f"{', '.join(known).replace('*', 'owner/name')}.")


def folder_of(module: ModuleType, name: str, data_dir: str | None
              ) -> pathlib.Path | None:
  """Return the folder of data sets, None for a format that needs none.

  Args:
    module: the format.
    name: of the data set, for the message.
    data_dir: the folder; default: environment variable MULO_DATA_DIR.

  Raises:
    FileNotFoundError: neither data_dir nor the variable is set.
  """
  if not module.LOCAL:
    return None
  data_dir = data_dir or os.environ.get("MULO_DATA_DIR")
  if not data_dir:
    raise FileNotFoundError(
        f"{name} is read from local files: pass --data_dir or set "
        "MULO_DATA_DIR to the folder of data sets, such as the one that holds "
        "mnist/train-images-idx3-ubyte.gz and text/tinyshakespeare.txt.")
  return pathlib.Path(data_dir).absolute()


def bounds(n: int) -> np.ndarray:
  """Return where the splits of n training examples begin, but the first."""
  return np.cumsum([round(f * n) for f in FRACTIONS.values()])[:-1]


def batches(read: Callable, folder: pathlib.Path, pattern: str
            ) -> Examples:
  """Read and join batches number 1, 2, ...; at least one, and no gaps.

  Args:
    read: `(path) -> (images, labels)`.
    folder: of the batches.
    pattern: file name, with {} for the number.
  """
  number = max(1, len(list(folder.glob(pattern.format("*")))))
  parts = [read(folder / pattern.format(i + 1)) for i in range(number)]
  images, labels = zip(*parts)
  return np.concatenate(images), np.concatenate(labels)


def channels_last(rows: np.ndarray, size: int) -> np.ndarray:
  """Turn [n, 3 * size * size] into [n, size, size, 3]."""
  return np.ascontiguousarray(
      rows.reshape(-1, 3, size, size).transpose(0, 2, 3, 1))
