"""Optimizers whose cost on a GPU is measured, by name, and one step of each."""

from typing import Any, Callable

import jax
import optax
import optax.contrib

from learned_opt import optimizers


def _learned(name: str, **settings: Any
             ) -> Callable[[], optax.GradientTransformation]:
  """Return a function that makes a learned optimizer with its first theta."""
  def make():
    lopt = optimizers.get(name, **settings)
    return lopt.opt_fn(lopt.init(jax.random.key(0)), num_steps=1000)

  return make


CASES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": lambda: optax.adamw(1e-3),
    "muon": lambda: optax.contrib.muon(1e-3),
    "mulo": _learned("mulo"),
    "mulo, Newton-Schulz": _learned("mulo", newton_schulz=3),
    "mulo, bfloat16 state": _learned("mulo", accumulator_dtype="bfloat16"),
    "mulo2": _learned("mulo2"),
    "adafac_mlp": _learned("adafac_mlp"),
    "celo2": _learned("celo2"),
    "velo": _learned("velo")}


def step_fn(tx: optax.GradientTransformation) -> Callable:
  """Return `(params, state, grads) -> (params, state)`."""
  # VeLO asks for the loss; the others take no further arguments.
  tx = optax.with_extra_args_support(tx)

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params, value=1.0)
    return optax.apply_updates(params, updates), state

  return step
