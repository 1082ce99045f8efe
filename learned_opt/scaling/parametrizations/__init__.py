"""One parametrization per file; each file exports `make(**settings)`."""

import functools

from learned_opt import base
from learned_opt import registry

get = functools.partial(registry.get, __name__)
names = functools.partial(registry.names, __name__)


def find(parametrization: str | base.Parametrization) -> base.Parametrization:
  """What may be given by name, or as `get` returns it.

  Raises:
    ValueError: an unknown name.
  """
  return get(parametrization) if isinstance(
      parametrization, str) else parametrization
