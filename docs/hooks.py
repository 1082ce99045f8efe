"""Pages of the site that are no files of docs, and links to them.

README, WORKSPACE, cards and examples are pages of the site, too. The reference
has all public names, and `make docs` fails if one has no docstring.
"""

import inspect
import pathlib
import posixpath
import re
from typing import Any

from mkdocs import exceptions
from mkdocs.structure import files as mkdocs_files

from learned_opt import registry
import mulo

ROOT = pathlib.Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?:|#)([^)\s#]+)(#[^)\s]*)?\)")


def _outside() -> dict[str, str]:
  """Return {file of the repository outside of docs: page of the site}."""
  pages = {"README.md": "index.md", "WORKSPACE.md": "workspace.md",
           "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md",
           "LICENSE": "LICENSE.txt", "CITATION.cff": "CITATION.txt"}
  for name in mulo.list_pretrained():
    pages[f"mulo/pretrained/{name}.md"] = f"cards/{name}.md"
  for path in (ROOT / "examples").iterdir():
    if path.name == "launch" or path.suffix == ".py":
      pages[f"examples/{path.name}"] = f"examples/{path.stem}.md"
  return pages


def _text(source: str) -> str:
  """Return the Markdown of a file; code, and files of a folder, are quoted."""
  path = ROOT / source
  if path.is_dir():
    return f"# {path.name}\n\n" + "\n".join(
        f"## {file.name}\n\n````\n{file.read_text()}````\n"
        for file in sorted(path.iterdir()) if file.is_file())
  text = path.read_text()
  if path.suffix != ".py":
    return text
  return f"# {path.name}\n\n````python\n{text}````\n"


def _public(module: Any, name: str) -> str:
  """Return the entry of a public name.

  Args:
    module: module with `__all__`.
    name: public name.

  Raises:
    PluginError: it has no docstring.
  """
  value, public = getattr(module, name), f"{module.__name__}.{name}"
  if not inspect.getdoc(value):
    raise exceptions.PluginError(f"{public} has no docstring.")
  path = f"{value.__module__}.{value.__qualname__}"
  return (f"[](){{ #{public} }}\n\n::: {path}\n    options: {{heading: "
          f"{public}, toc_label: {public}, heading_level: 2, "
          "show_root_heading: true, show_root_toc_entry: true}\n")


def _module(title: str, module: Any) -> str:
  """Return the page of a module with `__all__`."""
  entries = [_public(module, name) for name in module.__all__
             if not inspect.ismodule(getattr(module, name))]
  intro = f"::: {module.__name__}\n    options: {{members: false}}\n"
  return "\n".join([f"# {title}\n", intro, *entries])


def _part(module: str, member: str = "make") -> str:
  """Return the entry of a module: its docstring, and one function."""
  return (f"## {module.rpartition('.')[2]} {{: #{module} }}\n\n::: {module}\n"
          f"    options: {{members: [{member}]}}\n")


def _parts(title: str, folder: str, *more: str) -> str:
  """Return the page of all parts in a folder."""
  return "\n".join([f"# {title}\n", *more, *(
      _part(f"{folder}.{name}") for name in registry.names(folder))])


def _glossary() -> str:
  """Return the page of the last section of WORKSPACE.md."""
  text = (ROOT / "WORKSPACE.md").read_text()
  return f"# Glossary\n{text.partition('## Glossary')[2]}"


def _reference() -> dict[str, str]:
  """Return {page of the site: Markdown}."""
  # ArtifactError is a public name of mulo, and has its entry there.
  whole = ("\n::: {}\n    options: {{filters: ['!^_', '!^ArtifactError$']}}\n"
           ).format
  return {f"reference/{name}.md": text for name, text in {
      "mulo": _module("mulo", mulo),
      "scaling": _module("mulo.scaling", mulo.scaling),
      "links": "# mulo.links\n\n::: mulo.links\n",
      "testing": "# mulo.testing\n\n::: mulo.testing\n",
      "optimizers": _parts("Optimizers", "learned_opt.optimizers"),
      "parametrizations": _parts(
          "Parametrizations", "learned_opt.scaling.parametrizations"),
      "estimators": _parts("Estimators", "meta_train.estimators"),
      "tasks": _parts(
          "Families of tasks", "tasks.families",
          "Families of images, tables and text also take the settings below.\n",
          *(f"## Settings of {kind}\n\n::: tasks.{kind}\n    options: "
            "{members: [load, classify, reconstruct, predict]}\n"
            for kind in ("image_tasks", "table_tasks", "text_tasks"))),
      "interfaces": "\n".join([
          "# Interfaces and files\n", *(
              f"## {module}\n{whole(module)}" for module in (
                  "learned_opt.base", "learned_opt.artifact",
                  "learned_opt.registry", "tasks.base", "meta_train.base",
                  "tasks.suites"))])}.items()}


def on_files(files: Any, config: Any) -> Any:
  """Add the pages that are no files of docs."""
  pages = {page: _text(source) for source, page in _outside().items()}
  pages["glossary.md"] = _glossary()
  for page, text in {**pages, **_reference()}.items():
    files.append(mkdocs_files.File.generated(config, page, content=text))
  return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
  """Let links to files of the repository lead to pages of the site."""
  outside, here = _outside(), page.file.src_uri
  source = {page: source for source, page in outside.items()}.get(
      here, f"docs/{here}")

  def link(match: re.Match[str]) -> str:
    target = posixpath.normpath(
        posixpath.join(posixpath.dirname(source), match[1]))
    page = outside.get(target, target.removeprefix("docs/"))
    path = posixpath.relpath(page, posixpath.dirname(here) or ".")
    return f"]({path}{match[2] or ''})"

  return LINK.sub(link, markdown)
