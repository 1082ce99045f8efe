"""Baselines whose rule is the same for every entry, or nearly so."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from experiments.baselines.base import Baseline
from experiments.baselines.base import DECAYING
from experiments.baselines.base import half_decades

FIRST = {
    "adam": Baseline("Adam", optax.adam, "standard", half_decades(-8, 0)),
    "adamw": Baseline("AdamW", optax.adamw, "standard", half_decades(-8, 0))}

SECOND = {
    "sgd": Baseline(
        "SGD", functools.partial(optax.sgd, momentum=0.9), "standard",
        half_decades(-7, 1)),
    # Entries of an update of Lion are ±1, larger than those of Adam. The paper,
    # https://arxiv.org/abs/2302.06675, divides the learning rate by 3 to 10.
    "lion": Baseline("Lion", optax.lion, "standard", half_decades(-10, -2)),
    # Updates are relative to the RMS of the parameter.
    "adafactor": Baseline(
        "Adafactor", optax.adafactor, "standard", half_decades(-8, 0)),
    # With weight decay and schedules that suit it, to be beaten.
    "adamw_tuned": Baseline(
        "AdamW, tuned with decay", optax.adamw, "standard",
        half_decades(-7, -2), schedules=DECAYING,
        variants=({"weight_decay": 1e-4}, {"weight_decay": 0.1}))}


def schedule_free(learning_rate: Any, *, num_steps: jax.Array, **settings: Any
                  ) -> optax.GradientTransformationExtraArgs:
  """Return schedule-free AdamW, whose last step leads to the average.

  The gradients are those at y, as in the paper; evaluation is at the average x.

  Args:
    learning_rate: number or schedule.
    num_steps: number of steps.
    **settings: of `optax.contrib.schedule_free_adamw`.

  Reference:
    Defazio et al., 2024, https://arxiv.org/abs/2405.15682.
  """
  inner = optax.contrib.schedule_free_adamw(learning_rate, **settings)

  def update(grads, state, params=None, **extra_args):
    updates, state = inner.update(grads, state, params, **extra_args)
    average = optax.contrib.schedule_free_eval_params(
        state, optax.apply_updates(params, updates))
    ends = state.step_count > num_steps  # counts from 1
    return jax.tree.map(lambda u, x, p: jnp.where(ends, x - p, u),
                        updates, average, params), state

  return optax.GradientTransformationExtraArgs(inner.init, update)


def prodigy(learning_rate: Any, *, b2: Any = 0.999, weight_decay: Any = 0.0
            ) -> optax.GradientTransformation:
  """Return Prodigy, which estimates the step; the rate is a factor on it.

  Reference:
    Mishchenko and Defazio, 2023, https://arxiv.org/abs/2306.06101.
  """
  return optax.contrib.prodigy(
      learning_rate, betas=(0.9, b2), weight_decay=weight_decay,
      safeguard_warmup=True)


def _product(**values: tuple) -> tuple[dict[str, Any], ...]:
  """Return a setting for each combination of the values of arguments."""
  settings: list[dict[str, Any]] = [{}]
  for name, options in values.items():
    settings = [{**x, name: option} for x in settings for option in options]
  return tuple(settings)


TUNED = {
    # The rival of a learned optimizer, chosen on four tasks of prior_valid.
    "adamw_fixed": Baseline(
        "AdamW, one setting", functools.partial(
            optax.adamw, weight_decay=0.1),
        "standard", (0.01,), schedules=("linear",)),
    "sgd_tuned": Baseline(
        "SGD, tuned", functools.partial(optax.sgd, nesterov=True), "standard",
        half_decades(-5, 0), schedules=DECAYING,
        variants=_product(momentum=(0.9, 0.99))),
    "adam_tuned": Baseline(
        "Adam, tuned", optax.adam, "standard", half_decades(-7, -2),
        schedules=DECAYING, variants=_product(b2=(0.999, 0.95))),
    "adamw_b2_tuned": Baseline(
        "AdamW, tuned with decay and b2", optax.adamw, "standard",
        half_decades(-5, -3), schedules=DECAYING,
        variants=_product(b2=(0.999, 0.95), weight_decay=(0.0, 0.1))),
    "nadamw_tuned": Baseline(
        "NAdamW, tuned", optax.nadamw, "standard", half_decades(-7, -2),
        schedules=DECAYING, variants=_product(weight_decay=(1e-4, 0.1))),
    "lion_tuned": Baseline(
        "Lion, tuned", optax.lion, "standard", half_decades(-9, -4),
        schedules=DECAYING, variants=_product(weight_decay=(0.0, 1.0))),
    "adafactor_tuned": Baseline(
        "Adafactor, tuned", optax.adafactor, "standard", half_decades(-7, -2),
        schedules=DECAYING, variants=_product(momentum=(None, 0.9))),
    # https://arxiv.org/abs/2409.03137; the slow momentum suits the horizon.
    "ademamix_tuned": Baseline(
        "AdEMAMix, tuned", optax.contrib.ademamix, "standard",
        half_decades(-7, -5), schedules=DECAYING,
        variants=_product(b3=(0.99, 0.999), weight_decay=(0.0, 0.1))),
    "schedule_free_tuned": Baseline(
        "schedule-free AdamW, tuned", schedule_free, "standard",
        half_decades(-6, -1), schedules=("warm_up",),
        variants=_product(b1=(0.9, 0.98), weight_decay=(0.0, 0.1))),
    "prodigy_tuned": Baseline(
        "Prodigy, tuned", prodigy, "standard", half_decades(-1, 1),
        schedules=DECAYING,
        variants=_product(b2=(0.999, 0.99), weight_decay=(0.0, 0.1)))}
