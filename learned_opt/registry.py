"""Find parts by name: optimizers, parametrizations, estimators, task families.

A part is a function `make(**settings)`. Its name is one of

* the name of a file in the part's folder, such as "velo" in
  learned_opt/optimizers;
* the name of an entry point whose group is the folder, such as
  "learned_opt.optimizers", of any installed package;
* "package.module:make", a function of any module that can be imported.

An installed package offers an optimizer under the name "mine" by these lines in
its pyproject.toml:

    [project.entry-points."learned_opt.optimizers"]
    mine = "my_package.my_optimizer:make"
"""

import importlib
from importlib import metadata
import inspect
import pkgutil
from typing import Any, Callable


def names(folder: str) -> list[str]:
  """List the files of a folder and the entry points of its group, sorted.

  Args:
    folder: dotted name, such as "learned_opt.optimizers".

  Returns:
    Names that `get` takes. Folders inside the folder are left out, and so are
    files whose name begins with an underscore.
  """
  return sorted({*_files(folder), *(
      point.name for point in metadata.entry_points(group=folder))})


def find(folder: str, name: str) -> Callable:
  """Return the `make` of a part.

  Args:
    folder: dotted name, such as "learned_opt.optimizers".
    name: see the module docstring.

  Raises:
    ValueError: no such part; the message lists the names that exist.
  """
  if ":" in name:
    return _imported(name)
  if name in _files(folder):
    return importlib.import_module(f"{folder}.{name}").make
  for point in metadata.entry_points(group=folder, name=name):
    return _imported(point.value)
  raise ValueError(
      f"Unknown name {name!r} in {folder}; available: "
      f"{', '.join(names(folder))}, or package.module:make.")


def get(folder: str, name: str, /, **settings: Any) -> Any:
  """Call `make(**settings)` of a part.

  Args:
    folder: dotted name, such as "learned_opt.optimizers".
    name: see the module docstring.
    **settings: arguments of `make`.

  Returns:
    The result of `make`.

  Raises:
    ValueError: no such part, or settings that its `make` does not take.
  """
  make = find(folder, name)
  bound = _bind(make, folder, name, settings)
  return make(*bound.args, **bound.kwargs)


def all_settings(folder: str, name: str, /, **settings: Any) -> dict[str, Any]:
  """Return the settings of a part with the defaults of those not given.

  Args:
    folder: dotted name, such as "learned_opt.optimizers".
    name: see the module docstring.
    **settings: arguments of `make`.

  Raises:
    ValueError: see `get`.
  """
  bound = _bind(find(folder, name), folder, name, settings)
  bound.apply_defaults()
  return dict(bound.arguments)


def _files(folder: str) -> list[str]:
  path = importlib.import_module(folder).__path__
  return [module.name for module in pkgutil.iter_modules(path)
          if not module.ispkg and not module.name.startswith("_")]


def _imported(name: str) -> Callable:
  """Return the function "package.module:make"; raises ValueError."""
  module, _, attribute = name.partition(":")
  try:
    make = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, ValueError) as e:
    raise ValueError(f"{name!r} cannot be imported: {e}.") from e
  if not callable(make):
    raise ValueError(f"{name!r} is {make!r}, not a function.")
  return make


def _bind(make: Callable, folder: str, name: str, settings: dict
          ) -> inspect.BoundArguments:
  part = name if ":" in name else f"{folder}.{name}"
  signature = inspect.signature(make)
  try:
    return signature.bind(**settings)
  except TypeError as e:
    raise ValueError(
        f"{part} does not take the settings {settings}: {e}; its settings are "
        f"{', '.join(signature.parameters)}.") from e
