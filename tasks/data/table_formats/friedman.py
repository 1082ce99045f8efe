"""Friedman's three functions of uniform inputs, with normal noise.

Reference:
  Friedman, Multivariate adaptive regression splines, 1991, equations 61, 63 and
  64; the noise is that of Breiman, Bagging predictors, 1996.
"""

import pathlib

import numpy as np

from tasks.data import base

NOISE = {"friedman1": 1.0, "friedman2": 125.0, "friedman3": 0.1}
DATASETS = tuple(NOISE)
LOCAL = False
COUNT = 4096


def load(name: str, folder: pathlib.Path | None) -> base.TableParts:
  """Draw a table with a fixed seed; see `tasks.data.table_formats`.

  The first function has 10 inputs, of which 5 matter, the others have 4.
  """
  del folder
  rng = np.random.default_rng(DATASETS.index(name))
  if name == "friedman1":
    x = rng.uniform(size=(COUNT, 10))
  else:
    # Resistance, frequency, inductance and capacity of a circuit.
    x = rng.uniform([0, 40 * np.pi, 0, 1], [100, 560 * np.pi, 1, 11],
                    (COUNT, 4))
  y = value(name, x) + NOISE[name] * rng.normal(size=COUNT)
  return base.TableParts((x, y[:, None]))


def value(name: str, x: np.ndarray) -> np.ndarray:
  """Return a function without its noise, [n], at inputs x [n, inputs]."""
  y: np.ndarray
  if name == "friedman1":
    y = (10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5)**2
         + 10 * x[:, 3] + 5 * x[:, 4])
    return y
  reactance = x[:, 1] * x[:, 2] - 1 / (x[:, 1] * x[:, 3])
  y = (np.hypot(x[:, 0], reactance) if name == "friedman2"
       else np.arctan2(reactance, x[:, 0]))
  return y
