"""A rule for one parameter, applied to every parameter of a tree."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax


class State(NamedTuple):
  """State of a per-parameter optimizer.

  Attributes:
    step: number of steps taken, int32 scalar.
    per_parameter: tree like the parameters, with the state of each as leaf;
      None for parameters without elements.
  """

  step: jax.Array
  per_parameter: Any


def transformation(init_one: Callable, step_one: Callable
                   ) -> optax.GradientTransformationExtraArgs:
  """An optax transformation from a rule for one parameter.

  Args:
    init_one: `shape -> state` of one parameter; never the empty shape.
    step_one: `(grad, param, state, step) -> (update, state)`, float32, with
      `step` the number of steps taken before this one. Scalars come as [1].

  Returns:
    A transformation whose updates have the dtype of the gradients. Its
    `update` raises ValueError without `params`.
  """
  at_least_1d = lambda shape: shape if shape else (1,)

  def init(params):
    return State(
        jnp.zeros([], jnp.int32),
        jax.tree.map(lambda p: init_one(at_least_1d(p.shape)) if p.size
                     else None, params))

  def update(grads, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(
          "A learned optimizer reads the parameters: call "
          "update(grads, state, params), not update(grads, state).")

    def one(grad, param, old):
      if not grad.size:
        return grad, old
      wide = lambda x: x.astype(jnp.float32).reshape(at_least_1d(x.shape))
      change, new = step_one(wide(grad), wide(param), old, state.step)
      return change.reshape(grad.shape).astype(grad.dtype), new

    pairs = jax.tree.map(one, grads, params, state.per_parameter)
    pick = lambda i: jax.tree.map(lambda _, pair: pair[i], grads, pairs)
    return pick(0), State(optax.safe_increment(state.step), pick(1))

  return optax.GradientTransformationExtraArgs(init, update)
