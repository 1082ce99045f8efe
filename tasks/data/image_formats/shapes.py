"""Drawings of eight shapes at random places, sizes and angles, with noise."""

import pathlib

import numpy as np

from tasks.data import base

DATASETS = ("shapes",)
LOCAL = False
SIZE, COUNT, NOISE = 16, 8192, 16.0


def load(name: str, folder: pathlib.Path | None, size: int) -> base.ImageParts:
  """Draw 16 x 16 grey images with a fixed seed; see `tasks.data.image_formats`.

  The last tenth is the test part.
  """
  del name, folder, size
  rng = np.random.default_rng(30)
  label = rng.integers(8, size=COUNT)
  # Each [n, 1, 1], with axes for rows and columns of pixels.
  row, column, angle, radius, ink = (
      rng.uniform(low, high, (COUNT, 1, 1)) for low, high in (
          (5, 10), (5, 10), (-0.4, 0.4), (4, 6), (100, 230)))
  y, x = np.mgrid[:SIZE, :SIZE]
  y, x = y[None] - row, x[None] - column
  # Coordinates of the shape itself: a shape lies within -1 ... 1.
  u = (x * np.cos(angle) + y * np.sin(angle)) / radius
  v = (y * np.cos(angle) - x * np.sin(angle)) / radius
  r, side = np.hypot(u, v), np.maximum(abs(u), abs(v))
  drawings = np.stack([
      r < 0.9,  # a disc
      (0.5 < r) & (r < 1),  # a ring
      side < 0.8,  # a square
      (0.5 < side) & (side < 0.9),  # a frame
      (np.minimum(abs(u), abs(v)) < 0.25) & (side < 1),  # a cross
      (abs(u) < 0.3) & (abs(v) < 1),  # a bar
      (v < 0.7) & (v > 2 * abs(u) - 1),  # a triangle
      (r < 1) & (u > 0)])  # half a disc
  image = ink * drawings[label, np.arange(COUNT)] + rng.normal(
      scale=NOISE, size=(COUNT, SIZE, SIZE))
  image = np.clip(np.rint(image), 0, 255).astype(np.uint8)[..., None]
  cut = COUNT - COUNT // 10
  return base.ImageParts(
      (image[:cut], label[:cut]), (image[cut:], label[cut:]), num_classes=8)
