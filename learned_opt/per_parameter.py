"""A rule for one parameter, applied to every parameter of a tree.

Parameters of one shape and dtype are stacked and go through one copy of the
rule, so a program grows with the number of distinct shapes, not with that of
parameters.
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import blocks
from learned_opt import placement


class State(NamedTuple):
  """State of a per-parameter optimizer.

  Attributes:
    step: number of steps taken, int32 scalar.
    groups: by dtype and shape of the parameters, such as "float32[8,16]",
      their states, in the order of the tree on a leading axis [n, ...]; that
      of a single one without this axis. Parameters without elements have none.
  """

  step: jax.Array
  groups: dict[str, Any]


def transformation(init_one: Callable, step_one: Callable
                   ) -> optax.GradientTransformationExtraArgs:
  """An optax transformation from a rule for one parameter.

  Args:
    init_one: `shape -> state` of one parameter; never the empty shape.
    step_one: `(grad, param, state, step) -> (update, state)`, float32, with
      `step` the number of steps taken before this one. Scalars come as [1].

  Returns:
    A transformation whose updates have the dtype of the gradients. Its
    `update` raises ValueError without `params`, and where they are not those
    that the state was made for.
  """

  def init_groups(leaves):
    states = {}
    for name, members in _groups(leaves).items():
      param, n = leaves[members[0]], len(members)

      def make():
        one = init_one(param.shape or (1,))
        return one if n == 1 else jax.tree.map(
            lambda x: jnp.broadcast_to(x, (n, *x.shape)), one)

      states[name] = placement.made(make, param)
    return states

  def init(params):
    leaves = jax.tree.leaves(params)
    zero = lambda: jnp.zeros([], jnp.int32)
    step = placement.made(zero, leaves[0]) if leaves else zero()
    return State(step, init_groups(leaves))

  def update(grads, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(
          "A learned optimizer reads the parameters: call "
          "update(grads, state, params), not update(grads, state).")
    tree = grads
    grads = jax.tree.leaves(tree)
    params = jax.tree.leaves(jax.tree.map(lambda _, p: p, tree, params))
    _check(jax.eval_shape(init_groups, params), state.groups)
    updates, states = list(grads), {}
    step_group = functools.partial(_step_group, step_one, step=state.step)
    for name, members in _groups(params).items():
      take = lambda leaves: [leaves[i] for i in members]
      changes, states[name] = step_group(
          take(grads), take(params), state.groups[name])
      for i, change in zip(members, changes):
        change = change.reshape(grads[i].shape).astype(grads[i].dtype)
        updates[i] = placement.like(change, grads[i])
    return jax.tree.unflatten(jax.tree.structure(tree), updates), State(
        optax.safe_increment(state.step), states)

  return optax.GradientTransformationExtraArgs(init, update)


def _groups(leaves) -> dict[str, list[int]]:
  """Indices of the leaves with elements, by dtype and shape."""
  groups: dict[str, list[int]] = {}
  for i, x in enumerate(leaves):
    if x.size:
      name = f"{x.dtype}[{','.join(map(str, x.shape))}]"
      groups.setdefault(name, []).append(i)
  return dict(sorted(groups.items()))


def _check(expected, found):
  """Raises ValueError unless the state is one of the parameters at hand."""
  shapes = lambda tree: {
      jax.tree_util.keystr(path): x.shape
      for path, x in jax.tree_util.tree_leaves_with_path(tree)}
  expected, found = shapes(expected), shapes(found)
  wrong = sorted(set(expected.items()) ^ set(found.items()))
  if wrong:
    name = wrong[0][0]
    raise ValueError(
        f"The state is not one of these parameters: at {name} it has shape "
        f"{found.get(name)}, they need {expected.get(name)}. Call init(params) "
        "with the parameters that are trained.")


def _step_group(step_one, grads, params, states, step):
  """The rule for each of n parameters of one shape; their states are stacked.

  Small ones at once; large ones one after the other, in place, so that
  intermediate arrays stay small.

  Args:
    step_one: see `transformation`.
    grads: list of n arrays.
    params: list of n arrays.
    states: tree of arrays, see `State`.
    step: number of steps taken before this one.

  Returns:
    (n updates [*S], float32, the new states).
  """
  def rule(grad, param, state):
    wide = lambda x: x.astype(jnp.float32).reshape(x.shape or (1,))
    return step_one(wide(grad), wide(param), state, step)

  n = len(grads)
  # They share what is computed, so they are split alike for that.
  grads, params = ([placement.like(x, params[0]) for x in xs]
                   for xs in (grads, params))
  if n == 1:
    change, states = rule(grads[0], params[0], states)
    return [change], states
  if n * grads[0].size <= blocks.default_size():
    args = jnp.stack(grads), jnp.stack(params), states
    shapes = jax.eval_shape(jax.vmap(rule), *args)
    zeros = lambda *args: jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding), shapes)
    return jax.lax.cond(step >= 0, jax.vmap(rule), zeros, *args)

  def body(i, carry):
    changes, states = carry
    # Not x[i] of a stack, which would be a copy of all n.
    member = jax.lax.switch(i, [lambda x=x: x for x in zip(grads, params)])
    take = lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
    new = rule(member[0], member[1], jax.tree.map(take, states))
    put = lambda old, x: jax.lax.dynamic_update_index_in_dim(old, x, i, 0)
    return jax.tree.map(put, (changes, states), new)

  changes = placement.made(
      lambda: jnp.zeros((n, *(grads[0].shape or (1,))), jnp.float32), grads[0])
  return jax.lax.fori_loop(0, n, body, (changes, states))
