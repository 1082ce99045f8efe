"""What the per-parameter MLP reads, grouped by how much of it varies.

Of the 28 numbers that small_fc_lopt computes for one element, 16 differ from
element to element; 6 are row factors, constant along the largest axis, 6 are
column factors. Numbers that are equal for a whole tensor, such as time, only
shift the first bias. Keeping the groups apart is exact and means that no
array with a feature axis of full size is ever built.

Reference:
  Metz et al., Practical tradeoffs between memory, compute, and performance in
  learned optimizers, 2022, https://arxiv.org/abs/2203.11860 (small_fc_lopt).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Rows of the first weight matrix that each group uses, in published order.
ELEMENT_ROWS = np.array([*range(13), 25, 26, 27])
ROW_ROWS = np.array([13, 14, 15, 19, 20, 21])
COLUMN_ROWS = np.array([16, 17, 18, 22, 23, 24])
NUM_PARAMETER_FEATURES = 28

TIME_SCALES = np.array(
    [1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5], np.float32)


class Features(NamedTuple):
  """Inputs of the MLP for one parameter of shape S, and their normalisers.

  Each feature is multiplied by its normaliser, one number per tensor.
  """

  element: tuple[jax.Array, ...]  # 16 of [*S]
  row: jax.Array  # [6, ...], broadcasts against S
  column: jax.Array  # [6, ...], broadcasts against S
  tensor: jax.Array  # [n], not normalised
  element_scale: jax.Array  # [16]
  row_scale: jax.Array  # [6]
  column_scale: jax.Array  # [6]


def time_features(step: jax.Array) -> jax.Array:
  """tanh(t / tau - 1) for 11 time scales tau. Shape [11].

  Args:
    step: number of inner steps taken before this one, scalar.
  """
  return jnp.tanh(step.astype(jnp.float32) / TIME_SCALES - 1)


def mean_squares(values: jax.Array) -> jax.Array:
  """Mean square over all axes but the first. [n, ...] -> [n]."""
  return jnp.mean(jnp.square(values), axis=tuple(range(1, values.ndim)))
