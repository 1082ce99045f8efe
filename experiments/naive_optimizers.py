"""Naive implementations of two learned optimizers, as papers write them.

All features of a parameter are built as one array [N, features]. The naive
implementations are compared with the fast ones of learned_opt/optimizers: in
float64 and numpy they are the oracle of the tests, in float32 and JAX the naive
lowering of the benchmarks. The argument `xp` is numpy or jax.numpy.
"""

from types import ModuleType
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)  # steps
INITIAL_DECAYS = (0.9, 0.99, 0.999)


class Statistics(NamedTuple):
  """Moving averages of the gradients of one parameter of shape [*S].

  Attributes:
    m: three momenta [*S].
    v: second moment [*S].
    r: three row averages of the squared gradient, [*S] with 1 on the largest
      axis.
    c: three column averages of the squared gradient, [*S] with 1 on the second
      largest axis.
  """

  m: list
  v: Any
  r: list
  c: list


def _factored_axes(shape):
  """Return (second largest axis, largest axis), or None for a vector.

  Of axes of equal size, the later axis counts as larger.
  """
  order = sorted(range(len(shape)), key=lambda i: (shape[i], i))
  return (order[-2], order[-1]) if len(shape) > 1 else None


def start(shape: tuple, xp: ModuleType) -> Statistics:
  """Return zero statistics for a parameter with at least one axis."""
  axes = _factored_axes(shape)
  without = lambda axis: tuple(
      1 if i == axis else n for i, n in enumerate(shape))
  row, column = (without(axes[1]), without(axes[0])) if axes else (shape, shape)
  zeros = lambda shape: [xp.zeros(shape) for _ in range(3)]
  return Statistics(zeros(shape), xp.zeros(shape), zeros(row), zeros(column))


def _update(s, g, momentum, second, factored, floor):
  """Return the statistics `s` after the gradient `g`.

  Args:
    s: Statistics.
    g: gradient [*S].
    momentum: decays of s.m [3].
    second: decay of s.v [].
    factored: decays of s.r and s.c [3].
    floor: added to the squared gradient in s.r and s.c.
  """
  squared = g**2 + floor
  axes = _factored_axes(g.shape)
  row = squared.mean(axes[1], keepdims=True) if axes else squared
  column = squared.mean(axes[0], keepdims=True) if axes else squared
  ema = lambda decays, old, new: [
      decays[k] * x + (1 - decays[k]) * new for k, x in enumerate(old)]
  return Statistics(
      ema(momentum, s.m, g), second * s.v + (1 - second) * g**2,
      ema(factored, s.r, row), ema(factored, s.c, column))


def _decay(initial, residual, xp):
  """Return decays from their initial values and the trained residuals."""
  # The residual moves log(1 - decay), so that 0.9 and 0.999 move alike.
  return 1 - (1 - xp.array(initial)) * xp.exp(10 * residual)


def _stack(features, shape, xp):
  """Broadcast each feature to `shape` and return [N, features]."""
  return xp.stack(
      [xp.broadcast_to(f, shape).reshape(-1) for f in features], -1)


def _with_tensor_features(features, t, more, xp):
  """Append the features that are equal for all N entries of the parameter.

  Args:
    features: [N, n].
    t: number of steps before this one.
    more: further features of the whole parameter, after those of time.
    xp: numpy or jax.numpy.
  """
  time = xp.tanh(t / xp.array(TIME_SCALES) - 1)
  tensor = xp.concatenate([time, more])
  return xp.concatenate([features, xp.broadcast_to(
      tensor, (len(features), len(tensor)))], 1)


def _output(theta, features, shape, step_mult, exp_mult, xp):
  """Return the update [*S] that the MLP computes from features [N, n].

  update = -step_mult * direction * exp(exp_mult * magnitude), where direction
  and magnitude are the two outputs of the MLP.
  """
  x = features
  for i in range(3):
    x = x @ theta[f"w{i}"] + theta[f"b{i}"][None]
    x = xp.maximum(x, 0) if i < 2 else x  # ReLU, but not after the last layer
  return -(step_mult * x[:, 0] * xp.exp(exp_mult * x[:, 1])).reshape(shape)


def adafac_mlp(xp: ModuleType, step_mult: float = 0.001,
               exp_mult: float = 0.001) -> Callable:
  """Return one step of small_fc_lopt for one parameter.

  Args:
    xp: numpy or jax.numpy.
    step_mult: multiplier of the update.
    exp_mult: multiplier of the MLP's second output in the exponent.

  Returns:
    `(theta, g, p, Statistics, t) -> (update, Statistics)`.
  """
  rsqrt = lambda x: 1 / xp.sqrt(x)
  safe = lambda x: rsqrt(xp.maximum(x, 1e-9))

  def step_one(theta, g, p, s, t):
    second = _decay(0.999, theta["rms_decays"], xp)[0].clip(0, 1)
    s = _update(
        s, g, _decay(INITIAL_DECAYS, theta["momentum_decays"], xp), second,
        _decay(INITIAL_DECAYS, theta["adafactor_decays"], xp).clip(0, 1), 1e-30)
    axes = _factored_axes(g.shape)
    # Multipliers of gradient and momentum: 1 / root of the second moment that
    # rows and columns imply. The epsilons are those of the published code.
    if axes is None:
      for_g = [safe(v + 1e-9) for v in s.r]
      for_m = [rsqrt(v + 1e-6) for v in s.r]
    else:
      mean = [r.mean(axes[0], keepdims=True) for r in s.r]
      for_g = for_m = [safe(r / (mu + 1e-9)) * safe(c)
                       for r, c, mu in zip(s.r, s.c, mean)]
    inverse = rsqrt(s.v + 1e-6)
    features = _stack([
        g, p, *s.m, s.v, *[m * inverse for m in s.m], inverse,
        *[g * f for f in for_g], *s.r, *s.c,
        *[rsqrt(r + 1e-8) for r in s.r], *[rsqrt(c + 1e-8) for c in s.c],
        *[m * f for m, f in zip(s.m, for_m)]], g.shape, xp)
    # Each feature gets an RMS of 1 over the parameter.
    features = features * rsqrt(
        1e-5 + xp.mean(features**2, 0, keepdims=True))
    features = _with_tensor_features(features, t, xp.zeros(0), xp)
    return _output(theta, features, g.shape, step_mult, exp_mult, xp), s

  return step_one


def mulo(xp: ModuleType, step_mult: float = 0.1, exp_mult: float = 0.1,
         floor: float = 1e-8, max_inverse: float = 10.0) -> Callable:
  """Return one step of mulo for one parameter.

  learned_opt/optimizers/mulo.py keeps statistics in a unit of their own. This
  implementation does not, so its statistics may overflow or vanish in float32.

  Args:
    xp: numpy or jax.numpy.
    step_mult: multiplier of the update.
    exp_mult: multiplier of the MLP's second output in the exponent.
    floor: floor of second moments, relative to their mean.
    max_inverse: maximum of the inverse roots that are features, relative to the
      inverse root of the mean.

  Returns:
    `(theta, g, p, Statistics, t) -> (update, Statistics)`.
  """

  def roots(x):
    """Return 1 / sqrt(x), 0 where all of x is 0, and the same with a cap."""
    mean = x.mean()
    safe = xp.where(mean > 0, mean, 1)
    root = xp.where(mean > 0, 1 / xp.sqrt(x + floor * safe), 0)
    return root, xp.minimum(root, max_inverse / xp.sqrt(safe))

  def step_one(theta, g, p, s, t):
    decay = lambda initial, name: _decay(
        initial, theta[name], xp).clip(0, 0.99999)
    momentum = decay(INITIAL_DECAYS, "momentum_decays")
    second = decay(0.999, "second_decay")
    s = _update(
        s, g, momentum, second, decay(INITIAL_DECAYS, "factored_decays"), 0.0)
    inverse, inverse_feature = roots(s.v)
    row, row_feature = zip(*[roots(r) for r in s.r])
    column, column_feature = zip(*[roots(c) for c in s.c])
    axes = _factored_axes(g.shape)
    # 1 / root of the second moment that rows and columns imply.
    factored = row if axes is None else [
        a * b * xp.sqrt(r.mean(axes[0], keepdims=True) + floor * r.mean())
        for a, b, r in zip(row, column, s.r)]
    features = _stack([
        g, p, *s.m, s.v, *[m * inverse for m in s.m], inverse_feature,
        *[g * f for f in factored], *s.r, *s.c, *row_feature, *column_feature,
        *[m * f for m, f in zip(s.m, factored)]], g.shape, xp)
    # Each feature gets an RMS of 1 over the parameter, without an epsilon.
    rms = xp.sqrt(xp.mean(features**2, 0, keepdims=True))
    features = (features / xp.where(rms > 0, rms, 1)).clip(-5, 5)
    # log(rms(momentum) / sqrt(mean second moment)), both without the bias of
    # averages that start at 0.
    v = s.v.mean() / (1 - second**(t + 1))
    noise = [0.5 * xp.log(xp.where(
        v > 0, (m**2).mean() / (1 - momentum[k]**(t + 1))**2, 1) /
        xp.where(v > 0, v, 1)) for k, m in enumerate(s.m)]
    features = _with_tensor_features(features, t, xp.stack(noise), xp)
    update = _output(theta, features, g.shape, step_mult, exp_mult, xp)
    return xp.where(s.v > 0, update, 0), s

  return step_one


OPTIMIZERS = {"adafac_mlp": adafac_mlp, "mulo": mulo}


def opt_fn(name: str, **settings: float) -> Callable:
  """Return the naive form of an optimizer as an `opt_fn` in JAX and float32.

  Args:
    name: a key of OPTIMIZERS.
    **settings: step_mult, exp_mult.

  Returns:
    `opt_fn(theta, *, num_steps=None)`, where theta is from the `init` of the
    optimizer in learned_opt/optimizers.
  """
  step_one = OPTIMIZERS[name](jnp, **settings)

  def make(theta, *, num_steps=None):
    del num_steps

    def init(params):
      return jnp.zeros([], jnp.int32), [
          start(p.shape or (1,), jnp) for p in jax.tree.leaves(params)]

    def update(grads, state, params=None, **extra_args):
      del extra_args
      step, states = state
      treedef = jax.tree.structure(grads)
      wide = lambda x: x.reshape(x.shape or (1,))  # scalars get an axis
      pairs = [step_one(theta, wide(g), wide(p), s, step.astype(jnp.float32))
               for g, p, s in zip(jax.tree.leaves(grads),
                                  jax.tree.leaves(params), states)]
      updates = jax.tree.unflatten(treedef, [u for u, _ in pairs])
      updates = jax.tree.map(lambda u, g: u.reshape(g.shape), updates, grads)
      return updates, (step + 1, [s for _, s in pairs])

    return optax.GradientTransformationExtraArgs(init, update)

  return make
