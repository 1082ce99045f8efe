"""A learned sum of odd directions, in the natural size of each parameter.

The update of a parameter p [*S] at step t from its gradient g; b are decays:

1. Unit of the gradient and statistics, as in `mulo`, with k = 1, .., K:
     m_k = b_k m_k + (1 - b_k) g        momenta, b_k = 0.9, 0.99, 0.999
     v = b v + (1 - b) g^2              second moment, b = 0.99
2. Odd features of an element: g / sqrt(v), m_k / sqrt(v), m_k, p.
   Even features: g m_k / v, 1 / sqrt(v).
   Each feature is divided by its RMS over p and clipped to [-5, 5].
3. Features of the tensor, the first two corrected for bias:
     noise_k = log(rms(m_k) / sqrt(mean v))
     agreement = average of cos(g, m_1 of the step before), decay 0.9
     log(rms(p) sqrt(fan-in)) where it does not depend on width, / 3
     log of the effective rank of m_1, / 3
     log fan-in, log fan-out where they do not grow, one number for each role
4. Direction of an element: the sum of its odd features, with weights
     mix + MLP(|odd features|, even features, features of the tensor)
   and 0 where v = 0.
5. Size of the tensor's update and share of the direction itself, two numbers
   from linear functions of its features, and for matrices an exponent l that
   grows while gradients agree with the momentum:
     l = l + rate * 500 / num_steps * max(0, 2 schedule - 1)
             * (cos(g, m_1 of before) - target)   (0 without a schedule)
     size = step_mult * schedule * (500 / num_steps)^horizon_power
            * min(1, exp(noise_1))^noise_power
            * exp(log(4) tanh(5 features . size) + l)
     share = tanh(5 features . share)
6. Update, with U the polar factor of X, by Newton-Schulz iterations:
     matrix: -size * ((1 - max(share, 0)) sqrt(fan-in fan-out) U(direction)
                      + share * gain * direction)
     vector: -size * vector_mult * direction
     table:  -size * table_mult * direction * rms(m_1 / sqrt(v)) * rms(p)

Reasons:

* If gradients, parameters and statistics change their signs, so does the
  update. A sum of odd features has no direction of its own.
* Nothing depends on the size of gradients, as in `mulo`. At initialization the
  MLP, size and share are 0, and the mixture is the direction of Adam.
* With a share of 1 a matrix is updated entry by entry. The gain makes entries
  then as large as those of U, as far as width allows: it is the root of a
  fan-in or fan-out that does not grow, and 1 if both grow.
* Agreement is negative if gradients alternate after steps that are too large.
* cos(g, m_1) is, up to its scale, the derivative of the loss with respect to
  the size of the last step: positive where a larger one had been better. l
  finds the size for this task and layer while the schedule is above a half, and
  moves as far in long runs as in short ones: steps are to be small at the end.
* Five in front: perturbations of these numbers matter as much as of others.
* Factors of noise and horizon, schedule and weight decay are not in the MLP.
* Singular values of sqrt(fan-in fan-out) are those of a matrix of ones: the
  parametrization `natural` divides by fan-in, which leaves sqrt(fan-out /
  fan-in), the size of a matrix that keeps the RMS of its inputs.
* Rows of a table are looked up one at a time, so that a table has no spectrum
  of interest, and rows that are rarely seen must not be enlarged. The first
  factor takes back the normalization, which leaves Adam's entries. Networks
  start tables at sizes that differ tenfold, hence the second, at least 0.01.

Reference:
  Metz et al., 2022, https://arxiv.org/abs/2203.11860 (features, MLP). Jordan et
  al., 2024, https://kellerjordan.github.io/posts/muon. Bernstein and Newhouse,
  2024, https://arxiv.org/abs/2410.21265 (norms of layers). Harrison et al.,
  2022, https://arxiv.org/abs/2209.11208 (nominal terms outside of the MLP).
  Baydin et al., 2017, https://arxiv.org/abs/1703.04782 (size of steps from
  products of gradients).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import base
from learned_opt import schedules
from learned_opt.optimizers.shared import units
from learned_opt.update import accumulators
from learned_opt.update import blocks
from learned_opt.update import features as features_lib
from learned_opt.update import mlp
from learned_opt.update import orthogonal
from learned_opt.update import per_parameter

DECAYS = (0.9, 0.99, 0.999)
SECOND_DECAY = 0.99
MAX_DECAY = 0.99999
CLIP = 5.0  # of normalized features
SIZE_BOUND = math.log(4)
SENSITIVITY = 5.0  # of size and share to theta
AGREEMENT_DECAY = 0.9
RATE = 0.05  # of the exponent l, before meta-training
EXPONENT_BOUND = math.log(16)
ROLES = ("", "vector", "input", "hidden", "output", "fixed", "embedding",
         "tied")
TABLES = ("embedding", "tied")
MIN_TABLE = 0.01  # RMS of a table for which steps are made
TINY = 1e-15
ADAM_FEATURE = 1  # momentum of decay 0.9 over the root of the second moment


class Statistics(NamedTuple):
  """Statistics of one parameter, and their unit."""

  unit: jax.Array  # []
  momentum: tuple[jax.Array, ...]  # K arrays [*S]
  second: jax.Array  # [*S]
  agreement: jax.Array  # []
  exponent: jax.Array  # []


class Decays(NamedTuple):
  """Decays per step."""

  momentum: jax.Array  # [K]
  second: jax.Array  # []


def make(hidden: int = 8, momenta: int = 3, step_mult: float = 0.09,
         vector_mult: float = 0.05, table_mult: float = 1.0,
         noise_power: float = 0.5, horizon_power: float = 0.33,
         newton_schulz: int = 5, coefficients: str = "polar_express",
         schedule: str | None = "linear", warmup: float = 0.05,
         accumulator_dtype: str = "float32", lowering: str | None = None
         ) -> base.LearnedOptimizer:
  """Return the optimizer; formulas are in the module docstring.

  Args:
    hidden: H, width of both hidden layers; 0: there is no MLP.
    momenta: K, number of momenta, from 1 to 3.
    step_mult: multiplies all updates.
    vector_mult: multiplies updates of biases and gains.
    table_mult: multiplies updates of tables.
    noise_power: how strongly steps shrink under noise; 0: they do not.
    horizon_power: how strongly steps shrink in long runs; 0: they do not.
    newton_schulz: iterations, 0 for matrices that are updated entry by entry.
    coefficients: of the iterations, see `orthogonal.SCHEDULES`.
    schedule: of the learning rate over num_steps, see `learned_opt.schedules`;
      None, or without num_steps: there is none.
    warmup: of the schedule, a fraction of the steps.
    accumulator_dtype: of momenta and second moment, "float32" or "bfloat16".
    lowering: how the MLP is computed, see `learned_opt.update.mlp`.

  Raises:
    ValueError: a number is out of range, or a name is unknown.
  """
  mlp.check_settings(
      hidden, 0, lowering, step_mult=step_mult, vector_mult=vector_mult,
      table_mult=table_mult)
  accumulators.check_dtype(accumulator_dtype)
  orthogonal.check_iterations(newton_schulz)
  orthogonal.check_schedule(coefficients)
  schedules.check(schedule, warmup)
  _check_numbers(momenta, noise_power=noise_power, horizon_power=horizon_power)
  mults = {"vector": vector_mult, "table": table_mult, "matrix": 1.0}

  def opt_fn(theta, *, num_steps=None, kinds=None):
    decays = _decays(theta, momenta)
    equalize = functools.partial(
        orthogonal.polar, iterations=newton_schulz, schedule=coefficients)

    def step_one(grad, param, state, step, kind):
      what, facts = _what(grad.shape, kind), _facts(grad.shape, kind)
      state, inverse, cosine = _accumulate(state, grad, decays, step)
      features, tensor, adam = _features(
          grad, inverse, param, state, decays, step, facts, kind)
      direction = mlp.apply(
          theta, features, grad.shape, lambda total: total, lowering)
      head = lambda name: jnp.tanh(SENSITIVITY * (tensor @ theta[name]))
      if what == "matrix" and newton_schulz:
        # Kept in memory: on a CPU, XLA would compute the MLP again for each of
        # the uses of the direction.
        direction = blocks.materialize(direction, step)
        share = head("share")
        direction = share * _gain(grad.shape, kind) * direction + (
            1 - jnp.maximum(share, 0)) * _as_matrix(equalize, direction, kind)
      multiplier = schedules.multiplier(schedule, warmup, step, num_steps)
      if what == "matrix" and schedule is not None and num_steps is not None:
        state = state._replace(exponent=_exponent(
            theta["exponent"], state.exponent, cosine, multiplier,
            schedules.peak(1.0, num_steps)))
      multiplier *= schedules.peak(horizon_power, num_steps)
      size = step_mult * mults[what] * multiplier * jnp.exp(
          noise_power * jnp.minimum(tensor[0], 0) +
          SIZE_BOUND * head("size") + state.exponent)
      if what == "table":
        size *= _rms(adam, TINY) * _rms(param, MIN_TABLE)
      return -size * direction, state

    return per_parameter.transformation(
        functools.partial(_init_one, accumulator_dtype, momenta), step_one,
        in_turn=newton_schulz > 0, kinds=kinds, by_role=True)

  return base.LearnedOptimizer(
      functools.partial(_init, hidden=hidden, momenta=momenta), opt_fn)


def _check_numbers(momenta, **powers):
  """Raise ValueError if one of these settings is out of range."""
  if momenta not in range(1, len(DECAYS) + 1) or isinstance(momenta, bool):
    raise ValueError(f"momenta must be 1, 2 or 3, got {momenta!r}.")
  for name, power in powers.items():
    if not isinstance(power, (int, float)) or not 0 <= power < 10:
      raise ValueError(f"{name} must be a number from 0 to 10, got {power!r}.")


def _init(key, hidden, momenta):
  """Return theta: random hidden layers, of which nothing arrives at first."""
  odd, even, tensor = _counts(momenta)
  theta = mlp.init(key, odd + even + tensor, hidden, odd)
  last = {"w2": jnp.zeros_like(theta["w2"])} if hidden else {}
  return theta | last | {
      "b2": jnp.zeros_like(theta["b2"]).at[ADAM_FEATURE].set(1),
      "size": jnp.zeros(tensor, jnp.float32),
      "share": jnp.zeros(tensor, jnp.float32),
      "exponent": jnp.zeros(2, jnp.float32),
      "momentum_decays": jnp.zeros(momenta, jnp.float32),
      "second_decay": jnp.zeros([], jnp.float32)}


def _rms(x, least):
  """Return the RMS of x, at least `least`, with a finite derivative."""
  return jnp.sqrt(jnp.maximum(jnp.mean(jnp.square(x)), least**2))


def _counts(momenta):
  """Return the numbers of odd features, even features, tensor features."""
  return 2 * momenta + 2, momenta + 1, momenta + 5 + len(ROLES)


def _init_one(dtype, momenta, shape):
  """Return the first statistics of a parameter."""
  zeros = lambda: jnp.zeros(shape, dtype)
  return Statistics(jnp.float32(0), tuple(zeros() for _ in range(momenta)),
                    zeros(), jnp.float32(0), jnp.float32(0))


def _decays(theta, momenta) -> Decays:
  """Return 1 - (1 - initial) exp(10 residual), clipped to [0, MAX_DECAY]."""
  decay = lambda initial, residual: jnp.clip(
      1 - (1 - jnp.float32(initial)) * jnp.exp(10 * residual), 0, MAX_DECAY)
  return Decays(decay(DECAYS[:momenta], theta["momentum_decays"]),
                decay(SECOND_DECAY, theta["second_decay"]))


def _exponent(theta, exponent, cosine, multiplier, peak):
  """Return the exponent l after this step; theta has rate and target."""
  rate = jnp.minimum(RATE * jnp.exp(10 * theta[0]) * peak, 1)
  change = rate * jnp.maximum(0, 2 * multiplier - 1) * (
      cosine - theta[1])
  return jnp.clip(exponent + change, -EXPONENT_BOUND, EXPONENT_BOUND)


def _what(shape, kind) -> str:
  """Return how a parameter is measured: "matrix", "vector" or "table"."""
  if kind.role in TABLES:
    return "table"
  return "matrix" if len(shape) > 1 and kind.role != "vector" else "vector"


def _axes(ndim, kind):
  """Return (axes of inputs, axes of outputs) of one layer."""
  outputs = (ndim - 1,) if kind.outputs is None else tuple(
      axis - sum(i < axis for i in kind.stack) for axis in kind.outputs)
  return tuple(i for i in range(ndim) if i not in outputs), outputs


def _facts(shape, kind) -> np.ndarray:
  """Return what is known of a parameter: log fan-in, log fan-out, role.

  A fan-in or fan-out that grows with width counts as 1: the features of a
  parameter must not depend on width.
  """
  return np.array([*[math.log(x) / 10 for x in _fixed(shape, kind)],
                   *[kind.role == role for role in ROLES]], np.float32)


def _fixed(shape, kind) -> tuple[int, int]:
  """Return (fan-in, fan-out), 1 for one that grows with width."""
  inputs, outputs = _axes(len(shape), kind)
  size = lambda axes, *roles: max(
      1, math.prod(shape[i] for i in axes)) if kind.role in roles else 1
  return size(inputs, "input", "fixed"), size(outputs, "output", "fixed")


def _gain(shape, kind) -> float:
  """Return the RMS that entries of sqrt(fan-in fan-out) U have at any width."""
  sides = [x for x in _fixed(shape, kind) if x > 1]
  return math.sqrt(min(sides, default=1))


def _matrix(x, kind):
  """Return x as a matrix [fan-in, fan-out]."""
  inputs, outputs = _axes(x.ndim, kind)
  size = lambda axes: math.prod(x.shape[i] for i in axes)
  return jnp.transpose(x, inputs + outputs).reshape(
      size(inputs), size(outputs))


def _as_matrix(fn, x, kind):
  """Return sqrt(fan-in fan-out) fn(x), with x as a matrix."""
  order = sum(_axes(x.ndim, kind), ())
  result = fn(_matrix(x, kind)) * math.sqrt(max(x.size, 1))
  return jnp.transpose(result.reshape([x.shape[i] for i in order]),
                       tuple(np.argsort(order)))


def _natural_size(param, kind):
  """Return log(rms(param) sqrt(fan-in)) / 3, 0 where it depends on width."""
  if kind.role not in ("input", "hidden", "fixed"):
    return jnp.float32(0)
  inputs, _ = _axes(param.ndim, kind)
  fan_in = math.prod(param.shape[i] for i in inputs)
  return jnp.log(_rms(param, MIN_TABLE / math.sqrt(max(fan_in, 1))) *
                 math.sqrt(max(fan_in, 1))) / 3


def _cosine(x, y):
  """Return the cosine of the angle between two arrays, 0 if one is 0."""
  squares = jnp.sum(x * x) * jnp.sum(y * y)
  return jnp.sum(x * y) * units.inverse_rms(squares)


def _accumulate(state, grad, decays, step):
  """Return (statistics that include the gradient, 1 / unit, cosine).

  The cosine is that of the gradient and the first momentum before it.
  """
  # Squares have squared units, hence the root.
  slowest = jnp.sqrt(jnp.maximum(
      decays.second, jnp.max(decays.momentum**2)))
  unit, inverse = units.next_unit(state.unit, grad, slowest)
  rescale, grad = state.unit * inverse, grad * inverse
  wide = lambda x: x.astype(jnp.float32)
  cosine = _cosine(grad, wide(state.momentum[0]) * rescale)
  agreement = AGREEMENT_DECAY * state.agreement + (
      1 - AGREEMENT_DECAY) * cosine
  momentum = accumulators.averages(
      [wide(x) for x in state.momentum], grad, decays.momentum, rescale)
  second = (decays.second * rescale**2 * wide(state.second) +
            (1 - decays.second) * grad * grad)
  momentum, second = jax.tree.map(
      lambda new, old: accumulators.rounded(new, old.dtype, step),
      (tuple(momentum), second), (state.momentum, state.second))
  return Statistics(
      unit, momentum, second, agreement, state.exponent), inverse, cosine


def _features(grad, inverse, param, state, decays, step, facts, kind):
  """Return (inputs of the MLP, tensor features, momentum_1 / sqrt(second)).

  Args:
    grad: [*S], before it is divided by the unit.
    inverse: 1 / unit.
    param: [*S].
    state: statistics that include the gradient.
    decays: of the statistics.
    step: number of steps taken before this step.
    facts: see `_facts`.
    kind: of the parameter.
  """
  single = lambda x: [x.reshape((1,) * grad.ndim)]
  wide = lambda x: x.astype(jnp.float32)
  second_mean = jnp.mean(wide(state.second))
  squares = jnp.stack([jnp.mean(jnp.square(wide(x))) for x in state.momentum])
  steps = step.astype(jnp.float32) + 1
  rank = jnp.float32(0)
  if _what(grad.shape, kind) == "matrix":
    rank = jnp.log(orthogonal.effective_rank(
        _matrix(wide(state.momentum[0]), kind))) / 3
  tensor = jnp.concatenate([
      units.noise(squares, second_mean, decays.momentum, decays.second, step),
      jnp.stack([state.agreement / (1 - AGREEMENT_DECAY**steps),
                 _natural_size(param, kind), rank]), facts])

  def element(x):
    grad, momentum = x["grad"] * x["inverse"], wide(x["momentum"])
    root, root_feature = units.inverse_root(wide(x["second"]), x["second_mean"])
    return (grad * root, momentum * root, momentum, x["param"],
            grad * root * momentum * root, root_feature)

  # Corrected for bias, as in Adam.
  bias = jnp.sqrt(1 - decays.second**steps) / (1 - decays.momentum[0]**steps)
  root, _ = units.inverse_root(wide(state.second), second_mean)
  features = features_lib.Features(
      element, dict(grad=[grad], inverse=single(inverse), param=[param],
                    momentum=state.momentum, second=[state.second],
                    second_mean=single(second_mean)),
      None, None, lambda _: tensor, units.inverse_rms, CLIP,
      _layout(len(state.momentum)), gate=lambda x: x["second"] > 0,
      odd=2 * len(state.momentum) + 2)
  return features, tensor, wide(state.momentum[0]) * root * bias


def _layout(momenta):
  """Return the rows of w0; there are no row and column features."""
  odd, even, _ = _counts(momenta)
  none = np.zeros(0, np.int32)
  return features_lib.FeatureRows(np.arange(odd + even), none, none)
