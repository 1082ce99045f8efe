"""The command `mulo`."""

import os
import pathlib
import re
import runpy
import subprocess
import sys
import types

import pytest

import mulo
from mulo._cli import main
from mulo._cli import parts

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ROOT / "meta_train" / "configs"


def run(folder, *arguments):
  """Run `python -m mulo` as a new process."""
  return subprocess.run(
      [sys.executable, "-m", "mulo", *arguments], cwd=folder,
      capture_output=True, text=True,
      env=dict(os.environ, PYTHONPATH=str(ROOT)))


@pytest.fixture
def started(monkeypatch):
  """The calls of `runpy.run_module`, which does nothing: [(module, argv)]."""
  calls = []
  monkeypatch.setattr(sys, "argv", sys.argv)
  monkeypatch.setattr(
      runpy, "run_module",
      lambda module, **kwargs: calls.append((module, sys.argv)))
  return calls


def test_help_names_all_commands(capsys):
  assert main.main(["--help"]) == 0
  text = capsys.readouterr().out
  assert mulo.__version__ in text
  for command in main.COMMANDS.values():
    assert command.purpose in text


def test_list_has_every_file_of_every_folder(capsys):
  assert main.main(["list"]) == 0
  words = capsys.readouterr().out.split()
  assert set(parts.KINDS) <= set(words)
  folders = ("learned_opt/optimizers", "learned_opt/scaling/parametrizations",
             "meta_train/configs", "meta_train/estimators", "tasks/families")
  names = {path.stem for folder in folders
           for path in (ROOT / folder).glob("[!_]*.py")}
  assert {*names, *mulo.list_pretrained(), "heldout", "adamw"} <= set(words)


def test_every_part_has_a_purpose():
  for kind, rows in parts.KINDS.items():
    for row in rows():
      assert row.line, (kind, row.name)


def test_list_without_packages_of_meta_training(monkeypatch):
  """Imitate an environment with nothing but `pip install mulo`."""
  def fails():
    raise ModuleNotFoundError("No module named 'flax'")

  monkeypatch.setitem(parts.KINDS, "tasks", fails)
  text = parts.tables()
  assert "tasks\n  (No module named 'flax')\n" in text and "velo" in text


def test_card(capsys, tmp_path):
  assert main.main(["card", "mulo-s"]) == 0
  card = (ROOT / "mulo" / "pretrained" / "mulo-s.md").read_text()
  assert card in capsys.readouterr().out
  path = tmp_path / "theta.safetensors"
  mulo.save(path, mulo.read("mulo-s"))
  assert main.main(["card", str(path)]) == 0
  assert repr(mulo.read("mulo-s")) in capsys.readouterr().out


@pytest.mark.parametrize("arguments, module, argv", [
    (["train", "quickstart", "--config.num_steps=3"], "meta_train.train",
     ["mulo train", f"--config={CONFIGS}/quickstart.py", "--config.num_steps=3",
      "--workdir=runs/quickstart_train"]),
    (["train", "search:digits", "--workdir=x"], "meta_train.train",
     ["mulo train", f"--config={CONFIGS}/search.py:digits", "--workdir=x"]),
    (["train", "mine.py"], "meta_train.train",
     ["mulo train", "--config=mine.py", "--workdir=runs/mine_train"]),
    (["train", "--config=mine.py", "--workdir=x"], "meta_train.train",
     ["mulo train", "--config=mine.py", "--workdir=x"]),
    (["compare", "mulo-s", "adamw"], "experiments.studies.transfer",
     ["mulo transfer", "--optimizers=mulo-s,adamw",
      "--workdir=runs/mulo-s_adamw_transfer"]),
    (["check", "mulo-s", "--seeds=2"], "experiments.studies.coord_check",
     ["mulo coord_check", "--optimizer=mulo-s", "--seeds=2",
      "--workdir=runs/mulo-s_coord_check"])])
def test_modules_and_their_flags(started, arguments, module, argv):
  assert main.main(arguments) == 0
  assert started == [(module, argv)]


@pytest.mark.parametrize("arguments, message", [
    (["lst"], "unknown command 'lst'.* Did you mean 'list'"),
    (["list", "taks"], "unknown kind 'taks'.* Did you mean 'tasks'"),
    (["list", "tasks", "suites"], "takes one kind.* Usage: mulo list"),
    (["card"], "takes one name.* Usage: mulo card NAME"),
    (["card", "mulo-z"], "mulo-z.* Did you mean 'mulo-s'"),
    (["train"], "got nothing.* Usage: mulo train CONFIG"),
    (["train", "quickstart", "runs/x"], "takes one name.*got quickstart runs"),
    (["train", "quikstart"], "unknown config.* Did you mean 'quickstart'"),
    (["compare", "--seeds=2"], "takes names.*got --seeds=2")])
def test_errors_are_one_line(started, arguments, message):
  error = main.main(arguments)
  assert not started and "\n" not in error
  assert re.search(message, error), error


NETWORK = """
import jax
import jax.numpy as jnp

def init(key, width):
  return {"in": jax.random.normal(key, (3, width)) / 2,
          "out": jnp.zeros((width, 1))}

def loss(params, key, width):
  x = jax.random.normal(key, (8, 3))
  return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - x[:, :1])**2)
"""


def test_explain(tmp_path, capsys):
  (tmp_path / "network.py").write_text(NETWORK)
  page = tmp_path / "page.html"
  assert main.main(["explain", str(tmp_path / "network.py"), "--width=8",
                    "--num_steps=20", f"--out={page}"]) == 0
  first, last = re.search(r"loss (\S+), after 20 steps (\S+)\n",
                          capsys.readouterr().out).groups()
  assert float(last) < float(first)
  assert "step 19" in page.read_text() and "<td>" in page.read_text()


def test_doctor(tmp_path, capsys, monkeypatch):
  """tests/test_doctor.py tests the rest."""
  calls = []
  monkeypatch.setattr(mulo, "doctor", lambda *args, **kwargs: calls.append(
      (args, kwargs)) or types.SimpleNamespace(text=lambda: "the report"))
  (tmp_path / "network.py").write_text(NETWORK)
  assert main.main(["doctor", str(tmp_path / "network.py"), "--width=64",
                    "--num_steps=900", "--seed=3"]) == 0
  ((functions, settings),) = calls
  assert [x.__name__ for x in functions] == ["init", "loss"]
  assert settings == dict(
      width=64, widths=(4, 8, 16), num_steps=900, optimizer="mulo-s",
      trial_steps=200, seed=3)
  assert "the report" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["x.py", "--width=8"], "required: --num_steps.* Usage: mulo doctor FILE"),
    (["x.py", "--width=8", "--num_steps=a"], "invalid int value: 'a'"),
    (["x.py", "--width=8", "--num_steps=9", "--widhts=1"], "--widhts=1"),
    (["x.py", "--width=8", "--num_steps=9"], "No such file.*x.py"),
    (["y.py", "--width=8", "--num_steps=9"], "y.py must have.*has no loss")])
def test_wrong_networks(tmp_path, monkeypatch, arguments, message):
  (tmp_path / "y.py").write_text("def init(key, width): pass")
  monkeypatch.chdir(tmp_path)
  error = main.main(["doctor", *arguments])
  assert "\n" not in error and re.search(message, error), error


def test_flags_reach_the_module(tmp_path):
  """A wrong key is noticed when the config is loaded, before anything runs."""
  done = run(tmp_path, "train", "quickstart", "--config.num_steps=3",
             "--config.num_stps=3")
  assert done.returncode == 1 and not list(tmp_path.iterdir())
  (line,) = done.stderr.strip().splitlines()
  assert "config has no key 'num_stps'" in line


def test_a_users_own_tasks_is_named(tmp_path):
  (tmp_path / "tasks.py").write_text("raise RuntimeError('imported')")
  done = run(tmp_path, "train", "quickstart")
  (line,) = done.stderr.strip().splitlines()
  assert done.returncode == 1 and f"{tmp_path}/tasks.py hides" in line


def test_without_a_checkout(monkeypatch):
  monkeypatch.setitem(sys.modules, "experiments", None)
  for arguments in (["compare", "mulo-s"], ["list", "baselines"]):
    assert "only a checkout of mulo has" in main.main(arguments)
