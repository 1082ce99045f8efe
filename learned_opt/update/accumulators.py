"""Running statistics of one parameter's gradients.

All statistics are computed in float32 and have their decays on the leading
axis, so that the axes of the parameter stay where they are and nothing is
interleaved. Momentum and second moment, nearly all of the memory, may be kept
in bfloat16. They are then rounded at random, up or down: a decay of 0.999 moves
a statistic by less than half the distance between two bfloat16 numbers, so
rounding to the nearest one would stop it from moving at all.

Shapes, for a parameter of shape S and k decays: momentum [k, *S]; second
moment [*S]; row factor [k, *S with the largest axis set to 1]; column factor
[k, *S with the second largest axis set to 1]. A parameter of at most one axis
is not factored: its row factor is [k, *S], and it has no column factor.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "bfloat16")


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


def check_dtype(dtype: str) -> None:
  """Raises ValueError unless `dtype` is one of DTYPES."""
  if dtype not in DTYPES:
    raise ValueError(f"Unknown accumulator_dtype {dtype!r}; available: "
                     f"{', '.join(DTYPES)}.")


def factored_axes(shape: tuple) -> tuple[int, int] | None:
  """Axes (second largest, largest) of a shape; None below two axes.

  The row factor averages over the largest axis, the column factor over the
  second largest. Among equal sizes the later axis counts as the larger.
  """
  if len(shape) < 2:
    return None
  order = np.argsort(shape, kind="stable")
  return int(order[-2]), int(order[-1])


def init(shape: tuple, dtype: str = "float32", num_decays: int = 3
         ) -> Accumulators:
  """Zero statistics for a parameter of the given shape (at least one axis).

  Args:
    shape: S.
    dtype: of momentum and second moment, one of DTYPES.
    num_decays: k.
  """
  zeros = lambda s: jnp.zeros((num_decays, *s), jnp.float32)
  momentum = jnp.zeros((num_decays, *shape), dtype)
  second = jnp.zeros(shape, dtype)
  axes = factored_axes(shape)
  if axes is None:
    return Accumulators(momentum, second, zeros(shape), None)
  without = lambda axis: shape[:axis] + (1,) + shape[axis + 1:]
  column_axis, row_axis = axes
  return Accumulators(
      momentum, second, zeros(without(row_axis)), zeros(without(column_axis)))


def along(values: jax.Array, ndim: int) -> jax.Array:
  """Shapes a vector [k] to [k, 1, ...] with `ndim` trailing axes."""
  return values.reshape(values.shape + (1,) * ndim)


def _round(x: jax.Array, dtype: jnp.dtype, step: jax.Array) -> jax.Array:
  """float32 to `dtype`; to bfloat16 at random, in proportion to nearness.

  What is random is a hash of the number itself and the step, so equal runs
  round equally.
  """
  if dtype != jnp.bfloat16:
    return x.astype(dtype)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # Multipliers of Knuth's and of xxHash's hashes; the upper half is mixed best.
  noise = (bits ^ (step.astype(jnp.uint32) * jnp.uint32(2246822519))
           ) * jnp.uint32(2654435761)
  noise = (noise ^ (noise >> 15)) * jnp.uint32(3266489917)
  # The lower half of the bits is what bfloat16 lacks.
  rounded = (bits + (noise >> 16)) & jnp.uint32(0xFFFF0000)
  rounded = jnp.where(jnp.isfinite(x), rounded, bits)
  return jax.lax.bitcast_convert_type(rounded, jnp.float32).astype(dtype)


def update(acc: Accumulators, grad: jax.Array, decays: Decays,
           step: jax.Array, floor: float = 0.0,
           rescale: jax.Array | float = 1.0) -> Accumulators:
  """One step of every exponential moving average.

  Args:
    acc: statistics before the step.
    grad: gradient, float32, shape S.
    decays: see `Decays`.
    step: number of steps taken before this one, int32 scalar.
    floor: added to the squared gradient that the factors average.
    rescale: the unit of the past gradients over that of `grad`, for callers
      that measure gradients in a unit that changes.

  Returns:
    Statistics that include `grad`, in the dtypes of `acc`.
  """
  wide = lambda decay: along(decay, grad.ndim)
  # One decay per leading index; the new value is the same for each.
  emas = lambda old, new, decay, unit: (
      wide(decay * unit) * old + wide(1 - decay) * new[None])
  mean = lambda x, axis: jnp.mean(jnp.square(x), axis, keepdims=True)
  axes = factored_axes(grad.shape)
  if axes is None:
    row_mean, column = jnp.square(grad), None
  else:
    column_axis, row_axis = axes
    # |g| in another form: XLA would keep squares in memory for both means.
    row_mean = mean(jnp.maximum(grad, -grad), row_axis)
    column = emas(acc.column, mean(grad, column_axis) + floor,
                  decays.factored, rescale**2)
  row = emas(acc.row, row_mean + floor, decays.factored, rescale**2)
  momentum = emas(acc.momentum.astype(jnp.float32), grad, decays.momentum,
                  rescale)
  second = (decays.second * rescale**2 * acc.second.astype(jnp.float32) +
            (1 - decays.second) * grad * grad)
  return Accumulators(
      _round(momentum, acc.momentum.dtype, step),
      _round(second, acc.second.dtype, step), row, column)
