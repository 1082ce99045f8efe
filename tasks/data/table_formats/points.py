"""Sets of points in the plane, in five classes."""

import pathlib

import numpy as np

from tasks.data import base

DATASETS = ("points",)
LOCAL = False
COUNT, POINTS, NOISE = 4096, 24, 0.15


def load(name: str, folder: pathlib.Path | None) -> base.TableParts:
  """Draw sets of 24 points with a fixed seed; see `tasks.data.table_formats`.

  The points of a set are on a circle, a line, two lines that cross, a spiral or
  in a square, each turned at random and with normal noise.
  """
  del name, folder
  rng = np.random.default_rng(50)
  t, sign = rng.uniform(-1, 1, (2, COUNT, POINTS))
  turn, zero = np.pi * t, np.zeros_like(t)
  swirl = 0.5 * (1 + t)  # distance from the centre along a spiral
  x, y = np.stack([
      (np.cos(turn), np.sin(turn)),
      (1.5 * t, zero),
      (np.where(sign > 0, 1.5 * t, zero), np.where(sign > 0, zero, 1.5 * t)),
      (1.5 * swirl * np.cos(9 * swirl), 1.5 * swirl * np.sin(9 * swirl)),
      (1.2 * t, 1.2 * sign)], 1)[:, (label := rng.integers(5, size=COUNT)),
                                 np.arange(COUNT)]  # [COUNT, POINTS]
  angle = rng.uniform(0, 2 * np.pi, (COUNT, 1))
  turned = np.stack([x * np.cos(angle) - y * np.sin(angle),
                     x * np.sin(angle) + y * np.cos(angle)], -1)
  turned = turned + NOISE * rng.normal(size=turned.shape)
  return base.TableParts((turned.reshape(COUNT, -1), label), 5)
