"""Adam whose hyperparameters of each parameter tensor are moved by an LSTM.

Each tensor has its own learning rate, b1, b2 and epsilon:

  m = b1 m + (1 - b1) g
  v = b2 v + (1 - b2) g^2
  update = -learning_rate * (1 + epsilon) * m / (epsilon + sqrt(v + 1e-10))

The multiplier 1 + epsilon turns the update into plain momentum if epsilon is
large; without the multiplier, the update would vanish.

After each step, an LSTM receives statistics of the tensor. It moves the logs of
learning_rate, 1 - b1, 1 - b2 and epsilon a little.

Reference:
  Metz et al., https://github.com/google/learned_optimization (NNAdam).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import base
from learned_opt.optimizers.shared import lstm
from learned_opt.update import per_parameter
from learned_opt.update import sharding

# In the order of the LSTM's outputs. Stored is log(x) / LOG_UNIT, within
# LIMITS, where x is the hyperparameter; for decays, x is 1 - decay.
NAMES = ("learning_rate", "b1", "b2", "epsilon")
LOG_UNIT = 10.0
LIMITS = np.array([
    [math.log(1e-8), -10, -10, math.log(1e-11)],
    [math.log(1e3), 0, 0, math.log(1e4)]], np.float32) / LOG_UNIT
NUM_FEATURES = 19
MAX_GRAD = 1000.0
EPSILON = 1e-10  # added to second moments


class Moments(NamedTuple):
  """Moving averages of the gradients of one parameter, [*S]."""

  momentum: jax.Array
  second: jax.Array


class State(NamedTuple):
  """State of the optimizer; all but the step are trees like the parameters.

  Attributes:
    step: number of steps taken, int32 scalar.
    moments: see `learned_opt.update.per_parameter`.
    hyperparameters: arrays [4], see NAMES.
    lstm: state of the LSTM, arrays [lstm_hidden].
  """

  step: jax.Array
  moments: Any
  hyperparameters: Any
  lstm: lstm.State


def make(lstm_hidden: int = 32, output_scale: float = 0.01,
         learning_rate: float = 1e-4, b1: float = 0.9, b2: float = 0.999,
         epsilon: float = 1e-8) -> base.LearnedOptimizer:
  """Return the optimizer; with the defaults, theta has 6856 numbers.

  learning_rate, b1, b2 and epsilon are initial values of theta. theta has the
  values that all parameters start with.

  Args:
    lstm_hidden: size of the LSTM.
    output_scale: multiplies the LSTM's changes of hyperparameters.
    learning_rate: multiplies the update.
    b1: decay of the momentum.
    b2: decay of the second moment.
    epsilon: added to the root of the second moment.

  Raises:
    ValueError: lstm_hidden is not a positive integer, a decay is not between 0
      and 1, or another setting is not a positive number.
  """
  base.check_sizes(lstm_hidden=lstm_hidden)
  base.check_positive(output_scale=output_scale, learning_rate=learning_rate,
                      epsilon=epsilon)
  base.check_decays(b1=b1, b2=b2)
  initial = dict(zip(NAMES, (learning_rate, 1 - b1, 1 - b2, epsilon)))

  def init(key):
    zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
    theta = {name: jnp.float32(math.log(x) / LOG_UNIT)
             for name, x in initial.items()}
    return theta | {
        "lstm": lstm.init(key, NUM_FEATURES, lstm_hidden),
        "initial": {name: zeros(1, lstm_hidden)
                    for name in lstm.State._fields},
        "controls": {"w": zeros(lstm_hidden, len(NAMES)),
                     "b": zeros(len(NAMES))}}

  def opt_fn(theta, *, num_steps=None, stacks=None):
    del num_steps
    states = per_parameter.Statistics(_init_one, stacks=stacks)

    def start(params):
      moments = states.init(params)
      step = sharding.whole(lambda: jnp.zeros([], jnp.int32), params)
      hyperparameters = states.repeated(
          lambda: jnp.stack([theta[name] for name in NAMES]), params)
      return State(step, moments, hyperparameters,
                   lstm.start(theta["initial"], states, params))

    def update(grads, state, params=None, **extra_args):
      del extra_args
      params = states.matched(grads, params, state.moments)
      if not per_parameter.filled(params):
        return grads, state
      old = states.rows(state.hyperparameters, params)  # [n, 4]
      updates, moments = states.update(
          _step_one, grads, params, state.moments, state.step, old)
      # The hyperparameters that the LSTM moves now serve the next step.
      cells = lstm.step(
          theta["lstm"], _features(states, params, grads, moments, old),
          lstm.State(*[states.rows(x, params) for x in state.lstm]))
      new = jnp.clip(
          old + output_scale * lstm.dense(theta["controls"], cells.hidden),
          LIMITS[:1], LIMITS[1:])
      put = lambda rows, tree: states.from_rows(rows, tree, params)
      return updates, State(
          optax.safe_increment(state.step), moments,
          put(new, state.hyperparameters),
          lstm.State(*map(put, cells, state.lstm)))

    return optax.GradientTransformationExtraArgs(start, update)

  return base.LearnedOptimizer(init, opt_fn)


def _clip(grad):
  return jnp.clip(grad, -MAX_GRAD, MAX_GRAD)


def _init_one(shape) -> Moments:
  return Moments(*(jnp.zeros(shape, jnp.float32) for _ in range(2)))


def _step_one(grad, param, state, step, hyperparameters):
  """Return (Adam's update, new moments); formulas in the module docstring."""
  del param, step
  grad = _clip(grad)
  rate, one_minus_b1, one_minus_b2, epsilon = jnp.exp(LOG_UNIT * jnp.clip(
      hyperparameters, LIMITS[0], LIMITS[1]))
  momentum = (1 - one_minus_b1) * state.momentum + one_minus_b1 * grad
  second = (1 - one_minus_b2) * state.second + one_minus_b2 * jnp.square(grad)
  change = -rate * (1 + epsilon) / (
      epsilon + jnp.sqrt(second + EPSILON)) * momentum
  return change, Moments(momentum, second)


def _log_size(x):
  return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5, 5)


def _statistics(param, grad, moments):
  """Return means and variances of one parameter: {name: scalar}."""
  grad = _clip(grad)
  statistics = {"mean_gabs_mag": _log_size(jnp.mean(jnp.abs(grad)))}
  for name, x in (("p", param), ("g", grad), ("m", moments.momentum),
                  ("rms", moments.second)):
    mean = jnp.mean(x)
    statistics[f"mean_{name}_mag"] = _log_size(mean)
    statistics[f"mean_{name}_sign"] = jnp.sign(mean)
    statistics[f"var_{name}"] = _log_size(jnp.mean(jnp.square(x - mean)))
  # The published names, since features come in alphabetical order.
  statistics["mean_rms"] = statistics.pop("mean_rms_mag")
  statistics["mean_sign"] = statistics.pop("mean_rms_sign")
  return statistics


def _features(states, params, grads, moments, hyperparameters):
  """Return the input of the LSTM, [n, 19]."""
  features = states.measure(_statistics, (params, grads), moments)
  shapes = per_parameter.shapes(params, states.stacks)
  rank = np.array([len(shape) for shape in shapes])
  features["is_scalar"] = np.where(rank == 0, 1, -1)
  features["is_bias"] = np.where(rank == 1, 1, -1)
  for i, name in enumerate(("lr", "beta1", "beta2", "epsilon")):
    features[name] = 0.2 * jnp.clip(hyperparameters[:, i], -5, 5)
  return jnp.stack(
      [jnp.float32(features[name]) for name in sorted(features)], 1)
