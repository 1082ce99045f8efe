"""The per-parameter MLP of small_fc_lopt, exactly invariant to gradient scale.

Multiplying every gradient of a parameter by one factor changes no update:

* Statistics are kept in a unit of their own, the largest gradient entry seen
  lately; when the unit moves, the statistics are converted, so they remain
  the usual moving averages. The unit is forgotten as slowly as the slowest of
  them, so in this unit none of them grows.
* No normaliser has an absolute epsilon. Where all is zero, as in the first
  step behind a zero-initialised readout, features are zero.
* Normalised features are clipped: of N entries the largest can be sqrt(N) times
  the RMS, so wide networks would show the MLP what narrow ones never did.
* What normalisation by the tensor's RMS hides, how much larger the momentum
  is than noise would make it, comes back as three tensor features, the log of
  rms(momentum) / sqrt(mean second moment), which is free of units too.

At initialisation the update has the direction of Adam's and about its size:
the normalised momentum times that ratio, at most 1. Meta-training starts from
there.

What the MLP writes for a matrix can be given singular values that are about
alike (`newton_schulz`), which no rule for single numbers can do.

Two exponents are taken from the literature, because no meta-training on short
runs of shallow networks could find them: the best learning rate of long runs
falls about as num_steps**-0.3, and that of deep networks as depth**-0.5 (there
derived for residual ones, here used for all).

Reference:
  The features are those of Metz et al., 2022, https://arxiv.org/abs/2203.11860
  (adafac_mlp_lopt). Bjorck et al., 2024, https://arxiv.org/abs/2409.19913
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
CLIP = 5.0  # of normalised features

NUM_FEATURES = (features_lib.NUM_PARAMETER_FEATURES +
                len(features_lib.TIME_SCALES) + len(INITIAL_DECAYS))
ADAM_FEATURE = 6  # momentum of decay 0.9 over the root of the second moment
NOISE_FEATURE = NUM_FEATURES - len(INITIAL_DECAYS)
NUM_HORIZON_FEATURES = 2
LAST_TIME = 100  # for time features beside those of a horizon
HORIZON = 1000  # at which its length changes nothing
HORIZON_POWER = 0.3
WARMUP = 0.05  # part of the steps
DEPTH = 4  # matrices in a network, at which their number changes nothing
DEPTH_POWER = 0.5


class State(NamedTuple):
  """Statistics of one parameter, and the unit that they are in."""

  unit: jax.Array  # []
  statistics: accumulators.Accumulators


def make(hidden: int = 8, step_mult: float = 0.1, exp_mult: float = 0.1,
         accumulator_dtype: str = "float32", lowering: str | None = None,
         horizon: bool = False, vector_mult: float = 1.0, depth: bool = False,
         newton_schulz: int = 0, normalize: bool = False,
         recompute: bool = False) -> base.LearnedOptimizer:
  """The optimizer; theta has 42 H + H^2 + 4 H + 9 numbers (441 for H = 8).

  Args:
    hidden: width of both hidden layers, at least 3.
    step_mult: factor on the update.
    exp_mult: factor on the magnitude output before exponentiation.
    accumulator_dtype: of momentum and second moment, "float32" or "bfloat16".
    lowering: how the MLP is computed, see `learned_opt.update.mlp`.
    horizon: the update is multiplied by a schedule, a warm-up over a twentieth
      of num_steps and a decay to zero by a learned power, at first linear, and
      by (num_steps / 1000)**-0.3, and the MLP sees two features of the part
      that is left (2 H + 1 more numbers). Without num_steps there is no
      schedule, and all is always left. For the features of absolute time, time
      stands still after 100 steps, so that long runs show the MLP nothing that
      short ones did not.
    vector_mult: further factor on updates of parameters of fewer than two
      axes: biases and gains, which start at 0 or 1, not at 1/sqrt(fan_in).
    depth: updates are divided by sqrt(n / 4), with n the number of parameters
      of two or more axes in the tree.
    newton_schulz: iterations that bring the singular values of the update of
      a parameter of two or more axes near to each other, 0 for none; all axes
      but the last are its inputs. Of the update that the MLP wrote the
      Frobenius norm then counts, see `learned_opt.update.orthogonal`.
    normalize: the update of each parameter gets an RMS of 1, times the
      multipliers and the schedule, so that the MLP decides its direction alone.
    recompute: the compiler may compute the MLP again for each use of what it
      wrote, in Newton-Schulz iterations and for the RMS. On a CPU that takes
      several times as long, and rounds otherwise; mulo-s was meta-trained so.
      Updates are the same but for that: theta does not depend on it otherwise.

  Raises:
    ValueError: hidden is not an integer of at least 3, a multiplier is not a
      positive number, or a name is unknown.
  """
  mlp.check_settings(hidden, 3, lowering, step_mult=step_mult,
                     exp_mult=exp_mult, vector_mult=vector_mult)
  accumulators.check_dtype(accumulator_dtype)
  orthogonal.check_iterations(newton_schulz)
  keep = (lambda x, count: x) if recompute else blocks.materialize

  def init(key):
    num_features = NUM_FEATURES + (NUM_HORIZON_FEATURES if horizon else 0)
    theta = _adam_like(mlp.init(key, num_features, hidden), exp_mult)
    zeros = jnp.zeros(len(INITIAL_DECAYS), jnp.float32)
    theta |= dict(momentum_decays=zeros, factored_decays=zeros,
                  second_decay=jnp.zeros([], jnp.float32))
    return dict(
        theta, power=jnp.ones([], jnp.float32)) if horizon else theta

  def opt_fn(theta, *, num_steps=None):
    decays = _decays(theta)

    def step_one(scale, grad, param, state, step):
      state, inverse = _accumulate(state, grad, decays, step)
      left = _left(step, num_steps)
      more = jnp.stack([left, jnp.sqrt(left)]) if horizon else None
      size = scale * step_mult * (vector_mult if grad.ndim < 2 else 1)
      update = lambda direction, magnitude: (
          -size * direction * jnp.exp(exp_mult * magnitude))
      features = _features(
          grad, inverse, param, state.statistics, decays, step, more)
      change = mlp.apply(theta, features, grad.shape, update, lowering)
      if normalize:
        change = keep(change, step)
        change *= size * _inverse_rms(jnp.mean(jnp.square(change)))
      if horizon and num_steps is not None:
        change *= _schedule(theta, left, step, num_steps)
      if newton_schulz and grad.ndim > 1:
        change = orthogonal.equalize(keep(change, step), newton_schulz)
      return change, state

    init_one = lambda shape: State(
        jnp.zeros([], jnp.float32),
        accumulators.init(shape, accumulator_dtype))
    rule = lambda scale: per_parameter.transformation(
        init_one, functools.partial(step_one, scale))

    def update(grads, state, params=None, **extra_args):
      matrices = sum(x.ndim > 1 for x in jax.tree.leaves(grads))
      scale = (max(matrices, 1) / DEPTH)**-DEPTH_POWER if depth else 1.0
      return rule(scale).update(grads, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(rule(1.0).init, update)

  return base.LearnedOptimizer(init, opt_fn)


def _adam_like(theta, exp_mult):
  """Overwrites three hidden units so that the output is like Adam's update.

  Units 0 and 1 carry the normalised momentum by sign, unit 2 minus the log of
  its size relative to noise; the others start at random but unheard.
  """
  weights = [theta[f"w{i}"] for i in range(3)]
  weights = [weights[0].at[:, :3].set(0), weights[1].at[:, :3].set(0),
             jnp.zeros_like(weights[2])]
  for layer, unit_in, unit_out, value in (
      (0, ADAM_FEATURE, 0, 1.0), (0, ADAM_FEATURE, 1, -1.0),
      (0, NOISE_FEATURE, 2, -1.0), (1, 0, 0, 1.0), (1, 1, 1, 1.0),
      (1, 2, 2, 1.0), (2, 0, 0, 1.0), (2, 1, 0, -1.0),
      (2, 2, 1, -1 / exp_mult)):
    weights[layer] = weights[layer].at[unit_in, unit_out].set(value)
  return dict(theta, **{f"w{i}": w for i, w in enumerate(weights)})


def _decays(theta) -> accumulators.Decays:
  """Decays 1 - (1 - initial) exp(10 residual), clipped to [0, MAX_DECAY]."""
  decay = lambda initial, residual: jnp.clip(
      1 - (1 - jnp.asarray(initial)) * jnp.exp(10 * residual), 0, MAX_DECAY)
  return accumulators.Decays(
      decay(INITIAL_DECAYS, theta["momentum_decays"]),
      decay(INITIAL_SECOND_DECAY, theta["second_decay"]),
      decay(INITIAL_DECAYS, theta["factored_decays"]))


def _accumulate(state, grad, decays, step):
  """Statistics that include the gradient, and one over their unit."""
  largest = jnp.max(jnp.abs(grad))
  slowest = jnp.sqrt(jnp.maximum(
      decays.second, jnp.max(jnp.maximum(
          decays.factored, decays.momentum**2))))  # in units, not squared
  unit = jnp.where(
      largest > 0, jnp.maximum(largest, slowest * state.unit), state.unit)
  inverse = jnp.where(unit > 0, 1 / jnp.where(unit > 0, unit, 1), 0)
  statistics = accumulators.update(
      state.statistics, grad * inverse, decays, step,
      rescale=state.unit * inverse)
  return State(unit, statistics), inverse


def _noise_features(momentum, second, decays, step):
  """Log of rms(momentum) / sqrt(mean second moment), unbiased. Shape [3].

  About zero where the gradient has always been the same, negative under
  noise, and where all gradients were zero, zero.

  Args:
    momentum: mean squares of the momenta, [3].
    second: mean of the second moment, scalar.
    decays: of both.
    step: number of steps taken before this one.
  """
  steps = step.astype(jnp.float32) + 1
  bias = lambda decay: 1 - decay**steps
  second = second / bias(decays.second)
  momentum = momentum / bias(decays.momentum)**2
  # Two logs, since the ratio itself may vanish.
  log = lambda x: jnp.log(jnp.where(second > 0, x + TINY, 1))
  log_ratio = 0.5 * (log(momentum) - log(second))
  return jnp.clip(log_ratio, -MAX_LOG_NOISE, MAX_LOG_NOISE)


def _inverse_root(x, mean):
  """(for ratios, as a feature) of non-negative x whose mean is given."""
  # Where all is zero, any factor does; this one has a finite derivative.
  some = mean > 0
  root = jax.lax.rsqrt(x + (RELATIVE_FLOOR * mean + jnp.where(some, TINY, 1)))
  limit = jnp.where(
      some, MAX_INVERSE * jax.lax.rsqrt(jnp.where(some, mean, 1)), 0)
  return root, jnp.minimum(root, limit)


def _left(step, num_steps):
  """The part of num_steps that is left, from 1 to 1 / num_steps."""
  if num_steps is None:
    return jnp.ones([], jnp.float32)
  total = jnp.maximum(jnp.asarray(num_steps, jnp.float32), 1)
  return jnp.clip(1 - step.astype(jnp.float32) / total, 1 / total, 1)


def _schedule(theta, left, step, num_steps):
  """Warm-up, learned decay, and a peak that depends on the horizon."""
  total = jnp.maximum(jnp.asarray(num_steps, jnp.float32), 1)
  begin = jnp.minimum(1, (step + 1) / jnp.maximum(1, WARMUP * total))
  return begin * left**theta["power"] * (total / HORIZON)**-HORIZON_POWER


def _features(grad, inverse, param, acc, decays, step, more
              ) -> features_lib.Features:
  """What the MLP reads; `more` are further tensor features [n], or None."""
  axes = accumulators.factored_axes(grad.shape)
  single = lambda x: x.reshape((1,) * (grad.ndim + 1))
  second_mean = jnp.mean(acc.second.astype(jnp.float32))
  inputs = dict(grad=grad[None], inverse=single(inverse), param=param[None],
                momentum=acc.momentum, second=acc.second[None],
                second_mean=single(second_mean))
  means = lambda x: jnp.mean(
      x, tuple(range(1, x.ndim)), keepdims=True)  # [3, 1, ...]
  row_mean = means(acc.row)
  row_root, row_feature = _inverse_root(acc.row, row_mean)
  row = column = None
  if axes is None:
    inputs |= {"row": acc.row, "row_mean": row_mean}
  else:
    column_root, column_feature = _inverse_root(acc.column, means(acc.column))
    along_column = jnp.mean(acc.row, axes[0] + 1, keepdims=True)
    inputs |= {"row_factor": row_root * jnp.sqrt(
        along_column + RELATIVE_FLOOR * row_mean + TINY),
               "column_factor": column_root}
    row = jnp.concatenate([acc.row, row_feature])
    column = jnp.concatenate([acc.column, column_feature])

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
    if more is None:
      return jnp.concatenate([features_lib.time_features(step), noise])
    return jnp.concatenate([
        features_lib.time_features(jnp.minimum(step, LAST_TIME)), noise, more])

  return features_lib.Features(
      element, inputs, row, column, tensor, _inverse_rms, CLIP)


def _inverse_rms(squares):
  """1 / RMS from mean squares, or 0 where all is zero."""
  positive = squares > 0
  return jnp.where(
      positive, jax.lax.rsqrt(jnp.where(positive, squares, 1)), 0)
