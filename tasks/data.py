"""Readers of data sets in their official formats, from local files only.

A data set is split once, by a fixed permutation of its training part. Pixels
stay uint8 until they are used.
"""

import functools
import gzip
import os
import pathlib
import struct
import typing

import numpy as np

FRACTIONS = {"train": 0.8, "inner_valid": 0.1, "outer_valid": 0.1}


class ImageData(typing.NamedTuple):
  """Images by split.

  Attributes:
    splits: {split: {"image": uint8 [n, height, width, channels],
      "label": int32 [n]}}.
    num_classes: number of classes.
    max_value: the pixel value that means 1.0.
  """

  splits: dict[str, dict[str, np.ndarray]]
  num_classes: int
  max_value: int


def image_data(name: str, data_dir: str | None = None) -> ImageData:
  """Loads "digits" (embedded in scikit-learn) or "mnist" (from data_dir).

  Args:
    name: data set.
    data_dir: folder with one folder per data set, e.g. mnist/ with the four
      IDX files, gzipped or not. Default: environment variable MULO_DATA_DIR.

  Raises:
    ValueError: unknown name, or a file that is damaged or of another format.
    FileNotFoundError: no data_dir, or a file is missing.
  """
  if name == "digits":
    return _digits()
  if name != "mnist":
    raise ValueError(f"Unknown data set {name!r}; available: digits, mnist.")
  data_dir = data_dir or os.environ.get("MULO_DATA_DIR")
  if not data_dir:
    raise FileNotFoundError(
        "mnist is read from local files: pass --data_dir or set MULO_DATA_DIR "
        "to the folder that holds mnist/train-images-idx3-ubyte.gz.")
  return _mnist(os.path.abspath(data_dir))


def _split(image, label, test) -> dict[str, dict[str, np.ndarray]]:
  """Splits a training part, in the order of a fixed permutation."""
  order = np.random.RandomState(0).permutation(len(image))
  bounds = np.cumsum([round(f * len(image)) for f in FRACTIONS.values()])
  splits = {
      name: {"image": image[rows], "label": label[rows]}
      for name, rows in zip(FRACTIONS, np.split(order, bounds[:-1]))}
  return dict(splits, test={"image": test[0], "label": test[1]})


@functools.lru_cache(maxsize=1)
def _digits() -> ImageData:
  # Imported here: other data sets do without scikit-learn.
  from sklearn import datasets
  bunch = datasets.load_digits()
  image = bunch.images.astype(np.uint8)[..., None]  # [1797, 8, 8, 1]
  label = bunch.target.astype(np.int32)
  # No official test part: a fixed tenth. A permutation first, since the
  # examples come sorted by writer.
  order = np.random.RandomState(1).permutation(len(image))
  test, rest = np.split(order, [len(image) // 10])
  return ImageData(
      _split(image[rest], label[rest], (image[test], label[test])), 10, 16)


@functools.lru_cache(maxsize=1)
def _mnist(data_dir: str) -> ImageData:
  def load(stem):
    folder = pathlib.Path(data_dir) / "mnist"
    image = read_idx(folder / f"{stem}-images-idx3-ubyte", ndim=3)
    label = read_idx(folder / f"{stem}-labels-idx1-ubyte", ndim=1)
    if len(image) != len(label):
      raise ValueError(
          f"{folder}: {stem} has {len(image)} images and {len(label)} labels.")
    if label.size and label.max() > 9:
      raise ValueError(
          f"{folder}: {stem} has the label {label.max()}; MNIST has 0 to 9.")
    return image[..., None], label.astype(np.int32)

  image, label = load("train")
  return ImageData(_split(image, label, load("t10k")), 10, 255)


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
    except (OSError, EOFError, ValueError) as e:
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
