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

from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Rows of the first weight matrix that each group uses, in published order.
ELEMENT_ROWS = np.array([*range(13), 25, 26, 27])
ROW_ROWS = np.array([13, 14, 15, 19, 20, 21])
COLUMN_ROWS = np.array([16, 17, 18, 22, 23, 24])
NUM_PARAMETER_FEATURES = 28
MOMENTUM = slice(2, 5)  # the momenta among the features of an element

TIME_SCALES = np.array(
    [1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5], np.float32)


class Features(NamedTuple):
  """Inputs of the MLP for one parameter of shape S.

  Attributes:
    element: function of `inputs`, or of a block of them: 16 arrays [*S],
      float32. For a parameter that is not factored 22, the last six being the
      row features, which are the column features, too.
    inputs: tree of arrays [..., *S], see `learned_opt.blocks`.
    row: [6, ...], broadcasts against S; None if not factored.
    column: [6, ...], broadcasts against S; None if not factored.
    tensor: function of the mean squares of the element features: [n], which
      is not normalised.
    normalizer: from mean squares of features, the factors on them.
    clip: most that a normalised feature can be; None for no limit.
  """

  element: Callable[[Any], tuple[jax.Array, ...]]
  inputs: Any
  row: jax.Array | None
  column: jax.Array | None
  tensor: Callable[[jax.Array], jax.Array]
  normalizer: Callable[[jax.Array], jax.Array]
  clip: float | None = None


def time_features(step: jax.Array) -> jax.Array:
  """tanh(t / tau - 1) for 11 time scales tau. Shape [11].

  Args:
    step: number of inner steps taken before this one, scalar.
  """
  return jnp.tanh(step.astype(jnp.float32) / TIME_SCALES - 1)


def elements(inputs: dict, inverse_rms: jax.Array,
             inverse_rms_feature: jax.Array, for_grad: Sequence[jax.Array],
             for_momentum: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
  """The 16 element features, in published order.

  Args:
    inputs: "grad", "param" and "second" [*S], "momentum" [3, *S].
    inverse_rms: factor on the momenta, [*S].
    inverse_rms_feature: that factor as a feature of its own, [*S].
    for_grad: three factors on the gradient, [*S].
    for_momentum: three factors, one for each momentum, [*S].
  """
  grad, param, second = (
      inputs[name].astype(jnp.float32) for name in ("grad", "param", "second"))
  momentum = [m.astype(jnp.float32) for m in inputs["momentum"]]
  return (grad, param, *momentum, second, *[m * inverse_rms for m in momentum],
          inverse_rms_feature, *[grad * f for f in for_grad],
          *[m * f for m, f in zip(momentum, for_momentum)])
