"""What README and docs tell people to run exists, and README's Python runs."""

import functools
import pathlib
import re
import subprocess
import sys

import pytest
import test_transfer

import mulo

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: pathlib.Path, language: str) -> list[str]:
  return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands() -> list[str]:
  joined = "\n".join(block for page in PAGES for block in blocks(
      page, "sh")).replace("\\\n", " ")
  return sorted({line.strip() for line in joined.splitlines()
                 if line.strip() and not line.startswith("#")})


@functools.cache
def help_of(module: str) -> str:
  return subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT,
                        capture_output=True, text=True).stdout


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
    text = help_of(words[words.index("-m") + 1])
    assert text, words
    for flag in re.findall(r"--(\w+)", command):
      assert re.search(rf"--(\[no\])?{flag}\b", text), flag
    for path in re.findall(r"--config=([^\s:]+)", command):
      assert (ROOT / path).exists()
  else:
    assert words[:2] == ["pip", "install"]


def test_no_placeholders():
  for page in PAGES:
    assert not re.findall(r"\b[A-Z]+_(?:TABLE|TIME)|@@", page.read_text()), page


def test_files_and_figures_exist():
  for page in PAGES:
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", page.read_text()):
      assert (page.parent / path).exists(), (page, path)


def test_python_runs(tmp_path):
  path = tmp_path / "runs" / "quickstart" / "theta.safetensors"
  path.parent.mkdir(parents=True)
  mulo.save(path, test_transfer.artifact())
  for block in blocks(README, "python"):
    subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True)
