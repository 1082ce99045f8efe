"""small_fc_lopt: the published per-parameter MLP, with its own constants.

  update = -step_mult * direction * exp(exp_mult * magnitude)
  direction, magnitude = MLP(features of one element)

The optimizer is kept exactly as published, absolute epsilons included, so that
published weights keep their meaning. The epsilons switch features off where
gradients are small, as in wide layers; `mulo` has no absolute epsilons.

Reference:
  Metz et al., 2022, https://arxiv.org/abs/2203.11860 (adafac_mlp_lopt);
  Therien et al., 2024, https://arxiv.org/abs/2406.00153 (hidden size 32, step
  multiplier 0.01 under muP).
"""

import jax
import jax.numpy as jnp

from learned_opt import base
from learned_opt.update import accumulators
from learned_opt.update import features as features_lib
from learned_opt.update import mlp
from learned_opt.update import per_parameter

INITIAL_DECAYS = {
    "momentum_decays": (0.9, 0.99, 0.999),
    "rms_decays": (0.999,),
    "adafactor_decays": (0.9, 0.99, 0.999),
}


def make(hidden: int = 32, step_mult: float = 0.001, exp_mult: float = 0.001,
         accumulator_dtype: str = "float32", lowering: str | None = None
         ) -> base.LearnedOptimizer:
  """Return the optimizer.

  theta has 39 H + H^2 + 4 H + 9 numbers (2409 for H = 32).

  Args:
    hidden: H, width of both hidden layers.
    step_mult: multiplies the update (published under muP: 0.01).
    exp_mult: multiplies the magnitude output before exponentiation.
    accumulator_dtype: of momentum and second moment, "float32" or "bfloat16".
    lowering: how the MLP is computed, see `learned_opt.update.mlp`.

  Raises:
    ValueError: hidden is not a positive integer, a multiplier is not a
      positive number, or a name is unknown.
  """
  mlp.check_settings(hidden, 1, lowering, step_mult=step_mult,
                     exp_mult=exp_mult)
  accumulators.check_dtype(accumulator_dtype)

  def init(key):
    theta = mlp.init(
        key, features_lib.NUM_PARAMETER_FEATURES +
        len(features_lib.TIME_SCALES), hidden)
    for name, decays in INITIAL_DECAYS.items():
      theta[name] = jnp.zeros(len(decays), jnp.float32)
    return theta

  def opt_fn(theta, *, num_steps=None, stacks=None):
    del num_steps
    decays = _decays(theta)

    def step_one(grad, param, acc, step):
      acc = accumulators.update(acc, grad, decays, step, floor=1e-30)
      update = lambda direction, magnitude: (
          -step_mult * direction * jnp.exp(exp_mult * magnitude))
      return mlp.apply(theta, _features(grad, param, acc, step), grad.shape,
                       update, lowering), acc

    init_one = lambda shape: accumulators.init(shape, accumulator_dtype)
    return per_parameter.transformation(init_one, step_one, stacks=stacks)

  return base.LearnedOptimizer(init, opt_fn)


def _decays(theta) -> accumulators.Decays:
  """Return decays = 1 - (1 - initial) exp(10 residual); theta has residuals.

  Decays of second moments and factors are clipped to [0, 1].
  """
  momentum, rms, factored = (
      1 - (1 - jnp.float32(initial)) * jnp.exp(10 * theta[name])
      for name, initial in INITIAL_DECAYS.items())
  return accumulators.Decays(
      momentum, jnp.clip(rms[0], 0, 1), jnp.clip(factored, 0, 1))


def _features(grad, param, acc, step) -> features_lib.Features:
  inputs = dict(grad=[grad], param=[param], momentum=acc.momentum,
                second=[acc.second])
  factors, row, column = features_lib.factored(acc, grad.shape)
  inputs |= factors

  def element(x):
    inverse_rms = jax.lax.rsqrt(x["second"].astype(jnp.float32) + 1e-6)
    if row is None:
      # The row features, which are the column features, too.
      last = [x["row"], features_lib.inverse_root(x["row"])]
      # Two epsilons, as published.
      for_grad = features_lib.safe_rsqrt(x["row"] + 1e-9)
      for_momentum = jax.lax.rsqrt(x["row"] + 1e-6)
    else:
      last = []
      for_grad = for_momentum = x["row_factor"] * x["column_factor"]
    return features_lib.elements(
        x, inverse_rms, inverse_rms, for_grad, for_momentum) + tuple(last)

  return features_lib.Features(
      element, inputs, row, column,
      lambda squares: features_lib.time_features(step),
      lambda squares: jax.lax.rsqrt(1e-5 + squares))
