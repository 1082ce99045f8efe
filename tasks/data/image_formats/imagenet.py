"""Downsampled ImageNet: npz batches in `<data_dir>/imagenet32/` or `64/`.

All training batches that are in the folder are read.

Reference:
  Chrabaszcz et al., 2017, https://arxiv.org/abs/1707.08819.
"""

import pathlib

import numpy as np

from tasks.data import base

_PIXELS = {"imagenet32": 32, "imagenet64": 64}
DATASETS = tuple(_PIXELS)
LOCAL = True


def load(name: str, folder: pathlib.Path, size: int) -> base.ImageParts:
  """Read a data set from `folder / name`; see `tasks.data.image_formats`."""
  del size

  def read_part(path: pathlib.Path) -> base.Examples:
    image, label = read(path, _PIXELS[name])
    return image, label - 1  # from 0 on

  inside = folder / name
  return base.ImageParts(
      train=base.read_batches(read_part, inside, "train_data_batch_{}.npz"),
      test=read_part(inside / "val_data.npz"), num_classes=1000)


def read(path: pathlib.Path, size: int) -> base.Examples:
  """Read one npz batch of downsampled ImageNet.

  Args:
    path: file such as train_data_batch_1.npz.
    size: height and width, 32 or 64.

  Returns:
    uint8 images [n, size, size, 3] and int32 labels [n], from 1 to 1000.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a damaged file, or another format.
  """
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist.")
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      image, label = arrays["data"], arrays["labels"]
  except Exception as e:  # pylint: disable=broad-except
    # For a damaged file, zipfile and numpy can raise nearly any exception.
    raise ValueError(f"{path} is not a complete npz file with data and labels: "
                     f"{type(e).__name__}: {e}.") from e
  if (image.dtype, image.shape[1:], label.shape) != (
      np.uint8, (3 * size * size,), image.shape[:1]) or (
          label.dtype.kind not in "iu"):
    raise ValueError(
        f"{path} has data {image.dtype}{list(image.shape)} and labels "
        f"{label.dtype}{list(label.shape)}; ImageNet of {size} x {size} pixels "
        f"has uint8 [n, {3 * size * size}] and integers [n].")
  return base.channels_last(image, size), label.astype(np.int32)
