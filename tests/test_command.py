"""Flags and errors of commands."""

import subprocess
import sys

import pytest
import tiny_run

from experiments import command


def run(*arguments):
  """Run a study as a command."""
  return subprocess.run(
      [sys.executable, "-m", "experiments.studies.transfer", *arguments],
      cwd=tiny_run.ROOT, capture_output=True, text=True,
      env=tiny_run.ENVIRONMENT)


def test_settings():
  assert command.parse_settings(
      ["width=8", "norm=rms", "rate=1e-3", "residual=True", "x=a=b"]) == {
          "width": 8, "norm": "rms", "rate": 1e-3, "residual": True, "x": "a=b"}


@pytest.mark.parametrize("call, message", [
    (lambda: command.parse_settings(["width"]), "not of the form name=value"),
    (lambda: command.parse_settings(["=8"]), "not of the form name=value"),
    (lambda: command.parse_integers("sizes", ["8", "x"]),
     "--sizes=8,x: expected integers")])
def test_values_that_cannot_be_parsed(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize("arguments, message", [
    (["--optimizers=nothing.safetensors"], "neither a file nor"),
    (["--optimizers=adam", "--settings=dpeth=2"], "dpeth"),
    (["--optimizers=adam", "--sedes=2"], "Did you mean: seeds"),
    (["--optimizers=adam", "digits"], "Unexpected arguments ['digits']"),
    ([], "--optimizers must have a value")])
def test_error_of_the_command_is_one_line(tmp_path, arguments, message):
  process = run(f"--workdir={tmp_path / 'x'}", *arguments)
  assert process.returncode == 1
  (line,) = process.stderr.strip().splitlines()
  assert message in line
  assert not (tmp_path / "x").exists()


def test_help():
  """Help lists the flags of the command, also those that commands share."""
  help_text = run("--help").stdout
  assert "python -m experiments.studies.transfer" in help_text
  for flag in ("workdir", "data_dir", "task", "optimizers"):
    assert f"  --{flag}: " in help_text
