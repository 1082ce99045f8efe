"""One parametrization per file; each file exports `make(**settings)`."""

import functools

from learned_opt import base
from learned_opt import registry

get = functools.partial(registry.get, __name__)
names = functools.partial(registry.names, __name__)


def find(parametrization: str | base.Parametrization) -> base.Parametrization:
  """Return the parametrization of this name; return an object as it is.

  Args:
    parametrization: a name that `get` takes, or the result of `get`.

  Raises:
    ValueError: an unknown name.
  """
  return get(parametrization) if isinstance(
      parametrization, str) else parametrization
