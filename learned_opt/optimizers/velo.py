"""VeLO: an LSTM for each parameter tensor controls the MLP that updates it.

At step t of T, for each tensor p with state h of its LSTM:

  x = [tanh(10 (t / T - milestones)), loss features, statistics of p]
  h = LSTM(A x + max over tensors of relu(B x), h)
  rate = c h
  weights = interpolation / bank * sum over i of (D h)_i bank_i
  direction, magnitude = MLP(features of one element; weights)
  update = -step_mult * rate * rms(p) * direction * exp(exp_mult * magnitude)

A, B, c and D are dense layers in theta; their biases are left out here. The
LSTM thus outputs a learning rate and mixing weights over a bank of small MLPs.
Tensors exchange information through one max-pool. rms(p) is left out without
param_scale.

muVeLO is this optimizer with `interpolation=1.0, param_scale=False` under the
parametrization "mup". rms(p) depends on width, and it is about zero in a
readout that starts at zero.

Reference:
  Metz et al., 2022, https://arxiv.org/abs/2211.09760 (VeLO, HyperV2).
  Therien et al., 2024, https://arxiv.org/abs/2406.00153 (muVeLO).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import base
from learned_opt.optimizers.shared import loss_features
from learned_opt.optimizers.shared import lstm
from learned_opt.optimizers.shared import velo_features
from learned_opt.update import accumulators
from learned_opt.update import mlp
from learned_opt.update import per_parameter
from learned_opt.update import sharding

SECOND_DECAY = 0.999
MILESTONES = np.array(
    [0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1], np.float32)  # of num_steps
NUM_RANKS = 5
NUM_TENSOR_FEATURES = (
    len(MILESTONES) + loss_features.NUM_FEATURES + 1 + NUM_RANKS + 3 + 3)
NUM_OUTPUTS = 3  # the third is not used


class State(NamedTuple):
  """State of the optimizer.

  Attributes:
    step: number of steps taken, int32 scalar.
    statistics: of gradients, see `learned_opt.update.per_parameter`.
    lstm: state of the LSTM: trees like the parameters, of arrays [lstm_hidden].
    loss: averages of the loss.
  """

  step: jax.Array
  statistics: Any
  lstm: lstm.State
  loss: loss_features.State


def make(lstm_hidden: int = 512, bank: int = 256, hidden: int = 4,
         step_mult: float = 0.001, exp_mult: float = 0.001,
         interpolation: float = 100.0, param_scale: bool = True,
         use_bugged_loss_features: bool = False,
         use_bugged_next_lstm_state: bool = False,
         lowering: str | None = None) -> base.LearnedOptimizer:
  """Return the optimizer; with the defaults, theta has 2,320,385 numbers.

  `update` needs the loss: `update(grads, state, params, value=loss)`.

  Args:
    lstm_hidden: size of the LSTM.
    bank: number of MLPs that are mixed.
    hidden: width of both hidden layers of an MLP.
    step_mult: multiplies the update.
    exp_mult: multiplies the magnitude output before exponentiation.
    interpolation: multiplies the mixed weights.
    param_scale: multiply updates by the RMS of their tensor.
    use_bugged_loss_features: all averages of the loss have the time constant of
      the fastest, 10 steps, so that no feature tells slow progress from fast.
      Some published weights were meta-trained this way.
    use_bugged_next_lstm_state: at every step, the LSTM starts from its learned
      initial state, and its new state is lost. Some early published weights
      were meta-trained this way.
    lowering: how the MLP is computed, see `learned_opt.update.mlp`.

  Raises:
    ValueError: a size is not a positive integer, a multiplier is not a positive
      number, a "bugged" setting is no boolean, or the lowering is unknown.
      `opt_fn` raises ValueError without num_steps, and `update` without value.
  """
  mlp.check_settings(hidden, 1, lowering, step_mult=step_mult,
                     exp_mult=exp_mult, interpolation=interpolation)
  base.check_sizes(lstm_hidden=lstm_hidden, bank=bank)
  _check_switches(use_bugged_loss_features=use_bugged_loss_features,
                  use_bugged_next_lstm_state=use_bugged_next_lstm_state)
  step_one = _step_one(step_mult, exp_mult, param_scale, lowering)

  def opt_fn(theta, *, num_steps=None, kinds=None):
    _check_num_steps(num_steps)
    states = per_parameter.Statistics(accumulators.init, kinds=kinds)

    def init(params):
      statistics = states.init(params)
      step, loss = sharding.whole(
          lambda: (jnp.zeros([], jnp.int32), loss_features.init()), params)
      return State(step, statistics,
                   lstm.start(theta["initial"], states, params), loss)

    def update(grads, state, params=None, *, value=None, **extra_args):
      del extra_args
      params = states.matched(grads, params, state.statistics)
      _check_value(value)
      loss, progress = loss_features.update(
          state.loss, value, state.step,
          loss_features.FASTEST if use_bugged_loss_features else num_steps)
      done = state.step.astype(jnp.float32) / num_steps
      time = jnp.tanh(10 * (done - MILESTONES))  # [9]
      cells, context = state.lstm, None
      if per_parameter.filled(params):
        tensors = states.measure(_statistics, (params,), state.statistics)
        rows = _lstm_step(
            theta, jnp.concatenate([time, progress]), tensors, lstm.State(
                *[states.rows(x, params) for x in state.lstm]))
        if not use_bugged_next_lstm_state:
          cells = lstm.State(*[states.from_rows(new, x, params)
                               for new, x in zip(rows, state.lstm)])
        # One MLP and one learning rate for each of n parameters.
        mixed = _mix(theta, rows.hidden, interpolation / bank)  # [n, ...]
        rate = lstm.dense(theta["step_size"], rows.hidden)[:, 0]  # [n]
        context = mixed, rate
      updates, statistics = states.update(
          step_one, grads, params, state.statistics, state.step, context)
      return updates, State(
          optax.safe_increment(state.step), statistics, cells, loss)

    return optax.GradientTransformationExtraArgs(init, update)

  return base.LearnedOptimizer(
      lambda key: _init(key, lstm_hidden, bank, hidden), opt_fn)


def _step_one(step_mult, exp_mult, param_scale, lowering):
  """Return the rule for one parameter; its arguments are those of `make`."""

  def step_one(grad, param, acc, step, context, _):
    weights, rate = context
    acc, grad = velo_features.accumulate(acc, grad, SECOND_DECAY, step)
    features = velo_features.make(
        grad, param, acc, second_epsilon=1e-6, epsilon=1e-5)
    scale = step_mult * rate
    if param_scale:
      scale *= jnp.sqrt(jnp.mean(jnp.square(param)) + 1e-9)
    output = lambda direction, magnitude: (
        -direction * jnp.exp(exp_mult * magnitude))
    return scale * mlp.apply(
        weights, features, grad.shape, output, lowering), acc

  return step_one


def _init(key, lstm_hidden, bank, hidden):
  """Return a random theta; the state of the LSTM starts at zero."""
  keys = iter(jax.random.split(key, 9))
  dense = lambda inputs, outputs: lstm.init_dense(next(keys), inputs, outputs)
  sizes = (velo_features.NUM_FEATURES, hidden, hidden, NUM_OUTPUTS)
  mlps = {}
  for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
    mlps[f"w{i}"] = lstm.weights(next(keys), (bank, inputs, outputs), inputs)
    mlps[f"b{i}"] = jnp.zeros((bank, outputs), jnp.float32)
  # The published network has the layer "unused" and ignores its output.
  mixing = {name: dense(NUM_TENSOR_FEATURES, lstm_hidden)
            for name in ("unused", "shared", "own")}
  return {
      "bank": mlps, "mixing": mixing,
      "lstm": lstm.init(next(keys), lstm_hidden, lstm_hidden),
      "initial": {name: jnp.zeros((1, lstm_hidden), jnp.float32)
                  for name in lstm.State._fields},
      "controls": dense(lstm_hidden, bank), "step_size": dense(lstm_hidden, 1)}


def _check_switches(**switches):
  """Raise ValueError unless all settings are True or False."""
  for name, value in switches.items():
    if not isinstance(value, bool):
      raise ValueError(f"{name} must be True or False, got {value!r}.")


def _check_num_steps(num_steps):
  """Raise ValueError unless num_steps is at least 1 (or traced)."""
  if num_steps is None:
    raise ValueError(
        "velo needs the number of steps and got None: give num_steps, as in "
        "mulo.load(..., num_steps=10_000) or opt_fn(theta, num_steps=10_000).")
  if isinstance(num_steps, (int, float)) and num_steps < 1:
    raise ValueError(f"num_steps must be at least 1, got {num_steps}.")


def _check_value(value):
  """Raise ValueError unless value is a scalar."""
  if value is None:
    raise ValueError(
        "velo needs the loss and got value=None: call "
        "update(grads, state, params, value=loss).")
  if jnp.shape(value):
    raise ValueError(
        f"value must be the loss, a scalar; its shape is {jnp.shape(value)}.")


def _log_size(x):
  return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(10 * x)), -5, 5)


def _statistics(param, acc):
  """Return statistics of one tensor before its step, for the LSTM: [12]."""
  scale = jax.lax.rsqrt(jnp.maximum(1e-9, jnp.mean(jnp.square(param))))
  momentum, second = [x * scale for x in acc.momentum], acc.second * scale
  centers = [jnp.mean(x) for x in momentum]
  # VeLO was meta-trained with both spreads around the mean of the momentum,
  # even the spread of the second moment.
  spread = lambda arrays: jnp.stack([
      jnp.mean(jnp.square(x - center)) for x, center in zip(arrays, centers)])
  rank = sum(n > 1 for n in param.shape)
  return jnp.concatenate([
      _log_size(jnp.mean(second))[None],
      jnp.arange(NUM_RANKS) == rank,
      _log_size(spread(momentum)), _log_size(spread([second] * len(centers)))])


def _lstm_step(theta, shared, tensors, state):
  """Return the LSTM's state after one step for n tensors.

  Args:
    theta: of the optimizer.
    shared: features of time and loss, [18].
    tensors: statistics of each tensor, [n, 12].
    state: of the LSTM, n rows.
  """
  n = len(tensors)
  x = jnp.concatenate([jnp.broadcast_to(shared, (n, len(shared))), tensors], 1)
  mixing = theta["mixing"]
  pooled = jnp.max(jax.nn.relu(lstm.dense(mixing["shared"], x)), 0)
  x = lstm.dense(mixing["own"], x) + pooled[None]
  return lstm.step(theta["lstm"], x, state)


def _mix(theta, hidden, multiplier):
  """Return weights of an MLP for each of n rows of hidden states, [n, ...]."""
  controls = lstm.dense(theta["controls"], hidden) * multiplier
  mixed = {name: jnp.tensordot(controls, x, 1, precision="highest")
           for name, x in theta["bank"].items()}
  # The third output is not used.
  return mixed | {name: mixed[name][..., :2] for name in ("w2", "b2")}
