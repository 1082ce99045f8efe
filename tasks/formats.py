"""File formats of data sets: each reader checks all that the format says."""

import gzip
import pathlib
import struct
import zlib

import numpy as np


def read_idx(path: pathlib.Path, ndim: int) -> np.ndarray:
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


def read_cifar(path: pathlib.Path, labels: int) -> tuple[np.ndarray, ...]:
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
  return _channels_last(records[:, labels:], 32), records[:, labels - 1].copy()


def read_imagenet(path: pathlib.Path, size: int) -> tuple[np.ndarray, ...]:
  """Reads one npz batch of downsampled ImageNet.

  Args:
    path: file such as train_data_batch_1.npz.
    size: 32 or 64.

  Returns:
    uint8 images [n, size, size, 3] and int32 labels [n], from 1 to 1000.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not such a file, or a damaged one.

  Reference:
    Chrabaszcz et al., 2017, https://arxiv.org/abs/1707.08819.
  """
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist.")
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      image, label = arrays["data"], arrays["labels"]
  except Exception as e:  # pylint: disable=broad-except
    # Of damaged files, zipfile and numpy raise nearly everything there is.
    raise ValueError(f"{path} is not a complete npz file with data and labels: "
                     f"{type(e).__name__}: {e}.") from e
  if (image.dtype, image.shape[1:], label.shape) != (
      np.uint8, (3 * size * size,), image.shape[:1]) or (
          label.dtype.kind not in "iu"):
    raise ValueError(
        f"{path} has data {image.dtype}{list(image.shape)} and labels "
        f"{label.dtype}{list(label.shape)}; ImageNet of {size} x {size} pixels "
        f"has uint8 [n, {3 * size * size}] and integers [n].")
  return _channels_last(image, size), label.astype(np.int32)


def _channels_last(rows: np.ndarray, size: int) -> np.ndarray:
  """[n, 3 * size * size] to [n, size, size, 3]."""
  return np.ascontiguousarray(
      rows.reshape(-1, 3, size, size).transpose(0, 2, 3, 1))


def read_text(path: pathlib.Path) -> np.ndarray:
  """The bytes of a text file, uint8 [n].

  Raises:
    FileNotFoundError: no such file.
    ValueError: an empty file, or one that is not text in UTF-8.
  """
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist.")
  content = path.read_bytes()
  try:
    if not content or b"\0" in content:
      raise ValueError("empty" if not content else "it has null bytes")
    content.decode("utf-8")
  except ValueError as e:  # UnicodeDecodeError is one
    raise ValueError(f"{path} is not text in UTF-8: {e}.") from e
  return np.frombuffer(content, np.uint8)
