"""Apply an update rule of one parameter to every parameter of a tree.

Statistics are trees like the parameters, as in the optimizers of optax: where
the state of one parameter has an array, the state of all parameters has a tree.

Small parameters of one shape and dtype are stacked and go through one copy of
the rule, so that programs and the number of kernels stay small. Large
parameters go through the rule one after the other, because stacking them would
copy them. XLA compiles the kernels of equal shapes only once.
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import base
from learned_opt.update import blocks
from learned_opt.update import sharding


class State(NamedTuple):
  """State of a per-parameter optimizer.

  Attributes:
    step: number of steps taken, int32 scalar.
    statistics: the state of one parameter, with a tree like the parameters in
      place of each array.
  """

  step: jax.Array
  statistics: Any


def transformation(
    init_one: Callable, step_one: Callable, in_turn: bool = False
    ) -> optax.GradientTransformationExtraArgs:
  """Return an optax transformation made of an update rule of one parameter.

  Args:
    init_one: see `Statistics`.
    step_one: `(grad, param, state, step) -> (update, state)`, float32, with
      `step` the number of steps taken before this step. Scalars come as [1].
    in_turn: see `Statistics`.

  Returns:
    A transformation whose updates have the dtype of the gradients. Its
    `update` raises ValueError without `params`, or if the state was made for
    other parameters.
  """
  states = Statistics(init_one, in_turn)

  def without_context(grad, param, state, step, context):
    del context
    return step_one(grad, param, state, step)

  def init(params):
    statistics = states.init(params)
    step = sharding.whole(lambda: jnp.zeros([], jnp.int32), params)
    return State(step, statistics)

  def update(grads, state, params=None, **extra_args):
    del extra_args
    updates, statistics = states.update(
        without_context, grads, states.matched(grads, params, state.statistics),
        state.statistics, state.step)
    return updates, State(optax.safe_increment(state.step), statistics)

  return optax.GradientTransformationExtraArgs(init, update)


class Statistics:
  """States of all parameters: how they are made, checked, read and updated.

  Args:
    init_one: `shape -> state` of one parameter, a tree of arrays of the same
      structure for all shapes. Scalars come as shape (1,).
    in_turn: whether large parameters of one shape are updated strictly one
      after the other. It takes longer, and the memory for intermediate arrays
      is that of one parameter.
  """

  def __init__(self, init_one: Callable, in_turn: bool = False):
    self._init_one, self._in_turn = init_one, in_turn
    self._structure: Any = jax.tree.structure(self._shapes(()))

  def init(self, params: Any) -> Any:
    """Return the first `State.statistics`.

    Args:
      params: tree of arrays, possibly in boxes.

    Raises:
      ValueError: a parameter is not an array of real numbers.
    """
    check_arrays(params)

    def field(i):
      def make(param):
        new = lambda: jax.tree.leaves(self._init_one(param.shape or (1,)))[i]
        # State of a scalar is scalar.
        return sharding.made(
            lambda: new() if param.shape else new().reshape(()), param)
      return sharding.tree_map(make, params)

    return jax.tree.unflatten(
        self._structure, [field(i) for i in range(self._structure.num_leaves)])

  def matched(self, grads: Any, params: Any, statistics: Any) -> Any:
    """Return the parameters that have gradients, as a tree like grads.

    Args:
      grads: tree of arrays.
      params: tree like grads, possibly with more leaves; None if there are
        none.
      statistics: see `State`.

    Raises:
      ValueError: params is None, or the states belong to other parameters.
    """
    base.check_params(params)
    params = jax.tree.map(lambda _, p: p, grads, params)
    for (name, p), g in zip(_named(params).items(), jax.tree.leaves(grads)):
      if p.shape != g.shape:
        raise ValueError(f"The gradient of {name} has the shape {g.shape}, the "
                         f"parameter has {p.shape}.")
    wanted = {name: [x.shape for x in jax.tree.leaves(self._shapes(p.shape))]
              for name, p in _named(params).items()}
    advice = "Call init(params) with the parameters that are trained."
    try:
      fields = self._fields(statistics)
    except ValueError as e:
      raise ValueError("The state is that of another optimizer, or of another "
                       f"version of mulo. {advice}") from e
    for i, field in enumerate(fields):
      actual = {name: x.shape for name, x in _named(field).items()}
      for name in {**wanted, **actual}:
        expected = wanted[name][i] if name in wanted else None
        if actual.get(name) != expected:
          raise ValueError(
              f"The state was made for other parameters: at {name} its shape "
              f"is {actual.get(name)}, these parameters need {expected}. "
              f"{advice}")
    return params

  def update(self, step_one: Callable, grads: Any, params: Any,
             statistics: Any, step: jax.Array, context: Any = None
             ) -> tuple[Any, Any]:
    """Return updates and states after one step of all parameters.

    Args:
      step_one: `(grad, param, state, step, context) -> (update, state)`, see
        `transformation`.
      grads: tree of arrays.
      params: see `matched`.
      statistics: see `State`.
      step: number of steps taken before this step.
      context: tree of arrays [n, ...] for n parameters with elements, in the
        order of the tree. Each parameter receives its row.

    Returns:
      (updates, with the dtypes of the gradients; new states).
    """
    leaves, treedef = jax.tree.flatten(grads)
    params, updates = jax.tree.leaves(params), list(leaves)
    states = self._states(statistics, params)
    rows = {i: row for row, i in enumerate(filled(params))}
    for members in _groups(params):
      each = [(leaves[i], params[i], states[i],
               jax.tree.map(lambda x: x[rows[i]], context)) for i in members]
      results = _step_group(step_one, each, step, self._in_turn)
      for i, (change, state) in zip(members, results):
        updates[i] = change.reshape(leaves[i].shape).astype(leaves[i].dtype)
        states[i] = state
    return jax.tree.unflatten(treedef, updates), self._joined(
        statistics, states)

  def measure(self, fn: Callable, trees: tuple, statistics: Any) -> Any:
    """Return measurements of every parameter.

    Args:
      fn: `(*arrays, state) -> tree of arrays [...]` for one parameter. The
        arrays are in float32 and have at least one axis.
      trees: the parameters, of which one has elements, then trees like the
        parameters, such as gradients.
      statistics: see `State`.

    Returns:
      Tree of arrays [n, ...] for n parameters with elements, in the order of
      the tree.
    """
    leaves = [jax.tree.leaves(tree) for tree in trees]
    states = self._states(statistics, leaves[0])
    measured: dict[int, Any] = {}
    for members in _groups(leaves[0]):
      each = [(*(_wide(tree[i]) for tree in leaves), states[i])
              for i in members]
      one = lambda args: fn(*args)
      measured |= zip(members, map(one, each) if _are_large(each)
                      else _stacked(one, each))
    return jax.tree.map(
        lambda *x: jnp.stack(x), *(measured[i] for i in sorted(measured)))

  def _shapes(self, shape):
    """Return the state of a parameter as shapes and dtypes; (): of a scalar."""
    one = jax.eval_shape(lambda: self._init_one(shape or (1,)))
    return one if shape else jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((), x.dtype), one)

  def _fields(self, statistics):
    """Return one tree like the parameters for each array of a state."""
    return self._structure.flatten_up_to(statistics)

  def _states(self, statistics, params):
    """Return a list of the states of single parameters.

    Args:
      statistics: see `State`.
      params: list of all parameters.
    """
    columns = [jax.tree.leaves(tree) for tree in self._fields(statistics)]

    def state(i, param):
      arrays = [column[i] for column in columns]
      if not param.shape:
        shapes = jax.eval_shape(lambda: self._init_one((1,)))
        arrays = [x.reshape(s.shape)
                  for x, s in zip(arrays, jax.tree.leaves(shapes))]
      return jax.tree.unflatten(self._structure, arrays)

    return [state(i, param) for i, param in enumerate(params)]

  def _joined(self, statistics, states):
    """Return statistics, with their trees and shapes, from a list of states."""
    columns = list(zip(*map(jax.tree.leaves, states)))
    joined = []
    for i, tree in enumerate(self._fields(statistics)):
      old, treedef = jax.tree.flatten(tree)
      joined.append(jax.tree.unflatten(treedef, [
          new.reshape(x.shape) for x, new in zip(old, columns[i])
      ] if states else []))
    return jax.tree.unflatten(self._structure, joined)


def filled(params: Any) -> list[int]:
  """Return the indices of the parameters that have elements."""
  return [i for i, x in enumerate(jax.tree.leaves(params)) if x.size]


def rows(tree: Any, params: Any) -> jax.Array:
  """Return the arrays of parameters with elements, stacked: [n, ...].

  Args:
    tree: like the parameters, of arrays of one shape.
    params: see `Statistics.matched`; one of them has elements.
  """
  leaves = jax.tree.leaves(tree)
  return jnp.stack([leaves[i] for i in filled(params)])


def from_rows(new: jax.Array, tree: Any, params: Any) -> Any:
  """Return `tree` with the rows [n, ...] of parameters with elements."""
  leaves, treedef = jax.tree.flatten(tree)
  for row, i in enumerate(filled(params)):
    leaves[i] = new[row]
  return jax.tree.unflatten(treedef, leaves)


def _named(tree) -> dict[str, Any]:
  """Return {path: array}, whether or not the arrays are in boxes."""
  return {jax.tree_util.keystr(path, simple=True, separator="/"):
          jax.tree.leaves(x)[0]
          for path, x in jax.tree_util.tree_leaves_with_path(
              tree, is_leaf=sharding.is_box)}


def check_arrays(params):
  """Raise ValueError unless all parameters are arrays of real numbers."""
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
      raise ValueError(
          f"Parameter {name} is {x!r}, not an array: make it an array, or take "
          "it out of the parameters.")
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
      raise ValueError(
          f"Parameter {name} is complex ({x.dtype}): wrap the optimizer in "
          "optax.contrib.split_real_and_imaginary.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(
          f"Parameter {name} has the dtype {x.dtype}, for which there are no "
          "updates: take it out of the parameters, for example by "
          "optax.masked.")


def _groups(params) -> list[list[int]]:
  """Return indices of the parameters with elements, by dtype and shape."""
  groups: dict[Any, list[int]] = {}
  for i in filled(params):
    groups.setdefault((params[i].dtype, params[i].shape), []).append(i)
  return list(groups.values())


def _wide(x):
  """Return x in float32 with at least one axis."""
  return x.astype(jnp.float32).reshape(x.shape or (1,))


def _step_group(step_one, each, step, in_turn):
  """Return (update [*S] in float32, new state) of parameters of one shape.

  Args:
    step_one: see `Statistics.update`.
    each: list of (gradient, parameter, state, context).
    step: number of steps taken before this step.
    in_turn: see `Statistics`.
  """
  def rule(step, args):
    grad, param, state, context = args
    return step_one(_wide(grad), _wide(param), state, step, context)

  if not _are_large(each):
    together = functools.partial(_stacked, functools.partial(rule, step))
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
    results.append(rule(after, args))
    if in_turn:
      after = step + _zero(results[-1][0])
  return results


def _zero(x):
  """Return the int32 0, computed from x.

  XLA computes what depends on the result after x.
  """
  first = jax.lax.bitcast_convert_type(x[(0,) * x.ndim], jnp.int32)
  return jnp.minimum(jax.lax.shift_right_logical(first, jnp.int32(1)), 0)


def _are_large(each) -> bool:
  """Return whether several trees of arrays are too large to be stacked."""
  size = max(x.size for x in jax.tree.leaves(each[0]))
  return len(each) > 1 and len(each) * size > blocks.default_size()


def _stacked(fn, each):
  """Return a list of `fn` of each tree, by one call of `fn` under vmap."""
  if len(each) == 1:
    return [fn(each[0])]
  result = jax.vmap(fn)(jax.tree.map(lambda *x: jnp.stack(x), *each))
  return [jax.tree.map(lambda x: x[i], result) for i in range(len(each))]
