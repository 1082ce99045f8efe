"""Celo2: a per-parameter MLP whose updates of matrices have a fixed RMS.

For a parameter of two or more axes:

  direction = MLP(features of one element)
  direction = newton_schulz(direction)    (if newton_schulz > 0)
  update = -step_mult * direction / rms(direction)

The MLP thus decides the direction alone; the learning rate is left to the
user's schedule. Parameters of fewer than two axes are updated by Adam.

A matrix is the last two axes of a parameter. Each index of the other axes, such
as the places of a convolution, is a matrix of its own, with its own RMS.

Reference:
  https://arxiv.org/abs/2602.19142 (Celo2 and, without iterations and Adam,
  Celo2-base).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import base
from learned_opt import kinds as kinds_lib
from learned_opt.optimizers.shared import lstm
from learned_opt.optimizers.shared import velo_features
from learned_opt.update import accumulators
from learned_opt.update import mlp
from learned_opt.update import orthogonal
from learned_opt.update import per_parameter

SECOND_DECAY = 0.95
EPSILON = 1e-9  # added to mean squares
NORM_EPSILON = 1e-8  # added to Frobenius norms
ADAM_DECAYS = (0.9, 0.95)
ADAM_EPSILON = 1e-8  # added to second moments
NUM_OUTPUTS = 3  # of the published MLP; only the first is used


class AdamState(NamedTuple):
  """Moving averages without bias correction.

  Attributes:
    momentum: of gradients, float32, a tree like the parameters.
    second: of squared gradients, a tree like momentum.
  """

  momentum: Any
  second: Any


def make(hidden: int = 8, step_mult: float = 0.001, newton_schulz: int = 5,
         adam: bool = True, adam_mult: float = 20.0,
         lowering: str | None = None) -> base.LearnedOptimizer:
  """Return the optimizer.

  theta has 30 H + H^2 + 5 H + 3 numbers (347 for H = 8).

  Args:
    hidden: H, width of both hidden layers.
    step_mult: RMS of updates.
    newton_schulz: iterations on the update of each matrix, 0 for none.
    adam: True: Adam updates parameters of fewer than two axes. False: the MLP
      updates them, without the features made of row and column factors.
    adam_mult: learning rate of Adam = step_mult * adam_mult.
    lowering: how the MLP is computed, see `learned_opt.update.mlp`.

  Raises:
    ValueError: hidden is not a positive integer, a multiplier is not a
      positive number, newton_schulz is not a number of iterations, or the
      lowering is unknown.
  """
  mlp.check_settings(hidden, 1, lowering, step_mult=step_mult,
                     adam_mult=adam_mult)
  orthogonal.check_iterations(newton_schulz)

  def init(key):
    sizes = (velo_features.NUM_FEATURES, hidden, hidden, NUM_OUTPUTS)
    theta: dict[str, jax.Array] = {}
    for i, k in enumerate(jax.random.split(key, 3)):
      layer = lstm.init_dense(k, *sizes[i:i + 2])
      theta |= {f"{kind}{i}": x for kind, x in layer.items()}
    return theta

  def opt_fn(theta, *, num_steps=None, kinds=None):
    del num_steps

    def step_one(grad, param, acc, step):
      acc, grad = velo_features.accumulate(acc, grad, SECOND_DECAY, step)
      change = _direction(theta, grad, param, acc, lowering)
      if newton_schulz and grad.ndim > 1:
        change = _orthogonalize(change, newton_schulz)
      square = jnp.mean(
          jnp.square(change), _matrix_axes(change), keepdims=True)
      return -step_mult * change * jax.lax.rsqrt(EPSILON + square), acc

    learned = per_parameter.transformation(
        accumulators.init, step_one, in_turn=newton_schulz > 0, kinds=kinds)
    if not adam:
      return learned
    rank = lambda x, kind: getattr(x, "ndim", 0) - len(kind.stack)
    labels = lambda tree: kinds_lib.tree_map(
        lambda x, kind: "learned" if rank(x, kind) > 1 else "adam", tree,
        kinds)
    return optax.partition(
        {"learned": learned, "adam": _adam(step_mult * adam_mult)}, labels)

  return base.LearnedOptimizer(init, opt_fn)


def _matrix_axes(x) -> tuple[int, ...]:
  """Return the axes that are normalized together: the last two, or fewer."""
  return tuple(range(x.ndim))[-2:]


def _direction(theta, grad, param, acc, lowering):
  """Return the first output of the MLP for every element, [*S]."""
  unfactored = grad.ndim < 2
  features = velo_features.make(
      grad, param, acc, second_epsilon=1e-8, epsilon=EPSILON,
      unfactored=unfactored)
  # Cut weights of outputs that are not used and of features that are left out.
  weights = dict(theta, w2=theta["w2"][:, :2], b2=theta["b2"][:2])
  if unfactored:
    weights["w0"] = theta["w0"][:velo_features.NUM_UNFACTORED]

  def apply(arrays, shape):
    if len(shape) > 2:
      # Features are normalized in each matrix on its own, so map over the first
      # axis of S; where an array has size 1, broadcast.
      full = jax.tree.map(lambda x: x.shape[0] > 1, arrays)
      arrays = jax.tree.map(lambda x, yes: x if yes else x[0], arrays, full)
      return jax.vmap(
          lambda part: apply(part, shape[1:]), axis_size=shape[0],
          in_axes=(jax.tree.map(lambda yes: 0 if yes else None, full),)
      )(arrays)
    inputs, row, column = arrays
    stack = lambda x: None if x is None else jnp.stack(x)
    return mlp.apply(
        weights, features._replace(
            inputs=inputs, row=stack(row), column=stack(column)),
        shape, lambda direction, magnitude: direction, lowering)

  unstack = lambda x: None if x is None else list(x)
  return apply((features.inputs, unstack(features.row),
                unstack(features.column)), grad.shape)


def _orthogonalize(x, iterations):
  """Apply Newton-Schulz iterations to all matrices [m, n] in x [..., m, n]."""
  wide = x.shape[-2] <= x.shape[-1]
  x = x if wide else x.mT
  norm = jnp.sqrt(jnp.sum(jnp.square(x), (-2, -1), keepdims=True))
  x = orthogonal.iterate(x / (norm + NORM_EPSILON), iterations)
  return x if wide else x.mT


def _adam(learning_rate: float) -> optax.GradientTransformation:
  """Return Adam as in Celo2: no bias correction, epsilon inside of the root.

  m = 0.9 m + 0.1 g
  v = 0.95 v + 0.05 g^2
  update = -learning_rate * m / sqrt(v + 1e-8)
  """
  zeros = lambda params: jax.tree.map(
      lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)

  def update(grads, state, params=None):
    del params
    # The momentum averages g**1, the second moment g**2.
    momentum, second = (
        jax.tree.map(lambda old, g: decay * old + (1 - decay) * g.astype(
            jnp.float32)**power, old, grads)
        for power, (decay, old) in enumerate(zip(ADAM_DECAYS, state), 1))
    change = lambda m, v, g: (
        -learning_rate * m * jax.lax.rsqrt(v + ADAM_EPSILON)).astype(g.dtype)
    return jax.tree.map(change, momentum, second, grads), AdamState(
        momentum, second)

  def init(params):
    per_parameter.check_arrays(params)
    return AdamState(zeros(params), zeros(params))

  return optax.GradientTransformation(init, update)
