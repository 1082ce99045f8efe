"""Functions of a position in the plane: two photos, and sums of waves."""

import pathlib

import numpy as np

from tasks.data import base

PHOTOS = ("china", "flower")
DATASETS = (*PHOTOS, "waves", "sources")
LOCAL = False
BLOCK = 8  # pixels along each side of the squares that become one pixel
COUNT, WAVES, RATE = 4096, 16, 8.0


def load(name: str, folder: pathlib.Path | None) -> base.TableParts:
  """Return positions and values; see `tasks.data.table_formats`.

  * china, flower: the photos that come with scikit-learn, made smaller: 53 x 80
    pixels, whose values are red, green and blue. Needs the library Pillow.
  * waves: a sum of 16 plane waves with 4 values at 4096 random positions. The
    rates of the waves are normal, with standard deviation 8 radians.
  * sources: a sum of 9 products of sines that are 0 on the border of the square
    from -1 to 1, at 4096 random positions.

  Positions are from -1 to 1 along the longer side.
  """
  del folder
  if name in PHOTOS:
    return _photo(name)
  if name == "sources":
    rng = np.random.default_rng(21)
    x = rng.uniform(-1, 1, (COUNT, 2))
    # sin(k * pi * (x + 1) / 2) for k = 1, 2, 3, along each axis.
    row, column = np.sin(np.pi / 2 * (x.T[..., None] + 1) * np.arange(1, 4))
    y = np.sum((row @ rng.normal(size=(3, 3))) * column, 1, keepdims=True)
    return base.TableParts((x, y))
  rng = np.random.default_rng(20)
  x = rng.uniform(-1, 1, (COUNT, 2))
  phases = x @ rng.normal(scale=RATE, size=(2, WAVES))
  waves = np.sin(phases + rng.uniform(0, 2 * np.pi, WAVES))
  return base.TableParts((x, waves @ rng.normal(size=(WAVES, 4))))


def _photo(name: str) -> base.TableParts:
  # Imported here, because other tables do not need scikit-learn.
  from sklearn import datasets
  photo = datasets.load_sample_image(f"{name}.jpg")  # [427, 640, 3]
  height, width = (n // BLOCK for n in photo.shape[:2])
  photo = photo[:height * BLOCK, :width * BLOCK].reshape(
      height, BLOCK, width, BLOCK, 3).mean((1, 3))
  rows, columns = np.mgrid[:height, :width]
  position = np.stack([rows - (height - 1) / 2, columns - (width - 1) / 2], -1)
  x = position.reshape(-1, 2) / (max(height, width) / 2)
  return base.TableParts((x, photo.reshape(-1, 3)))
