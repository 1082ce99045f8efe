"""What the per-parameter MLP reads, grouped by how much of it varies.

Of the 28 numbers that small_fc_lopt computes for one element, 16 differ from
element to element; 6 are row factors, constant along the largest axis, 6 are
column factors. Numbers that are equal for a whole tensor, such as time, only
shift the first bias. Keeping the groups apart is exact and means that no
array with a feature axis of full size is ever built. What differs from element
to element is given as a function, to be computed block by block.

Reference:
  Metz et al., Practical tradeoffs between memory, compute, and performance in
  learned optimizers, 2022, https://arxiv.org/abs/2203.11860 (small_fc_lopt).
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt.update import accumulators


class Layout(NamedTuple):
  """Rows of the first weight matrix that each group of features uses.

  Tensor features use the rows that follow.

  Attributes:
    element: those of element features [n].
    row: those of row features [m].
    column: those of column features [m].
  """

  element: np.ndarray
  row: np.ndarray
  column: np.ndarray


# Of small_fc_lopt, in published order.
SMALL_FC = Layout(
    np.array([*range(13), 25, 26, 27]), np.array([13, 14, 15, 19, 20, 21]),
    np.array([16, 17, 18, 22, 23, 24]))

NUM_PARAMETER_FEATURES = 28
MOMENTUM = slice(2, 5)  # the momenta among the features of an element

TIME_SCALES = np.array(
    [1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5], np.float32)


class Features(NamedTuple):
  """Inputs of the MLP for one parameter of shape S.

  Attributes:
    element: function of `inputs` or of a block of them: arrays [n, *S],
      float32, n being 1 or the number of decays, in published order. For a
      parameter that is not factored the last two are its row features, which
      are its column features, too. Elementwise, so that of inputs [*S], those
      of one decay, it makes features [*S].
    inputs: dict of arrays [n, *S], see `learned_opt.update.blocks`.
    row: [6, ...], broadcasts against S; None if not factored.
    column: [6, ...], broadcasts against S; None if not factored.
    tensor: function of the mean squares of the element features: [n], which
      is not normalised.
    normalizer: from mean squares of features, the factors on them.
    clip: most that a normalised feature can be; None for no limit.
    layout: what the rows of the first weight matrix belong to.
  """

  element: Callable[[Any], tuple[jax.Array, ...]]
  inputs: dict[str, jax.Array]
  row: jax.Array | None
  column: jax.Array | None
  tensor: Callable[[jax.Array], jax.Array]
  normalizer: Callable[[jax.Array], jax.Array]
  clip: float | None = None
  layout: Layout = SMALL_FC


def elements(inputs: dict, inverse_rms: jax.Array,
             inverse_rms_feature: jax.Array, for_grad: jax.Array,
             for_momentum: jax.Array) -> tuple[jax.Array, ...]:
  """The 8 kinds of element features: 16 features for three decays.

  Args:
    inputs: "grad", "param" and "second" [1, *S], "momentum" [n, *S].
    inverse_rms: factor on the momenta, [1, *S].
    inverse_rms_feature: that factor as a feature of its own, [1, *S].
    for_grad: factors on the gradient, [n, *S].
    for_momentum: factors on the momenta, [n, *S].
  """
  grad, param, momentum, second = (inputs[name].astype(jnp.float32) for name in
                                   ("grad", "param", "momentum", "second"))
  return (grad, param, momentum, second, momentum * inverse_rms,
          inverse_rms_feature, grad * for_grad, momentum * for_momentum)


def split(inputs: dict) -> dict[str, list[jax.Array]]:
  """Inputs [n, *S] as lists of n arrays [*S]."""
  return {name: [jax.lax.index_in_dim(x, k, keepdims=False)
                 for k in range(len(x))] for name, x in inputs.items()}


def one_by_one(features: "Features", inputs: dict[str, list[jax.Array]]
               ) -> list[jax.Array]:
  """The element features as separate arrays, each from its own inputs.

  XLA fuses that with what comes after, but not with parts of an array for all
  decays.

  Args:
    features: see `Features`.
    inputs: as `split` returns them, whole or a block.
  """
  counts = [len(x) for x in jax.eval_shape(features.element, features.inputs)]
  kinds = list(zip(*[
      features.element({name: x[min(k, len(x) - 1)]
                        for name, x in inputs.items()})
      for k in range(max(counts))]))
  return [kind[k] for kind, n in zip(kinds, counts) for k in range(n)]


def safe_rsqrt(x: jax.Array) -> jax.Array:
  """1 / sqrt(x), at most 10^4.5: the floor of published optimizers."""
  return jax.lax.rsqrt(jnp.maximum(x, 1e-9))


def inverse_root(factor: jax.Array) -> jax.Array:
  """1 / sqrt of a row or column factor, as published."""
  return jax.lax.rsqrt(factor + 1e-8)


def factored(acc: accumulators.Accumulators, shape: tuple
             ) -> tuple[dict, jax.Array | None, jax.Array | None]:
  """What is made of row and column factors, as published.

  Args:
    acc: statistics of a parameter of this shape.
    shape: S, of at least one axis.

  Returns:
    (inputs, row features, column features). The inputs are "row_factor" and
    "column_factor", whose product normalises gradients; or for a parameter
    that is not factored "row", and there are no features.
  """
  axes = accumulators.factored_axes(shape)
  if axes is None or acc.column is None:
    return {"row": acc.row}, None, None
  mean = jnp.mean(acc.row, axes[0] + 1, keepdims=True)
  inputs = {"row_factor": safe_rsqrt(acc.row / (mean + 1e-9)),
            "column_factor": safe_rsqrt(acc.column)}
  row, column = (jnp.concatenate([x, inverse_root(x)])
                 for x in (acc.row, acc.column))
  return inputs, row, column


def time_features(step: jax.Array) -> jax.Array:
  """tanh(t / tau - 1) for 11 time scales tau. Shape [11].

  Args:
    step: number of inner steps taken before this one, scalar.
  """
  return jnp.tanh(step.astype(jnp.float32) / TIME_SCALES - 1)
