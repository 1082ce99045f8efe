"""Commands, files, links and Python of README, WORKSPACE.md and docs."""

import functools
import pathlib
import re
import subprocess
import sys
import types

import forked
import pytest

from mulo._cli import main

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
WORKSPACE = ROOT / "WORKSPACE.md"
# Tables of studies are written by commands.
PAGES = [README, WORKSPACE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
         *sorted(page for page in (ROOT / "docs").rglob("*.md")
                 if "studies" not in page.parts)]
WITH_PYTHON = [page for page in PAGES if "```python\n" in page.read_text()]
FOLDERS = ("mulo", "learned_opt", "tasks", "meta_train", "experiments",
           "tests", "docs", "examples")


def blocks(page: pathlib.Path, language: str) -> list[str]:
  return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def in_backticks(page: pathlib.Path) -> list[str]:
  """Text in single backticks, outside of code blocks."""
  text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
  return [" ".join(x.split()) for x in re.findall(r"`([^`]+)`", text)]


def commands() -> list[str]:
  """Lines of shell blocks, and what begins as a command in backticks."""
  joined = "\n".join(block for page in PAGES for block in blocks(
      page, "sh")).replace("\\\n", " ")
  quoted = [text for page in PAGES for text in in_backticks(page)
            if re.match(r"(make|python -m|mulo) \w", text)]
  return sorted({line.strip() for line in (*joined.splitlines(), *quoted)
                 if line.strip() and not line.startswith("#")})


@functools.cache
def files() -> list[str]:
  """Paths of all files and folders, relative to the repository."""
  return [path.relative_to(ROOT).as_posix() for folder in FOLDERS
          for path in (ROOT / folder, *(ROOT / folder).rglob("*"))]


def exists(name: str) -> bool:
  """Whether a path ends with the name, such as "velo.py" or "update/"."""
  name = name.rstrip("/")
  return (ROOT / name).exists() or any(
      path.endswith(f"/{name}") for path in files())


def module_of(command: str) -> str | None:
  """Module that a command runs, if it runs one."""
  words = [w for w in command.split() if not re.fullmatch(r"\w+=\S+", w)]
  if words[0] == "mulo":
    return getattr(main.COMMANDS[words[1]].run, "keywords", {}).get("module")
  return words[words.index("-m") + 1] if "-m" in words else None


@pytest.fixture(scope="module")
def helps(tmp_path_factory) -> dict[str, str]:
  """Text of --help for the modules of all commands."""
  modules = sorted({module_of(command) for command in commands()} - {None})
  done = forked.run([(module, "--help") for module in modules],
                    tmp_path_factory.mktemp("helps"))
  return {module: process.stdout for module, process in zip(modules, done)}


def test_there_are_commands():
  assert "make quickstart" in commands()
  assert "make test" in commands()
  assert "python -m experiments.robustness.contract" in commands()


@pytest.mark.parametrize("command", commands())
def test_command_exists(command, capsys, helps):
  words = [w for w in command.split() if not re.fullmatch(r"\w+=\S+", w)]
  if words[0] == "make":
    subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL)
  elif "-m" in words or words[0] == "mulo":
    module = module_of(command)
    if module is not None:
      text = helps[module]
    elif main.COMMANDS[words[1]].flags:
      with pytest.raises(SystemExit):
        main.main([words[1], "--help"])
      text = capsys.readouterr().out
    else:
      return
    assert text, words
    for flag in set(re.findall(r"--(\w+)", command)) - {"help"}:
      assert re.search(rf"--(\[no\])?{flag}\b", text), flag
    for path in re.findall(r"--config=([^\s:]+)", command):
      assert (ROOT / path).exists()
  else:
    assert words[:2] == ["pip", "install"]


def test_every_command_is_in_the_table():
  text = WORKSPACE.read_text()
  for folder in ("meta_train", "experiments"):
    for path in (ROOT / folder).rglob("*.py"):
      code = path.read_text()
      # A script that other code starts says so: it is no command for users.
      if re.search("^if __name__ ==", code, re.MULTILINE) and (
          f"python {path.name} " not in code):
        name = ".".join(path.relative_to(ROOT).with_suffix(
            "").parts).removesuffix(".__main__")
        assert f"`python -m {name}" in text, name


def test_no_placeholders():
  for page in PAGES:
    assert not re.findall(r"\b[A-Z]+_(?:TABLE|TIME)|@@", page.read_text()), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_exist(page):
  """Python files named anywhere, and folders of this repository."""
  for text in in_backticks(page):
    names = re.findall(r"[\w/]*\w\.py\b", text)
    if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w/.]*", text):
      names.append(text)
    for name in names:
      assert "NAME" in name or exists(name), name


def test_files_and_folders_of_the_map_exist():
  (tree,) = blocks(WORKSPACE, "")
  names = re.findall(r"\w+\.py\b|[\w/]*\w/", tree)
  assert "learned_opt/" in names and "build.py" in names
  for name in names:
    assert exists(name), name


def anchors(page: pathlib.Path) -> set[str]:
  """Anchors of the headings of a page, as GitHub makes them."""
  headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
          for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  for path, anchor in re.findall(
      r"\]\(((?!http)[^)#]*)(?:#([^)]*))?\)", page.read_text()):
    target = page.parent / path if path else page
    # Pages of the reference are made with the site, see docs/hooks.py.
    made = target.parent.name == "reference" and (
        f"reference/{target.name}" in (ROOT / "mkdocs.yml").read_text())
    assert target.exists() or made, path
    assert not anchor or anchor in anchors(target), anchor


@pytest.mark.parametrize(
    "page", WITH_PYTHON, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_runs(page, tmp_path, monkeypatch, uploads):
  """Each block runs alone, in this process, which has imported jax already.

  Uploads go nowhere, see the fixture.
  """
  monkeypatch.chdir(tmp_path)
  for number, block in enumerate(blocks(page, "python")):
    module = types.ModuleType(f"block_{number}")
    # flax looks for the module of a class.
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block, f"{page}, block {number}", "exec"), module.__dict__)


def test_readme_is_one_page():
  assert len(README.read_text().splitlines()) <= 150
