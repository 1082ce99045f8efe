"""Apply an update rule of one parameter to every parameter of a tree.

Statistics are trees like the parameters, as in the optimizers of optax: where
the state of one parameter has an array, the state of all parameters has a tree.

Small parameters of one shape and dtype are stacked and go through one copy of
the rule, so that programs and the number of kernels stay small. Large
parameters go through the rule one after the other, because stacking them would
copy them. Layers of a stack (`learned_opt.kinds`) go through the rule likewise.
See `groups`.
"""

import functools
import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import base
from learned_opt import kinds as kinds_lib
from learned_opt.update import groups
from learned_opt.update import platform
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
    init_one: Callable, step_one: Callable, in_turn: bool = False,
    kinds: kinds_lib.Kinds | None = None, by_role: bool = False
    ) -> optax.GradientTransformationExtraArgs:
  """Return an optax transformation made of an update rule of one parameter.

  Args:
    init_one: see `Statistics`.
    step_one: `(grad, param, state, step) -> (update, state)`, float32, with
      `step` the number of steps taken before this step. Scalars come as [1].
      With by_role, the kind of the parameter is a fifth argument.
    in_turn: see `Statistics`.
    kinds: see `Statistics`.
    by_role: see `Statistics`.

  Returns:
    A transformation whose updates have the dtype of the gradients. Its
    `update` raises ValueError without `params`, or if the state was made for
    other parameters.
  """
  states = Statistics(init_one, in_turn, kinds, by_role)

  def without_context(grad, param, state, step, context, kind):
    del context
    return step_one(grad, param, state, step, *[kind] * by_role)

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
    kinds: what is known about parameters, see `learned_opt.kinds`. Below, a
      parameter is a single one or a layer of a stack.
    by_role: whether the update depends on more of a kind than the stack.
  """

  def __init__(self, init_one: Callable, in_turn: bool = False,
               kinds: kinds_lib.Kinds | None = None, by_role: bool = False):
    self._init_one, self._in_turn, self.kinds = init_one, in_turn, kinds
    self._by_role = by_role
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
      axes = iter(kinds_lib.stacks(params, self.kinds))

      def make(param):
        own = next(axes)
        return sharding.made(
            lambda: jax.tree.leaves(self._new(param.shape, own))[i], param)
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
    axes = kinds_lib.stacks(params, self.kinds)
    wanted = {
        name: [x.shape for x in jax.tree.leaves(self._shapes(p.shape, own))]
        for (name, p), own in zip(_named(params).items(), axes)}
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
      step_one: `(grad, param, state, step, context, kind) -> (update, state)`,
        see `transformation`; kind: see `learned_opt.kinds`.
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
    kinds = kinds_lib.of(grads, self.kinds)
    axes = [kind.stack for kind in kinds]
    if not self._by_role:
      kinds = [kinds_lib.Kind(own) for own in axes]
    params, updates = jax.tree.leaves(params), list(leaves)
    states = self._states(statistics, params, axes)
    front = lambda x, i: kinds_lib.to_front(x, x.shape, axes[i]) if (
        axes[i]) else x
    rows = self._rows(params, axes)
    for members in _groups(params, kinds):
      kind = kinds[members[0]]
      each = [(front(leaves[i], i), front(params[i], i), states[i],
               jax.tree.map(lambda x: x[rows[i]], context)) for i in members]
      results = groups.apply(
          lambda *args: step_one(*args, kind), each, step, self._in_turn,
          bool(kind.stack))
      for i, (change, state) in zip(members, results):
        shape = leaves[i].shape
        if axes[i]:
          layer = kinds_lib.layer_shape(shape, axes[i])
          change = kinds_lib.from_front(
              change.reshape(-1, *layer), shape, axes[i])
        updates[i] = change.reshape(shape).astype(leaves[i].dtype)
        states[i] = state
    return jax.tree.unflatten(treedef, updates), self._joined(
        statistics, states, params, axes)

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
    axes = kinds_lib.stacks(trees[0], self.kinds)
    states = self._states(statistics, leaves[0], axes)
    measured: dict[int, Any] = {}
    for members in _groups(leaves[0], axes):
      own = axes[members[0]]
      one = lambda args: fn(*map(groups.wide, args[0]), args[1])
      front = lambda x: kinds_lib.to_front(x, x.shape, own) if own else x
      each = [([front(tree[i]) for tree in leaves], states[i])
              for i in members]
      large = groups.are_large(each, bool(own))
      if own:
        one = functools.partial(jax.lax.map, one) if (
            large and platform.is_cpu()) else jax.vmap(one)
      results = map(one, each) if large else groups.stacked(one, each)
      measured |= zip(members, results if own else [
          jax.tree.map(lambda x: x[None], x) for x in results])
    return jax.tree.map(
        lambda *x: jnp.concatenate(x), *(measured[i] for i in sorted(measured)))

  def repeated(self, make: Callable[[], jax.Array], params: Any) -> Any:
    """Return a tree like params with one array for each parameter.

    Args:
      make: returns the array, [n]. Of k layers, the tree has [k, n].
      params: tree of arrays, possibly in boxes.
    """
    axes = iter(kinds_lib.stacks(params, self.kinds))

    def one(param):
      sizes = kinds_lib.sizes(param.shape, next(axes))
      return sharding.whole(
          lambda: jnp.broadcast_to(make(), (*sizes, *make().shape)), params)

    return sharding.tree_map(one, params)

  def rows(self, tree: Any, params: Any) -> jax.Array:
    """Return the arrays of parameters with elements, stacked: [k, n].

    Args:
      tree: see `repeated`.
      params: see `matched`; one of them has elements.
    """
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([leaves[i].reshape(-1, leaves[i].shape[-1])
                            for i in filled(params)])

  def from_rows(self, new: jax.Array, tree: Any, params: Any) -> Any:
    """Return `tree` with the rows [k, n] of parameters with elements."""
    leaves, treedef = jax.tree.flatten(tree)
    axes = kinds_lib.stacks(params, self.kinds)
    for i, own in self._rows(jax.tree.leaves(params), axes).items():
      leaves[i] = new[own].reshape(leaves[i].shape)
    return jax.tree.unflatten(treedef, leaves)

  def _rows(self, params, axes):
    """Return {index of a leaf with elements: its row, or its rows}."""
    rows, start = {}, 0
    for i in filled(params):
      count = math.prod(kinds_lib.sizes(params[i].shape, axes[i]))
      rows[i] = slice(start, start + count) if axes[i] else start
      start += count
    return rows

  def _new(self, shape, axes):
    """Return the first state of one leaf, see `_shapes`."""
    layer = kinds_lib.layer_shape(shape, axes)
    one = self._init_one(layer or (1,))
    if not layer:  # The state of a scalar is scalar.
      one = jax.tree.map(lambda x: x.reshape(()), one)
    if not axes:
      return one
    count = math.prod(kinds_lib.sizes(shape, axes))
    return jax.tree.map(lambda x: kinds_lib.from_front(
        jnp.broadcast_to(x, (count, *x.shape)), shape, axes), one)

  def _shapes(self, shape, axes=()):
    """Return the state of a leaf as shapes and dtypes."""
    return jax.eval_shape(lambda: self._new(shape, axes))

  def _fields(self, statistics):
    """Return one tree like the parameters for each array of a state."""
    return self._structure.flatten_up_to(statistics)

  def _states(self, statistics, params, axes):
    """Return a list of the states of leaves; of k layers, arrays are [k, ...].

    Args:
      statistics: see `State`.
      params: list of all parameters.
      axes: of the stack for each of them.
    """
    columns = [jax.tree.leaves(tree) for tree in self._fields(statistics)]

    def state(i, param):
      layer = kinds_lib.layer_shape(param.shape, axes[i])
      shapes = jax.tree.leaves(
          jax.eval_shape(lambda: self._init_one(layer or (1,))))
      arrays = [column[i] for column in columns]
      if axes[i]:
        arrays = [kinds_lib.to_front(x, param.shape, axes[i]) for x in arrays]
      lead = lambda x: x.shape[:1] if axes[i] else ()
      return jax.tree.unflatten(self._structure, [
          x.reshape((*lead(x), *s.shape)) for x, s in zip(arrays, shapes)])

    return [state(i, param) for i, param in enumerate(params)]

  def _joined(self, statistics, states, params, axes):
    """Return statistics, with their trees and shapes, from a list of states."""
    columns = list(zip(*map(jax.tree.leaves, states)))
    layers = [kinds_lib.layer_shape(p.shape, own)
              for p, own in zip(params, axes)]

    def joined(i, tree):
      old, treedef = jax.tree.flatten(tree)
      new = list(columns[i]) if states else []
      for j, own in enumerate(axes):
        x = new[j]
        if own:
          x = kinds_lib.from_front(
              x if layers[j] else x.reshape(-1), params[j].shape, own)
        new[j] = x.reshape(old[j].shape)
      return jax.tree.unflatten(treedef, new)

    return jax.tree.unflatten(self._structure, [
        joined(i, tree) for i, tree in enumerate(self._fields(statistics))])


def shapes(params: Any, kinds: kinds_lib.Kinds | None = None
           ) -> list[base.Shape]:
  """Return the shape of each parameter with elements, layers of stacks too."""
  return [kinds_lib.layer_shape(x.shape, axes) for x, axes in zip(
      jax.tree.leaves(params), kinds_lib.stacks(params, kinds)) if x.size
          for _ in range(math.prod(kinds_lib.sizes(x.shape, axes)))]


def filled(params: Any) -> list[int]:
  """Return the indices of the parameters that have elements."""
  return [i for i, x in enumerate(jax.tree.leaves(params)) if x.size]


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


def _groups(params, keys) -> list[list[int]]:
  """Return indices of leaves with elements, by dtype, shape and key."""
  groups: dict[Any, list[int]] = {}
  for i in filled(params):
    groups.setdefault(
        (params[i].dtype, params[i].shape, keys[i]), []).append(i)
  return list(groups.values())
