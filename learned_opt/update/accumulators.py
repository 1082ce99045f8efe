"""Running statistics of one parameter's gradients.

Statistics are computed in float32. There is one array for each decay, so each
array has the axes of the parameter and is split over devices as it is.

Momentum and second moment take nearly all of the memory and may be kept in
bfloat16. They are then rounded at random, up or down. A decay of 0.999 moves a
statistic by less than half the distance between two bfloat16 numbers. Rounding
to the nearest number would stop the statistic from moving at all.

Shapes, for a parameter of shape S and k decays:

* momentum: k arrays [*S];
* second moment: [*S];
* row factor: k arrays [*S with the largest axis set to 1];
* column factor: k arrays [*S with the second largest axis set to 1].

A parameter of one axis is not factored: its row factor is k arrays [*S], and
its column factor, k arrays [1], stays zero.
"""

from typing import NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "bfloat16")


class Accumulators(NamedTuple):
  """Statistics of one parameter; shapes in the module docstring."""

  momentum: tuple[jax.Array, ...]
  second: jax.Array
  row: tuple[jax.Array, ...]
  column: tuple[jax.Array, ...]


class Decays(NamedTuple):
  """Decays per inner step; at most 1."""

  momentum: jax.Array  # [k]
  second: jax.Array  # []
  factored: jax.Array  # [k]


def check_dtype(dtype: str) -> None:
  """Raise ValueError unless `dtype` is in DTYPES."""
  if dtype not in DTYPES:
    raise ValueError(f"Unknown accumulator_dtype {dtype!r}; available: "
                     f"{', '.join(DTYPES)}.")


def factored_axes(shape: tuple) -> tuple[int, int] | None:
  """Return the axes (second largest, largest); None below two axes.

  The row factor averages over the largest axis, the column factor over the
  second largest. Among axes of equal size, the later axis counts as larger.
  """
  if len(shape) < 2:
    return None
  order = np.argsort(shape, kind="stable")
  return int(order[-2]), int(order[-1])


def init(shape: tuple, dtype: str = "float32", num_decays: int = 3
         ) -> Accumulators:
  """Return zero statistics of a parameter of the given shape.

  Args:
    shape: S, of at least one axis.
    dtype: of momentum and second moment, in DTYPES.
    num_decays: k.
  """
  zeros = lambda s, dtype=jnp.float32: tuple(
      jnp.zeros(s, dtype) for _ in range(num_decays))
  without = lambda axis: shape[:axis] + (1,) + shape[axis + 1:]
  axes = factored_axes(shape)
  row, column = (shape, (1,)) if axes is None else map(without, axes[::-1])
  return Accumulators(zeros(shape, dtype), jnp.zeros(shape, dtype), zeros(row),
                      zeros(column))


def rounded(x: jax.Array, dtype: jnp.dtype, step: jax.Array) -> jax.Array:
  """Convert float32 to `dtype`, to bfloat16 by stochastic rounding.

  Between neighbors a and b in bfloat16, x becomes b with probability
  (x - a) / (b - a). The random bits are a hash of x and the step, so equal runs
  round equally.
  """
  if dtype != jnp.bfloat16:
    return x.astype(dtype)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # Multipliers of Knuth's and of xxHash's hashes; the upper half is mixed best.
  noise = (bits ^ (step.astype(jnp.uint32) * jnp.uint32(2246822519))
           ) * jnp.uint32(2654435761)
  noise = (noise ^ (noise >> 15)) * jnp.uint32(3266489917)
  # bfloat16 lacks the lower 16 bits. Adding 16 random bits carries into the
  # upper half with a probability in proportion to the lower half.
  rounded = (bits + (noise >> 16)) & jnp.uint32(0xFFFF0000)
  # The bits of infinity and NaN must not be carried into.
  rounded = jnp.where(jnp.isfinite(x), rounded, bits)
  return jax.lax.bitcast_convert_type(rounded, jnp.float32).astype(dtype)


def averages(old: Sequence[jax.Array], new: jax.Array, decays: jax.Array,
             rescale: jax.Array | float = 1.0) -> list[jax.Array]:
  """Return moving averages that include `new`, one for each decay.

  average = decay * rescale * old + (1 - decay) * new

  Args:
    old: k arrays.
    new: an array, the same for every decay.
    decays: [k].
    rescale: see `update`; its square for squares.
  """
  return [decay * rescale * x + (1 - decay) * new
          for x, decay in zip(old, decays)]


def update(acc: Accumulators, grad: jax.Array, decays: Decays,
           step: jax.Array, floor: float = 0.0,
           rescale: jax.Array | float = 1.0) -> Accumulators:
  """Return statistics after one more gradient.

  Args:
    acc: statistics before the step.
    grad: gradient, float32, shape S.
    decays: see `Decays`.
    step: number of steps taken before this step, int32 scalar.
    floor: added to the squared gradient that the factors average.
    rescale: unit of the past gradients / unit of `grad`, for callers that
      measure gradients in a unit that changes.

  Returns:
    Statistics that include `grad`, in the dtypes of `acc`.
  """
  mean = lambda x, axis: jnp.mean(jnp.square(x), axis, keepdims=True)
  axes = factored_axes(grad.shape)
  wide = lambda x: x.astype(jnp.float32)
  column = list(acc.column)
  # The squared gradient is needed three times and written in three forms:
  # XLA would merge equal forms and keep an array of squares in memory.
  if axes is None:
    row_mean = jnp.square(grad)
  else:
    column_axis, row_axis = axes
    row_mean = mean(jnp.maximum(grad, -grad), row_axis)  # |g|**2
    column = averages(acc.column, mean(grad, column_axis) + floor,
                      decays.factored, rescale**2)
  row = averages(acc.row, row_mean + floor, decays.factored, rescale**2)
  momentum = averages(
      [wide(x) for x in acc.momentum], grad, decays.momentum, rescale)
  # (1 - decay) * g * g from left to right, so g * g does not appear.
  second = (decays.second * rescale**2 * wide(acc.second) +
            (1 - decays.second) * grad * grad)
  return jax.tree.map(
      lambda old, x: rounded(x, old.dtype, step), acc,
      Accumulators(tuple(momentum), second, tuple(row), tuple(column)))
