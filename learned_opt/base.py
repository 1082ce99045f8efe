"""The two concepts of this package, and checks of settings."""

import math
from typing import Any, Callable, NamedTuple

import jax
import optax

Theta = Any  # pytree of float32 arrays: the meta-parameters


class LearnedOptimizer(NamedTuple):
  """A function from theta to an optax transformation.

  Attributes:
    init: `init(key) -> theta`, a pytree (nested dicts) of float32 arrays.
    opt_fn: `opt_fn(theta, *, num_steps=None)` returns an
      `optax.GradientTransformationExtraArgs` whose `update` needs `params`.
      `num_steps` is the horizon (inner steps), for optimizers that use it.
  """

  init: Callable[[jax.Array], Theta]
  opt_fn: Callable[..., optax.GradientTransformationExtraArgs]


class Parametrization(NamedTuple):
  """How one parameter is scaled, from its shape and its base shape.

  An axis grows if its size differs between the two shapes (both are tuples of
  ints of equal length); see `learned_opt.scaling.width` for the role that follows.

  Attributes:
    init_std: `(shape, base_shape) -> float`, standard deviation at init.
    output_mult: `(shape, base_shape) -> float`, factor on what the forward
      pass computes with this parameter.
    attention_mult: `(head_size) -> float`, factor on query times key.
    update_mult: `(shape, base_shape) -> float`, factor on the update, for
      updates whose entries do not depend on the gradient's size.
    needs_base_shapes: whether `update_mult` depends on the base shape.
    gradient_scale: `(shape, base_shape) -> float`, what gradients grow with,
      but for a constant; optimizers that are not invariant to it need it.
    branch_mult: `(depth) -> float`, factor on the residual branches of a
      network of so many blocks.
    block_update_mult: `(depth) -> float`, further factor on updates of
      parameters in these blocks.
  """

  init_std: Callable[[tuple, tuple], float]
  output_mult: Callable[[tuple, tuple], float]
  attention_mult: Callable[[int], float]
  update_mult: Callable[[tuple, tuple], float]
  needs_base_shapes: bool
  gradient_scale: Callable[[tuple, tuple], float] = lambda shape, base: 1.0
  branch_mult: Callable[[int], float] = lambda depth: 1.0
  block_update_mult: Callable[[int], float] = lambda depth: 1.0


def check_params(params: Any) -> None:
  """Raises ValueError where `update` was called without parameters."""
  if params is None:
    raise ValueError(
        "A learned optimizer reads the parameters: call "
        "update(grads, state, params), not update(grads, state).")


def check_positive(**numbers: float) -> None:
  """Raises ValueError unless these settings are positive, finite numbers."""
  for name, value in numbers.items():
    if (type(value) not in (int, float) or not math.isfinite(value) or
        value <= 0):
      raise ValueError(f"{name} must be a positive number, got {value!r}.")


def check_sizes(**sizes: int) -> None:
  """Raises ValueError unless these settings are positive integers."""
  for name, value in sizes.items():
    if type(value) is not int or value < 1:
      raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def check_decays(**decays: float) -> None:
  """Raises ValueError unless these settings are between 0 and 1."""
  check_positive(**decays)
  for name, value in decays.items():
    if value >= 1:
      raise ValueError(f"{name} must be less than 1, got {value!r}.")
