"""Data sets, split: from local files, or from what Python brings along.

A data set is split once, by a fixed permutation of its training part (images)
or in its order (text). Pixels and bytes stay uint8 until they are used.
"""

import functools
import os
import pathlib
import sys
import sysconfig
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks import formats

FRACTIONS = {"train": 0.8, "inner_valid": 0.1, "outer_valid": 0.1}
IDX = {"mnist": 10, "fashion_mnist": 10}  # data set: classes
# Data set: folder, batches of the training part, its test part, and classes.
CIFAR = {"cifar10": ("cifar-10-batches-bin", "data_batch_{}.bin",
                     "test_batch.bin", 10),
         "cifar100": ("cifar-100-binary", "train.bin", "test.bin", 100)}
IMAGENET = {"imagenet32": 32, "imagenet64": 64}  # data set: pixels
IMAGES = ("digits", *IDX, *CIFAR, *IMAGENET)
CHUNK = 4096  # images that are resized at a time


class ImageData(NamedTuple):
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


class TextData(NamedTuple):
  """Text by split.

  Attributes:
    splits: {split: {"token": uint8 or uint16 [n]}}.
    vocab_size: number of different tokens.
  """

  splits: dict[str, dict[str, np.ndarray]]
  vocab_size: int


def image_data(name: str, data_dir: str | None = None, size: int = 0,
               greyscale: bool = False) -> ImageData:
  """Loads a data set of images.

  "digits" comes with scikit-learn. "mnist" and "fashion_mnist" are read from
  `<data_dir>/<name>/`, four IDX files, gzipped or not; "cifar10" and "cifar100"
  from the binary version in `cifar-10-batches-bin/` and `cifar-100-binary/`;
  "imagenet32" and "imagenet64" from npz batches in `<name>/`. Of data sets in
  several batches as many are read as there are, from number 1 on.
  "hf://owner/name" is loaded by the library `datasets`.

  Args:
    name: data set.
    data_dir: folder of data sets. Default: environment variable MULO_DATA_DIR.
    size: images are resized to size x size, bilinearly; 0: as they are.
    greyscale: one channel, the mean of all.

  Raises:
    ValueError: unknown name, a negative size, or a file that is damaged or of
      another format.
    FileNotFoundError: no data_dir, or a file is missing.
    ImportError: hf:// without the library `datasets`.
  """
  if name not in IMAGES and not name.startswith("hf://"):
    raise ValueError(f"Unknown data set {name!r}; available: "
                     f"{', '.join(IMAGES)}, and hf://owner/name.")
  if size < 0:
    raise ValueError(f"The image size must not be negative, got {size}.")
  folder = None
  if name != "digits" and not name.startswith("hf://"):
    folder = _folder(name, data_dir)
  return _image_data(name, folder, size, greyscale)


def text_data(name: str, data_dir: str | None = None, vocab: str = "bytes",
              vocab_size: int = 1024) -> TextData:
  """Loads a text.

  "python" is the source of Python's own standard library. Any other is read
  from `<data_dir>/text/`: `<name>.txt`, or, where there is no such file,
  `<name>_valid.txt` for training and `<name>_test.txt`.

  Args:
    name: of the text.
    data_dir: see `image_data`.
    vocab: "bytes", or "bpe": byte pairs, learned from the train split (needs
      the library `tokenizers`).
    vocab_size: of "bpe", from 257 to 65,536.

  Raises:
    ValueError: an unknown vocab or size, or a file that is damaged or no text.
    FileNotFoundError: no data_dir, or a file is missing.
    ImportError: "bpe" without the library `tokenizers`.
  """
  if pathlib.PurePath(name).name != name:
    raise ValueError(f"The name of a text is no path, got {name!r}.")
  if vocab not in ("bytes", "bpe"):
    raise ValueError(f"Unknown vocab {vocab!r}; available: bytes, bpe.")
  if vocab == "bpe" and not 257 <= vocab_size <= 65536:
    raise ValueError(
        f"vocab_size must be from 257 to 65536, got {vocab_size}.")
  folder = None if name == "python" else _folder(name, data_dir)
  return _text_data(name, folder, vocab_size if vocab == "bpe" else 256)


def _folder(name: str, data_dir: str | None) -> pathlib.Path:
  data_dir = data_dir or os.environ.get("MULO_DATA_DIR")
  if not data_dir:
    raise FileNotFoundError(
        f"{name} is read from local files: pass --data_dir or set "
        "MULO_DATA_DIR to the folder of data sets, such as the one that holds "
        "mnist/train-images-idx3-ubyte.gz and text/tinyshakespeare.txt.")
  return pathlib.Path(data_dir).absolute()


@functools.lru_cache(maxsize=4)
def _image_data(name, folder, size, greyscale) -> ImageData:
  max_value = 255
  if name == "digits":
    train, test = _digits()
    num_classes, max_value = 10, 16
  elif name in IDX:
    num_classes = IDX[name]
    train, test = (_idx(folder / name, stem) for stem in ("train", "t10k"))
  elif name in CIFAR:
    train, test, num_classes = _cifar(folder, name)
  elif name in IMAGENET:
    train, test = _imagenet(folder / name, IMAGENET[name])
    num_classes = 1000
  else:
    train, test, num_classes = _hugging_face(name.removeprefix("hf://"), size)
  for _, label in (train, test):
    if len(label) < 10:
      raise ValueError(f"A part of {name} has {len(label)} images, too few to "
                       "be split.")
    if not 0 <= label.min() <= label.max() < num_classes:
      raise ValueError(
          f"{name} has the labels {label.min()} to {label.max()}; expected 0 "
          f"to {num_classes - 1}: its files are damaged.")
  parts = {"test": test}
  order = np.random.RandomState(0).permutation(len(train[0]))
  for split, rows in zip(FRACTIONS, np.split(order, _bounds(len(order)))):
    parts[split] = train[0][rows], train[1][rows]
  return ImageData(
      {split: {"image": _prepared(image, size, greyscale),
               "label": label.astype(np.int32)}
       for split, (image, label) in parts.items()}, num_classes, max_value)


def _bounds(n: int) -> np.ndarray:
  """Where splits of a training part of n examples begin, but the first."""
  return np.cumsum([round(f * n) for f in FRACTIONS.values()])[:-1]


def _prepared(image: np.ndarray, size: int, greyscale: bool) -> np.ndarray:
  """Greyscale and resizing, in chunks, to uint8."""
  if greyscale and image.shape[-1] > 1:
    image = np.concatenate([
        np.round(part.mean(-1, keepdims=True)).astype(np.uint8)
        for part in np.split(image, range(CHUNK, len(image), CHUNK))])
  if not size or image.shape[1:3] == (size, size):
    return image
  result = np.empty((len(image), size, size, image.shape[-1]), np.uint8)
  for first in range(0, len(image), CHUNK):
    part = image[first:first + CHUNK]
    shape = (len(part), *result.shape[1:])
    resized = jax.image.resize(jnp.asarray(part, jnp.float32), shape, "linear")
    result[first:first + CHUNK] = np.round(np.clip(resized, 0, 255))
  return result


def _digits():
  # Imported here: other data sets do without scikit-learn.
  from sklearn import datasets
  bunch = datasets.load_digits()
  image = bunch.images.astype(np.uint8)[..., None]  # [1797, 8, 8, 1]
  # No official test part: a fixed tenth. A permutation first, since the
  # examples come sorted by writer.
  order = np.random.RandomState(1).permutation(len(image))
  test, rest = np.split(order, [len(image) // 10])
  return [(image[rows], bunch.target[rows]) for rows in (rest, test)]


def _idx(folder: pathlib.Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
  image = formats.read_idx(folder / f"{stem}-images-idx3-ubyte", ndim=3)
  label = formats.read_idx(folder / f"{stem}-labels-idx1-ubyte", ndim=1)
  if len(image) != len(label):
    raise ValueError(
        f"{folder}: {stem} has {len(image)} images and {len(label)} labels.")
  return image[..., None], label


def _batches(read, folder: pathlib.Path, pattern: str):
  """Batches number 1, 2, ... of a pattern, joined; at least one, no gaps."""
  number = max(1, len(list(folder.glob(pattern.format("*")))))
  found = [read(folder / pattern.format(i + 1)) for i in range(number)]
  return tuple(map(np.concatenate, zip(*found)))


def _cifar(folder: pathlib.Path, name: str):
  inner, train, test, num_classes = CIFAR[name]
  read = lambda path: formats.read_cifar(path, 1 if name == "cifar10" else 2)
  return (_batches(read, folder / inner, train), read(folder / inner / test),
          num_classes)


def _imagenet(folder: pathlib.Path, size: int):
  read = lambda path: formats.read_imagenet(path, size)
  train = _batches(read, folder, "train_data_batch_{}.npz")
  return [(image, label - 1)
          for image, label in (train, read(folder / "val_data.npz"))]


def _hugging_face(name: str, size: int):
  """Parts "train" and "test" (or "validation") of an image data set."""
  try:
    import datasets
  except ImportError as e:
    raise ImportError("hf:// needs a library: pip install datasets.") from e
  loaded = datasets.load_dataset(name)
  test = next((x for x in ("test", "validation", "valid") if x in loaded), None)
  if test is None or "train" not in loaded:
    raise ValueError(f"{name} has the parts {', '.join(loaded)}; it must have "
                     "train, and test or validation.")
  parts = []
  for split in ("train", test):
    columns = loaded[split].features
    pick = lambda names: next((x for x in names if x in columns), None)
    key, label = pick(("image", "img")), pick(("label", "labels", "fine_label"))
    if not key or not label:
      raise ValueError(f"{name} has the columns {', '.join(columns)}: none is "
                       "called image and none label.")
    convert = lambda x: x.resize((size, size)) if size else x
    pictures = loaded[split][key]
    mode = "L" if all(x.mode == "L" for x in pictures) else "RGB"
    sizes = {x.size for x in pictures}
    if len(sizes) > 1 and not size:
      raise ValueError(
          f"{name} has images of different sizes: give image_size.")
    image = np.stack([np.asarray(convert(x.convert(mode))) for x in pictures])
    parts.append((image.reshape(*image.shape[:3], -1),
                  np.asarray(loaded[split][label])))
  return *parts, int(max(label.max() for _, label in parts)) + 1


@functools.lru_cache(maxsize=4)
def _text_data(name, folder, vocab_size) -> TextData:
  if name == "python":
    train, test = _standard_library(), None
  elif (single := folder / "text" / f"{name}.txt").exists():
    train, test = formats.read_text(single), None
  else:
    both = [single.with_name(f"{name}_{part}.txt")
            for part in ("valid", "test")]
    if not any(path.exists() for path in both):
      raise FileNotFoundError(f"Neither {single} nor {both[0]} exists.")
    train, test = map(formats.read_text, both)
  if test is None:
    train, test = np.split(train, [round(0.9 * len(train))])
  parts = dict(zip(FRACTIONS, np.split(train, _bounds(len(train)))), test=test)
  if vocab_size > 256:
    parts = _byte_pairs(parts, vocab_size)
  return TextData({split: {"token": x} for split, x in parts.items()},
                  vocab_size)


def _standard_library() -> np.ndarray:
  """The top level of the standard library, by name of the module."""
  folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
  # What is made for one machine, with its paths, is not among these names.
  files = [folder / f"{name}.py" for name in sorted(sys.stdlib_module_names)]
  found = [formats.read_text(path) for path in files if path.exists()]
  if not found:
    raise FileNotFoundError(f"{folder} has no Python source: this Python came "
                            "without; use another text.")
  return np.concatenate(found)


def _byte_pairs(parts: dict[str, np.ndarray], vocab_size: int):
  """Tokens of byte pairs that are learned from parts["train"]."""
  try:
    import tokenizers
  except ImportError as e:
    raise ImportError("bpe needs a library: pip install tokenizers.") from e
  text = {split: x.tobytes().decode("utf-8", errors="replace")
          for split, x in parts.items()}
  tokenizer = tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(
      text["train"].splitlines(keepends=True), vocab_size, show_progress=False)
  found = {}
  for split, x in text.items():
    lines = tokenizer.encode_batch(x.splitlines(keepends=True))
    found[split] = np.asarray(
        [token for line in lines for token in line.ids], np.uint16)
  return found
