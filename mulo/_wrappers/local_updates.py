"""Local steps on each worker, then one step of an outer optimizer for all."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import base
from learned_opt import workers
from learned_opt.update import per_parameter

check_arrays: Any = per_parameter.check_arrays  # has no annotations


class LocalUpdatesState(NamedTuple):
  """State of `local_updates`.

  Attributes:
    count: local steps since the last round, int32 scalar.
    inner: state of the inner optimizer, which each worker has for itself.
    outer: state of the outer optimizer, equal on all workers.
    anchor: the common parameters, equal on all workers; those to evaluate.
  """

  count: Any
  inner: Any
  outer: Any
  anchor: Any


def local_updates(
    inner: optax.GradientTransformation, outer: optax.GradientTransformation, *,
    every: int, axis_name: workers.AxisName = None, average_inner: bool = False
    ) -> optax.GradientTransformationExtraArgs:
  """Return local updates with an outer optimizer.

  Each worker has parameters of its own and takes steps of `inner` on its own
  gradients. After `every` steps, a round ends: the mean over workers of

      common parameters - parameters of the worker

  is the gradient of `outer`, which moves the common parameters, and every
  worker goes on from there. Workers communicate only then.

  | method | outer |
  | --- | --- |
  | local SGD, FedAvg | `optax.sgd(1.0)` |
  | SlowMo | `optax.sgd(rate, momentum=0.8)` |
  | DiLoCo (inner AdamW), MuLoCo (inner Muon) | `optax.sgd(0.7, 0.9, True)` |
  | learned | `mulo.load(..., num_steps=number of rounds)` |

  An outer optimizer with epsilons expects a gradient, whose size the difference
  does not have: put `optax.scale(1 / (inner learning rate * every))` in front.
  mulo-s needs no such link. The optimizer "lagg" also reads how far workers
  agree, at four times the communication.

  Args:
    inner: optimizer of the local steps.
    outer: optimizer of the rounds; its schedules and num_steps count rounds.
    every: local steps in a round.
    axis_name: of the workers: a mesh axis inside of `jax.shard_map`, an axis of
      `jax.vmap`, or a tuple of both for several workers per device (JAX then
      needs `shard_map(..., check_vma=False)`). None for a single worker.
    average_inner: whether the floating-point numbers in the state of `inner`
      are averaged over workers in each round. Otherwise each worker keeps its
      own.

  Returns:
    A transformation whose `update` needs `params`. Call `init` on the common
    parameters, outside of `shard_map`. With workers, `inner` and parameters
    get a leading axis of workers, while `count`, `outer` and `anchor` have
    none: `LocalUpdatesState(None, 0, None, None)` are the axes for `vmap`, and
    `LocalUpdatesState(P(), P("workers"), P(), P())` the specs for `shard_map`.
    `update` passes its extra arguments to `inner`; `outer` gets the mean of
    `value`. No link may come after it in a chain: its updates move workers to
    the common parameters.

  Raises:
    ValueError: `every` is not a positive integer. `init`: a parameter is not an
      array of real numbers. `update`: no params, or no axis of this name.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import mulo
    >>> import optax
    >>> tx = mulo.local_updates(optax.sgd(0.1), optax.sgd(0.7, 0.9, True),
    ...                         every=4, axis_name="workers")
    >>> params = {"w": jnp.ones(3)}
    >>> axes = mulo.LocalUpdatesState(None, 0, None, None)
    >>> state = jax.vmap(tx.init, in_axes=None, out_axes=axes, axis_size=8)(
    ...     params)
    >>> params = {"w": jnp.ones((8, 3))}  # of 8 workers
    >>> step = jax.vmap(tx.update, (0, axes, 0), (0, axes),
    ...                 axis_name="workers")
    >>> updates, state = step(params, state, params)
    >>> updates["w"].shape
    (8, 3)

  Reference:
    Stich, 2018, https://arxiv.org/abs/1805.09767 (local SGD). Wang et al.,
    2019, https://arxiv.org/abs/1910.00643 (SlowMo). Douillard et al., 2023,
    https://arxiv.org/abs/2311.08105 (DiLoCo). Joseph et al., 2023,
    https://arxiv.org/abs/2312.02204 (learned outer optimizers).
  """
  base.check_sizes(every=every)
  return _transformation(
      optax.with_extra_args_support(inner),
      optax.with_extra_args_support(outer), every, axis_name, average_inner)


def _transformation(
    inner: optax.GradientTransformationExtraArgs,
    outer: optax.GradientTransformationExtraArgs, every: int,
    axis_name: workers.AxisName, average_inner: bool
    ) -> optax.GradientTransformationExtraArgs:
  """Return the result of `local_updates`, whose arguments these are."""

  def init(params: optax.Params) -> LocalUpdatesState:
    check_arrays(params)
    # A copy: a training loop may donate both parameters and state.
    return LocalUpdatesState(
        jnp.zeros([], jnp.int32), inner.init(params), outer.init(params),
        jax.tree.map(jnp.copy, params))

  def update(updates: optax.Updates, state: LocalUpdatesState,
             params: optax.Params | None = None, **extra_args: Any
             ) -> tuple[optax.Updates, LocalUpdatesState]:
    if params is None:
      raise ValueError("Local updates read the parameters: call "
                       "update(grads, state, params).")
    updates, inner_state = inner.update(
        updates, state.inner, params, **extra_args)
    value = {"value": extra_args["value"]} if "value" in extra_args else {}
    local = updates, inner_state, state.outer, state.anchor
    count = (state.count + 1) % every
    # Always the mean, but typed as different on each worker, as the state that
    # the other branch returns is.
    choose = lambda mean, own: jnp.where(count == 0, mean, own)

    def end_round() -> tuple[Any, Any, Any, Any]:
      differences = jax.tree.map(
          lambda common, own: (common - own).astype(common.dtype),
          state.anchor, optax.apply_updates(params, updates))
      # The spread is a function: only an optimizer that calls it has the cost.
      moves, outer_state = outer.update(
          workers.mean(differences, axis_name), state.outer, state.anchor,
          spread=lambda: workers.spread(differences, axis_name),
          **workers.mean(value, axis_name))
      anchor = optax.apply_updates(state.anchor, moves)
      back = jax.tree.map(
          lambda common, own, update: (common - own).astype(update.dtype),
          anchor, params, updates)
      own_state = jax.tree.map(
          choose, workers.mean(inner_state, axis_name), inner_state) if (
              average_inner) else inner_state
      return back, own_state, outer_state, anchor

    try:
      updates, *states = jax.lax.cond(count == 0, end_round, lambda: local)
    except NameError as e:
      raise ValueError(
          f"There is no axis {axis_name!r} of workers: call update inside of "
          "jax.shard_map or jax.vmap with this axis_name.") from e
    return updates, LocalUpdatesState(count, *states)

  return optax.GradientTransformationExtraArgs(init, update)
