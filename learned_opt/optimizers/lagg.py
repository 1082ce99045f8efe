"""A learned step on the mean difference of workers, which sees their spread.

An outer optimizer for `mulo.local_updates`. The gradient g is the mean, over
workers, of the parameters before their local steps minus those after. The
update of a parameter p [*S]; b are decays:

1. Statistics, in a unit that makes updates invariant to the size of gradients
   (`learned_opt.optimizers.shared.units`), for k = 1, 2, 3:
     m_k = b_k m_k + (1 - b_k) g      v = b v + (1 - b) g^2
2. Odd features, which change their sign with the gradient and the parameter:
     g / sqrt(v), m_k / sqrt(v), p, agreement, high + low
   Even features: high - low, 1 / sqrt(v).
   Agreement, high and low are those of `learned_opt.workers.Spread`. Each
   feature is divided by its RMS over p and clipped to [-5, 5].
3. Features of the tensor: tanh(t / tau - 1) for 11 time scales tau of rounds,
   the mean squares of the agreement and of high - low, and the noise_k of
   `learned_opt.optimizers.mulo`.
4. update = -step_mult * sum over odd features of weight * feature, where the
   weights are the outputs of an MLP that sees all features, odd ones by their
   absolute value.

At initialization the update is -step_mult * feature(m_1 / sqrt(v)).

In the published LAgg-A, the MLP sees the difference of each worker, in their
order: theta is for one number of workers, and changes its update if workers
change places. Here features are symmetric functions of the workers, and one
theta serves any number of them. Without `spread`, as behind a single worker,
all workers count as equal.

Reference:
  Joseph et al., 2023, https://arxiv.org/abs/2312.02204.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import base
from learned_opt import workers
from learned_opt.optimizers.shared import units
from learned_opt.update import accumulators
from learned_opt.update import features as features_lib
from learned_opt.update import mlp
from learned_opt.update import per_parameter
from learned_opt.update import sharding

MOMENTUM_DECAYS = (0.5, 0.9, 0.99)
SECOND_DECAY = 0.95
MAX_DECAY = 0.9999
CLIP = 5.0  # of normalized features
ODD, EVEN = 7, 2  # numbers of features of an element
NUM_TENSOR = len(features_lib.TIME_SCALES) + 2 + len(MOMENTUM_DECAYS)
ADAM_FEATURE = 1  # momentum of decay 0.5 over the root of the second moment
LAYOUT = features_lib.FeatureRows(
    np.arange(ODD + EVEN), *[np.zeros(0, np.int32)] * 2)


class Statistics(NamedTuple):
  """Statistics of one parameter, and their unit."""

  unit: jax.Array  # []
  momentum: tuple[jax.Array, ...]  # three arrays [*S]
  second: jax.Array  # [*S]


class WithSpread(NamedTuple):
  """Statistics, and the spread of the workers in this round; not kept."""

  statistics: Statistics
  spread: workers.Spread  # three arrays [*S]


def make(hidden: int = 8, step_mult: float = 0.03, lowering: str | None = None
         ) -> base.LearnedOptimizer:
  """Return the optimizer; formulas are in the module docstring.

  theta has 25 H + H^2 + 9 H + 11 numbers (347 for H = 8).

  Args:
    hidden: H, width of both hidden layers.
    step_mult: multiplies the update.
    lowering: how the MLP is computed, see `learned_opt.update.mlp`.

  Raises:
    ValueError: hidden is not a positive integer, step_mult is not a positive
      number, or the lowering is unknown.
  """
  mlp.check_settings(hidden, 1, lowering, step_mult=step_mult)

  def opt_fn(theta, *, num_steps=None, kinds=None):
    del num_steps
    decays = _decays(theta)

    def step_one(grad, param, state, step, context, kind):
      del context, kind
      statistics, inverse = _accumulate(state.statistics, grad, decays)
      features = _features(grad, inverse, param, statistics, state.spread,
                           decays, step)
      change = mlp.apply(theta, features, grad.shape,
                         lambda total: -step_mult * total, lowering)
      return change, WithSpread(statistics, state.spread)

    kept = per_parameter.Statistics(_init_one, kinds=kinds)
    used = per_parameter.Statistics(lambda shape: WithSpread(
        _init_one(shape), workers.Spread(*[jnp.zeros(shape)] * 3)), kinds=kinds)

    def start(params):
      return per_parameter.State(
          sharding.whole(lambda: jnp.zeros([], jnp.int32), params),
          kept.init(params))

    def update(grads, state, params=None, *, spread=None, **extra_args):
      del extra_args
      params = kept.matched(grads, params, state.statistics)
      given = workers.spread(grads, None) if spread is None else spread()
      updates, after = used.update(
          step_one, grads, params, WithSpread(state.statistics, given),
          state.step)
      return updates, per_parameter.State(
          optax.safe_increment(state.step), after.statistics)

    return optax.GradientTransformationExtraArgs(start, update)

  return base.LearnedOptimizer(functools.partial(_init, hidden=hidden), opt_fn)


def _init(key: jax.Array, hidden: int) -> dict[str, Any]:
  """Return theta: random hidden layers, of which nothing arrives at first."""
  theta = mlp.init(key, ODD + EVEN + NUM_TENSOR, hidden, ODD)
  return theta | {
      "w2": jnp.zeros_like(theta["w2"]),
      "b2": jnp.zeros_like(theta["b2"]).at[ADAM_FEATURE].set(1),
      "momentum_decays": jnp.zeros(len(MOMENTUM_DECAYS), jnp.float32),
      "second_decay": jnp.zeros([], jnp.float32)}


def _init_one(shape) -> Statistics:
  """Return the first statistics of a parameter."""
  return Statistics(
      jnp.float32(0), tuple(jnp.zeros(shape) for _ in MOMENTUM_DECAYS),
      jnp.zeros(shape))


def _decays(theta) -> accumulators.Decays:
  """Return 1 - (1 - initial) exp(10 residual), clipped to [0, MAX_DECAY]."""
  decay = lambda initial, residual: jnp.clip(
      1 - (1 - jnp.float32(initial)) * jnp.exp(10 * residual), 0, MAX_DECAY)
  return accumulators.Decays(
      decay(MOMENTUM_DECAYS, theta["momentum_decays"]),
      decay(SECOND_DECAY, theta["second_decay"]), jnp.zeros(0))


def _accumulate(state, grad, decays):
  """Return (statistics that include the gradient, 1 / unit)."""
  # Squares have squared units, hence the root.
  slowest = jnp.sqrt(jnp.maximum(
      decays.second, jnp.max(decays.momentum**2)))
  unit, inverse = units.next_unit(state.unit, grad, slowest)
  rescale, grad = state.unit * inverse, grad * inverse
  second = (decays.second * rescale**2 * state.second +
            (1 - decays.second) * grad * grad)
  return Statistics(unit, tuple(accumulators.averages(
      state.momentum, grad, decays.momentum, rescale)), second), inverse


def _features(grad, inverse, param, state, spread, decays, step
              ) -> features_lib.Features:
  """Return the inputs of the MLP.

  Args:
    grad: [*S], before it is divided by the unit.
    inverse: 1 / unit.
    param: [*S].
    state: statistics that include the gradient.
    spread: of the workers, three arrays [*S].
    decays: of the statistics.
    step: number of rounds before this one.
  """
  single = lambda x: [x.reshape((1,) * grad.ndim)]
  second_mean = jnp.mean(state.second)
  mean_square = lambda x: jnp.mean(jnp.square(x))
  tensor = jnp.concatenate([
      features_lib.time_features(step),
      jnp.stack([mean_square(spread.agreement),
                 mean_square(spread.high - spread.low)]),
      units.noise(jnp.stack([mean_square(x) for x in state.momentum]),
                  second_mean, decays.momentum, decays.second, step)])

  def element(x):
    root, root_feature = units.inverse_root(x["second"], x["second_mean"])
    return (x["grad"] * x["inverse"] * root, x["momentum"] * root, x["param"],
            x["agreement"], x["high"] + x["low"], x["high"] - x["low"],
            root_feature)

  return features_lib.Features(
      element, dict(grad=[grad], inverse=single(inverse), param=[param],
                    momentum=state.momentum, second=[state.second],
                    second_mean=single(second_mean),
                    agreement=[spread.agreement], high=[spread.high],
                    low=[spread.low]),
      None, None, lambda _: tensor, units.inverse_rms, CLIP, LAYOUT,
      gate=lambda x: x["second"] > 0, odd=ODD)
