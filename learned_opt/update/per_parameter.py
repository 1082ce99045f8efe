"""Apply an update rule of one parameter to every parameter of a tree.

Parameters of one shape and dtype are stacked and go through one copy of the
rule. A program therefore grows with the number of distinct shapes, not with
the number of parameters.
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import base
from learned_opt.update import blocks
from learned_opt.update import sharding


class State(NamedTuple):
  """State of a per-parameter optimizer.

  Attributes:
    step: number of steps taken, int32 scalar.
    groups: {dtype and shape of parameters, such as "float32[8,16]": states}.
      The states of n > 1 parameters are stacked on a leading axis [n, ...], in
      the order of the tree. The state of a single parameter has no such axis.
      Parameters without elements have no state.
  """

  step: jax.Array
  groups: dict[str, Any]


def transformation(init_one: Callable, step_one: Callable
                   ) -> optax.GradientTransformationExtraArgs:
  """Return an optax transformation made of an update rule of one parameter.

  Args:
    init_one: `shape -> state` of one parameter. Scalars come as shape (1,).
    step_one: `(grad, param, state, step) -> (update, state)`, float32, with
      `step` the number of steps taken before this step. Scalars come as [1].

  Returns:
    A transformation whose updates have the dtype of the gradients. Its
    `update` raises ValueError without `params`, or if the state was made for
    other parameters.
  """

  def without_context(grad, param, state, step, context):
    del context
    return step_one(grad, param, state, step)

  def init(params):
    step = sharding.whole(lambda: jnp.zeros([], jnp.int32), params)
    return State(step, init_groups(init_one, params))

  def update(grads, state, params=None, **extra_args):
    del extra_args
    updates, groups = update_groups(
        without_context, grads,
        matched(init_one, grads, params, state.groups), state.groups,
        state.step)
    return updates, State(optax.safe_increment(state.step), groups)

  return optax.GradientTransformationExtraArgs(init, update)


def init_groups(init_one: Callable, params: Any) -> dict[str, Any]:
  """Return the states of all parameters, `State.groups`.

  Args:
    init_one: see `transformation`.
    params: tree of arrays.
  """
  leaves, states = jax.tree.leaves(params), {}
  for name, members in _groups(leaves).items():
    param, n = leaves[members[0]], len(members)

    def make():
      state = init_one(param.shape or (1,))
      return state if n == 1 else jax.tree.map(
          lambda x: jnp.broadcast_to(x, (n, *x.shape)), state)

    states[name] = sharding.made(make, param)
  return states


def matched(init_one: Callable, grads: Any, params: Any,
            groups: dict[str, Any]) -> Any:
  """Return the parameters that have gradients, as a tree like grads.

  Args:
    init_one: see `transformation`.
    grads: tree of arrays.
    params: tree like grads, possibly with more leaves; None if there are none.
    groups: see `State`.

  Raises:
    ValueError: params is None, or the states belong to other parameters.
  """
  base.check_params(params)
  params = jax.tree.map(lambda _, p: p, grads, params)
  shapes = lambda tree: {
      jax.tree_util.keystr(path): x.shape
      for path, x in jax.tree_util.tree_leaves_with_path(tree)}
  expected = shapes(jax.eval_shape(
      functools.partial(init_groups, init_one), params))
  actual = shapes(groups)
  wrong = sorted(set(expected.items()) ^ set(actual.items()))
  if wrong:
    name = wrong[0][0]
    raise ValueError(
        f"The state was made for other parameters: at {name} its shape is "
        f"{actual.get(name)}, these parameters need {expected.get(name)}. Call "
        "init(params) with the parameters that are trained.")
  return params


def update_groups(step_one: Callable, grads: Any, params: Any,
                  groups: dict[str, Any], step: jax.Array, context: Any = None
                  ) -> tuple[Any, dict[str, Any]]:
  """Return updates and states after one step of all parameters.

  Args:
    step_one: `(grad, param, state, step, context) -> (update, state)`, see
      `transformation`.
    grads: tree of arrays.
    params: see `matched`.
    groups: see `State`.
    step: number of steps taken before this step.
    context: tree of arrays [n, ...] for n parameters with elements, in the
      order of the tree. Each parameter receives its row.

  Returns:
    (updates, with the dtypes of the gradients; new states).
  """
  leaves, treedef = jax.tree.flatten(grads)
  params = jax.tree.leaves(params)
  filled = [i for i, x in enumerate(params) if x.size]
  updates, states = list(leaves), {}
  for name, members in _groups(params).items():
    take = lambda leaves: [leaves[i] for i in members]
    # Context has no rows for parameters without elements.
    rows = np.searchsorted(filled, members)
    changes, states[name] = _step_group(
        step_one, take(leaves), take(params), groups[name],
        jax.tree.map(lambda x: x[rows], context), step)
    for i, change in zip(members, changes):
      updates[i] = change.reshape(leaves[i].shape).astype(leaves[i].dtype)
  return jax.tree.unflatten(treedef, updates), states


def measure(fn: Callable, trees: tuple, groups: dict[str, Any]) -> Any:
  """Return measurements of every parameter.

  Args:
    fn: `(*arrays, state) -> tree of arrays [...]` for one parameter. The arrays
      are in float32 and have at least one axis.
    trees: the parameters, then trees like the parameters, such as gradients.
    groups: see `State`; not empty.

  Returns:
    Tree of arrays [n, ...] for n parameters with elements, in the order of the
    tree.
  """
  leaves = [jax.tree.leaves(tree) for tree in trees]
  measured, order = [], []
  for name, members in _groups(leaves[0]).items():
    rows = [[_wide(tree[i]) for i in members] for tree in leaves]
    if len(members) == 1:
      alone = fn(*(row[0] for row in rows), groups[name])
      measured.append(jax.tree.map(lambda x: x[None], alone))
    else:
      measured.append(jax.vmap(fn)(*map(jnp.stack, rows), groups[name]))
    order += members
  # From the order of the groups back to the order of the tree.
  back = np.argsort(order)
  return jax.tree.map(lambda *x: jnp.concatenate(x)[back], *measured)


def _groups(leaves) -> dict[str, list[int]]:
  """Return indices of the leaves with elements, by dtype and shape."""
  groups: dict[str, list[int]] = {}
  for i, x in enumerate(leaves):
    if x.size:
      name = f"{x.dtype}[{','.join(map(str, x.shape))}]"
      groups.setdefault(name, []).append(i)
  # In the order in which JAX flattens dicts, as of states.
  return dict(sorted(groups.items()))


def _wide(x):
  """Return x in float32 with at least one axis."""
  return x.astype(jnp.float32).reshape(x.shape or (1,))


def _step_group(step_one, grads, params, states, contexts, step):
  """Apply the rule to n parameters of one shape, whose states are stacked.

  Small parameters are updated at once. Large parameters are updated one after
  the other, in place, so that intermediate arrays stay small.

  Args:
    step_one: see `update_groups`.
    grads: list of n arrays.
    params: list of n arrays.
    states: tree of arrays, see `State`.
    contexts: tree of arrays [n, ...].
    step: number of steps taken before this step.

  Returns:
    (n updates [*S], float32; new states).
  """
  def rule(grad, param, state, context):
    return step_one(_wide(grad), _wide(param), state, step, context)

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
    # Always true, but XLA does not know. Without the branch, XLA fuses the rule
    # with each use of an update; ten parameters then made a program five times
    # as long, which took twice as long to compile.
    return jax.lax.cond(step >= 0, jax.vmap(rule), zeros, *args)

  def body(i, carry):
    changes, states = carry
    # Indexing a stack would copy all n arrays; a switch reads only one.
    member = jax.lax.switch(i, [lambda x=x: x for x in zip(grads, params)])
    take = lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
    new = rule(*member, *jax.tree.map(take, (states, contexts)))
    # XLA updates the carry of a loop in place.
    put = lambda old, x: jax.lax.dynamic_update_index_in_dim(old, x, i, 0)
    return jax.tree.map(put, (changes, states), new)

  changes = sharding.made(
      lambda: jnp.zeros((n, *(grads[0].shape or (1,))), jnp.float32), grads[0])
  return jax.lax.fori_loop(0, n, body, (changes, states))
