"""One family of tasks per file; each exports `make(parametrization, ...)`."""

import importlib
import inspect
import pkgutil


def names() -> list[str]:
  """Names of the families."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__))


def get(name: str, parametrization, /, data_dir: str | None = None,
        **settings):
  """The task of family `name`.

  Args:
    name: one of `names()`.
    parametrization: object with `init_std` and `output_mult`, functions of
      (shape, base shape), `attention_mult`, one of the size of a head, and
      `branch_mult`, one of the number of residual blocks.
    data_dir: see `tasks.data.image_data`; families without data do not
      get it.
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
  signature = inspect.signature(make)
  if "data_dir" in signature.parameters:
    settings["data_dir"] = data_dir
  try:
    signature.bind(parametrization, **settings)
  except TypeError as e:
    raise ValueError(
        f"Task {name} does not take the settings {settings}: {e}.") from e
  return make(parametrization, **settings)
