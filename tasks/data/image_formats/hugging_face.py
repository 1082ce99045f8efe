"""Image data sets of Hugging Face: "hf://owner/name"."""

import pathlib
from typing import Any, Container

import numpy as np

from tasks.data import base

DATASETS = ("hf://*",)
LOCAL = False


def load(name: str, folder: pathlib.Path | None, size: int) -> base.ImageParts:
  """Load the parts "train" and "test" of a data set.

  Without a part "test", the part "validation" or "valid" is the test part. The
  number of classes is the largest label plus 1. Needs the library `datasets`.

  Args:
    name: name of the data set, with "hf://".
    folder: ignored; the library has its own cache.
    size: see `tasks.data.image_formats`.

  Raises:
    ImportError: the library is not installed.
    ValueError: a data set without these parts, or see `_read_part`.
  """
  del folder
  name = name.removeprefix("hf://")
  try:
    import datasets
  except ImportError as e:
    raise ImportError("hf:// needs a library: pip install datasets.") from e
  loaded = datasets.load_dataset(name)
  test_name = _first(("test", "validation", "valid"), loaded)
  if test_name is None or "train" not in loaded:
    raise ValueError(f"{name} has the parts {', '.join(loaded)}; it must have "
                     "train, and test or validation.")
  train, test = (_read_part(name, loaded[part], size)
                 for part in ("train", test_name))
  num_classes = int(max(label.max() for _, label in (train, test))) + 1
  return base.ImageParts(train, test, num_classes)


def _read_part(name: str, part: Any, size: int) -> base.Examples:
  """Read the images and labels of one part.

  Args:
    name: name of the data set, for error messages.
    part: a `datasets.Dataset`.
    size: height and width to which images are resized; 0 keeps their size.

  Raises:
    ValueError: no column of images or no column of labels, or images of
      different sizes that are not resized.
  """
  columns = part.features
  image_column = _first(("image", "img"), columns)
  label_column = _first(("label", "labels", "fine_label"), columns)
  if not image_column or not label_column:
    raise ValueError(f"{name} has the columns {', '.join(columns)}; it must "
                     "have image or img, and label, labels or fine_label.")
  pictures = part[image_column]  # PIL images
  if len({x.size for x in pictures}) > 1 and not size:
    raise ValueError(f"{name} has images of different sizes: give image_size.")
  mode = "L" if all(x.mode == "L" for x in pictures) else "RGB"
  pictures = (x.convert(mode) for x in pictures)
  # Resized here, because images of different sizes do not fit into one array.
  image = np.stack([np.asarray(x.resize((size, size)) if size else x)
                    for x in pictures])
  # Grey images have no axis of channels.
  return image.reshape(*image.shape[:3], -1), np.asarray(part[label_column])


def _first(names: tuple[str, ...], available: Container[str]) -> str | None:
  """Return the first name that is available, or None."""
  return next((name for name in names if name in available), None)
