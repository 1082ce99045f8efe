"""Interface of baselines, schedules of learning rates, and grids of rates."""

import functools
import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import schedules
from learned_opt.scaling import parametrizations
from learned_opt.scaling import roles as roles_lib
from tasks import base as tasks_base

WARM_UP = 0.05  # fraction of the steps
DECAYING = ("linear", "cosine")


def constant(step: jax.Array, num_steps: jax.Array) -> jax.Array:
  """Return the multiplier of the learning rate: always 1."""
  del step, num_steps
  return jnp.ones([], jnp.float32)


def cosine(step: jax.Array, num_steps: jax.Array) -> jax.Array:
  """Return the multiplier of the learning rate: warm-up, then half a cosine.

  The multiplier rises linearly to 1 over the fraction WARM_UP of the steps,
  then falls to 0.
  """
  warm = jnp.ceil(WARM_UP * num_steps)
  done = (step - warm) / jnp.maximum(num_steps - warm, 1)
  return jnp.where(step < warm, (step + 1) / warm,
                   0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1))))


def linear(step: jax.Array, num_steps: jax.Array) -> jax.Array:
  """Return the multiplier of the learning rate: warm-up, then a line to 0."""
  return schedules.multiplier("linear", WARM_UP, step, num_steps)


def warm_up(step: jax.Array, num_steps: jax.Array) -> jax.Array:
  """Return the multiplier of the learning rate: warm-up, then 1."""
  return schedules.multiplier("constant", WARM_UP, step, num_steps)


SCHEDULES = {"constant": constant, "cosine": cosine, "linear": linear,
             "warm_up": warm_up}


class Baseline(NamedTuple):
  """An optimizer, with the settings among which it is tuned.

  Attributes:
    label: name in tables and plots.
    make: `make(learning_rate, **settings)` returns the optax transformation.
      The learning rate is a number or an optax schedule. Settings are arguments
      of the optax function and replace the registered ones. If `make` has an
      argument `num_steps`, it receives the horizon. If it has an argument
      `task`, it receives the `tasks.base.Task`; its updates then are complete,
      with the multipliers of the parametrization.
    parametrization: parametrization of the network and of the update.
    learning_rates: grid of (peak) learning rates, in increasing order, half
      decades apart. While the best is at an edge, the next one is tried.
    tuned_at_base: True: in a study along an axis, the baseline is tuned at the
      first value and its setting kept for the others, as muP promises is
      possible. False: it is tuned at each value.
    schedules: schedules that are tried; None: those that the user names.
    variants: further settings of `make` that are tried, each with all learning
      rates and schedules.
  """

  label: str
  make: Callable[..., optax.GradientTransformation]
  parametrization: str
  learning_rates: tuple[float, ...]
  tuned_at_base: bool = False
  schedules: tuple[str, ...] | None = None
  variants: tuple[dict[str, Any], ...] = ({},)


def untuned(label: str, make: Callable[..., optax.GradientTransformation],
            parametrization: str = "standard") -> Baseline:
  """Return a baseline with one setting.

  Args:
    label: name in tables and plots.
    make: `make(**told)` returns the optax transformation, with its learning
      rate; it receives those of num_steps and task that it asks for.
    parametrization: see `Baseline`.
  """

  @functools.wraps(make)
  def ready(learning_rate, **told):
    del learning_rate
    return make(**told)

  return Baseline(label, ready, parametrization, (1.0,),
                  schedules=("constant",))


def half_decades(first: int, last: int) -> tuple[float, ...]:
  """Return 10^(first / 2), 10^((first + 1) / 2), ..., 10^(last / 2)."""
  return tuple(10**(e / 2) for e in range(first, last + 1))


def neighbor(learning_rate: float, up: bool) -> float:
  """Return the next learning rate on the grid of half decades."""
  exponent = round(2 * math.log10(learning_rate)) + (1 if up else -1)
  return half_decades(exponent, exponent)[0]


def inference(task: tasks_base.Task | None, parametrization: str
              ) -> dict[str, Any] | None:
  """Return the arguments of `mulo.scaling.infer` for the network of a task.

  Returns:
    None for a network without a width, whose parameters have no roles.
  """
  if task is None or task.base_shapes is None:
    return None
  knows_tables = parametrizations.get(parametrization).knows_tables
  tables = (task.tables or {}) if knows_tables else {}
  return {
      "base_shapes": task.base_shapes, "readout": False, "overrides": {
          **{path: roles_lib.Override(depth=depth)
             for path, depth in (task.blocks or {}).items()},
          **{path: roles_lib.Override(role=role)
             for path, role in tables.items()}}}
