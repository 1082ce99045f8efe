"""The binary version of CIFAR-10 and CIFAR-100.

Of the training batches of CIFAR-10, as many are read as there are, from number
1 on.

Reference:
  https://www.cs.toronto.edu/~kriz/cifar.html
"""

import pathlib
from typing import NamedTuple

import numpy as np

from tasks.data import base


class _Files(NamedTuple):
  folder: str
  train: str
  test: str
  num_classes: int
  label_bytes: int  # per record


_FILES = {
    "cifar10": _Files("cifar-10-batches-bin", "data_batch_{}.bin",
                      "test_batch.bin", 10, 1),
    "cifar100": _Files("cifar-100-binary", "train.bin", "test.bin", 100, 2)}
DATASETS = tuple(_FILES)
LOCAL = True


def load(name: str, folder: pathlib.Path, size: int) -> base.ImageParts:
  """Read a data set from its folder; see `tasks.data.image_formats`."""
  del size
  files = _FILES[name]
  part = lambda path: read(path, files.label_bytes)
  return base.ImageParts(
      base.batches(part, folder / files.folder, files.train),
      part(folder / files.folder / files.test), files.num_classes)


def read(path: pathlib.Path, labels: int) -> base.Examples:
  """Reads one batch of CIFAR in the binary version.

  A record is its labels, one byte each, and 3 x 32 x 32 bytes of pixels.

  Args:
    path: file such as data_batch_1.bin.
    labels: label bytes per record: 1 for CIFAR-10; 2 for CIFAR-100, of which
      the second, the fine one, is used.

  Returns:
    uint8 images [n, 32, 32, 3] and uint8 labels [n].

  Raises:
    FileNotFoundError: no such file.
    ValueError: a length that is not a number of records.

  Reference:
    https://www.cs.toronto.edu/~kriz/cifar.html
  """
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist.")
  content = np.fromfile(path, np.uint8)
  record = labels + 3072
  if not content.size or content.size % record:
    raise ValueError(
        f"{path} has {content.size} bytes, which is not a number of records of "
        f"{record} bytes: it is damaged, or not the binary version of CIFAR.")
  records = content.reshape(-1, record)
  image = base.channels_last(records[:, labels:], 32)
  return image, records[:, labels - 1].copy()
