"""Celo2: a per-parameter MLP whose update of each matrix has RMS 1.

Without its size, the update is left with a direction, and the learning rate is
a human's to schedule. Newton-Schulz iterations make it more like an orthogonal
matrix before. Parameters of fewer than two axes go to Adam.

Matrices are what the last two axes span: all else, as the places of a
convolution, is normalised apart.

Reference:
  https://arxiv.org/abs/2602.19142 (Celo2 and, without iterations and Adam,
  Celo2-base).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import base
from learned_opt.update import accumulators
from learned_opt.update import lstm
from learned_opt.update import mlp
from learned_opt.update import orthogonal
from learned_opt.update import per_parameter
from learned_opt.update import velo_features

SECOND_DECAY = 0.95
EPSILON = 1e-9  # added to mean squares
NORM_EPSILON = 1e-8  # added to Frobenius norms
ADAM_DECAYS = (0.9, 0.95)
ADAM_EPSILON = 1e-8  # added to second moments
NUM_OUTPUTS = 3  # only the first is used


class AdamState(NamedTuple):
  """Moving averages without correction of their bias.

  Attributes:
    momentum: of gradients, float32, a tree like the parameters.
    second: of squared gradients, as momentum.
  """

  momentum: Any
  second: Any


def make(hidden: int = 8, step_mult: float = 0.001, newton_schulz: int = 5,
         adam: bool = True, adam_mult: float = 20.0,
         lowering: str | None = None) -> base.LearnedOptimizer:
  """The optimizer; theta has 30 H + H^2 + 5 H + 3 numbers (347 for H = 8).

  Args:
    hidden: width of both hidden layers.
    step_mult: RMS of updates.
    newton_schulz: iterations on the update of each matrix, 0 for none.
    adam: whether parameters of fewer than two axes go to Adam; else to the MLP
      without the features that are made of factors.
    adam_mult: factor on the learning rate of Adam, beside step_mult.
    lowering: how the MLP is computed, see `learned_opt.update.mlp`.

  Raises:
    ValueError: hidden is not a positive integer, a multiplier is not a
      positive number, or there are no such iterations or lowering.
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

  def opt_fn(theta, *, num_steps=None):
    del num_steps

    def step_one(grad, param, acc, step):
      acc, grad = velo_features.accumulate(acc, grad, SECOND_DECAY, step)
      change = _direction(theta, grad, param, acc, lowering)
      if newton_schulz and grad.ndim > 1:
        change = _orthogonalize(change, newton_schulz)
      square = jnp.mean(jnp.square(change), _matrix(change), keepdims=True)
      return -step_mult * change * jax.lax.rsqrt(EPSILON + square), acc

    learned = per_parameter.transformation(accumulators.init, step_one)
    if not adam:
      return learned
    labels = lambda tree: jax.tree.map(
        lambda x: "learned" if jnp.ndim(x) > 1 else "adam", tree)
    return optax.partition(
        {"learned": learned, "adam": _adam(step_mult * adam_mult)}, labels)

  return base.LearnedOptimizer(init, opt_fn)


def _matrix(x) -> tuple[int, ...]:
  """The axes that are normalised together."""
  return tuple(range(x.ndim))[-2:]


def _direction(theta, grad, param, acc, lowering):
  """What the MLP writes, [*S]."""
  unfactored = grad.ndim < 2
  features = velo_features.make(
      grad, param, acc, second_epsilon=1e-8, epsilon=EPSILON,
      unfactored=unfactored)
  # Rows of features that are left out, and outputs that are not used.
  weights = dict(theta, w2=theta["w2"][:, :2], b2=theta["b2"][:2])
  if unfactored:
    weights["w0"] = theta["w0"][:velo_features.NUM_UNFACTORED]

  def apply(arrays, shape):
    if len(shape) > 2:
      # Each index of the first axis apart, of arrays that have it.
      own = jax.tree.map(lambda x: x.shape[1] > 1, arrays)
      arrays = jax.tree.map(lambda x, yes: x if yes else x[:, 0], arrays, own)
      return jax.vmap(
          lambda part: apply(part, shape[1:]), axis_size=shape[0],
          in_axes=(jax.tree.map(lambda yes: 1 if yes else None, own),))(arrays)
    inputs, row, column = arrays
    return mlp.apply(
        weights, features._replace(inputs=inputs, row=row, column=column),
        shape, lambda direction, magnitude: direction, lowering)

  return apply((features.inputs, features.row, features.column), grad.shape)


def _orthogonalize(x, iterations):
  """Newton-Schulz iterations of all matrices [m, n] in x [..., m, n]."""
  wide = x.shape[-2] <= x.shape[-1]
  x = x if wide else x.mT
  norm = jnp.sqrt(jnp.sum(jnp.square(x), (-2, -1), keepdims=True))
  x = orthogonal.iterate(x / (norm + NORM_EPSILON), iterations)
  return x if wide else x.mT


def _adam(learning_rate: float) -> optax.GradientTransformation:
  """Adam as Celo2 uses it: without bias correction, epsilon in the root."""
  zeros = lambda params: jax.tree.map(
      lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)

  def update(grads, state, params=None):
    del params
    momentum, second = (
        jax.tree.map(lambda old, g: decay * old + (1 - decay) * g.astype(
            jnp.float32)**power, old, grads)
        for power, (decay, old) in enumerate(zip(ADAM_DECAYS, state), 1))
    change = lambda m, v, g: (
        -learning_rate * m * jax.lax.rsqrt(v + ADAM_EPSILON)).astype(g.dtype)
    return jax.tree.map(change, momentum, second, grads), AdamState(
        momentum, second)

  return optax.GradientTransformation(
      lambda params: AdamState(zeros(params), zeros(params)), update)
