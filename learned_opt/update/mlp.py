"""The hot kernel: one small MLP applied to every element of a parameter.

`apply` returns, in the parameter's shape, `output(direction, magnitude)` of
each element. Direction and magnitude are the outputs of the MLP
`features -> hidden -> hidden -> 2` (ReLU, linear output). With odd features
(`Features.odd`), the update is instead a sum of these features, normalized,
whose weights are the outputs of the MLP. Without hidden units they are the
last bias, which is then all of theta.

Three rewrites of the first layer save work per element. They are exact up to
rounding:

* normalizers are folded into the first weights;
* tensor features are folded into the first bias;
* row and column features become biases that broadcast.

Lowerings:
  "unrolled": the products are written out one by one, so that XLA fuses
    features, MLP and output into one loop over the elements. For at most
    UNROLL_HIDDEN hidden units: with more, LLVM's code generator ran out of
    memory or stopped using vector instructions for some shapes.
  "blocked": matrix products over a leading feature axis, block by block.
  "pallas": kernels for GPUs, see `learned_opt.update.pallas_mlp`; used only on
    request.
"""

import functools
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
  """Raise ValueError if a setting of a per-parameter MLP makes no sense.

  Args:
    hidden: number of hidden units.
    least: minimum of `hidden`.
    lowering: one of LOWERINGS or None.
    **multipliers: must be positive, finite numbers.
  """
  if type(hidden) is not int or hidden < least:
    raise ValueError(f"hidden must be an integer >= {least}, got {hidden!r}.")
  if lowering not in (None, *LOWERINGS):
    raise ValueError(f"Unknown lowering {lowering!r}; available: None (chosen "
                     f"by size), {', '.join(LOWERINGS)}.")
  base.check_positive(**multipliers)


def init(key: jax.Array, num_features: int, hidden: int, outputs: int = 2
         ) -> dict:
  """Return random weights and zero biases.

  Weights are normal numbers truncated at two standard deviations. The standard
  deviation before truncation is 1/sqrt(fan_in).

  Returns:
    w0 [num_features, hidden], b0 [hidden], w1 [hidden, hidden], b1 [hidden],
    w2 [hidden, outputs], b2 [outputs], float32; b2 alone without hidden units.
  """
  sizes = (num_features, hidden, hidden, outputs)
  theta = {}
  if hidden == 0:
    return {"b2": jnp.zeros(outputs, jnp.float32)}
  for i, k in enumerate(jax.random.split(key, 3)):
    shape = sizes[i:i + 2]
    theta[f"w{i}"] = jax.random.truncated_normal(
        k, -2, 2, shape, jnp.float32) / sizes[i]**0.5
    theta[f"b{i}"] = jnp.zeros(shape[1:], jnp.float32)
  return theta


def apply(theta: dict, features: features_lib.Features, shape: tuple,
          output: Callable[..., jax.Array],
          lowering: str | None = None) -> jax.Array:
  """Return `output(direction, magnitude)` of each element.

  Args:
    theta: weights as `init` returns them.
    features: see `learned_opt.update.features`.
    shape: S, the parameter's shape, of at least one axis.
    output: elementwise function of direction and magnitude, float32; with odd
      features, a function of the sum of features.
    lowering: one of LOWERINGS, or None to choose by the number of hidden units.

  Returns:
    [*S], float32.
  """
  def update(theta, inputs, row, column):
    return _apply(theta, features._replace(
        inputs=inputs, row=row, column=column), shape, output, lowering)

  # The backward pass computes the MLP again from theta and features: keeping
  # its activations would take hundreds of numbers per element.
  return jax.checkpoint(update)(
      theta, features.inputs, features.row, features.column)


def _apply(theta, features, shape, output, lowering):
  """Return the result of `apply`, without its checkpoint."""
  if "w0" not in theta:
    return _without_mlp(theta["b2"], features, shape, output)
  if lowering is None:
    lowering = "unrolled" if len(theta["b0"]) <= UNROLL_HIDDEN else "blocked"
  size = blocks.default_size()
  if lowering == "pallas":
    # Imported here, because Pallas cannot be imported on every platform.
    from learned_opt.update import pallas_mlp
    squares = pallas_mlp.mean_squares(features, shape)
  else:
    fused = blocks.fused_size()
    squares = blocks.mean_squares(
        _statistics(features, shape, fused), features.inputs, shape, fused)
  # Mean squares are never negative, so this changes no weight, but XLA no
  # longer sees constants. XLA would expand each constant to the parameter's
  # shape ahead of a loop, and LLVM would optimize for the values.
  theta = jax.tree.map(lambda w: jnp.where(squares[0] < 0, 0, w), theta)
  weights, limits, biases, wide = _fold(theta, features, squares, lowering)
  scale = features.normalizer(squares[:features.odd])
  layers = [(weights, biases), *[(theta[f"w{i}"], theta[f"b{i}"])
                                 for i in (1, 2)]]
  if lowering == "pallas":
    layers[0] = weights, biases[0].reshape(-1)
    return pallas_mlp.update(
        features, wide, layers, limits, scale, shape, output)
  kernel = functools.partial(_kernel, features, output)
  args = features.inputs, biases, wide, layers, limits, scale
  if lowering == "unrolled":
    # One block: XLA fuses it into a single loop, so it has no intermediate
    # arrays. Derivatives are those of matrix products: XLA would compute the
    # derivative of a unit again for each of its inputs, in programs forty
    # times as long.
    return _differentiated_as(
        functools.partial(kernel, _unrolled, shape, math.prod(shape)),
        functools.partial(kernel, _dense, shape, size))(*args)
  return kernel(_dense, shape, size, *args)


def _kernel(features, output, layer, shape, size, inputs, biases, wide, layers,
            limits, scale):
  """Return the update [*S], computed in blocks of at most `size` elements.

  Args:
    features: its functions are used, not its arrays.
    output: see `apply`.
    layer: `_unrolled` or `_dense`.
    shape: S.
    size: see above.
    inputs: as `features.inputs`.
    biases: see `_fold`.
    wide: see `_fold`.
    layers: weights and biases; those of the first layer are not used.
    limits: see `_fold`.
    scale: normalizers of the odd features.
  """
  def block(inputs):
    inputs, biases, wide = inputs
    x = features_lib.one_by_one(features, inputs)
    if limits is not None:
      x = [jnp.clip(x, -limit, limit) for x, limit in zip(x, limits)]
    odd = x[:features.odd]
    whole = lambda feature: jnp.broadcast_to(feature, x[0].shape)
    x = [*features_lib.seen(features, x),
         *[whole(feature) for kind in wide.values() for feature in kind]]
    # One array for each hidden unit, or [H, ...].
    first = [sum(b) for b in zip(*biases)] if layer is _unrolled else (
        sum(biases))
    x = layer(x, layers[0][0], first)
    for w, b in layers[1:]:
      x = layer(jax.tree.map(jax.nn.relu, x), w, b)
    return features_lib.gated(features, inputs, output(
        *_mixed(x, odd, scale)))

  return blocks.elementwise(block, (inputs, biases, wide), shape, size)


def _differentiated_as(fn, other):
  """Return `fn` with the derivatives of `other`, which has the same values."""
  both = jax.custom_jvp(fn)
  both.defjvp(lambda primals, tangents: (
      both(*primals), jax.jvp(other, primals, tangents)[1]))
  return both


def _without_mlp(weights, features, shape, output):
  """Return the result of `apply` for odd features with constant weights."""
  fused = blocks.fused_size()
  squares = blocks.mean_squares(
      _statistics(features, shape, fused), features.inputs, shape, fused)
  scale, limits = _normalize(features, squares)

  def kernel(inputs):
    odd = features_lib.one_by_one(features, inputs)[:features.odd]
    if limits is not None:
      odd = [jnp.clip(x, -limit, limit) for x, limit in zip(odd, limits)]
    return features_lib.gated(
        features, inputs, output(*_mixed(weights, odd, scale)))

  return blocks.elementwise(
      kernel, features.inputs, shape, math.prod(shape))


def _mixed(outputs, odd, scale):
  """Return the arguments of `output`, see `apply`.

  Args:
    outputs: of the MLP, arrays [...].
    odd: odd features, arrays [...]; none for an MLP of direction and magnitude.
    scale: normalizers of the odd features.
  """
  if not odd:
    return outputs[0], outputs[1]
  return [sum(w * (x * n) for w, x, n in zip(outputs, odd, scale))]


def _statistics(features, shape, size):
  """Return the function of element features for `blocks.mean_squares`.

  Arrays for all decays at once make smaller programs, which matters for small
  parameters. Separate arrays are faster in large parameters.
  """
  if math.prod(shape) <= size:
    return functools.partial(features_lib.stacked, features)
  return lambda inputs: [
      x[None] for x in features_lib.one_by_one(features, inputs)]


def _fold(theta, features, squares, lowering):
  """Fold normalizers and features that broadcast into the first layer.

  Row and column features become biases of the first layer, with exceptions.
  In the blocked lowering they do so only if they are constant along the last
  axis. Otherwise they become more columns of the matrix product: adding a
  bias that varies along the last axis to a matrix of activations is slower. In
  the Pallas kernel they are never biases.

  Returns:
    (weights [n, H], limits [16 or 22] or None, list of biases [H, ...],
    {name: [6, ...]}: features that follow the element features).
  """
  w0 = theta["w0"]
  # int32 in every case: an index of numpy has 64 bits, and JAX with x64 may mix
  # it with an index of 32 bits.
  rows_of = features_lib.FeatureRows(*map(jnp.int32, features.layout))
  ndim = features.inputs["grad"][0].ndim
  wide = lambda x: x.reshape(x.shape + (1,) * ndim)
  scale, limits = _normalize(features, squares)
  weights = w0[rows_of.element]
  if features.row is None:
    # Not factored: the same numbers are row features and column features.
    weights = jnp.concatenate([weights, w0[rows_of.row] + w0[rows_of.column]])
  weights = [weights * scale[:, None]]
  biases = [wide(theta["b0"] + features.tensor(squares) @ w0[
      sum(map(len, rows_of)):])]
  extra = {}
  for name, x, rows in (
      ("row", features.row, rows_of.row),
      ("column", features.column, rows_of.column)):
    if x is None:
      continue
    scale, limit = _normalize(
        features, jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim))))
    if limit is not None:
      x = jnp.clip(x, -wide(limit), wide(limit))
    if lowering == "unrolled" or lowering == "blocked" and x.shape[-1] == 1:
      biases.append(jnp.tensordot((w0[rows] * scale[:, None]).T, x, 1))
    else:
      extra[f"{name} features"] = x
      weights.append(w0[rows] * scale[:, None])
  return jnp.concatenate(weights), limits, biases, extra


def _normalize(features, squares):
  """Return (multipliers of features, limits of features or None).

  Args:
    features: see `learned_opt.update.features`.
    squares: mean squares of these features, [n].
  """
  scale = features.normalizer(squares)
  if features.clip is None:
    return scale, None
  # The multipliers are folded into the weights, so features are clipped before
  # they are normalized: at clip * RMS = clip * mean square / RMS.
  return scale, features.clip * squares * scale


def _unrolled(inputs, weights, biases):
  """Return a layer's outputs by scalar products: [*S] each -> [*S] each."""
  outputs = []
  for j in range(weights.shape[1]):
    total = biases[j]
    for i, x in enumerate(inputs):
      total = total + x * weights[i, j]
    outputs.append(total)
  return outputs


def _dense(inputs, weights, biases):
  """Return a layer's outputs by a matrix product: [n, *S] -> [m, *S]."""
  x = jnp.tensordot(weights.T, jnp.stack(inputs), 1)
  return x + biases.reshape(biases.shape + (1,) * (x.ndim - biases.ndim))
