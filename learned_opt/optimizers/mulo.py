"""The per-parameter MLP of small_fc_lopt, exactly invariant to gradient scale.

The update of a parameter p [*S] at step t from its gradient g; b are decays:

1. Unit of the gradient, with d the slowest decay of a statistic:
     u = max(max |g|, d u),  g = g / u
   Statistics are converted when u changes, so they stay moving averages.
2. Statistics, for k = 1, 2, 3; each has a learned decay, at first b_k = 0.9,
   0.99, 0.999 and b = 0.999:
     m_k = b_k m_k + (1 - b_k) g        momenta
     v = b v + (1 - b) g^2              second moment
     r_k = b_k r_k + (1 - b_k) mean g^2 row factors, mean over the largest axis
     c_k                                column factors, second largest axis
3. Features of an element, with f_k = sqrt(mean r_k / (r_k c_k)):
     g, p, m_k, v, m_k / sqrt(v), 1 / sqrt(v), g f_k, m_k f_k,
     r_k, c_k, 1 / sqrt(r_k), 1 / sqrt(c_k)
   Each feature is divided by its RMS over p and clipped to [-5, 5].
4. Features of the tensor:
     tanh(t / tau - 1) for 11 time scales tau
     noise_k = log(rms(m_k) / sqrt(mean v)), corrected for bias
5. Update:
     direction, magnitude = MLP(features)
     update = -step_mult * direction * exp(exp_mult * magnitude)
     update = 0 where v = 0
   With settings, in a run of T steps and n matrices (two or more axes):
     depth: update *= sqrt(4 / n)
     horizon: update *= min(1, (t + 1) / (0.05 T)) * left^power
                        * (T / 1000)^-0.3, where left = 1 - t / T
     newton_schulz: update = equalize(update), for matrices

Reasons:

* The unit decays as slowly as the slowest statistic, so no statistic grows.
  Gradients of a parameter count as 0 if the largest entry is below 1.2e-38 or
  above 8e37, because 1 / u or u is then no normal float32.
* No normalizer has an absolute epsilon. A feature that is zero everywhere, as
  in the first step behind a zero-initialized readout, stays zero.
* Features are clipped because the largest of N elements can be sqrt(N) times
  the RMS: wide networks would show the MLP values that narrow ones never did.
* noise_k restores what normalization hides: how much larger the momentum is
  than noise would make it.
* At initialization, the update has the direction of Adam's and about its size:
  update = -step_mult * feature(m_1 / sqrt(v)) * min(1, exp(noise_1)).
* The update of an element is exactly 0 as long as all its gradients were 0:
  the MLP answers to its biases, the parameter and time, too. Parameters that
  are frozen, and rows of a table that never occur, therefore stay.
* Equal singular values (newton_schulz) are beyond any rule for single elements.
* The exponents of T and n are taken from the literature, because meta-training
  on short runs of shallow networks cannot find them. The exponent of n was
  derived for residual networks and is used for all networks here.

Reference:
  Metz et al., 2022, https://arxiv.org/abs/2203.11860 (the features of
  adafac_mlp_lopt). Bjorck et al., 2024, https://arxiv.org/abs/2409.19913
  (horizon). Yang et al., 2023, https://arxiv.org/abs/2310.02244 (depth).
  Jordan et al., 2024, https://kellerjordan.github.io/posts/muon
  (newton_schulz).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import base
from learned_opt.update import accumulators
from learned_opt.update import blocks
from learned_opt.update import features as features_lib
from learned_opt.update import mlp
from learned_opt.update import orthogonal
from learned_opt.update import per_parameter

INITIAL_DECAYS = (0.9, 0.99, 0.999)
INITIAL_SECOND_DECAY = 0.999
MAX_DECAY = 0.99999
RELATIVE_FLOOR = 1e-8  # of second moments, relative to their mean
MAX_INVERSE = 10.0  # of inverse roots, relative to that of the mean
TINY = 1e-37  # in units; far below what matters, but not subnormal
MAX_LOG_NOISE = 10.0
CLIP = 5.0  # of normalized features

NUM_FEATURES = (features_lib.NUM_PARAMETER_FEATURES +
                len(features_lib.TIME_SCALES) + len(INITIAL_DECAYS))
# Rows of w0.
ADAM_FEATURE = 6  # momentum of decay 0.9 over the root of the second moment
NOISE_FEATURE = NUM_FEATURES - len(INITIAL_DECAYS)  # the first of three
NUM_HORIZON_FEATURES = 2
LAST_TIME = 100  # largest t of time features with a horizon
HORIZON = 1000  # number of steps whose peak is 1
HORIZON_POWER = 0.3
WARMUP = 0.05  # fraction of the steps
DEPTH = 4  # number of matrices whose multiplier is 1
DEPTH_POWER = 0.5


class State(NamedTuple):
  """Statistics of one parameter, and their unit."""

  unit: jax.Array  # []
  statistics: accumulators.Accumulators


def make(hidden: int = 8, step_mult: float = 0.1, exp_mult: float = 0.1,
         accumulator_dtype: str = "float32", lowering: str | None = None,
         horizon: bool = False, depth: bool = False, newton_schulz: int = 0,
         recompute: bool = False) -> base.LearnedOptimizer:
  """Return the optimizer; formulas are in the module docstring.

  theta has 42 H + H^2 + 4 H + 9 numbers (441 for H = 8), with a horizon
  2 H + 1 more.

  Args:
    hidden: H, width of both hidden layers, at least 3.
    step_mult: multiplies the update.
    exp_mult: multiplies the magnitude output before exponentiation.
    accumulator_dtype: of momentum and second moment, "float32" or "bfloat16".
    lowering: how the MLP is computed, see `learned_opt.update.mlp`.
    horizon: multiply updates by a schedule of num_steps; its power is learned,
      1 at first. The MLP receives two further features: left and sqrt(left).
      Without num_steps there is no schedule, and left is 1. t is at most 100 in
      time features, so that long runs show the MLP nothing new.
    depth: divide updates by sqrt(n / 4), with n the number of matrices.
    newton_schulz: iterations that make the singular values of the update of a
      matrix about equal, 0 for none; see `learned_opt.update.orthogonal`. All
      axes but the last are the fan-in.
    recompute: let the compiler compute the MLP again for each use of its
      update in Newton-Schulz iterations. On a CPU this takes several times as
      long and rounds differently. mulo-s was meta-trained this way; theta
      depends on this setting through rounding alone.

  Raises:
    ValueError: hidden is not an integer of at least 3, a multiplier is not a
      positive number, or a name is unknown.
  """
  mlp.check_settings(hidden, 3, lowering, step_mult=step_mult,
                     exp_mult=exp_mult)
  accumulators.check_dtype(accumulator_dtype)
  orthogonal.check_iterations(newton_schulz)
  keep = (lambda x, count: x) if recompute else blocks.materialize

  init = functools.partial(
      _init, hidden=hidden, horizon=horizon, exp_mult=exp_mult)

  def opt_fn(theta, *, num_steps=None, stacks=None):
    decays = _decays(theta)

    def step_one(depth_mult, grad, param, state, step):
      state, inverse = _accumulate(state, grad, decays, step)
      left = _left(step, num_steps)
      extra = jnp.stack([left, jnp.sqrt(left)]) if horizon else None
      size = depth_mult * step_mult
      update = lambda direction, magnitude: (
          -size * direction * jnp.exp(exp_mult * magnitude))
      features = _features(
          grad, inverse, param, state.statistics, decays, step, extra)
      change = mlp.apply(theta, features, grad.shape, update, lowering)
      if horizon and num_steps is not None:
        change *= _schedule(theta, left, step, num_steps)
      if newton_schulz and grad.ndim > 1:
        # Kept in memory: on a CPU, XLA would compute the MLP again for each of
        # the uses of `change` in the iterations.
        change = orthogonal.equalize(keep(change, step), newton_schulz)
      return change, state

    init_one = lambda shape: State(
        jnp.float32(0), accumulators.init(shape, accumulator_dtype))
    transformation = lambda depth_mult: per_parameter.transformation(
        init_one, functools.partial(step_one, depth_mult), newton_schulz > 0,
        stacks)

    def update(grads, state, params=None, **extra_args):
      # The number of matrices is known only here, from the tree.
      matrices = sum(
          len(shape) > 1 for shape in per_parameter.shapes(grads, stacks))
      depth_mult = (max(matrices, 1) / DEPTH)**-DEPTH_POWER if depth else 1.0
      return transformation(depth_mult).update(
          grads, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(
        transformation(1.0).init, update)

  return base.LearnedOptimizer(init, opt_fn)


def _init(key, hidden, horizon, exp_mult):
  """Return theta; arguments as in `make`."""
  num_features = NUM_FEATURES + (NUM_HORIZON_FEATURES if horizon else 0)
  theta = _adam_like(mlp.init(key, num_features, hidden), exp_mult)
  zeros = jnp.zeros(len(INITIAL_DECAYS), jnp.float32)
  theta |= dict(momentum_decays=zeros, factored_decays=zeros,
                second_decay=jnp.zeros([], jnp.float32))
  return dict(
      theta, power=jnp.ones([], jnp.float32)) if horizon else theta


def _adam_like(theta, exp_mult):
  """Return theta with three hidden units changed, so that updates are Adam's.

  Units 0 and 1 carry the positive and the negative part of the normalized
  momentum. Unit 2 carries minus the log of its size relative to noise. The
  weights of the other units are random, but the output ignores these units.
  """
  weights = [theta[f"w{i}"] for i in range(3)]
  weights = [weights[0].at[:, :3].set(0), weights[1].at[:, :3].set(0),
             jnp.zeros_like(weights[2])]
  # direction = relu(x) - relu(-x) = x, for x the normalized momentum.
  # exp(exp_mult * magnitude) = exp(-relu(-noise)) = min(1, exp(noise)).
  for layer, unit_in, unit_out, value in (
      (0, ADAM_FEATURE, 0, 1.0), (0, ADAM_FEATURE, 1, -1.0),
      (0, NOISE_FEATURE, 2, -1.0), (1, 0, 0, 1.0), (1, 1, 1, 1.0),
      (1, 2, 2, 1.0), (2, 0, 0, 1.0), (2, 1, 0, -1.0),
      (2, 2, 1, -1 / exp_mult)):
    weights[layer] = weights[layer].at[unit_in, unit_out].set(value)
  return dict(theta, **{f"w{i}": w for i, w in enumerate(weights)})


def _decays(theta) -> accumulators.Decays:
  """Return 1 - (1 - initial) exp(10 residual), clipped to [0, MAX_DECAY]."""
  decay = lambda initial, residual: jnp.clip(
      1 - (1 - jnp.float32(initial)) * jnp.exp(10 * residual), 0, MAX_DECAY)
  return accumulators.Decays(
      decay(INITIAL_DECAYS, theta["momentum_decays"]),
      decay(INITIAL_SECOND_DECAY, theta["second_decay"]),
      decay(INITIAL_DECAYS, theta["factored_decays"]))


def _accumulate(state, grad, decays, step):
  """Return (state that includes the gradient, 1 / unit)."""
  largest = jnp.max(jnp.abs(grad))
  # The unit decays as slowly as the slowest statistic, so no statistic grows
  # in this unit. Squares have squared units, hence the root.
  slowest = jnp.sqrt(jnp.maximum(
      decays.second, jnp.max(jnp.maximum(
          decays.factored, decays.momentum**2))))
  unit = jnp.where(
      largest > 0, jnp.maximum(largest, slowest * state.unit), state.unit)
  # Two selects: the derivative of 1 / 0 would be NaN even if not selected.
  inverse = jnp.where(unit > 0, 1 / jnp.where(unit > 0, unit, 1), 0)
  statistics = accumulators.update(
      state.statistics, grad * inverse, decays, step,
      rescale=state.unit * inverse)
  return State(unit, statistics), inverse


def _noise_features(momentum, second, decays, step):
  """Return log(rms(momentum) / sqrt(mean second moment)), unbiased: [3].

  The log is about zero if the gradient has always been the same, negative
  under noise, and zero if all gradients were zero.

  Args:
    momentum: mean squares of the momenta, [3].
    second: mean of the second moment, scalar.
    decays: of both statistics.
    step: number of steps taken before this step.
  """
  steps = step.astype(jnp.float32) + 1
  bias = lambda decay: 1 - decay**steps
  second = second / bias(decays.second)
  momentum = momentum / bias(decays.momentum)**2
  # Two logs, since the ratio itself may underflow.
  log = lambda x: jnp.log(jnp.where(second > 0, x + TINY, 1))
  log_ratio = 0.5 * (log(momentum) - log(second))
  return jnp.clip(log_ratio, -MAX_LOG_NOISE, MAX_LOG_NOISE)


def _inverse_root(x, mean):
  """Return (1 / sqrt(x), the same with an upper limit) for x >= 0.

  The first serves in ratios, the second as a feature. The mean of x is given.
  """
  # If x is zero everywhere, any root does; this root has a finite derivative.
  nonzero = mean > 0
  root = jax.lax.rsqrt(
      x + (RELATIVE_FLOOR * mean + jnp.where(nonzero, TINY, 1)))
  limit = jnp.where(
      nonzero, MAX_INVERSE * jax.lax.rsqrt(jnp.where(nonzero, mean, 1)), 0)
  return root, jnp.minimum(root, limit)


def _left(step, num_steps):
  """Return the remaining fraction of num_steps, from 1 to 1 / num_steps."""
  if num_steps is None:
    return jnp.ones([], jnp.float32)
  total = jnp.maximum(jnp.asarray(num_steps, jnp.float32), 1)
  return jnp.clip(1 - step.astype(jnp.float32) / total, 1 / total, 1)


def _schedule(theta, left, step, num_steps):
  """Return warm-up * learned decay * peak that depends on the horizon."""
  total = jnp.maximum(jnp.asarray(num_steps, jnp.float32), 1)
  warmup = jnp.minimum(1, (step + 1) / jnp.maximum(1, WARMUP * total))
  return warmup * left**theta["power"] * (total / HORIZON)**-HORIZON_POWER


def _features(grad, inverse, param, acc, decays, step, extra
              ) -> features_lib.Features:
  """Return the inputs of the MLP.

  Args:
    grad: [*S], before it is divided by the unit.
    inverse: 1 / unit.
    param: [*S].
    acc: statistics that include the gradient.
    decays: of the statistics.
    step: number of steps taken before this step.
    extra: further tensor features [n], or None.
  """
  axes = accumulators.factored_axes(grad.shape)
  single = lambda x: [x.reshape((1,) * grad.ndim)]
  second_mean = jnp.mean(acc.second.astype(jnp.float32))
  # grad * inverse is computed in each block: an array of it would take memory.
  inputs = dict(grad=[grad], inverse=single(inverse), param=[param],
                momentum=acc.momentum, second=[acc.second],
                second_mean=single(second_mean))
  row = column = None
  if axes is None:
    inputs |= {"row": acc.row, "row_mean": [
        jnp.mean(x, keepdims=True) for x in acc.row]}
  else:
    means = lambda x: jnp.mean(
        x, tuple(range(1, x.ndim)), keepdims=True)  # [3, 1, ...]
    row, column = jnp.stack(acc.row), jnp.stack(acc.column)
    row_mean = means(row)
    row_root, row_feature = _inverse_root(row, row_mean)
    column_root, column_feature = _inverse_root(column, means(column))
    along_column = jnp.mean(row, axes[0] + 1, keepdims=True)
    # The product of both inputs is f_k of the module docstring.
    inputs |= {"row_factor": list(row_root * jnp.sqrt(
        along_column + RELATIVE_FLOOR * row_mean + TINY)),
               "column_factor": list(column_root)}
    row = jnp.concatenate([row, row_feature])
    column = jnp.concatenate([column, column_feature])

  def element(x):
    x = dict(x, grad=x["grad"] * x["inverse"])
    inverse_rms, inverse_rms_feature = _inverse_root(
        x["second"].astype(jnp.float32), x["second_mean"])
    if axes is None:
      factor, feature = _inverse_root(x["row"], x["row_mean"])
      last = [x["row"], feature]
    else:
      factor, last = x["row_factor"] * x["column_factor"], []
    return features_lib.elements(
        x, inverse_rms, inverse_rms_feature, factor, factor) + tuple(last)

  def tensor(squares):
    noise = _noise_features(
        squares[features_lib.MOMENTUM], second_mean, decays, step)
    if extra is None:
      return jnp.concatenate([features_lib.time_features(step), noise])
    return jnp.concatenate([
        features_lib.time_features(jnp.minimum(step, LAST_TIME)), noise, extra])

  return features_lib.Features(
      element, inputs, row, column, tensor, _inverse_rms, CLIP,
      gate=lambda x: x["second"] > 0)


def _inverse_rms(squares):
  """Return 1 / RMS from mean squares, or 0 where the mean square is 0."""
  positive = squares > 0
  return jnp.where(
      positive, jax.lax.rsqrt(jnp.where(positive, squares, 1)), 0)
