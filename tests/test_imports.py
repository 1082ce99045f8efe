"""Which room may import which, and how large files and functions may be."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("learned_opt", "tasks", "mulo", "meta_train", "experiments")

# What the modules of a room may import of ours, besides the room itself. A
# room is a folder; "learned_opt.base" is that module alone, "learned_opt" all
# that is in the folder. Rooms within a room have rules of their own.
ALLOWED = {
    "learned_opt": (),
    "learned_opt.base": (),
    "learned_opt.registry": (),
    "learned_opt.kinds": ("learned_opt.base",),
    "learned_opt.artifact": (
        "learned_opt.base", "learned_opt.registry", "learned_opt.optimizers",
        "learned_opt.scaling.parametrizations", "learned_opt.strict_json"),
    "learned_opt.schedules": (),
    "learned_opt.strict_json": (),
    "learned_opt.workers": (),
    "learned_opt.nowcasting": ("learned_opt.base", "learned_opt.update"),
    # How an update is computed, and how it scales, know nothing of each other.
    "learned_opt.update": ("learned_opt.base", "learned_opt.kinds"),
    "learned_opt.scaling": (
        "learned_opt.base", "learned_opt.kinds", "learned_opt.registry"),
    "learned_opt.optimizers": (
        "learned_opt.base", "learned_opt.registry", "learned_opt.kinds",
        "learned_opt.schedules", "learned_opt.workers",
        "learned_opt.nowcasting", "learned_opt.update"),
    "mulo": ("learned_opt",),
    "mulo._wrappers": ("learned_opt", "mulo._loading"),
    "mulo.testing": (),
    # The command runs all others, by name; it lists what it does not import.
    "mulo._cli": ("mulo", "learned_opt.registry"),
    "tasks": ("learned_opt.registry",),
    "tasks.base": (),
    "tasks.data": ("learned_opt.registry",),
    "tasks.data.image_formats": ("tasks.data.base",),
    "tasks.data.table_formats": ("tasks.data.base",),
    "tasks.data.text_formats": ("tasks.data.base",),
    "meta_train": ("learned_opt", "tasks"),
    "meta_train.base": (),
    "meta_train.workdir": ("meta_train.base",),
    "meta_train.estimators": (
        "learned_opt.registry", "meta_train.base", "meta_train.unroll",
        "tasks.base"),
    "meta_train.configs": ("tasks.suites",),
    "experiments": PACKAGES,
    "experiments.command": ("experiments.executors", "experiments.sweep"),
    "experiments.executors": (),
    # Claims are files of a workdir, of meta-training and of studies.
    "experiments.sweep": ("meta_train.workdir.claim",)}


def modules() -> dict[str, pathlib.Path]:
  return {".".join(path.relative_to(ROOT).with_suffix("").parts): path
          for package in PACKAGES
          for path in sorted((ROOT / package).rglob("*.py"))}


def imported(path: pathlib.Path) -> set[str]:
  """Dotted names that a file imports, with what it takes from them."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {name.name for name in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f"{node.module}.{name.name}" for name in node.names}
  return {name for name in names if name.split(".")[0] in PACKAGES}


def inside(name: str, room: str) -> bool:
  return name == room or name.startswith(f"{room}.")


def room_of(module: str) -> str:
  """The innermost room of ALLOWED that a module is in."""
  return max((room for room in ALLOWED if inside(module, room)), key=len)


def wrong_imports(module: str, names: set[str]) -> set[str]:
  room = room_of(module)
  may = (room, *ALLOWED[room])
  return {name for name in names if not any(inside(name, x) for x in may)}


@pytest.mark.parametrize("room", ALLOWED)
def test_directions(room):
  files = {module: path for module, path in modules().items()
           if room_of(module) == room}
  assert files
  for module, path in files.items():
    assert not wrong_imports(module, imported(path)), path


@pytest.mark.parametrize("module, name", [
    ("learned_opt.update.mlp", "learned_opt.scaling.roles"),
    ("learned_opt.scaling.roles", "learned_opt.update.mlp"),
    ("tasks.networks", "learned_opt.base"),
    ("mulo._loading", "meta_train.base"),
    ("meta_train.estimators.pes", "meta_train.build")])
def test_wrong_directions_are_noticed(module, name):
  assert wrong_imports(module, {name})


def test_rooms_are_small():
  """About nine modules of one kind; parts that are listed by name may be more.
  """
  listed = ("optimizers", "parametrizations", "families", "estimators",
            "configs", "tests")
  for package in PACKAGES:
    for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
      count = len([x for x in folder.glob("*.py") if x.name not in (
          "__init__.py", "__main__.py")])
      assert count <= 11 or folder.name in listed, (folder, count)
      text = (folder / "__init__.py").read_text()
      assert ast.get_docstring(ast.parse(text)), f"{folder} has no purpose"


@pytest.mark.parametrize("module", modules())
def test_sizes(module):
  path = modules()[module]
  text = path.read_text()
  assert len(text.splitlines()) <= 400
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      lines = node.end_lineno - node.lineno + 1
      assert lines <= 80, (node.name, lines)


def test_public_face():
  """`dir` shows what is public, and modules that are not are private by name.
  """
  code = ("import mulo; assert dir(mulo) == sorted(mulo.__all__); "
          "assert all(hasattr(mulo, name) for name in mulo.__all__)")
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
  public = {path.stem for path in (ROOT / "mulo").glob("*.py")
            if not path.stem.startswith("_")}
  assert public == {"links", "scaling"}


def test_a_users_own_learned_opt_is_named(tmp_path):
  path = tmp_path / "learned_opt.py"
  path.write_text("")
  done = subprocess.run(
      [sys.executable, "-c", "import mulo"], cwd=tmp_path, capture_output=True,
      text=True, env=dict(os.environ, PYTHONPATH=f"{tmp_path}:{ROOT}"))
  assert done.stderr.splitlines()[-1] == (
      f"ImportError: {path} hides the package learned_opt of mulo. Rename it.")


def test_a_clone_called_mulo_works_from_its_parent(tmp_path):
  """The folder of the clone is no package; the one inside of it is found."""
  (tmp_path / "mulo").symlink_to(ROOT)
  done = subprocess.run(
      [sys.executable, "-c", "import mulo; print(mulo.list_pretrained())"],
      cwd=tmp_path, capture_output=True, text=True,
      env=dict(os.environ, PYTHONPATH=str(tmp_path / "mulo")))
  assert "mulo-s" in done.stdout, done.stderr


def test_import_beside_a_users_own_tasks(tmp_path):
  (tmp_path / "tasks.py").write_text("raise RuntimeError('imported')")
  code = ("import mulo, sys; mulo.list_pretrained(); assert not "
          "{'tasks', 'meta_train', 'experiments', 'mulo.testing', "
          "'chex', 'msgpack', 'huggingface_hub'} & set(sys.modules)")
  subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
