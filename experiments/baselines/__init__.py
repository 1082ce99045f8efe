"""Registry of baselines: optimizers, and the settings they are tuned among.

`base.py` says what a baseline is; the other files hold one kind each, but
`files.py` reads one from a file of the user. A
baseline whose name ends in `_tuned` tries BUDGET settings, unless it says
otherwise, so that all have the same budget. The table of all is printed by

    python -m experiments.baselines.page
"""

from __future__ import annotations

import inspect
from typing import Any, Callable

import jax.numpy as jnp
import optax

from experiments.baselines import base
from experiments.baselines import elementwise
from experiments.baselines import files
from experiments.baselines import matrices
from experiments.baselines import transferred

Baseline = base.Baseline
SCHEDULES = base.SCHEDULES
neighbor = base.neighbor
half_decades = base.half_decades
untuned = base.untuned
read = files.read
BUDGET = 24  # settings (learning rate, schedule, variant) on the first grid
MAX_GROWTH = 4  # learning rates by which a grid grows at most

# The name, parametrization and grid of a baseline must not change: they are in
# the identity of cells that studies have computed.
BASELINES = {**elementwise.FIRST, **matrices.FIRST, **transferred.FIRST,
             **elementwise.SECOND, **elementwise.TUNED, **matrices.TUNED,
             **transferred.TUNED}


def names() -> list[str]:
  """Return the names of all baselines."""
  return list(BASELINES)


def get(name: str) -> Baseline:
  """Return a baseline by name.

  Raises:
    ValueError: there is no baseline of this name.
  """
  if name not in BASELINES:
    raise ValueError(
        f"Unknown baseline {name!r}; available: {', '.join(BASELINES)}.")
  return BASELINES[name]


def opt_fn(baseline: Baseline, schedule: str, **settings: Any) -> Callable:
  """Return an `opt_fn` whose theta is the peak learning rate, a scalar array.

  Theta may be a dict instead, of "learning_rate" and of further settings that
  are numbers. All values of theta share one compiled program.

  Args:
    baseline: the optimizer.
    schedule: a key of SCHEDULES.
    **settings: of `Baseline.make`.

  Returns:
    `opt_fn(theta, *, num_steps)`. If the baseline asks for the task, `opt_fn`
    has the argument `task`, too.
  """
  multiplier = SCHEDULES[schedule]
  asked = inspect.signature(baseline.make).parameters

  def make(theta, *, num_steps=None, **told):
    total = jnp.asarray(num_steps, jnp.float32)
    numbers = dict(theta) if isinstance(theta, dict) else {
        "learning_rate": theta}
    peak = numbers.pop("learning_rate")
    if "num_steps" in asked:
      told["num_steps"] = total
    return optax.with_extra_args_support(baseline.make(
        lambda step: peak * multiplier(step, total),
        **settings, **numbers, **told))

  def of_task(theta, *, num_steps=None, task=None):
    if task is None:
      raise ValueError(f"{baseline.label} reads the roles of parameters: pass "
                       "opt_fn the argument task, a tasks.base.Task.")
    return make(theta, num_steps=num_steps, task=task)

  return of_task if "task" in asked else make
