"""Apply an update rule to parameters of one shape, stacked or in turn."""

import functools

import jax
import jax.numpy as jnp

from learned_opt.update import blocks


def wide(x):
  """Return x in float32 with at least one axis."""
  return x.astype(jnp.float32).reshape(x.shape or (1,))


def apply(step_one, each, step, in_turn, layers):
  """Return (update [*S] in float32, new state) of parameters of one shape.

  Args:
    step_one: see `Statistics.update`.
    each: list of (gradient, parameter, state, context).
    step: number of steps taken before this step.
    in_turn: see `Statistics`.
    layers: whether arrays are [k, ...], for k layers.
  """
  def rule(step, args):
    grad, param, state, context = args
    return step_one(wide(grad), wide(param), state, step, context)

  if not are_large(each, layers):
    one = functools.partial(rule, step)
    together = functools.partial(stacked, jax.vmap(one) if layers else one)
    if len(each) == 1:
      return together(each)
    shapes = jax.eval_shape(together, each)
    zeros = lambda each: jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # Always true, but XLA does not know. Without the branch, XLA fuses the rule
    # with each use of an update; ten parameters then made a program five times
    # as long, which took twice as long to compile.
    return jax.lax.cond(step >= 0, together, zeros, each)
  # Inside of a compiled program, the rule is traced and lowered once.
  rule = jax.jit(rule) if isinstance(step, jax.core.Tracer) else rule
  results, after = [], step
  for args in each:
    results.append(
        _in_loop(rule, after, args) if layers else rule(after, args))
    if in_turn:
      after = step + _zero(results[-1][0])
  return results


def _in_loop(rule, step, args):
  """Return (updates [k, *S], new states) of k layers, one after the other.

  The loop writes updates in place of gradients, and new states in place of old
  ones, so that intermediate arrays are those of one layer.
  """
  grads, params, states, context = args
  at = lambda tree, i: jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), tree)

  def body(i, carry):
    grads, states = carry
    change, state = rule(
        step, (at(grads, i), at(params, i), at(states, i), at(context, i)))
    change = change.reshape(grads.shape[1:]).astype(grads.dtype)
    return jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, i, 0),
        carry, (change, state))

  return jax.lax.fori_loop(0, len(grads), body, (grads, states))


def _zero(x):
  """Return the int32 0, computed from x.

  XLA computes what depends on the result after x.
  """
  first = jax.lax.bitcast_convert_type(
      x[(0,) * x.ndim].astype(jnp.float32), jnp.int32)
  return jnp.minimum(jax.lax.shift_right_logical(first, jnp.int32(1)), 0)


def are_large(each, layers: bool = False) -> bool:
  """Return whether several trees of arrays are too large to be stacked.

  Args:
    each: trees of arrays, one for each leaf.
    layers: whether arrays are [k, ...], for k layers.
  """
  size = max(x.size for x in jax.tree.leaves(each[0]))
  several = len(each) > 1 or layers and len(each[0][0]) > 1
  return several and len(each) * size > blocks.default_size()


def stacked(fn, each):
  """Return a list of `fn` of each tree, by one call of `fn` under vmap."""
  if len(each) == 1:
    return [fn(each[0])]
  result = jax.vmap(fn)(jax.tree.map(lambda *x: jnp.stack(x), *each))
  return [jax.tree.map(lambda x: x[i], result) for i in range(len(each))]
