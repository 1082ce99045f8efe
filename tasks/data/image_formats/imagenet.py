"""Downsampled ImageNet: npz batches in `<data_dir>/imagenet32/` or `64/`.

As many training batches are read as there are, from number 1 on.

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

  def part(path):
    image, label = read(path, _PIXELS[name])
    return image, label - 1

  folder = folder / name
  return base.ImageParts(
      base.batches(part, folder, "train_data_batch_{}.npz"),
      part(folder / "val_data.npz"), num_classes=1000)


def read(path: pathlib.Path, size: int) -> base.Examples:
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
  return base.channels_last(image, size), label.astype(np.int32)
