"""A rule for one parameter, applied to every parameter of a tree."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax


class State(NamedTuple):
  """State of a per-parameter optimizer.

  Attributes:
    count: number of steps taken, int32 scalar.
    parameters: tree like the parameters, with the state of each as leaf.
  """

  count: jax.Array
  parameters: Any


def transformation(init_one: Callable, step_one: Callable
                   ) -> optax.GradientTransformationExtraArgs:
  """An optax transformation from a rule for one parameter.

  Args:
    init_one: `shape -> state` of one parameter; never the empty shape.
    step_one: `(grad, param, state, count) -> (update, state)`, float32, with
      `count` the number of steps taken before this one. Scalars come as [1].

  Returns:
    A transformation whose updates have the dtype of the gradients. Its
    `update` raises ValueError without `params`.
  """
  at_least_1d = lambda shape: shape if shape else (1,)

  def init(params):
    return State(
        jnp.zeros([], jnp.int32),
        jax.tree.map(lambda p: init_one(at_least_1d(p.shape)), params))

  def update(grads, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(
          "A learned optimizer reads the parameters: call "
          "update(grads, state, params), not update(grads, state).")

    def one(grad, param, acc):
      wide = lambda x: x.astype(jnp.float32).reshape(at_least_1d(x.shape))
      step, acc = step_one(wide(grad), wide(param), acc, state.count)
      return step.reshape(grad.shape).astype(grad.dtype), acc

    leaves, treedef = jax.tree.flatten(grads)
    pairs = [one(*x) for x in zip(leaves, treedef.flatten_up_to(params),
                                  treedef.flatten_up_to(state.parameters))]
    updates, parameters = zip(*pairs) if pairs else ((), ())
    return treedef.unflatten(updates), State(
        optax.safe_increment(state.count), treedef.unflatten(parameters))

  return optax.GradientTransformationExtraArgs(init, update)
