"""Registry of baselines: optimizers of optax, and grids to tune them on."""

import functools
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from learned_opt import schedules

WARM_UP = 0.05  # fraction of the steps


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


SCHEDULES = {"constant": constant, "cosine": cosine, "linear": linear}


class Baseline(NamedTuple):
  """An optimizer of optax, with a grid of learning rates to tune it on.

  Attributes:
    label: name in tables and plots.
    make: `make(learning_rate, **settings)` returns the optax transformation.
      The learning rate is a number or an optax schedule. Settings are arguments
      of the optax function and replace the registered ones.
    parametrization: parametrization of the network and of the update.
    learning_rates: grid of (peak) learning rates, in increasing order.
    tuned_at_base: True: in a study along an axis, the learning rate is tuned at
      the first value and kept for the others, as muP promises is possible.
      False: it is tuned at each value.
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
  variants: tuple[dict[str, float], ...] = ({},)


def _half_decades(first: int, last: int) -> tuple[float, ...]:
  """Return 10^(first / 2), 10^((first + 1) / 2), ..., 10^(last / 2)."""
  return tuple(10**(e / 2) for e in range(first, last + 1))


# The name, parametrization and grid of a baseline must not change: they are in
# the identity of cells that studies have computed.
BASELINES = {
    "adam": Baseline("Adam", optax.adam, "standard", _half_decades(-8, 0)),
    "adamw": Baseline("AdamW", optax.adamw, "standard", _half_decades(-8, 0)),
    # Muon on matrices, at the update RMS of Adam as in
    # https://arxiv.org/abs/2502.16982; Adam on all other parameters.
    "muon": Baseline(
        "Muon", functools.partial(optax.contrib.muon, consistent_rms=0.2),
        "standard", _half_decades(-8, 0)),
    # The same with weight decay and schedules that suit it, to be beaten; and
    # with one setting for all tasks, the rival of a learned optimizer.
    "muon_tuned": Baseline(
        "Muon, tuned with decay",
        functools.partial(optax.contrib.muon, consistent_rms=0.2), "standard",
        _half_decades(-6, -2), schedules=("linear", "cosine"),
        variants=({"weight_decay": 0.0}, {"weight_decay": 0.1})),
    "muon_fixed": Baseline(
        "Muon, one setting", functools.partial(
            optax.contrib.muon, consistent_rms=0.2, weight_decay=0.1),
        "standard", (0.01,), schedules=("linear",)),
    "adamw_tuned": Baseline(
        "AdamW, tuned with decay", optax.adamw, "standard",
        _half_decades(-7, -2), schedules=("linear", "cosine"),
        variants=({"weight_decay": 1e-4}, {"weight_decay": 0.1})),
    # muP divides the updates of hidden matrices by their fan-in, so its grid
    # lies higher.
    "mu_adam": Baseline("muAdam", optax.adam, "mup", _half_decades(-6, 2)),
    "mu_adam_transferred": Baseline(
        "muAdam, transferred", optax.adam, "mup", _half_decades(-6, 2), True),
    "mu_adam_balanced": Baseline(
        "muAdam, balanced, transferred", optax.adam, "mup_balanced",
        _half_decades(-6, 2), True),
    "sgd": Baseline(
        "SGD", functools.partial(optax.sgd, momentum=0.9), "standard",
        _half_decades(-7, 1)),
    # Entries of an update of Lion are ±1, larger than those of Adam. The paper,
    # https://arxiv.org/abs/2302.06675, divides the learning rate by 3 to 10.
    "lion": Baseline("Lion", optax.lion, "standard", _half_decades(-10, -2)),
    # Updates are relative to the RMS of the parameter.
    "adafactor": Baseline(
        "Adafactor", optax.adafactor, "standard", _half_decades(-8, 0))}


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


def opt_fn(baseline: Baseline, schedule: str, **settings: float) -> Callable:
  """Return an `opt_fn` whose theta is the peak learning rate, a scalar array.

  Args:
    baseline: the optimizer.
    schedule: a key of SCHEDULES.
    **settings: of `Baseline.make`.
  """
  multiplier = SCHEDULES[schedule]

  def make(learning_rate, *, num_steps=None):
    total = jnp.asarray(num_steps, jnp.float32)
    return optax.with_extra_args_support(baseline.make(
        lambda step: learning_rate * multiplier(step, total), **settings))

  return make
