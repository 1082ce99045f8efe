"""One learned optimizer per file; each file exports `make(**settings)`."""

import functools
from typing import Any

from learned_opt import base

get = functools.partial(base.get, __name__)
names = functools.partial(base.names, __name__)


def all_settings(name: str, /, **settings) -> dict[str, Any]:
  """The settings that theta belongs to, defaults included.

  Without "lowering", which says how an update is computed, not which.

  Raises:
    ValueError: see `base.get`.
  """
  found = base.all_settings(__name__, name, **settings)
  return {key: value for key, value in found.items() if key != "lowering"}
