"""Inputs of the per-parameter MLP, grouped by the axes along which they vary.

small_fc_lopt computes 28 numbers for one element:

* 16 element features differ from element to element;
* 6 row features are constant along the largest axis;
* 6 column features are constant along the second largest axis.

Tensor features, such as time, are equal for all elements of a parameter and
only shift the first bias. The groups stay apart until the first layer is
computed. This is exact, and no array of the parameter's size with a feature
axis is ever built. Element features are given as a function, which is computed
block by block.

Reference:
  Metz et al., Practical tradeoffs between memory, compute, and performance in
  learned optimizers, 2022, https://arxiv.org/abs/2203.11860 (small_fc_lopt).
"""

from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt.update import accumulators


class FeatureRows(NamedTuple):
  """Rows of the first weight matrix w0 that each group of features uses.

  Tensor features use the rows that follow.

  Attributes:
    element: rows of element features, [n].
    row: rows of row features, [m].
    column: rows of column features, [m].
  """

  element: np.ndarray
  row: np.ndarray
  column: np.ndarray


# Rows of small_fc_lopt: features are in the published order.
SMALL_FC = FeatureRows(
    np.array([*range(13), 25, 26, 27]), np.array([13, 14, 15, 19, 20, 21]),
    np.array([16, 17, 18, 22, 23, 24]))

NUM_PARAMETER_FEATURES = 28
MOMENTUM = slice(2, 5)  # the momenta among the features of an element

TIME_SCALES = np.array(
    [1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5], np.float32)  # steps


class Features(NamedTuple):
  """Inputs of the MLP for one parameter of shape S.

  Attributes:
    element: elementwise function of stacked inputs {name: [n, *S]}, whole or a
      block, that returns arrays [n, *S], float32, in the order of w0; n is 1
      or the number of decays. Given inputs [*S] of one decay it returns arrays
      [*S]. If the parameter is not factored, the last two arrays are its row
      features, which serve as its column features, too.
    inputs: {name: n arrays [*S]}, see `learned_opt.update.blocks`.
    row: row features [6, ...], broadcast against S; None if not factored.
    column: column features [6, ...], broadcast against S; None if not factored.
    tensor: `mean squares of element features -> tensor features [n]`, which
      are not normalized.
    normalizer: `mean squares of features -> multipliers of the features`.
    clip: maximum of the absolute value of a normalized feature; None for no
      limit.
    layout: rows of the first weight matrix.
    gate: `inputs of one decay -> bools [*S]`, whole or a block: whether an
      element is updated at all; None if every element is.
    odd: number of element features, the first ones, that change their sign with
      the gradient and the parameter. If there are any, the MLP sees their
      absolute values, and its outputs are for `mlp.apply` weights of the
      features.
  """

  element: Callable[[Any], tuple[jax.Array, ...]]
  inputs: dict[str, Sequence[jax.Array]]
  row: jax.Array | None
  column: jax.Array | None
  tensor: Callable[[jax.Array], jax.Array]
  normalizer: Callable[[jax.Array], jax.Array]
  clip: float | None = None
  layout: FeatureRows = SMALL_FC
  gate: Callable[[dict[str, jax.Array]], jax.Array] | None = None
  odd: int = 0


def gated(features: "Features", inputs: dict[str, Sequence[jax.Array]],
          update: jax.Array) -> jax.Array:
  """Return the update of each element, exactly 0 where the gate is closed.

  Args:
    features: see `Features`.
    inputs: as `features.inputs`, whole or a block.
    update: [*S] or a block.
  """
  if features.gate is None:
    return update
  opened = features.gate({name: x[0] for name, x in inputs.items()})
  return jnp.where(opened, update, 0)


def seen(features: "Features", x: list[jax.Array]) -> list[jax.Array]:
  """Return the element features as the MLP sees them; see `Features.odd`."""
  return [*map(jnp.abs, x[:features.odd]), *x[features.odd:]]


def elements(inputs: dict, inverse_rms: jax.Array,
             inverse_rms_feature: jax.Array, for_grad: jax.Array,
             for_momentum: jax.Array) -> tuple[jax.Array, ...]:
  """Return the 8 kinds of element features: 16 features for three decays.

  Args:
    inputs: "grad", "param" and "second" [1, *S], "momentum" [n, *S].
    inverse_rms: 1 / sqrt(second), multiplies the momenta, [1, *S].
    inverse_rms_feature: the same quantity as a feature of its own, [1, *S].
    for_grad: multiplies the gradient, [n, *S].
    for_momentum: multiplies the momenta, [n, *S].
  """
  grad, param, momentum, second = (inputs[name].astype(jnp.float32) for name in
                                   ("grad", "param", "momentum", "second"))
  return (grad, param, momentum, second, momentum * inverse_rms,
          inverse_rms_feature, grad * for_grad, momentum * for_momentum)


def stacked(features: "Features", inputs: dict[str, Sequence[jax.Array]]
            ) -> tuple[jax.Array, ...]:
  """Return the element features [n, *S].

  Args:
    features: see `Features`.
    inputs: as `features.inputs`, whole or a block.
  """
  return features.element({name: jnp.stack(x) for name, x in inputs.items()})


def counts(features: "Features") -> list[int]:
  """Return the number of features in each array of `features.element`."""
  return [len(x) for x in jax.eval_shape(
      lambda inputs: stacked(features, inputs), features.inputs)]


def one_by_one(features: "Features", inputs: dict[str, Sequence[jax.Array]]
               ) -> list[jax.Array]:
  """Return the element features as separate arrays [*S].

  Each array is computed from inputs of its own decay. XLA fuses separate arrays
  with the operations that follow, but not slices of an array for all decays.

  Args:
    features: see `Features`.
    inputs: as `features.inputs`, whole or a block.
  """
  sizes = counts(features)
  # All features for decay k; inputs without a decay, [1, *S], serve every k.
  kinds = list(zip(*[
      features.element({name: x[min(k, len(x) - 1)]
                        for name, x in inputs.items()})
      for k in range(max(sizes))]))
  # XLA removes features without a decay that were computed for k > 0.
  return [kind[k] for kind, n in zip(kinds, sizes) for k in range(n)]


def safe_rsqrt(x: jax.Array) -> jax.Array:
  """Return 1 / sqrt(max(x, 1e-9)), the floor of published optimizers."""
  return jax.lax.rsqrt(jnp.maximum(x, 1e-9))


def inverse_root(factor: jax.Array) -> jax.Array:
  """Return 1 / sqrt(factor + 1e-8), as published."""
  return jax.lax.rsqrt(factor + 1e-8)


def factored(acc: accumulators.Accumulators, shape: tuple
             ) -> tuple[dict, jax.Array | None, jax.Array | None]:
  """Return inputs and features made of row and column factors, as published.

  Args:
    acc: statistics of a parameter of this shape.
    shape: S, of at least one axis.

  Returns:
    (inputs, row features, column features). For a factored parameter, the
    inputs are "row_factor" and "column_factor", whose product normalizes
    gradients. Otherwise the only input is "row", and the features are None.
  """
  axes = accumulators.factored_axes(shape)
  if axes is None:
    return {"row": acc.row}, None, None
  # Adafactor: second moment ~ row * column / mean(row).
  row, column = jnp.stack(acc.row), jnp.stack(acc.column)
  mean = jnp.mean(row, axes[0] + 1, keepdims=True)
  inputs = {"row_factor": list(safe_rsqrt(row / (mean + 1e-9))),
            "column_factor": list(safe_rsqrt(column))}
  return (inputs, jnp.concatenate([row, inverse_root(row)]),
          jnp.concatenate([column, inverse_root(column)]))


def time_features(step: jax.Array) -> jax.Array:
  """Return tanh(t / tau - 1) for 11 time scales tau: [11].

  Args:
    step: t, number of inner steps taken before this step, scalar.
  """
  return jnp.tanh(step.astype(jnp.float32) / TIME_SCALES - 1)
