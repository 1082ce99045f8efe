"""The site: all public names, all settings, all pages."""

import inspect
import os
import pathlib
import re
import subprocess
import sys

import pytest

from learned_opt import registry
from meta_train.configs import quickstart
import mulo
import mulo.testing

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("learned_opt.optimizers", "learned_opt.scaling.parametrizations",
           "meta_train.estimators", "tasks.families")


def flat(section, prefix=""):
  """Return {key: default}; the sections of tasks count as one key."""
  keys = {}
  for name, value in section.items():
    if name == "tasks":
      keys[prefix + name] = ...
    elif isinstance(value, dict):
      keys |= flat(value, f"{prefix}{name}.")
    else:
      keys[prefix + name] = value
  return keys


def test_every_setting_of_a_config_is_on_its_page():
  page = (ROOT / "docs" / "reference" / "config.md").read_text()
  rows = re.findall(r"^\| `(.*?)` \| (\w+) \| `(.*?)` \| (.+) \|$", page, re.M)
  expected = flat(quickstart.get_config().to_dict())
  # As the page writes it: type and default.
  written = {key: ("section", "...") if value is ... else
             (type(value).__name__, repr(value))
             for key, value in expected.items()}
  assert {key: (kind, default) for key, kind, default, _ in rows} == written


@pytest.mark.parametrize("module", [mulo, mulo.scaling, mulo.testing],
                         ids=lambda module: module.__name__)
def test_every_public_name_has_a_docstring(module):
  names = getattr(module, "__all__", ["CHECKS", "run"])
  for name in names:
    assert inspect.getdoc(getattr(module, name)), name


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_part_has_a_docstring(folder):
  for name in registry.names(folder):
    make = registry.find(folder, name)
    assert inspect.getdoc(make), name


def test_site(tmp_path):
  """The site is built without a warning: links, anchors, names."""
  pytest.importorskip("mkdocs")
  pytest.importorskip("mkdocstrings_handlers")
  done = subprocess.run(
      [sys.executable, "-m", "mkdocs", "build", "--strict",
       f"--site-dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True,
      env=dict(os.environ, NO_MKDOCS_2_WARNING="1"))
  assert done.returncode == 0, done.stderr
  page = (tmp_path / "reference" / "scaling" / "index.html").read_text()
  for name in mulo.scaling.__all__:
    assert f'id="mulo.scaling.{name}"' in page
  index = (tmp_path / "index.html").read_text()
  assert 'href="results/width/"' in index
  assert 'src="studies/width_muon/final.png"' in index
