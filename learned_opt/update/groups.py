"""Apply an update rule to parameters of one shape: stacked, or one by one.

On a CPU, a stack must fit the cache. Large parameters go through the rule one
after the other; many of them share one copy of it in the program. On a GPU or
TPU there is no loop and no branch, because the host would wait for the device:
parameters are stacked up to a larger size, and layers of a stack are one batch.
"""

import functools

import jax
import jax.numpy as jnp

from learned_opt.update import blocks
from learned_opt.update import platform
from learned_opt.update import sharding

# Large parameters of one shape from which on they share one copy of the rule on
# a CPU: the copies of arrays that this costs then save seconds of compilation.
MANY = 5
# Elements of a parameter up to which equal shapes are stacked on a GPU or TPU.
# By compiled programs for a GPU, stacking saves 35 launches for each parameter
# and costs 130 bytes of traffic for each element, which take equally long at
# about this size.
STACK_SIZE = 2**20


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
    change, new = step_one(wide(grad), wide(param), state, step, context)
    # With 64 bits allowed, a rule may compute in them.
    return change.astype(jnp.float32), jax.tree.map(
        lambda x, old: x.astype(old.dtype), new, state)

  if not are_large(each, layers):
    one = functools.partial(rule, step)
    together = functools.partial(stacked, jax.vmap(one) if layers else one)
    if len(each) == 1 or not platform.is_cpu():
      return together(each)
    zeros = functools.partial(_zeros, layers)
    # Always true, but XLA does not know. Without the branch, XLA fuses the rule
    # with each use of an update; ten parameters then made a program five times
    # as long, which took twice as long to compile.
    return jax.lax.cond(step >= 0, together, zeros, each)
  traced = isinstance(step, jax.core.Tracer)
  if len(each) >= MANY and traced and not layers and platform.is_cpu():
    return _one_body(rule, step, each)
  # Inside of a compiled program, the rule is traced and lowered once.
  rule = jax.jit(rule) if traced else rule
  results, after = [], step
  for args in each:
    if layers and platform.is_cpu():
      results.append(_in_loop(rule, after, args))
    elif layers:
      results.append(jax.vmap(functools.partial(rule, after))(args))
    else:
      results.append(rule(after, args))
    if in_turn and platform.is_cpu():
      after = step + _zero(results[-1][0])
  return results


def _zeros(layers, each):
  """Return zeros of the shapes that the result of `apply` has."""
  update = jax.vmap(wide) if layers else wide
  return [(jnp.zeros_like(update(grad)), jax.tree.map(jnp.zeros_like, state))
          for grad, _, state, _ in each]


def _one_body(rule, step, each):
  """Return a list of (update, new state) by one loop over the parameters.

  The program has the rule once, whatever the number of parameters. Each turn
  of the loop copies one parameter's arrays, so that intermediate arrays are
  those of one parameter; updates and new states are written in place of
  gradients and old states.
  """
  contexts = jax.tree.map(lambda *x: jnp.stack(x), *(x[3] for x in each))
  params = [x[1] for x in each]

  def body(i, carry):
    members = [(x[0], param, x[1]) for x, param in zip(carry, params)]
    grad, param, state = jax.lax.switch(
        i, [lambda members, j=j: members[j] for j in range(len(members))],
        members)
    context = jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), contexts)
    change, state = rule(step, (grad, param, state, context))
    new = change.reshape(grad.shape).astype(grad.dtype), state
    return [jax.lax.cond(i == j, lambda old, new: new, lambda old, new: old,
                         old, new) for j, old in enumerate(carry)]

  return jax.lax.fori_loop(
      0, len(each), body, [(x[0], x[2]) for x in each])


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
  if platform.is_cpu() or sharding.on_mesh():
    return several and len(each) * size > blocks.default_size()
  return len(each) > 1 and size > STACK_SIZE


def stacked(fn, each):
  """Return a list of `fn` of each tree, by one call of `fn` under vmap."""
  if len(each) == 1:
    return [fn(each[0])]
  result = jax.vmap(fn)(jax.tree.map(lambda *x: jnp.stack(x), *each))
  return [jax.tree.map(lambda x: x[i], result) for i in range(len(each))]
