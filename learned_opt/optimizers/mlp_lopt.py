"""The first published per-parameter MLP: gradient, parameter, six momenta.

  update = -step_mult * direction * exp(exp_mult * magnitude)
  direction, magnitude = MLP(features of one element)

Reference:
  Metz et al., 2022, https://arxiv.org/abs/2203.11860 (mlp_lopt).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import base
from learned_opt.update import accumulators
from learned_opt.update import features as features_lib
from learned_opt.update import mlp
from learned_opt.update import per_parameter

DECAYS = np.array([0.1, 0.5, 0.9, 0.99, 0.999, 0.9999], np.float32)
# Gradient, parameter and momenta; no row features, no column features.
FEATURE_ROWS = features_lib.FeatureRows(
    np.arange(2 + len(DECAYS)), *[np.zeros(0, np.int32)] * 2)


class State(NamedTuple):
  """State of one parameter of shape S: a momentum [*S] for each decay."""

  momentum: tuple[jax.Array, ...]


def make(hidden: int = 32, step_mult: float = 0.001, exp_mult: float = 0.001,
         lowering: str | None = None) -> base.LearnedOptimizer:
  """Return the optimizer.

  theta has 19 H + H^2 + 4 H + 2 numbers (1762 for H = 32).

  Args:
    hidden: H, width of both hidden layers.
    step_mult: multiplies the update.
    exp_mult: multiplies the magnitude output before exponentiation.
    lowering: how the MLP is computed, see `learned_opt.update.mlp`.

  Raises:
    ValueError: hidden is not a positive integer, a multiplier is not a
      positive number, or the lowering is unknown.
  """
  mlp.check_settings(hidden, 1, lowering, step_mult=step_mult,
                     exp_mult=exp_mult)
  num_features = len(FEATURE_ROWS.element) + len(features_lib.TIME_SCALES)

  def opt_fn(theta, *, num_steps=None, stacks=None):
    del num_steps

    def step_one(grad, param, state, step):
      momentum = tuple(accumulators.averages(
          state.momentum, grad, jnp.asarray(DECAYS)))
      update = lambda direction, magnitude: (
          -step_mult * direction * jnp.exp(exp_mult * magnitude))
      return mlp.apply(theta, _features(grad, param, momentum, step),
                       grad.shape, update, lowering), State(momentum)

    return per_parameter.transformation(
        lambda shape: State(tuple(jnp.zeros(shape, jnp.float32)
                                  for _ in DECAYS)),
        step_one, stacks=stacks)

  return base.LearnedOptimizer(
      lambda key: mlp.init(key, num_features, hidden), opt_fn)


def _features(grad, param, momentum, step) -> features_lib.Features:
  return features_lib.Features(
      lambda x: (x["grad"], x["param"], x["momentum"]),
      dict(grad=[grad], param=[param], momentum=momentum), None, None,
      lambda squares: features_lib.time_features(step),
      lambda squares: jax.lax.rsqrt(1e-5 + squares), layout=FEATURE_ROWS)
