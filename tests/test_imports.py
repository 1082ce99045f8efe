"""Who may import whom."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ALLOWED = {
    "tasks": set(), "learned_opt": set(), "mulo": {"learned_opt"},
    "meta_train": {"learned_opt", "tasks"},
    "experiments": {"learned_opt", "tasks", "meta_train", "mulo"}}


def imported(path: pathlib.Path) -> set[str]:
  """Top-level names of the modules that a file imports."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {name.name.split(".")[0] for name in node.names}
    elif isinstance(node, ast.ImportFrom):
      found.add((node.module or "").split(".")[0])
  return found


@pytest.mark.parametrize("package", ALLOWED)
def test_directions(package):
  files = list((ROOT / package).rglob("*.py"))
  assert files
  for path in files:
    wrong = (imported(path) & set(ALLOWED)) - ALLOWED[package] - {package}
    assert not wrong, f"{path} must not import {wrong}"


def test_import_beside_a_users_own_tasks(tmp_path):
  (tmp_path / "tasks.py").write_text("raise RuntimeError('imported')")
  code = ("import mulo, sys; mulo.list_pretrained(); assert not "
          "{'tasks', 'meta_train', 'experiments', 'mulo.testing', "
          "'msgpack', 'huggingface_hub'} & set(sys.modules)")
  subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
