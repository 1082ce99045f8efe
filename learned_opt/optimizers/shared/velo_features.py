"""Inputs of the per-parameter MLPs of VeLO and Celo2: 30 numbers per element.

They are the features of small_fc_lopt without time, and two more of the
gradient: clipped at 0.1, and divided by the root of the second moment.

Reference:
  Metz et al., 2022, https://arxiv.org/abs/2211.09760 (VeLO);
  https://arxiv.org/abs/2602.19142 (Celo2).
"""

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt.update import accumulators
from learned_opt.update import features as features_lib

NUM_FEATURES = 30
FEATURE_ROWS = features_lib.FeatureRows(
    np.array([*range(15), 27, 28, 29]), np.array([15, 16, 17, 21, 22, 23]),
    np.array([18, 19, 20, 24, 25, 26]))
# Published weights come in one block for each group of features.
GROUP_SIZES = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
NUM_UNFACTORED = 15  # number of first features that `unfactored` keeps
DECAYS = np.array([0.9, 0.99, 0.999], np.float32)  # of all but second moments
MAX_GRAD = 1000.0
MAX_SMALL_GRAD = 0.1  # limit of the gradient's second feature


def accumulate(acc: accumulators.Accumulators, grad: jax.Array,
               second_decay: float, step: jax.Array
               ) -> tuple[accumulators.Accumulators, jax.Array]:
  """Return (statistics that include the gradient, clipped gradient).

  Args:
    acc: statistics before this step.
    grad: [*S], float32.
    second_decay: of the second moment.
    step: number of steps taken before this step.
  """
  grad = jnp.clip(grad, -MAX_GRAD, MAX_GRAD)
  decays = accumulators.Decays(
      jnp.asarray(DECAYS), jnp.float32(second_decay), jnp.asarray(DECAYS))
  return accumulators.update(acc, grad, decays, step, floor=1e-30), grad


def make(grad: jax.Array, param: jax.Array, acc: accumulators.Accumulators,
         second_epsilon: float, epsilon: float, unfactored: bool = False
         ) -> features_lib.Features:
  """Return the features of one parameter of shape S.

  Args:
    grad: clipped gradient [*S], float32.
    param: [*S], float32.
    acc: see `accumulate`.
    second_epsilon: added to second moments.
    epsilon: added to the mean squares whose roots divide features.
    unfactored: for parameters of one axis. Keep the first NUM_UNFACTORED
      features; leave out the factors, their inverse roots and the momenta
      divided by the root of the factors.
  """
  inputs = dict(grad=[grad], param=[param], momentum=acc.momentum,
                second=[acc.second])
  factors, row, column = features_lib.factored(acc, grad.shape)
  inputs |= factors
  feature_rows = FEATURE_ROWS
  if unfactored:
    feature_rows = features_lib.FeatureRows(
        np.arange(NUM_UNFACTORED), *[np.zeros(0, np.int32)] * 2)

  def element(x):
    grad, momentum, second = x["grad"], x["momentum"], x["second"]
    inverse_rms = jax.lax.rsqrt(second + second_epsilon)
    if row is None:
      for_grad = features_lib.safe_rsqrt(x["row"] + 1e-9)
      # Momenta, then the row features, which are column features, too.
      last = [momentum * jax.lax.rsqrt(x["row"]), x["row"],
              features_lib.inverse_root(x["row"])]
    else:
      for_grad = x["row_factor"] * x["column_factor"]
      last = [momentum * for_grad]
    return (grad, jnp.clip(grad, -MAX_SMALL_GRAD, MAX_SMALL_GRAD), x["param"],
            momentum, second, momentum * inverse_rms, inverse_rms,
            grad * for_grad, grad * inverse_rms,
            *([] if unfactored else last))

  return features_lib.Features(
      element, inputs, row, column, lambda squares: jnp.zeros(0, jnp.float32),
      lambda squares: jax.lax.rsqrt(epsilon + squares), layout=feature_rows)
