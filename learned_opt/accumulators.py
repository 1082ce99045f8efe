"""Running statistics of one parameter's gradients.

All statistics are float32 and have their decays on the leading axis, so that
the axes of the parameter stay where they are and nothing is interleaved.

Shapes, for a parameter of shape S and k decays: momentum [k, *S]; second
moment [*S]; row factor [k, *S with the largest axis set to 1]; column factor
[k, *S with the second largest axis set to 1]. A parameter of at most one axis
is not factored: its row factor is [k, *S], and it has no column factor.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Accumulators(NamedTuple):
  """Statistics of one parameter; shapes in the module docstring."""

  momentum: jax.Array
  second: jax.Array
  row: jax.Array
  column: jax.Array | None


class Decays(NamedTuple):
  """Decays per inner step; at most 1."""

  momentum: jax.Array  # [k]
  second: jax.Array  # []
  factored: jax.Array  # [k]


def factored_axes(shape: tuple) -> tuple[int, int] | None:
  """Axes (second largest, largest) of a shape; None below two axes.

  The row factor averages over the largest axis, the column factor over the
  second largest. Among equal sizes the later axis counts as the larger.
  """
  if len(shape) < 2:
    return None
  order = np.argsort(shape, kind="stable")
  return int(order[-2]), int(order[-1])


def init(shape: tuple, num_decays: int = 3) -> Accumulators:
  """Zero statistics for a parameter of the given shape (at least one axis)."""
  zeros = lambda s: jnp.zeros((num_decays, *s), jnp.float32)
  second = jnp.zeros(shape, jnp.float32)
  axes = factored_axes(shape)
  if axes is None:
    return Accumulators(zeros(shape), second, zeros(shape), None)
  without = lambda axis: shape[:axis] + (1,) + shape[axis + 1:]
  column_axis, row_axis = axes
  return Accumulators(
      zeros(shape), second, zeros(without(row_axis)),
      zeros(without(column_axis)))


def along(values: jax.Array, ndim: int) -> jax.Array:
  """Shapes a vector [k] to [k, 1, ...] with `ndim` trailing axes."""
  return values.reshape(values.shape + (1,) * ndim)


def update(acc: Accumulators, grad: jax.Array, decays: Decays,
           floor: float = 0.0, rescale: jax.Array | float = 1.0
           ) -> Accumulators:
  """One step of every exponential moving average.

  Args:
    acc: statistics before the step.
    grad: gradient, float32, shape S.
    decays: see `Decays`.
    floor: added to the squared gradient that the factors average.
    rescale: the unit of the past gradients over that of `grad`, for callers
      that measure gradients in a unit that changes.

  Returns:
    Statistics that include `grad`.
  """
  squared = jnp.square(grad)
  wide = lambda decay: along(decay, grad.ndim)
  # One decay per leading index; the new value is the same for each.
  emas = lambda old, new, decay, unit: (
      wide(decay * unit) * old + wide(1 - decay) * new[None])
  floored = squared + floor
  axes = factored_axes(grad.shape)
  if axes is None:
    row_mean, column = floored, None
  else:
    column_axis, row_axis = axes
    row_mean = jnp.mean(floored, row_axis, keepdims=True)
    column = emas(acc.column, jnp.mean(floored, column_axis, keepdims=True),
                  decays.factored, rescale**2)
  row = emas(acc.row, row_mean, decays.factored, rescale**2)
  return Accumulators(
      emas(acc.momentum, grad, decays.momentum, rescale),
      (decays.second * rescale**2 * acc.second +
       (1 - decays.second) * squared), row, column)
