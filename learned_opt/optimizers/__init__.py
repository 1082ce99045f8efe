"""One learned optimizer per file; each file exports `make(**settings)`."""

import functools
from typing import Any

from learned_opt import base
from learned_opt import registry
from learned_opt.update import placement

HOW = ("lowering", "recompute")  # settings of how an update is computed

names = functools.partial(registry.names, __name__)


def get(name: str, /, **settings) -> base.LearnedOptimizer:
  """The optimizer in the file of this name; see `registry.get`."""
  return placement.automatic(registry.get(__name__, name, **settings))


def all_settings(name: str, /, **settings) -> dict[str, Any]:
  """The settings that theta belongs to, defaults included.

  Without HOW, which does not change what is computed, but for rounding.

  Raises:
    ValueError: see `registry.get`.
  """
  found = registry.all_settings(__name__, name, **settings)
  return {key: value for key, value in found.items() if key not in HOW}
