"""Optimizers of optax that learned ones are compared with, and their grids."""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

WARM_UP = 0.05  # part of the steps


def constant(step: jax.Array, num_steps: jax.Array) -> jax.Array:
  """Factor on the learning rate: 1."""
  del step, num_steps
  return jnp.ones([], jnp.float32)


def cosine(step: jax.Array, num_steps: jax.Array) -> jax.Array:
  """Factor on the learning rate: linear warm-up, then half a cosine to 0."""
  warm = jnp.ceil(WARM_UP * num_steps)
  done = (step - warm) / jnp.maximum(num_steps - warm, 1)
  return jnp.where(step < warm, (step + 1) / warm,
                   0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1))))


SCHEDULES = {"constant": constant, "cosine": cosine}


class Baseline(NamedTuple):
  """An optimizer with a learning rate to tune.

  Attributes:
    label: as in tables.
    make: `(learning rate or schedule) -> optax transformation`.
    parametrization: of the network, and of the update.
    learning_rates: what is tried, in order.
    tuned_at_base: where a study has an axis, the learning rate is tuned at
      its first value alone and kept, as muP promises that one may.
  """

  label: str
  make: Callable
  parametrization: str
  learning_rates: tuple[float, ...]
  tuned_at_base: bool = False


_USUAL = tuple(10**(e / 2) for e in range(-8, 1))  # 1e-4 to 1
_LARGE = tuple(10**(e / 2) for e in range(-6, 3))  # 1e-3 to 10

BASELINES = {
    "adam": Baseline("Adam", optax.adam, "standard", _USUAL),
    "adamw": Baseline("AdamW", optax.adamw, "standard", _USUAL),
    # Matrices get Muon with the RMS of Adam, as in
    # https://arxiv.org/abs/2502.16982; all else Adam.
    "muon": Baseline(
        "Muon", lambda rate: optax.contrib.muon(rate, consistent_rms=0.2),
        "standard", _USUAL),
    "mu_adam": Baseline("muAdam", optax.adam, "mup", _LARGE),
    "mu_adam_transferred": Baseline(
        "muAdam, transferred", optax.adam, "mup", _LARGE, True),
    "mu_adam_balanced": Baseline(
        "muAdam, balanced, transferred", optax.adam, "mup_balanced", _LARGE,
        True),
    "sgd": Baseline("SGD", lambda rate: optax.sgd(rate, 0.9), "standard",
                    tuple(10**(e / 2) for e in range(-7, 2)))}


def opt_fn(baseline: Baseline, schedule: str) -> Callable:
  """An `opt_fn` whose theta is the peak learning rate, a scalar array."""
  factor = SCHEDULES[schedule]

  def made(learning_rate, *, num_steps=None):
    total = jnp.asarray(num_steps, jnp.float32)
    return optax.with_extra_args_support(baseline.make(
        lambda step: learning_rate * factor(step, total)))

  return made
