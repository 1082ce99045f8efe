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
  train, test = (_part(folder / name, stem) for stem in ("train", "t10k"))
  return base.ImageParts(train, test, num_classes=10)


def _part(folder: pathlib.Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
  image = read(folder / f"{stem}-images-idx3-ubyte", ndim=3)
  label = read(folder / f"{stem}-labels-idx1-ubyte", ndim=1)
  if len(image) != len(label):
    raise ValueError(
        f"{folder}: {stem} has {len(image)} images and {len(label)} labels.")
  return image[..., None], label


def read(path: pathlib.Path, ndim: int) -> np.ndarray:
  """Reads a file of unsigned bytes in IDX format, gzipped (.gz) or not.

  Args:
    path: file name without ".gz"; the gzipped file is tried second.
    ndim: number of axes it must have.

  Returns:
    uint8 array.

  Raises:
    FileNotFoundError: neither file exists.
    ValueError: another format, another number of axes, or a wrong length.

  Reference:
    http://yann.lecun.com/exdb/mnist, "the IDX file format".
  """
  found = [p for p in (path, path.with_name(path.name + ".gz")) if p.exists()]
  if not found:
    raise FileNotFoundError(f"Neither {path} nor {path}.gz exists.")
  content = found[0].read_bytes()
  if content[:2] == b"\x1f\x8b":
    try:
      content = gzip.decompress(content)
    except (OSError, EOFError, ValueError, zlib.error) as e:
      raise ValueError(f"{found[0]} is not a complete gzip file: {e}.") from e
  header = 4 + 4 * ndim
  magic = bytes([0, 0, 8, ndim])
  if content[:4] != magic or len(content) < header:
    raise ValueError(
        f"{found[0]} is not an IDX file of bytes with {ndim} axes: it starts "
        f"with {content[:4].hex()}, expected {magic.hex()}.")
  shape = struct.unpack(f">{ndim}I", content[4:header])
  expected = header + int(np.prod(shape, dtype=np.int64))
  if len(content) != expected:
    raise ValueError(
        f"{found[0]} has {len(content)} bytes, but its header of shape {shape} "
        f"asks for {expected}: the file is damaged.")
  return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
