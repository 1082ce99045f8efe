"""IDX files of unsigned bytes, gzipped or not: MNIST and Fashion-MNIST.

The four files of a data set are in `<data_dir>/<name>/`.

Reference:
  http://yann.lecun.com/exdb/mnist, "the IDX file format".
"""

import gzip
import pathlib
import struct
import zlib

import numpy as np

from tasks.data import base

DATASETS = ("mnist", "fashion_mnist")
LOCAL = True


def load(name: str, folder: pathlib.Path, size: int) -> base.ImageParts:
  """Read a data set from `folder / name`; see `tasks.data.image_formats`."""
  del size
  return base.ImageParts(
      train=_read_part(folder / name, "train"),
      test=_read_part(folder / name, "t10k"), num_classes=10)


def _read_part(folder: pathlib.Path, stem: str) -> base.Examples:
  """Read one part; raise ValueError unless there is one label per image."""
  image = read(folder / f"{stem}-images-idx3-ubyte", ndim=3)
  label = read(folder / f"{stem}-labels-idx1-ubyte", ndim=1)
  if len(image) != len(label):
    raise ValueError(
        f"{folder}: {stem} has {len(image)} images and {len(label)} labels.")
  return image[..., None], label  # [n, height, width, 1], [n]


def read(path: pathlib.Path, ndim: int) -> np.ndarray:
  """Read a file of unsigned bytes in IDX format, gzipped (.gz) or not.

  A file is a magic number (two zero bytes, the type code 8 for unsigned bytes,
  the number of axes), the size of each axis (big-endian uint32), and the array.

  Args:
    path: file name without ".gz"; the gzipped file is tried second.
    ndim: number of axes that the array must have.

  Returns:
    uint8 array.

  Raises:
    FileNotFoundError: neither file exists.
    ValueError: another format, another number of axes, or a wrong length.
  """
  paths = [p for p in (path, path.with_name(path.name + ".gz")) if p.exists()]
  if not paths:
    raise FileNotFoundError(f"Neither {path} nor {path}.gz exists.")
  path = paths[0]
  content = path.read_bytes()
  # The first bytes of gzip, because file names do not always tell.
  if content[:2] == b"\x1f\x8b":
    try:
      content = gzip.decompress(content)
    except (OSError, EOFError, ValueError, zlib.error) as e:
      raise ValueError(f"{path} is not a complete gzip file: {e}.") from e
  header = 4 + 4 * ndim
  magic = bytes([0, 0, 8, ndim])
  if content[:4] != magic or len(content) < header:
    raise ValueError(
        f"{path} is not an IDX file of bytes with {ndim} axes: it starts "
        f"with {content[:4].hex()}, expected {magic.hex()}.")
  shape = struct.unpack(f">{ndim}I", content[4:header])
  expected = header + int(np.prod(shape, dtype=np.int64))
  if len(content) != expected:
    raise ValueError(
        f"{path} has {len(content)} bytes, but its header of shape {shape} "
        f"asks for {expected}: the file is damaged.")
  return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
