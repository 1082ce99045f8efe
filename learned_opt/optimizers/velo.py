"""VeLO: an LSTM for each parameter tensor decides how the tensor is updated.

The LSTM reads the loss so far, the part of the training that is done and
statistics of the tensor; what it writes is a learning rate and how to mix a
bank of small MLPs into the one that updates each element. Tensors hear of each
other through one maximum.

muVeLO is this with `interpolation=1.0, param_scale=False` under the
parametrization "mup": the RMS of a tensor depends on width, and is about zero
in a readout that starts there.

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
from learned_opt.update import accumulators
from learned_opt.update import loss_features
from learned_opt.update import lstm
from learned_opt.update import mlp
from learned_opt.update import per_parameter
from learned_opt.update import placement
from learned_opt.update import velo_features

SECOND_DECAY = 0.999
MILESTONES = np.array(
    [0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1], np.float32)  # of num_steps
NUM_RANKS = 5
NUM_TENSOR_FEATURES = (
    len(MILESTONES) + loss_features.NUM_FEATURES + 1 + NUM_RANKS + 3 + 3)
NUM_OUTPUTS = 3  # the third is not used


class State(NamedTuple):
  """State of the optimizer for n parameters with elements.

  Attributes:
    step: number of steps taken, int32 scalar.
    groups: statistics of gradients, see `learned_opt.update.per_parameter`.
    lstm: its state, n rows.
    loss: averages of the loss.
  """

  step: jax.Array
  groups: dict[str, Any]
  lstm: lstm.State
  loss: loss_features.State


def make(lstm_hidden: int = 512, bank: int = 256, hidden: int = 4,
         step_mult: float = 0.001, exp_mult: float = 0.001,
         interpolation: float = 100.0, param_scale: bool = True,
         lowering: str | None = None) -> base.LearnedOptimizer:
  """The optimizer; with the defaults theta has 2,320,385 numbers.

  `update` needs the loss: `update(grads, state, params, value=loss)`.

  Args:
    lstm_hidden: size of the LSTM.
    bank: number of MLPs that are mixed.
    hidden: width of both hidden layers of an MLP.
    step_mult: factor on the update.
    exp_mult: factor on the magnitude output before exponentiation.
    interpolation: factor on the mixed weights.
    param_scale: multiply updates by the RMS of their tensor.
    lowering: how the MLP is computed, see `learned_opt.update.mlp`.

  Raises:
    ValueError: a size is not a positive integer, a factor is not a positive
      number, or the lowering is unknown. `opt_fn` raises it without num_steps,
      and `update` without value.
  """
  mlp.check_settings(hidden, 1, lowering, step_mult=step_mult,
                     exp_mult=exp_mult, interpolation=interpolation)
  base.check_sizes(lstm_hidden=lstm_hidden, bank=bank)

  def opt_fn(theta, *, num_steps=None):
    _check_num_steps(num_steps)

    def step_one(grad, param, acc, step, context):
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

    def init(params):
      rows = sum(x.size > 0 for x in jax.tree.leaves(params))
      step, cells, loss = placement.whole(lambda: (
          jnp.zeros([], jnp.int32), lstm.start(theta["initial"], rows),
          loss_features.init()), params)
      groups = per_parameter.init_groups(accumulators.init, params)
      return State(step, groups, cells, loss)

    def update(grads, state, params=None, *, value=None, **extra_args):
      del extra_args
      params = per_parameter.matched(
          accumulators.init, grads, params, state.groups)
      _check_value(value)
      loss, progress = loss_features.update(
          state.loss, value, state.step, num_steps)
      done = state.step.astype(jnp.float32) / num_steps
      time = jnp.tanh(10 * (done - MILESTONES))
      rows, context = state.lstm, None
      if state.groups:
        tensors = per_parameter.measure(
            _statistics, (params,), state.groups)
        rows = _lstm_step(theta, jnp.concatenate([time, progress]), tensors,
                          state.lstm)
        mixed = _mix(theta, rows.hidden, interpolation / bank)
        rate = lstm.dense(theta["step_size"], rows.hidden)[:, 0]
        context = mixed, rate
      updates, groups = per_parameter.update_groups(
          step_one, grads, params, state.groups, state.step, context)
      return updates, State(
          optax.safe_increment(state.step), groups, rows, loss)

    return optax.GradientTransformationExtraArgs(init, update)

  return base.LearnedOptimizer(
      lambda key: _init(key, lstm_hidden, bank, hidden), opt_fn)


def _init(key, lstm_hidden, bank, hidden):
  """Random weights; the state of the LSTM starts at zero."""
  keys = iter(jax.random.split(key, 9))
  dense = lambda inputs, outputs: lstm.init_dense(next(keys), inputs, outputs)
  sizes = (velo_features.NUM_FEATURES, hidden, hidden, NUM_OUTPUTS)
  mlps = {}
  for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
    mlps[f"w{i}"] = lstm.weights(next(keys), (bank, inputs, outputs), inputs)
    mlps[f"b{i}"] = jnp.zeros((bank, outputs), jnp.float32)
  # What the published network computes in "unused" goes nowhere.
  mixing = {name: dense(NUM_TENSOR_FEATURES, lstm_hidden)
            for name in ("unused", "shared", "own")}
  return {
      "bank": mlps, "mixing": mixing,
      "lstm": lstm.init(next(keys), lstm_hidden, lstm_hidden),
      "initial": {name: jnp.zeros((1, lstm_hidden), jnp.float32)
                  for name in lstm.State._fields},
      "controls": dense(lstm_hidden, bank), "step_size": dense(lstm_hidden, 1)}


def _check_num_steps(num_steps):
  if num_steps is None:
    raise ValueError(
        "velo plans for a number of steps and got none: give num_steps, as in "
        "mulo.load(..., num_steps=10_000) or opt_fn(theta, num_steps=10_000).")
  if isinstance(num_steps, (int, float)) and num_steps < 1:
    raise ValueError(f"num_steps must be at least 1, got {num_steps}.")


def _check_value(value):
  if value is None:
    raise ValueError(
        "velo reads the loss and got none: call "
        "update(grads, state, params, value=loss).")
  if jnp.shape(value):
    raise ValueError(
        f"value must be the loss, a scalar; its shape is {jnp.shape(value)}.")


def _log_size(x):
  return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(10 * x)), -5, 5)


def _statistics(param, acc):
  """What the LSTM reads of one tensor, before its step: [12]."""
  axes = tuple(range(1, acc.momentum.ndim))
  scale = jax.lax.rsqrt(jnp.maximum(1e-9, jnp.mean(jnp.square(param))))
  momentum, second = acc.momentum * scale, acc.second * scale
  center = jnp.mean(momentum, axes, keepdims=True)
  # That the second moment is compared with the mean of the momentum is how
  # VeLO was meta-trained.
  spread = lambda x: jnp.mean(jnp.square(x - center), axes)
  rank = sum(n > 1 for n in param.shape)
  return jnp.concatenate([
      _log_size(jnp.mean(second))[None],
      jnp.arange(NUM_RANKS) == rank,
      _log_size(spread(momentum)), _log_size(spread(second[None]))])


def _lstm_step(theta, shared, tensors, state):
  """One step for n tensors: shared features [18], their own [n, 12]."""
  n = len(tensors)
  x = jnp.concatenate([jnp.broadcast_to(shared, (n, len(shared))), tensors], 1)
  mixing = theta["mixing"]
  heard = jnp.max(jax.nn.relu(lstm.dense(mixing["shared"], x)), 0)
  x = lstm.dense(mixing["own"], x) + heard[None]
  return lstm.step(theta["lstm"], x, state)


def _mix(theta, hidden, factor):
  """Weights of an MLP for each of n rows of hidden states, [n, ...]."""
  controls = lstm.dense(theta["controls"], hidden) * factor
  mixed = {name: jnp.tensordot(controls, x, 1, precision="highest")
           for name, x in theta["bank"].items()}
  return mixed | {name: mixed[name][..., :2] for name in ("w2", "b2")}
