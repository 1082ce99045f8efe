"""Lists of trained optimizers, and of parts by kind."""

import ast
import importlib
import importlib.resources
import importlib.util
import pathlib
from typing import Any, Callable, Collection, NamedTuple, Sequence

import jax

from learned_opt import registry
import mulo


class Part(NamedTuple):
  """A row of a table: a name, and one line about it."""

  name: str
  line: str


def unknown(what: str, name: str, known: Collection[str]) -> str:
  """Return the error message for an unknown name.

  Args:
    what: kind of the name.
    name: the unknown name.
    known: names that exist.
  """
  return (f"unknown {what} {name!r}; there is {', '.join(known)}."
          f"{registry.similar(name, known)}")


def check_packages(packages: Sequence[str]) -> None:
  """Raise ImportError unless the packages lie beside mulo.

  Their names are ordinary words, and a user's own tasks.py would be imported in
  place of mulo's folder tasks.
  """
  home = pathlib.Path(mulo.__file__).resolve().parents[1]
  for name in packages:
    spec = importlib.util.find_spec(name)
    if spec is None or not (home / name).is_dir():
      raise ImportError(
          f"this needs the folder {name}, which only a checkout of mulo has: "
          "pip install --editable . there.")
    places = spec.submodule_search_locations or [spec.origin or ""]
    if pathlib.Path(places[0]).resolve().parent != home:
      raise ImportError(
          f"{places[0]} hides the package {name} of mulo, which is in {home}. "
          "Rename it, or run mulo from another folder.")


def _trained() -> list[Part]:
  """List the trained optimizers in this package."""
  rows = []
  for name in mulo.list_pretrained():
    artifact = mulo.read(name)
    size = sum(x.size for x in jax.tree.leaves(artifact.theta))
    rows.append(Part(name, f"{artifact.optimizer}, {size} numbers, under "
                     f"{artifact.parametrization}; mulo card {name}"))
  return rows


def _purpose(module: str) -> str:
  """Return the first line of a module's docstring, without importing it."""
  spec = importlib.util.find_spec(module)
  if spec is None or spec.origin is None:
    return "of another package"
  text = ast.get_docstring(ast.parse(pathlib.Path(spec.origin).read_text()))
  return (text or "").partition("\n")[0]


def _folder(folder: str) -> Callable[[], list[Part]]:
  """Return a function that lists the parts in a folder."""
  return lambda: [Part(name, _purpose(f"{folder}.{name}"))
                  for name in registry.names(folder)]


def _suites() -> list[Part]:
  """List the suites of tasks."""
  suites = importlib.import_module("tasks.suites")
  return [Part(name, f"{len(suites.get(name))} tasks")
          for name in suites.names()]


def _baselines() -> list[Part]:
  """List the optimizers of optax that comparisons tune."""
  check_packages(["experiments"])
  baselines = importlib.import_module("experiments.baselines")
  return [Part(name, baselines.get(name).label) for name in baselines.names()]


KINDS: dict[str, Callable[[], list[Part]]] = {
    "trained": _trained,
    "optimizers": _folder("learned_opt.optimizers"),
    "parametrizations": _folder("learned_opt.scaling.parametrizations"),
    "configs": _folder("meta_train.configs"),
    "estimators": _folder("meta_train.estimators"),
    "tasks": _folder("tasks.families"),
    "suites": _suites,
    "baselines": _baselines}


def table(kind: str) -> str:
  """Return a line for each part of a kind.

  Raises:
    ValueError: an unknown kind.
    ImportError: a package that the parts need is missing.
  """
  if kind not in KINDS:
    raise ValueError(unknown("kind", kind, KINDS))
  rows = KINDS[kind]()
  width = max((len(row.name) for row in rows), default=0)
  return "\n".join(f"  {row.name.ljust(width)}  {row.line}" for row in rows)


def tables() -> str:
  """Return the tables of all kinds; where packages are missing, what is."""
  texts = []
  for kind in KINDS:
    try:
      text = table(kind)
    except ImportError as e:
      text = f"  ({e})"
    texts.append(f"{kind}\n{text}")
  return "\n\n".join(texts)


def card(name: str) -> str:
  """Return the card of a trained optimizer, or a summary of a file.

  Args:
    name: see `mulo.read`.

  Raises:
    FileNotFoundError, ArtifactError, ImportError: see `mulo.read`.
  """
  if name in mulo.list_pretrained():
    folder: Any = importlib.resources.files("mulo") / "pretrained"
    text: str = (folder / f"{name}.md").read_text()
    return text
  return repr(mulo.read(name))


def config_path(name: str) -> str:
  """Return the path of a config file.

  Args:
    name: a name in meta_train/configs, or a path; after a colon may come the
      argument of the file's get_config.

  Raises:
    ValueError: neither a name nor a path.
  """
  file, colon, argument = name.partition(":")
  if file.endswith(".py"):
    return name
  known = registry.names("meta_train.configs")
  if file not in known:
    raise ValueError(unknown("config", file, known))
  folder = importlib.import_module("meta_train.configs").__path__[0]
  return f"{pathlib.Path(folder) / file}.py{colon}{argument}"
