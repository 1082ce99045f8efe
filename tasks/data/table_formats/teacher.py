"""Difficult inputs; the targets are the outputs of a fixed random network.

* student_t: 32 inputs from Student's t with 2 degrees of freedom, whose
  variance is infinite.
* low_rank: 64 inputs, linear functions of 8 normal numbers.
* scales: 32 normal inputs, times factors from 0.01 to 100. Use it with
  `standardize=False`, which keeps the factors.
"""

import pathlib

import numpy as np

from tasks.data import base

DATASETS = ("student_t", "low_rank", "scales")
LOCAL = False
COUNT, HIDDEN, OUTPUTS = 4096, 32, 4


def load(name: str, folder: pathlib.Path | None) -> base.TableParts:
  """Draw a table with a fixed seed; see `tasks.data.table_formats`.

  The network reads the numbers before they are mixed or scaled. It has one
  hidden layer of 32 units of tanh and 4 outputs without noise.
  """
  del folder
  rng = np.random.default_rng(10 + DATASETS.index(name))
  if name == "student_t":
    hidden_inputs = x = rng.standard_t(2, (COUNT, 32))
  elif name == "low_rank":
    hidden_inputs = rng.normal(size=(COUNT, 8))
    x = hidden_inputs @ rng.normal(size=(8, 64)) / 8**0.5
  else:
    hidden_inputs = rng.normal(size=(COUNT, 32))
    x = hidden_inputs * np.logspace(-2, 2, 32)
  count = hidden_inputs.shape[1]
  w = rng.normal(size=(count, HIDDEN)) * (2 / count)**0.5
  h = np.tanh(hidden_inputs @ w)
  return base.TableParts((x, h @ rng.normal(size=(HIDDEN, OUTPUTS))))
