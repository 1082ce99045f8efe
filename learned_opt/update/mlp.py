"""The hot kernel: one small MLP applied to every element of a parameter.

Contract: `apply(theta, features, output)` returns, in the parameter's shape,
`output(direction, magnitude)`, where the two are the outputs of
`features -> hidden -> hidden -> 2` (ReLU, linear output) for each element. The
normalisers are folded into the first weights, tensor features into the first
bias, row and column features into biases that broadcast; all of that is exact
up to rounding.

Lowerings:
  "unrolled": the products are written out one by one, so that XLA fuses
    features, MLP and output into one loop over the elements. For at most
    UNROLL_HIDDEN hidden units: beyond that, LLVM's code generator was seen to
    run out of memory, or to stop using vector instructions, for some shapes.
  "blocked": matrix products over a leading feature axis, block by block.
  "pallas": kernels for GPUs, `learned_opt.update.pallas_mlp`; only if asked for.
"""

import math
from typing import Callable

import jax
import jax.numpy as jnp

from learned_opt import base
from learned_opt.update import blocks
from learned_opt.update import features as features_lib

LOWERINGS = ("unrolled", "blocked", "pallas")
UNROLL_HIDDEN = 8


def check_settings(hidden: int, least: int, lowering: str | None = None,
                   **multipliers: float) -> None:
  """Raises ValueError if a setting of a per-parameter MLP makes no sense.

  Args:
    hidden: number of hidden units.
    least: the smallest `hidden` that is allowed.
    lowering: one of LOWERINGS or None.
    **multipliers: must be positive, finite numbers.
  """
  if type(hidden) is not int or hidden < least:
    raise ValueError(f"hidden must be an integer >= {least}, got {hidden!r}.")
  if lowering not in (None, *LOWERINGS):
    raise ValueError(f"Unknown lowering {lowering!r}; available: None (chosen "
                     f"by size), {', '.join(LOWERINGS)}.")
  base.check_positive(**multipliers)


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


def apply(theta: dict, features: features_lib.Features, shape: tuple,
          output: Callable[[jax.Array, jax.Array], jax.Array],
          lowering: str | None = None) -> jax.Array:
  """`output(direction, magnitude)` of each element.

  Args:
    theta: weights as `init` returns them.
    features: see `learned_opt.update.features`.
    shape: S, the parameter's shape, of at least one axis.
    output: elementwise function of direction and magnitude, float32.
    lowering: one of LOWERINGS, or None to choose by the number of hidden
      units and the size of the parameter.

  Returns:
    [*S], float32. To differentiate it, everything is computed again from
    theta and features: what is in between is hundreds of numbers per element.
  """
  def update(theta, inputs, row, column):
    return _apply(theta, features._replace(
        inputs=inputs, row=row, column=column), shape, output, lowering)

  return jax.checkpoint(update)(
      theta, features.inputs, features.row, features.column)


def _apply(theta, features, shape, output, lowering):
  """`apply`, with its arguments."""
  if lowering is None:
    lowering = "unrolled" if len(theta["b0"]) <= UNROLL_HIDDEN else "blocked"
  size = blocks.default_size()
  if lowering == "pallas":
    # Here, since it is not on every platform that Pallas can be imported.
    from learned_opt.update import pallas_mlp
    squares = pallas_mlp.mean_squares(features, shape)
  else:
    squares = blocks.mean_squares(
        _statistics(features, shape, size), features.inputs, shape, size)
  # Weights that XLA cannot take for constants: else it would expand each to the
  # parameter's shape ahead of a loop, and LLVM would optimize for their values.
  theta = jax.tree.map(lambda w: jnp.where(squares[0] < 0, 0, w), theta)
  weights, limits, biases, wide = _fold(theta, features, squares, lowering)
  layers = [(weights, biases), *[(theta[f"w{i}"], theta[f"b{i}"])
                                 for i in (1, 2)]]
  if lowering == "pallas":
    layers[0] = weights, biases[0].reshape(-1)
    return pallas_mlp.update(features, wide, layers, limits, shape, output)
  unrolled = lowering == "unrolled"
  layer = _unrolled if unrolled else _dense

  def kernel(inputs):
    inputs, biases, wide = inputs
    x = features_lib.one_by_one(features, features_lib.split(inputs))
    if limits is not None:
      x = [jnp.clip(x, -limit, limit) for x, limit in zip(x, limits)]
    whole = lambda more: jnp.broadcast_to(more, x[0].shape)
    x = [*x, *[whole(more) for kind in wide.values() for more in kind]]
    # [H, ...], or one array for each hidden unit.
    first = [sum(b) for b in zip(*biases)] if unrolled else sum(biases)
    x = layer(x, weights, first)
    for w, b in layers[1:]:
      x = layer(jax.tree.map(jax.nn.relu, x), w, b)
    return output(x[0], x[1])

  return blocks.elementwise(
      kernel, (features.inputs, biases, wide), shape,
      math.prod(shape) if unrolled else size)


def _statistics(features, shape, size):
  """Element features as `blocks.mean_squares` wants them.

  Arrays for all decays at once make smaller programs, which is what counts for
  small parameters; separate arrays are faster in large ones.
  """
  if math.prod(shape) <= size:
    return features.element
  return lambda inputs: [x[None] for x in features_lib.one_by_one(
      features, features_lib.split(inputs))]


def _fold(theta, features, squares, lowering):
  """All that does not differ from element to element.

  Row and column features become biases of the first layer. In the blocked
  lowering only if the last axis is one along which they are constant: adding
  what varies along it to a matrix of activations is slower than more columns
  of the matrix product. In the Pallas kernel never.

  Returns:
    (weights [n, H], limits [16 or 22] or None, list of biases [H, ...],
    {name: [6, ...]}: features beyond those of the elements).
  """
  w0, layout = theta["w0"], features.layout
  ndim = features.inputs["grad"].ndim - 1
  wide = lambda x: x.reshape(x.shape + (1,) * ndim)
  scale, limits = _normalize(features, squares)
  weights = w0[layout.element]
  if features.row is None:
    weights = jnp.concatenate([weights, w0[layout.row] + w0[layout.column]])
  weights = [weights * scale[:, None]]
  biases = [wide(theta["b0"] + features.tensor(squares) @ w0[
      sum(map(len, layout)):])]
  more = {}
  for name, x, rows in (
      ("row", features.row, layout.row),
      ("column", features.column, layout.column)):
    if x is None:
      continue
    scale, limit = _normalize(
        features, jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim))))
    if limit is not None:
      x = jnp.clip(x, -wide(limit), wide(limit))
    if lowering == "unrolled" or lowering == "blocked" and x.shape[-1] == 1:
      biases.append(jnp.tensordot((w0[rows] * scale[:, None]).T, x, 1))
    else:
      more[f"{name} features"] = x
      weights.append(w0[rows] * scale[:, None])
  return jnp.concatenate(weights), limits, biases, more


def _normalize(features, squares):
  """Factors on features of these mean squares, and limits (None: none)."""
  scale = features.normalizer(squares)
  if features.clip is None:
    return scale, None
  return scale, features.clip * squares * scale  # clip * RMS


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
