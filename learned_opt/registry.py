"""Find parts by name: optimizers, parametrizations, estimators, task families.

A part is a function `make(**settings)`. The name of a part is one of

* the name of a file in the part's folder, such as "velo" in
  learned_opt/optimizers;
* the name of an entry point of any installed package, in the group of the
  folder, such as "learned_opt.optimizers"; a file of the same name wins;
* "package.module:make", a function of any module that can be imported.

An installed package offers an optimizer under the name "mine" by two lines in
its pyproject.toml:

    [project.entry-points."learned_opt.optimizers"]
    mine = "my_package.my_optimizer:make"

The other groups are "learned_opt.scaling.parametrizations",
"meta_train.estimators" and "tasks.families".
"""

import difflib
import importlib
from importlib import metadata
import inspect
import operator
import pkgutil
from typing import Any, Callable, Iterable

Make = Callable[..., Any]


def names(folder: str) -> list[str]:
  """List the files of a folder and the entry points of its group, sorted.

  Args:
    folder: dotted name, such as "learned_opt.optimizers".

  Returns:
    Names that `find` and `get` accept. Folders inside the folder are left out,
    and so are files whose name begins with an underscore.
  """
  points = metadata.entry_points(group=folder)
  return sorted({*_files(folder), *(point.name for point in points)})


def is_import(name: str) -> bool:
  """Return whether a name has the form "package.module:make".

  `find` imports the module of such a name, which runs code. Check names from an
  untrusted source with this function before `find` receives them.
  """
  return ":" in name


def similar(name: str, known: Iterable[str]) -> str:
  """Return a hint at a similar name, as " Did you mean 'mlp'?", or ""."""
  close = difflib.get_close_matches(name, list(known), 1)
  return f" Did you mean {close[0]!r}?" if close else ""


def find(folder: str, name: str) -> Make:
  """Return the `make` of a part.

  Args:
    folder: dotted name, such as "learned_opt.optimizers". It is not used if
      the name has the form "package.module:make".
    name: name of the part, see the module docstring.

  Raises:
    ValueError: no such part, or a part that cannot be imported. For an unknown
      name, the message lists the names that exist.
  """
  if is_import(name):
    return _imported(name)
  if name in _files(folder):
    return _imported(f"{folder}.{name}:make")
  # A value may end with extras, as in "package.module:make [extra]".
  targets = {point.value.partition("[")[0].strip()
             for point in metadata.entry_points(group=folder, name=name)}
  if len(targets) > 1:
    raise ValueError(
        f"Several installed packages offer {name!r} in {folder}: use one of "
        f"{', '.join(sorted(targets))} as the name.")
  if targets:
    return _imported(targets.pop())
  known = names(folder)
  raise ValueError(
      f"Unknown name {name!r} in {folder}; available: {', '.join(known)}, or "
      f"package.module:make.{similar(name, known)}")


def get(folder: str, name: str, /, **settings: Any) -> Any:
  """Call `make(**settings)` of a part.

  Args:
    folder: see `find`.
    name: name of the part, see the module docstring.
    **settings: arguments of `make`.

  Returns:
    The result of `make`.

  Raises:
    ValueError: no such part, or settings that its `make` does not take.
  """
  make = find(folder, name)
  bind(make, _title(folder, name), **settings)
  return make(**settings)


def all_settings(folder: str, name: str, /, **settings: Any) -> dict[str, Any]:
  """Return all settings of a part: the given ones, and defaults.

  Args:
    folder: see `find`.
    name: name of the part, see the module docstring.
    **settings: arguments of `make`.

  Raises:
    ValueError: see `get`.
  """
  bound = bind(find(folder, name), _title(folder, name), **settings)
  bound.apply_defaults()
  complete: dict[str, Any] = {}
  for argument, value in bound.arguments.items():
    kind = bound.signature.parameters[argument].kind
    if kind is inspect.Parameter.VAR_KEYWORD:  # the dict of a `**kwargs`
      complete |= value
    elif kind is not inspect.Parameter.VAR_POSITIONAL:
      complete[argument] = value
  return complete


def bind(make: Make, title: str, /, *arguments: Any, **settings: Any
         ) -> inspect.BoundArguments:
  """Return the arguments of a call of `make`.

  Args:
    make: see the module docstring.
    title: of the part, for the message.
    *arguments: those that are no settings.
    **settings: the others.

  Raises:
    ValueError: they do not fit. The message lists the settings that exist.
  """
  signature = inspect.signature(make)
  try:
    return signature.bind(*arguments, **settings)
  except TypeError as e:
    parameters = list(signature.parameters.values())[len(arguments):]
    # What is given and has no default is not for the user to set.
    known = [p.name for p in parameters
             if p.default is not p.empty or p.name not in settings]
    wrong = [] if any(p.kind is p.VAR_KEYWORD for p in parameters) else [
        x for x in settings if x not in signature.parameters]
    problem = ", ".join(map(repr, wrong)) or f"{list(settings)}: {e}"
    hint = similar(wrong[0], known) if wrong else ""
    raise ValueError(
        f"{title} does not take the settings {problem}; its settings are "
        f"{', '.join(known)}.{hint}") from e


def _title(folder: str, name: str) -> str:
  return name if is_import(name) else f"{folder}.{name}"


def _files(folder: str) -> list[str]:
  """Return the names of the public modules in a folder, without importing."""
  path = importlib.import_module(folder).__path__
  return [module.name for module in pkgutil.iter_modules(path)
          if not module.ispkg and not module.name.startswith("_")]


def _imported(name: str) -> Make:
  """Return the function "package.module:make".

  Raises:
    ValueError: another form, no such module or function, or not a function.
  """
  module, _, attribute = name.partition(":")
  # Also refuses relative names and names with spaces.
  if not all(part.isidentifier() for part in
             (*module.split("."), *attribute.split("."))):
    raise ValueError(f"{name!r} is not of the form package.module:make.")
  try:
    make: Make = operator.attrgetter(attribute)(
        importlib.import_module(module))
  except (ImportError, AttributeError) as e:
    raise ValueError(f"{name!r} cannot be imported: {e}.") from e
  if not callable(make):
    raise ValueError(f"{name!r} is {make!r}, not a function.")
  return make
