"""A rule for one parameter, applied to every parameter of a tree.

Parameters of one shape and dtype are stacked and go through one copy of the
rule, so a program grows with the number of distinct shapes, not with that of
parameters.
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import base
from learned_opt.update import blocks
from learned_opt.update import placement


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

  def init(params):
    step = placement.whole(lambda: jnp.zeros([], jnp.int32), params)
    return State(step, init_groups(init_one, params))

  def update(grads, state, params=None, **extra_args):
    del extra_args
    updates, groups = update_groups(
        lambda grad, param, one, step, context: step_one(
            grad, param, one, step), grads,
        matched(init_one, grads, params, state.groups), state.groups,
        state.step)
    return updates, State(optax.safe_increment(state.step), groups)

  return optax.GradientTransformationExtraArgs(init, update)


def init_groups(init_one: Callable, params: Any) -> dict[str, Any]:
  """States of all parameters, `State.groups`.

  Args:
    init_one: see `transformation`.
    params: tree of arrays.
  """
  leaves, states = jax.tree.leaves(params), {}
  for name, members in _groups(leaves).items():
    param, n = leaves[members[0]], len(members)

    def make():
      one = init_one(param.shape or (1,))
      return one if n == 1 else jax.tree.map(
          lambda x: jnp.broadcast_to(x, (n, *x.shape)), one)

    states[name] = placement.made(make, param)
  return states


def matched(init_one: Callable, grads: Any, params: Any,
            groups: dict[str, Any]) -> Any:
  """The parameters whose gradients these are, as a tree like that of grads.

  Args:
    init_one: see `transformation`.
    grads: tree of arrays.
    params: as grads, possibly with more leaves; None if there are none.
    groups: see `State`.

  Raises:
    ValueError: params is None, or the states are those of other parameters.
  """
  base.check_params(params)
  params = jax.tree.map(lambda _, p: p, grads, params)
  shapes = lambda tree: {
      jax.tree_util.keystr(path): x.shape
      for path, x in jax.tree_util.tree_leaves_with_path(tree)}
  expected = shapes(jax.eval_shape(
      functools.partial(init_groups, init_one), params))
  found = shapes(groups)
  wrong = sorted(set(expected.items()) ^ set(found.items()))
  if wrong:
    name = wrong[0][0]
    raise ValueError(
        f"The state is not one of these parameters: at {name} it has shape "
        f"{found.get(name)}, they need {expected.get(name)}. Call init(params) "
        "with the parameters that are trained.")
  return params


def update_groups(step_one: Callable, grads: Any, params: Any,
                  groups: dict[str, Any], step: jax.Array, context: Any = None
                  ) -> tuple[Any, dict[str, Any]]:
  """One step of all parameters.

  Args:
    step_one: `(grad, param, state, step, context) -> (update, state)`, see
      `transformation`.
    grads: tree of arrays.
    params: see `matched`.
    groups: see `State`.
    step: number of steps taken before this one.
    context: tree of arrays [n, ...], of which each of the n parameters with
      elements gets its row, in the order of the tree.

  Returns:
    The updates, with the dtypes of the gradients, and the new states.
  """
  leaves, treedef = jax.tree.flatten(grads)
  params = jax.tree.leaves(params)
  filled = [i for i, x in enumerate(params) if x.size]
  updates, states = list(leaves), {}
  for name, members in _groups(params).items():
    take = lambda leaves: [leaves[i] for i in members]
    rows = np.searchsorted(filled, members)
    changes, states[name] = _step_group(
        step_one, take(leaves), take(params), groups[name],
        jax.tree.map(lambda x: x[rows], context), step)
    for i, change in zip(members, changes):
      updates[i] = change.reshape(leaves[i].shape).astype(leaves[i].dtype)
  return jax.tree.unflatten(treedef, updates), states


def measure(fn: Callable, trees: tuple, groups: dict[str, Any]) -> Any:
  """What a function says of each parameter.

  Args:
    fn: `(*arrays, state) -> tree of arrays [...]` for one parameter; the arrays
      are in float32 and of at least one axis.
    trees: the parameters, and trees like that, as gradients.
    groups: see `State`; not empty.

  Returns:
    Tree of arrays [n, ...] for n parameters with elements, in the order of the
    tree.
  """
  wide = lambda x: x.astype(jnp.float32).reshape(x.shape or (1,))
  leaves = [jax.tree.leaves(tree) for tree in trees]
  found, order = [], []
  for name, members in _groups(leaves[0]).items():
    rows = [[wide(kind[i]) for i in members] for kind in leaves]
    if len(members) == 1:
      one = fn(*(kind[0] for kind in rows), groups[name])
      found.append(jax.tree.map(lambda x: x[None], one))
    else:
      found.append(jax.vmap(fn)(*map(jnp.stack, rows), groups[name]))
    order += members
  back = np.argsort(order)
  return jax.tree.map(lambda *x: jnp.concatenate(x)[back], *found)


def _groups(leaves) -> dict[str, list[int]]:
  """Indices of the leaves with elements, by dtype and shape."""
  groups: dict[str, list[int]] = {}
  for i, x in enumerate(leaves):
    if x.size:
      name = f"{x.dtype}[{','.join(map(str, x.shape))}]"
      groups.setdefault(name, []).append(i)
  return dict(sorted(groups.items()))


def _step_group(step_one, grads, params, states, contexts, step):
  """The rule for each of n parameters of one shape; their states are stacked.

  Small ones at once; large ones one after the other, in place, so that
  intermediate arrays stay small.

  Args:
    step_one: see `update_groups`.
    grads: list of n arrays.
    params: list of n arrays.
    states: tree of arrays, see `State`.
    contexts: tree of arrays [n, ...].
    step: number of steps taken before this one.

  Returns:
    (n updates [*S], float32, the new states).
  """
  def rule(grad, param, state, context):
    wide = lambda x: x.astype(jnp.float32).reshape(x.shape or (1,))
    return step_one(wide(grad), wide(param), state, step, context)

  n = len(grads)
  if n == 1:
    change, states = rule(grads[0], params[0], states,
                          jax.tree.map(lambda x: x[0], contexts))
    return [change], states
  if n * grads[0].size <= blocks.default_size():
    args = jnp.stack(grads), jnp.stack(params), states, contexts
    shapes = jax.eval_shape(jax.vmap(rule), *args)
    zeros = lambda *args: jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.cond(step >= 0, jax.vmap(rule), zeros, *args)

  def body(i, carry):
    changes, states = carry
    # Not x[i] of a stack, which would be a copy of all n.
    member = jax.lax.switch(i, [lambda x=x: x for x in zip(grads, params)])
    take = lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
    new = rule(*member, *jax.tree.map(take, (states, contexts)))
    put = lambda old, x: jax.lax.dynamic_update_index_in_dim(old, x, i, 0)
    return jax.tree.map(put, (changes, states), new)

  changes = placement.made(
      lambda: jnp.zeros((n, *(grads[0].shape or (1,))), jnp.float32), grads[0])
  return jax.lax.fori_loop(0, n, body, (changes, states))
