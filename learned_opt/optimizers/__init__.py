"""One learned optimizer per file; each file exports `make(**settings)`."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp

from learned_opt import base
from learned_opt import registry
from learned_opt.update import sharding

HOW = ("lowering", "recompute")  # settings of how an update is computed

# Settings of earlier versions of `make`: {optimizer: {setting: value}}. With
# this value, the setting changed no update.
RETIRED: dict[str, dict[str, Any]] = {
    "mulo": {"normalize": False, "vector_mult": 1.0}}

names = functools.partial(registry.names, __name__)


def get(name: str, /, **settings) -> base.LearnedOptimizer:
  """Return the learned optimizer of this name; see `registry.get`."""
  return sharding.automatic(registry.get(__name__, name, **settings))


def theta_shapes(name: str, /, **settings) -> Any:
  """Return the tree of shapes and dtypes of theta, without computing theta.

  Args:
    name: of the optimizer.
    **settings: arguments of its `make`.

  Raises:
    ValueError: see `registry.get`.
  """
  make = registry.find(__name__, name)
  try:
    # JSON, because 1, 1.0 and True are equal keys, but not equal settings.
    text = json.dumps(settings)
  except (TypeError, ValueError):  # settings that no file can hold
    return _shapes(get(name, **settings))
  return _known_shapes(make, name, text, jnp.result_type(float))


@functools.lru_cache(maxsize=256)
def _known_shapes(make, name: str, settings: str, default_dtype) -> Any:
  """Return the shapes of theta; tracing `init` takes a millisecond."""
  # A `make` that was defined anew under the same name is another key, and so is
  # another default dtype.
  del make, default_dtype
  return _shapes(get(name, **json.loads(settings)))


def _shapes(lopt: base.LearnedOptimizer) -> Any:
  return jax.eval_shape(lopt.init, jax.random.key(0))


def all_settings(name: str, /, **settings) -> dict[str, Any]:
  """Return the settings that theta depends on, defaults included.

  Settings in HOW are left out: they change rounding only.

  Raises:
    ValueError: see `registry.get`.
  """
  complete = registry.all_settings(__name__, name, **settings)
  return {key: value for key, value in complete.items() if key not in HOW}


def current_settings(name: str, settings: dict) -> dict[str, Any]:
  """Return stored settings without the settings in RETIRED.

  Args:
    name: of the optimizer.
    settings: settings of the optimizer in any version.

  Raises:
    ValueError: a setting in RETIRED has another value than there. Dropping it
      would change updates.
  """
  retired = RETIRED.get(name, {})
  for key, value in settings.items():
    if key in retired and value != retired[key]:
      raise ValueError(
          f"{name} has the setting {key} = {value!r}, which this version no "
          "longer has; load it with an earlier version of mulo.")
  return {key: value for key, value in settings.items() if key not in retired}
