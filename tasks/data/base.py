"""Results of data formats, search for the format of a data set, and helpers.

The `__init__.py` of tasks/data/image_formats, table_formats and text_formats
describe the interface of a format.
"""

import fnmatch
import importlib
from importlib import metadata
import os
import pathlib
import pkgutil
from typing import Any, Callable, NamedTuple, Protocol, TypeAlias

import numpy as np

from learned_opt import registry

# Fractions of the published training part; the published test part is "test".
FRACTIONS = {"train": 0.8, "inner_valid": 0.1, "outer_valid": 0.1}

Examples: TypeAlias = tuple[np.ndarray, np.ndarray]  # inputs and targets


class ImageParts(NamedTuple):
  """A data set of images, in its published parts.

  Attributes:
    train: training part: uint8 images [n, height, width, channels], integer
      labels [n].
    test: test part, likewise.
    num_classes: labels are from 0 to num_classes - 1.
    max_value: the pixel value that means 1.0.
  """

  train: Examples
  test: Examples
  num_classes: int
  max_value: int = 255


class TableParts(NamedTuple):
  """A table, before it is split.

  Attributes:
    examples: inputs, float or integer (ids) [n, inputs], and targets: integer
      labels [n], or float [n, outputs].
    num_classes: labels are from 0 to num_classes - 1; 0 if targets are numbers.
  """

  examples: Examples
  num_classes: int = 0


class TextParts(NamedTuple):
  """A text, in its published parts.

  Attributes:
    train: training part in UTF-8, uint8 [n].
    test: test part in UTF-8, uint8 [n]; None: the last tenth of `train`.
  """

  train: np.ndarray
  test: np.ndarray | None


class Format(Protocol):
  """A module of tasks/data/image_formats, table_formats or text_formats."""

  DATASETS: tuple[str, ...]
  LOCAL: bool
  load: Callable[..., Any]


def formats(package: str) -> dict[str, Format]:
  """Return the format of every data set.

  Formats are the files of a folder and the modules that installed packages
  offer as entry points. The group of these entry points is the folder.

  Args:
    package: folder of formats, such as "tasks.data.image_formats".

  Returns:
    {name or pattern: format}: names first, then patterns, long ones first.

  Raises:
    ValueError: two formats have a data set of the same name.
  """
  folder = importlib.import_module(package).__path__
  modules: list[Any] = [
      importlib.import_module(f"{package}.{file.name}")
      for file in pkgutil.iter_modules(folder)
      if not file.ispkg and not file.name.startswith("_")]
  modules += [point.load() for point in metadata.entry_points(group=package)]
  by_name: dict[str, Format] = {}
  for module in modules:
    for name in module.DATASETS:
      if by_name.setdefault(name, module) is not module:
        raise ValueError(f"Two formats of {package} have the data set "
                         f"{name!r}: {by_name[name]} and {module}.")
  return {name: by_name[name] for name in sorted(by_name, key=_order)}


def _order(name: str) -> tuple[bool, int, str]:
  """Return the sort key of a name: "mnist", then "my_*", then "*"."""
  is_pattern = "*" in name
  return is_pattern, -len(name) if is_pattern else 0, name


def find(package: str, name: str) -> Format:
  """Return the format of a data set.

  Args:
    package: see `formats`.
    name: name of the data set.

  Raises:
    ValueError: an unknown data set; the message lists the known ones.
  """
  known = formats(package)
  for pattern, module in known.items():
    if fnmatch.fnmatchcase(name, pattern):
      return module
  raise ValueError(f"Unknown data set {name!r}; available: {', '.join(known)}, "
                   f"where * is any text.{registry.similar(name, known)}")


def folder_of(data_format: Format, name: str, data_dir: str | None
              ) -> pathlib.Path | None:
  """Return the folder of data sets, None for a format that needs none.

  Args:
    data_format: format of the data set.
    name: name of the data set, for the error message.
    data_dir: the folder. Default: environment variable MULO_DATA_DIR.

  Raises:
    FileNotFoundError: neither data_dir nor the variable is set.
  """
  if not data_format.LOCAL:
    return None
  data_dir = data_dir or os.environ.get("MULO_DATA_DIR")
  if not data_dir:
    raise FileNotFoundError(
        f"{name} is read from local files: pass --data_dir or set "
        "MULO_DATA_DIR to the folder of data sets, such as the one that holds "
        "mnist/train-images-idx3-ubyte.gz and text/tinyshakespeare.txt.")
  # Absolute, because the folder is part of the key of a cache.
  return pathlib.Path(data_dir).absolute()


def bounds(n: int) -> np.ndarray:
  """Return the places at which `np.split` cuts n examples into splits."""
  return np.cumsum([round(f * n) for f in FRACTIONS.values()])[:-1]


def read_batches(read: Callable[[pathlib.Path], Examples], folder: pathlib.Path,
                 pattern: str) -> Examples:
  """Read the batches number 1, 2, ... of a data set, and join them.

  All batches in the folder are read, so a data set may be incomplete. A missing
  number is an error, and so is a folder without a batch.

  Args:
    read: `(path) -> (images, labels)`; raises FileNotFoundError.
    folder: folder of the batches.
    pattern: file name, with {} for the number.
  """
  count = max(1, len(list(folder.glob(pattern.format("*")))))
  batches = [read(folder / pattern.format(i + 1)) for i in range(count)]
  images, labels = zip(*batches)
  return np.concatenate(images), np.concatenate(labels)


def channels_last(rows: np.ndarray, size: int) -> np.ndarray:
  """Turn [n, 3 * size * size] into [n, size, size, 3]."""
  return np.ascontiguousarray(
      rows.reshape(-1, 3, size, size).transpose(0, 2, 3, 1))
