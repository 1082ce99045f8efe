"""Flags and errors of commands."""

import pathlib

import forked
import pytest

from experiments import command


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


WRONG = [
    (["--optimizers=nothing.safetensors"], "neither a file nor"),
    (["--optimizers=adam", "--settings=dpeth=2"], "dpeth"),
    (["--optimizers=adam", "--sedes=2"], "Did you mean: seeds"),
    (["--optimizers=adam", "digits"], "Unexpected arguments ['digits']"),
    ([], "--optimizers must have a value")]


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
  """Finished processes of a study: with --help, and with each of WRONG."""
  folder = tmp_path_factory.mktemp("commands")
  module, workdir = "experiments.studies.transfer", folder / "x"
  return forked.run([(module, "--help"), *(
      (module, f"--workdir={workdir}", *arguments) for arguments, _ in WRONG)],
                    folder)


@pytest.mark.parametrize("i", range(len(WRONG)))
def test_error_of_the_command_is_one_line(processes, i):
  process = processes[1 + i]
  assert process.returncode == 1
  (line,) = process.stderr.strip().splitlines()
  assert WRONG[i][1] in line
  workdir = process.args[1].removeprefix("--workdir=")
  assert not pathlib.Path(workdir).exists()


def test_help(processes):
  """Help lists the flags of the command, also those that commands share."""
  help_text = processes[0].stdout
  assert "python -m experiments.studies.transfer" in help_text
  for flag in ("workdir", "data_dir", "task", "optimizers"):
    assert f"  --{flag}: " in help_text
