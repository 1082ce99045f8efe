"""One learned optimizer per file; each file exports `make(**settings)`."""

import functools
from typing import Any

from learned_opt import base
from learned_opt import placement

HOW = ("lowering", "recompute")  # settings of how an update is computed

names = functools.partial(base.names, __name__)


def get(name: str, /, **settings) -> base.LearnedOptimizer:
  """The optimizer in the file of this name; see `base.get`."""
  return placement.automatic(base.get(__name__, name, **settings))


def all_settings(name: str, /, **settings) -> dict[str, Any]:
  """The settings that theta belongs to, defaults included.

  Without HOW, which does not change what is computed, but for rounding.

  Raises:
    ValueError: see `base.get`.
  """
  found = base.all_settings(__name__, name, **settings)
  return {key: value for key, value in found.items() if key not in HOW}
