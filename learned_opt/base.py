"""The two interfaces of this package, paths, and checks of settings."""

import math
from typing import Any, Callable, NamedTuple, TypeAlias

import jax
import optax

Theta: TypeAlias = Any  # pytree of float32 arrays: the meta-parameters
Shape: TypeAlias = tuple[int, ...]
# (shape of a parameter, shape of this parameter at another width) -> number.
ShapeFn: TypeAlias = Callable[[Shape, Shape], float]


class LearnedOptimizer(NamedTuple):
  """A function from theta to an optax transformation.

  Attributes:
    init: `init(key) -> theta`, a pytree (nested dicts) of float32 arrays.
    opt_fn: `opt_fn(theta, *, num_steps=None, stacks=None)` returns an
      `optax.GradientTransformationExtraArgs` whose `update` needs `params`.
      `num_steps` is the horizon (inner steps), for optimizers that use it.
      `stacks` are {path: axes} of parameters that hold several layers, see
      `learned_opt.stacks`; the argument may be missing.
  """

  init: Callable[[jax.Array], Theta]
  opt_fn: Callable[..., optax.GradientTransformationExtraArgs]


class Parametrization(NamedTuple):
  """Multipliers of one parameter, as functions of its shape and base shape.

  An axis grows if its size differs between the two shapes. Both shapes are
  tuples of ints of equal length. See `learned_opt.scaling.fan` for the role
  of a parameter, which depends on the axes that grow.

  Multipliers are absolute, functions of fan-in and fan-out: the base shape only
  tells which axes grow.

  Attributes:
    init_std: `(shape, base_shape) -> float`, standard deviation of the initial
      entries.
    output_mult: `(shape, base_shape) -> float`, multiplier in the forward pass:
      `outputs = output_mult * (inputs @ parameter)`.
    attention_mult: `(head_size) -> float`, multiplier on attention logits:
      `logits = attention_mult * (query @ key)`.
    update_mult: `(shape, base_shape) -> float`, multiplier on the update, for
      optimizers whose update entries do not depend on the size of gradients.
    needs_base_shapes: whether `update_mult` depends on the base shape.
    gradient_scale: `(shape, base_shape) -> float`, expected size of gradient
      entries, up to a constant that does not depend on width. Optimizers that
      are not invariant to the size of gradients need it.
    branch_mult: `(depth) -> float`, multiplier on each residual branch of a
      network of `depth` blocks: `x = x + branch_mult * branch(x)`.
    block_update_mult: `(depth) -> float`, further multiplier on the update of a
      parameter in one of these blocks.
  """

  init_std: ShapeFn
  output_mult: ShapeFn
  attention_mult: Callable[[int], float]
  update_mult: ShapeFn
  needs_base_shapes: bool
  gradient_scale: ShapeFn = lambda shape, base_shape: 1.0
  branch_mult: Callable[[int], float] = lambda depth: 1.0
  block_update_mult: Callable[[int], float] = lambda depth: 1.0


def path_of(path: tuple[Any, ...]) -> str:
  """Return the keys of a tree joined by "/".

  The last key of a box of flax, "value", is left out: it is missing inside of
  nnx's own optimizer.
  """
  if len(path) > 1 and isinstance(
      path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
    path = path[:-1]
  return jax.tree_util.keystr(path, simple=True, separator="/")


def check_params(params: Any) -> None:
  """Raise ValueError if `update` was called without parameters."""
  if params is None:
    raise ValueError(
        "A learned optimizer reads the parameters: call "
        "update(grads, state, params), not update(grads, state).")


def check_positive(**numbers: float) -> None:
  """Raise ValueError unless these settings are positive, finite numbers."""
  for name, value in numbers.items():
    # type(), not isinstance(): True is an int, but no setting.
    if (type(value) not in (int, float) or not math.isfinite(value) or
        value <= 0):
      raise ValueError(f"{name} must be a positive number, got {value!r}.")


def check_sizes(**sizes: int) -> None:
  """Raise ValueError unless these settings are positive integers."""
  for name, value in sizes.items():
    if type(value) is not int or value < 1:
      raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def check_decays(**decays: float) -> None:
  """Raise ValueError unless these settings are between 0 and 1."""
  check_positive(**decays)
  for name, value in decays.items():
    if value >= 1:
      raise ValueError(f"{name} must be less than 1, got {value!r}.")
