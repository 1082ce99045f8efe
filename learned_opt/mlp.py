"""The hot kernel: one small MLP applied to every element of a parameter.

Contract: `apply(theta, features)` returns the two outputs of
`features -> hidden -> hidden -> 2` (ReLU, linear output) for each element, in
the parameter's own shape. The normalisers are folded into the first weights,
tensor features into the first bias, row and column features into biases that
broadcast; all of that is exact up to rounding.

Two lowerings. Up to UNROLL_HIDDEN hidden units the products are written out
one by one, so that XLA fuses features, MLP and output into one loop over the
elements. Beyond that, and for parameters of fewer than UNROLL_SIZE elements,
matrix products over a leading feature axis: LLVM's code generator was seen to
run out of memory on the written-out form with 16 and 32 hidden units, for
some shapes.
"""

import math

import jax
import jax.numpy as jnp

from learned_opt import features as features_lib

UNROLL_HIDDEN = 8
UNROLL_SIZE = 256


def check_settings(hidden: int, least: int, **multipliers: float) -> None:
  """Raises ValueError if a setting of a per-parameter MLP makes no sense.

  Args:
    hidden: number of hidden units.
    least: the smallest `hidden` that is allowed.
    **multipliers: must be positive, finite numbers.
  """
  if type(hidden) is not int or hidden < least:
    raise ValueError(f"hidden must be an integer >= {least}, got {hidden!r}.")
  for name, value in multipliers.items():
    if (type(value) not in (int, float) or not math.isfinite(value) or
        value <= 0):
      raise ValueError(f"{name} must be a positive number, got {value!r}.")


def init(key: jax.Array, num_features: int, hidden: int) -> dict:
  """Random weights.

  Truncated normal on two standard deviations, std 1/sqrt(inputs) before
  truncation; zero biases.

  Returns:
    w0 [num_features, hidden], b0 [hidden], w1 [hidden, hidden], b1 [hidden],
    w2 [hidden, 2], b2 [2], float32.
  """
  sizes = (num_features, hidden, hidden, 2)
  theta = {}
  for i, k in enumerate(jax.random.split(key, 3)):
    shape = sizes[i:i + 2]
    theta[f"w{i}"] = jax.random.truncated_normal(
        k, -2, 2, shape, jnp.float32) / sizes[i]**0.5
    theta[f"b{i}"] = jnp.zeros(shape[1:], jnp.float32)
  return theta


def apply(theta: dict, features: features_lib.Features
          ) -> tuple[jax.Array, jax.Array]:
  """Direction and magnitude for each element.

  Args:
    theta: weights as `init` returns them.
    features: see `learned_opt.features`; parameter of shape S.

  Returns:
    (direction, magnitude), both [*S], float32.
  """
  w0 = theta["w0"]
  weights = w0[features_lib.ELEMENT_ROWS] * features.element_scale[:, None]
  bias = theta["b0"] + features.tensor @ w0[
      features_lib.NUM_PARAMETER_FEATURES:]  # [H]
  fold = lambda rows, scale, x: jnp.tensordot(
      (w0[rows] * scale[:, None]).T, x, 1)  # [H, ...]
  row = fold(features_lib.ROW_ROWS, features.row_scale, features.row)
  column = fold(
      features_lib.COLUMN_ROWS, features.column_scale, features.column)
  row = row + bias.reshape(bias.shape + (1,) * (row.ndim - 1))
  unroll = (w0.shape[1] <= UNROLL_HIDDEN and
            features.element[0].size >= UNROLL_SIZE)
  layer = _unrolled if unroll else _dense
  first = [r + c for r, c in zip(row, column)] if unroll else row + column
  x = layer(features.element, weights, first)
  x = layer(jax.tree.map(jax.nn.relu, x), theta["w1"], theta["b1"])
  x = layer(jax.tree.map(jax.nn.relu, x), theta["w2"], theta["b2"])
  return x[0], x[1]


def _unrolled(inputs, weights, biases):
  """One scalar product at a time. [*S] per input -> [*S] per output."""
  outputs = []
  for j in range(weights.shape[1]):
    total = biases[j]
    for i, x in enumerate(inputs):
      total = total + x * weights[i, j]
    outputs.append(total)
  return outputs


def _dense(inputs, weights, biases):
  """Matrix product over the leading axis. [n, *S] -> [m, *S]."""
  x = jnp.tensordot(weights.T, jnp.stack(inputs), 1)
  return x + biases.reshape(biases.shape + (1,) * (x.ndim - biases.ndim))
