"""Learning rate and weight decay, as links of a chain.

The structure of the state must not depend on the value of a number: training
goes on from a checkpoint with another learning rate or weight decay. A number
that changes nothing therefore has a link, too.
"""

import math
import numbers
from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax


def check(name: str, value: Any) -> None:
  """Raise ValueError unless a rate is a finite number or a schedule.

  Traced numbers pass, because their values are unknown.

  Args:
    name: of the rate, for the message.
    value: number, array without axes, or schedule.
  """
  if callable(value) or isinstance(value, jax.core.Tracer):
    return
  number = isinstance(value, numbers.Real) or (
      hasattr(value, "dtype") and jnp.shape(value) == () and
      jnp.issubdtype(value.dtype, jnp.floating))
  if not number or isinstance(value, bool):
    raise ValueError(
        f"{name} must be a number or an optax schedule, got {value!r}.")
  if not math.isfinite(value):
    raise ValueError(f"{name} must be finite, got {value}.")


def check_decay(weight_decay: Any) -> None:
  """Raise ValueError unless weight_decay is a rate and is not negative."""
  check("weight_decay", weight_decay)
  if isinstance(weight_decay, numbers.Real) and weight_decay < 0:
    raise ValueError(f"weight_decay must not be negative, got {weight_decay}.")


def keywords(name: str, given: dict[str, Any]) -> dict[str, Any]:
  """Return keyword arguments, also if they come in a dict of their own.

  `optax.inject_hyperparams` passes the arguments of `**name` as one argument
  `name`, a dict.

  Args:
    name: name of the dict.
    given: keyword arguments as they come.
  """
  given = dict(given)
  nested: dict[str, Any] = given.pop(name, {})
  return nested | given


def add_decay(weight_decay: float | optax.Schedule,
              mults_of: Callable[[optax.Params], Any]
              ) -> optax.GradientTransformation:
  """Add `weight_decay * mult * parameter` to each update.

  Args:
    weight_decay: number or schedule; its sign is that of the term.
    mults_of: `mults_of(params)` returns the tree of mults, one per parameter.
      A parameter with mult 0 gets no term.

  Returns:
    A transformation whose `update` raises ValueError without `params`, unless
    weight_decay is the number 0.
  """
  # Tracers, as those of `optax.inject_hyperparams`, are no Python numbers.
  zero = isinstance(weight_decay, numbers.Real) and weight_decay == 0

  def init(params: optax.Params) -> optax.OptState:
    del params
    if callable(weight_decay):
      return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
    return optax.EmptyState()

  def update(updates: optax.Updates, state: Any,
             params: optax.Params | None = None
             ) -> tuple[optax.Updates, optax.OptState]:
    if zero:
      return updates, state
    if params is None:
      raise ValueError("Weight decay reads the parameters: call "
                       "update(grads, state, params).")
    decay = weight_decay
    if callable(weight_decay):
      decay = weight_decay(state.count)
      state = optax.ScaleByScheduleState(optax.safe_increment(state.count))

    def add(update: Any, param: Any, mult: float) -> Any:
      if isinstance(mult, float) and mult == 0:
        return update
      return update + (decay * mult * param).astype(update.dtype)

    return jax.tree.map(add, updates, params, mults_of(params)), state

  return optax.GradientTransformation(init, update)
