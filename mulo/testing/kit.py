"""What the checks of the contract are made of."""

import functools
import importlib
import inspect
from typing import Any, Callable
import unittest

import jax
import jax.numpy as jnp
import numpy as np
import optax

Factory = Callable[..., optax.GradientTransformation]
Check = Callable[[Factory], None]
VALUE = np.float32(0.7)  # the loss, for optimizers that want it
TOLERANCE = 1e-3  # of updates, relative to the largest: programs may differ
# Most checks have matrices of one shape, because what they cost is compilation.
SHAPES = {"a": {"w": (3, 4), "v": (3, 4)}, "c": {"w": (3, 4)}}
RANKS = {"scalar": (), "vector": (5,), "matrix": (3, 4), "kernel": (2, 3, 4)}


def contract(fn: Check) -> Check:
  """Turns whatever a check raises into an AssertionError."""
  @functools.wraps(fn)
  def check(factory):
    try:
      fn(factory)
    except (AssertionError, unittest.SkipTest):
      raise
    except Exception as e:
      raise AssertionError(f"{type(e).__name__}: {e}") from e

  return check


def require(condition, message: str) -> None:
  """Raises AssertionError unless the condition holds."""
  if not condition:
    raise AssertionError(message)


def package(name: str):
  """The module; raises SkipTest where it is not installed."""
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise unittest.SkipTest(f"needs the package {name}") from e


def takes(factory: Factory, name: str) -> bool:
  """Whether a factory has a parameter of this name."""
  return name in inspect.signature(factory).parameters


def settings(factory: Factory, params, **given) -> dict:
  """The settings, and the shapes at another width if the factory takes them."""
  if takes(factory, "base_shapes"):
    wider = lambda shape: shape[:-1] + (shape[-1] + 1,) if shape else shape
    given["base_shapes"] = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(wider(x.shape), x.dtype), params)
  return given


def make(factory: Factory, params, **given):
  """The transformation, for parameters of these shapes."""
  return optax.with_extra_args_support(
      factory(**settings(factory, params, **given)))


def tree(seed: int, shapes: Any = None, dtype: Any = np.float32):
  """Normal arrays of the given shapes (default: SHAPES)."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
      SHAPES if shapes is None else shapes,
      is_leaf=lambda x: isinstance(x, tuple))


def compiled(tx):
  """The same, its update compiled whatever is around it."""
  return optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update))


def updates(tx, params, grads: list) -> list:
  """Updates for each of the gradients in turn, at the same parameters."""
  state, found = tx.init(params), []
  update = jax.jit(tx.update)
  for grad in grads:
    updates, state = update(grad, state, params, value=VALUE)
    found.append(updates)
  return found


def same(found, expected, what: str) -> None:
  """Raises unless trees agree up to rounding."""
  trees: list[Any] = [jax.tree.structure(x) for x in (found, expected)]
  require(trees[0] == trees[1],
          f"{what}: the tree is {trees[0]}, it must be {trees[1]}")
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(found),
                          jax.tree.leaves(expected)):
    x, y = (np.asarray(z, np.float32) for z in (x, y))
    name = jax.tree_util.keystr(path)
    require(x.shape == y.shape,
            f"{what}: {name} has shape {x.shape}, it must be {y.shape}")
    require(np.allclose(x, y, rtol=0, atol=TOLERANCE * np.max(
        np.abs(y), initial=1e-30)), f"{what}: {name} is {x}, it must be {y}")


def types(tree) -> dict[str, tuple]:
  """{path: (shape, dtype)}."""
  return {jax.tree_util.keystr(path): (x.shape, jnp.dtype(x.dtype))
          for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def same_types(found, expected, what: str) -> None:
  """Raises unless trees agree in their paths, shapes and dtypes."""
  found, expected = types(found), types(expected)
  for name in sorted({*found, *expected}):
    require(found.get(name) == expected.get(name),
            f"{what}: {name} is {found.get(name)}, it must be "
            f"{expected.get(name)} (shape, dtype)")


def scaled(tree, factor):
  """The tree times a factor."""
  return jax.tree.map(lambda x: factor * x, tree)
