"""Schedules of the learning rate: a multiplier of updates and of weight decay.

All rise linearly during the warm-up and end at 0, but for "constant". With s
from 0 to 1 the fraction of the steps after the warm-up that are done:

  linear: 1 - s    cosine: (1 + cos(pi s)) / 2    sqrt: 1 - sqrt(s)
"""

from typing import Any, Callable

import jax
import jax.numpy as jnp

PEAK_STEPS = 500.0  # see `peak`
_SHAPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.ones_like, "linear": lambda s: 1 - s,
    "cosine": lambda s: 0.5 * (1 + jnp.cos(jnp.pi * s)),
    "sqrt": lambda s: 1 - jnp.sqrt(s)}


def names() -> list[str]:
  """Return the names of the schedules."""
  return list(_SHAPES)


def check(name: str | None, warmup: float) -> None:
  """Raise ValueError for an unknown schedule or warm-up."""
  if name is not None and name not in _SHAPES:
    raise ValueError(f"Unknown schedule {name!r}; available: None, "
                     f"{', '.join(_SHAPES)}, or an optax schedule as the "
                     "learning_rate of mulo.load.")
  if isinstance(warmup, bool) or not isinstance(warmup, (int, float)) or (
      not 0 <= warmup < 1):
    raise ValueError("warmup must be a fraction of the steps, from 0 to below "
                     f"1, got {warmup!r}.")


def multiplier(name: str | None, warmup: float, step: jax.Array,
               num_steps: Any) -> jax.Array:
  """Return the multiplier of one step, a float32 scalar.

  Args:
    name: of the schedule; None for a multiplier of 1.
    warmup: fraction of the steps.
    step: number of steps taken before this step.
    num_steps: planned number of steps; None for a multiplier of 1.
  """
  if name is None or num_steps is None:
    return jnp.ones([], jnp.float32)
  total = jnp.asarray(num_steps, jnp.float32)
  warm = jnp.ceil(warmup * total)
  done = step.astype(jnp.float32)
  rise = jnp.minimum(1, (done + 1) / jnp.maximum(warm, 1))
  s = jnp.clip((done - warm) / jnp.maximum(total - warm, 1), 0, 1)
  return jnp.where(done < warm, rise, _SHAPES[name](s))


def peak(power: float, num_steps: Any) -> jax.Array:
  """Return the multiplier of all steps of a run, a float32 scalar.

  Args:
    power: the best constant rate falls with the root of the number of steps
      where gradients are noisy (0.5), and not at all where they are not (0).
    num_steps: planned number of steps; None for a multiplier of 1, which is
      also that of PEAK_STEPS.
  """
  if num_steps is None:
    return jnp.ones([], jnp.float32)
  return (PEAK_STEPS / jnp.asarray(num_steps, jnp.float32))**power
