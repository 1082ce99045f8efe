"""The binary version of CIFAR-10 and CIFAR-100.

CIFAR-10 has several training batches; all that are in the folder are read.

Reference:
  https://www.cs.toronto.edu/~kriz/cifar.html
"""

import functools
import pathlib
from typing import NamedTuple

import numpy as np

from tasks.data import base


class _Files(NamedTuple):
  """Files of a data set; {} in a name is for the number of a batch."""

  folder: str
  train: str
  test: str
  num_classes: int
  label_bytes: int  # label bytes per record


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
  read_part = functools.partial(read, label_bytes=files.label_bytes)
  inside = folder / files.folder
  return base.ImageParts(
      train=base.read_batches(read_part, inside, files.train),
      test=read_part(inside / files.test), num_classes=files.num_classes)


def read(path: pathlib.Path, label_bytes: int) -> base.Examples:
  """Read one batch of CIFAR in the binary version.

  A record is `label_bytes` labels of one byte, and 3 x 32 x 32 bytes of pixels.

  Args:
    path: file such as data_batch_1.bin.
    label_bytes: 1 for CIFAR-10; 2 for CIFAR-100, whose records have a coarse
      label and a fine label. The last label, the fine one, is used.

  Returns:
    uint8 images [n, 32, 32, 3] and uint8 labels [n].

  Raises:
    FileNotFoundError: no such file.
    ValueError: the length is not a multiple of the length of a record.
  """
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist.")
  content = np.fromfile(path, np.uint8)
  record = label_bytes + 3 * 32 * 32
  if not content.size or content.size % record:
    raise ValueError(
        f"{path} has {content.size} bytes, which is not a multiple of "
        f"{record}, the bytes of a record: the file is damaged, or not the "
        "binary version of CIFAR.")
  records = content.reshape(-1, record)
  image = base.channels_last(records[:, label_bytes:], 32)
  # A copy, because a view would keep all records in memory.
  return image, records[:, label_bytes - 1].copy()
