"""Parts that the checks of the contract share."""

import functools
import importlib
import inspect
from types import ModuleType
from typing import Any, Callable
import unittest

import jax
import jax.numpy as jnp
import numpy as np
import optax

try:
  import chex
except ImportError as e:
  raise ImportError("mulo.testing needs chex: pip install chex.") from e

Factory = Callable[..., optax.GradientTransformation]
Check = Callable[[Factory], None]
Tree = Any  # pytree of arrays
struct: Any = jax.ShapeDtypeStruct  # Any: jax does not annotate it
VALUE = np.float32(0.7)  # the loss, for optimizers that read it
# Largest error of an update, relative to the largest entry of the array. Two
# programs of the same formula may round differently.
TOLERANCE = 1e-3
# Most checks use matrices of one shape, because compilation takes most time.
SHAPES = {"a": {"w": (3, 4), "v": (3, 4)}, "c": {"w": (3, 4)}}
RANKS = {"scalar": (), "vector": (5,), "matrix": (3, 4), "kernel": (2, 3, 4)}


def contract(fn: Check) -> Check:
  """Decorate a check: turn any error inside into an AssertionError."""
  @functools.wraps(fn)
  def check(factory: Factory) -> None:
    try:
      fn(factory)
    except (AssertionError, unittest.SkipTest):
      raise
    except Exception as e:
      raise AssertionError(f"{type(e).__name__}: {e}") from e

  return check


def require(condition: Any, message: str) -> None:
  """Raise AssertionError unless the condition holds."""
  if not condition:
    raise AssertionError(message)


def package(name: str) -> ModuleType:
  """Return a module; raise SkipTest if it is not installed."""
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise unittest.SkipTest(f"needs the package {name}") from e


def takes(factory: Factory, name: str) -> bool:
  """Return whether a factory has a parameter of this name."""
  return name in inspect.signature(factory).parameters


def _wider(x: Any) -> Any:
  """Return the description of x with one more entry along its last axis."""
  shape = x.shape[:-1] + (x.shape[-1] + 1,) if x.shape else x.shape
  return struct(shape, x.dtype)


def settings(factory: Factory, params: Tree, **given: Any) -> dict[str, Any]:
  """Return the given settings, and base_shapes if the factory takes them."""
  if takes(factory, "base_shapes"):
    given["base_shapes"] = jax.tree.map(_wider, params)
  return given


def make(factory: Factory, params: Tree, **given: Any
         ) -> optax.GradientTransformationExtraArgs:
  """Return the transformation of a factory, for parameters like `params`."""
  return optax.with_extra_args_support(
      factory(**settings(factory, params, **given)))


def tree(seed: int, shapes: Any = None, dtype: Any = np.float32) -> Tree:
  """Return normal arrays of the given shapes (default: SHAPES)."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
      SHAPES if shapes is None else shapes,
      is_leaf=lambda x: isinstance(x, tuple))


def compiled(tx: optax.GradientTransformationExtraArgs
             ) -> optax.GradientTransformationExtraArgs:
  """Return `tx` with its update compiled by itself, wherever it is called."""
  return optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update))


def updates(tx: Any, params: Tree, grads: list[Tree]) -> list[Tree]:
  """Return the update for each gradient in turn, at unchanged parameters."""
  state, sequence = tx.init(params), []
  update = jax.jit(tx.update)
  for grad in grads:
    updates, state = update(grad, state, params, value=VALUE)
    sequence.append(updates)
  return sequence


def same_tree(actual: Tree, expected: Tree, subject: str) -> None:
  """Raise AssertionError unless trees have the same structure.

  Args:
    actual: a tree.
    expected: the tree that it is compared to.
    subject: name of the tree, for the message.
  """
  chex.assert_trees_all_equal_structs(actual, expected, custom_message=subject)


def same(actual: Tree, expected: Tree, subject: str) -> None:
  """Raise AssertionError unless trees agree up to TOLERANCE.

  Args:
    actual: a tree.
    expected: the tree that it is compared to.
    subject: name of the tree, for the message.
  """

  def close(x: Any, y: Any) -> bool:
    x, y = (np.asarray(z, np.float32) for z in (x, y))
    limit = TOLERANCE * np.max(np.abs(y), initial=1e-30)
    return bool(np.allclose(x, y, rtol=0, atol=limit))

  chex.assert_trees_all_equal_shapes(actual, expected, custom_message=subject)
  chex.assert_trees_all_equal_comparator(
      close, lambda x, y: f"It is {x}, it must be {y}.", actual, expected,
      custom_message=subject)


def same_types(actual: Tree, expected: Tree, subject: str) -> None:
  """Raise AssertionError unless trees agree in structure, shapes and dtypes.

  Args:
    actual: a tree.
    expected: the tree that it is compared to.
    subject: name of the tree, for the message.
  """
  chex.assert_trees_all_equal_shapes_and_dtypes(
      actual, expected, custom_message=subject)


def finite(tree: Tree, subject: str) -> None:
  """Raise AssertionError unless all entries are finite.

  Args:
    tree: arrays.
    subject: name of the tree, for the message.
  """
  chex.assert_tree_all_finite(tree, custom_message=subject)


def scaled(tree: Tree, multiplier: Any) -> Tree:
  """Return the tree with all entries multiplied."""
  return jax.tree.map(lambda x: multiplier * x, tree)
