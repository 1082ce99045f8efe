"""One family of tasks per file; each exports `make(parametrization, ...)`."""

import importlib
import pkgutil


def names() -> list[str]:
  """Names of the families."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__))


def get(name: str, parametrization, **settings):
  """The task of family `name`.

  Args:
    name: one of `names()`.
    parametrization: object with `init_std`, `output_mult` and `update_mult`,
      functions of (shape, base shape).
    **settings: passed to the `make` of the family.

  Returns:
    A `tasks.base.Task`.

  Raises:
    ValueError: no such family, or settings that it does not take.
  """
  if name not in names():
    raise ValueError(
        f"Unknown task {name!r}; available: {', '.join(names())}.")
  make = importlib.import_module(f"{__name__}.{name}").make
  try:
    return make(parametrization, **settings)
  except TypeError as e:
    raise ValueError(f"Task {name} refused {settings}: {e}.") from e
