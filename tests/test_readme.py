"""What the README tells people to run exists, and its Python runs."""

import pathlib
import re
import subprocess
import sys

import pytest
import test_transfer

import mulo

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
  return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
  joined = "\n".join(blocks("sh")).replace("\\\n", " ")
  return [line.strip() for line in joined.splitlines()
          if line.strip() and not line.startswith("#")]


def test_there_are_commands():
  assert "make quickstart" in commands()
  assert "make test" in commands()


@pytest.mark.parametrize("command", commands())
def test_command_exists(command):
  words = [w for w in command.split() if not re.fullmatch(r"\w+=\S+", w)]
  if words[0] == "make":
    subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL)
  elif "-m" in words:
    module = words[words.index("-m") + 1]
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT,
                          capture_output=True, text=True)
    for flag in re.findall(r"--(\w+)[=.]", command):
      assert f"--{flag}" in done.stdout or f"--[no]{flag}" in done.stdout
    for path in re.findall(r"--config=(\S+)", command):
      assert (ROOT / path).exists()
  else:
    assert words[:2] == ["pip", "install"]


def test_no_placeholders():
  assert not re.findall(r"\b[A-Z]+_(?:TABLE|TIME)", README)


def test_files_and_figures_exist():
  for path in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
    assert (ROOT / path).exists(), path


def test_python_runs(tmp_path):
  path = tmp_path / "runs" / "quickstart" / "theta.safetensors"
  path.parent.mkdir(parents=True)
  mulo.save(path, test_transfer.artifact())
  for block in blocks("python"):
    subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True)
