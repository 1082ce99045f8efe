"""Parts that all commands share: flags, progress bars, errors, command.txt.

A command is a module with this skeleton:

    def define_flags() -> None:
      command.define_workdir()
      flags.DEFINE_integer("seeds", 3, "Runs per optimizer.")

    def main(flags) -> int | None:
      ...  # returns the exit status, or None for success

    if __name__ == "__main__":
      command.run(define_flags, main)

Flags are defined in a function, not at import, because all modules of a process
share one table of flags. `main` validates its flags before it creates any file,
so that a wrong flag leaves nothing on disk.
"""

import ast
import pathlib
import re
import shlex
import sys
from typing import Any, Callable, Sequence

from absl import app
from absl import flags
from absl import logging
import tqdm

from experiments import executors
from experiments import sweep

# Errors that the user can repair. They end a command in one line; all other
# errors are bugs and keep their traceback.
ERRORS = (ValueError, OSError, ImportError, FloatingPointError)

# `--help` lists the flags that the main module defined. With this call, a flag
# that a function of this module defines belongs to the function's caller.
flags.disclaim_key_flags()


def run(define_flags: Callable[[], None],
        main: Callable[[flags.FlagValues], int | None], record: bool = True
        ) -> None:
  """Run a command and exit the process.

  Errors that the user can repair (ERRORS, wrong flags) end in one line. If the
  command has the flag --workdir, then after `main` command.txt is written
  there, and the cells of a study are packed into one file (`sweep.pack`).

  Args:
    define_flags: defines the flags of the command.
    main: does the work; receives the parsed flags as attributes and returns the
      exit status, or None for success.
    record: False for a command that reads the workdir of another one, and
      leaves its command.txt and cells as they are.
  """

  def start(argv):
    del argv  # contains the name of the program only, see `_parse_flags`
    logging.set_verbosity(logging.WARNING)
    try:
      if shared and _hand_out(flags.FLAGS):
        return
      status = main(flags.FLAGS)
      if record and "workdir" in flags.FLAGS:
        folder = pathlib.Path(flags.FLAGS.workdir)
        write_command(folder)
        sweep.pack(folder / "cells")
    except sweep.Incomplete as e:
      print(e)
      return
    except ERRORS as e:
      sys.exit(f"{type(e).__name__}: {e}")
    sys.exit(status or 0)

  define_flags()
  # Commands that compute cells import `sweep`.
  shared = sweep in main.__globals__.values()
  if shared:
    define_sharing()
  app.run(start, flags_parser=_parse_flags)


def define_sharing() -> None:
  """Define the flags --shard and --executor, for commands with cells."""
  flags.DEFINE_string(
      "shard", None, "I/N: compute only each N-th cell, from cell I on, and "
      "wait for no other process. For jobs without a common disk; on a common "
      "disk, equal commands divide the cells without this flag.")
  flags.DEFINE_string(
      "executor", None, "local:N: N processes on this machine compute the "
      "cells. submitit:N: N jobs of a cluster do, if all see the workdir.")
  flags.DEFINE_list(
      "executor_settings", [], "Settings of the jobs of a cluster, such as "
      "timeout_min=60,slurm_partition=gpu: name=value,...")


def _hand_out(values: flags.FlagValues) -> bool:
  """Do what --shard and --executor say; return whether nothing is left to do.

  Raises:
    ValueError: a malformed flag.
    ImportError: submitit is missing.
  """
  if values.shard is not None:
    match = re.fullmatch(r"(\d+)/(\d+)", values.shard)
    if not match or int(match[1]) >= int(match[2]):
      raise ValueError(f"--shard={values.shard}: expected I/N, with I from 0 "
                       "to N - 1.")
    sweep.Shard.index, sweep.Shard.count = int(match[1]), int(match[2])
  settings = parse_settings(values.executor_settings)
  if values.executor is None:
    return False
  kind, count = executors.parse(values.executor)
  folder = pathlib.Path(values.workdir) / "jobs"
  if kind == "local":
    executors.run_local(count, executors.command_line(), folder)
    return False  # all cells are done; this process makes the report
  jobs = executors.submit(count, executors.command_line(), folder, settings)
  print(f"Submitted {', '.join(jobs)}. The last one to end writes the results; "
        f"what the jobs print is in {folder}.")
  return True


def _parse_flags(argv: list[str]) -> list[str]:
  """Parse the flags, or exit with one line that names the wrong one."""
  try:
    program, *unexpected = flags.FLAGS(argv)
  except flags.Error as e:
    sys.exit(f"{e} See --help.")
  if unexpected:
    sys.exit(f"Unexpected arguments {unexpected}; a flag is --name=value. "
             "See --help.")
  return [program]


def write_command(folder: pathlib.Path) -> None:
  """Write command.txt, the command line of this process, into a folder.

  `run` does this at the end. A command that takes long calls it at the start,
  too, so that a killed run can be repeated.
  """
  (folder / "command.txt").write_text(
      f"python {shlex.join(executors.command_line()[1:])}\n")


def define_workdir() -> None:
  """Define the required flag --workdir."""
  flags.DEFINE_string(
      "workdir", None, "Folder for the results; created if missing.",
      required=True)


def define_data_dir() -> None:
  """Define the flag --data_dir."""
  flags.DEFINE_string(
      "data_dir", None,
      "Folder of data sets; default: the environment variable MULO_DATA_DIR.")


def define_trust() -> None:
  """Define the flag --trust, for commands that read artifacts."""
  flags.DEFINE_list(
      "trust", [], "Code that artifacts may name and run: "
      "package.module:make,... (see mulo.load).")


def define_task(settings: Sequence[str] = ()) -> None:
  """Define the flags --task and --settings.

  Args:
    settings: default of --settings.
  """
  flags.DEFINE_string(
      "task", "mlp", "Task family: name of a file in tasks/families.")
  flags.DEFINE_list(
      "settings", list(settings), "Settings of the task: name=value,...")


def progress(total: int, unit: str, description: str | None = None,
             **settings: Any) -> tqdm.tqdm:
  """Return a progress bar that shows the time left.

  Args:
    total: number of units.
    unit: name of one unit, such as "step".
    description: text in front of the bar.
    **settings: further arguments of `tqdm.tqdm`.
  """
  # In a log file every update is a new line, so update rarely there.
  return tqdm.tqdm(
      total=total, unit=unit, desc=description,
      mininterval=0.5 if sys.stderr.isatty() else 10, **settings)


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
  """Return the values of a list flag, `["width=8", "norm=rms"]`, as a dict.

  Values are read by `parse_value`: `{"width": 8, "norm": "rms"}`.

  Raises:
    ValueError: a text is not of the form name=value.
  """
  settings: dict[str, Any] = {}
  for text in texts:
    name, _, value = text.partition("=")
    if not name or "=" not in text:
      raise ValueError(f"{text!r} is not of the form name=value.")
    settings[name] = parse_value(value)
  return settings


def parse_value(text: str) -> Any:
  """Return the value of a Python literal, or the text itself if it is none."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def parse_integers(flag: str, texts: Sequence[str]) -> tuple[int, ...]:
  """Return the values of a list flag as integers.

  Args:
    flag: name of the flag, for the error message.
    texts: values of the flag.

  Raises:
    ValueError: a value is not an integer.
  """
  try:
    return tuple(int(text) for text in texts)
  except ValueError:
    raise ValueError(f"--{flag}={','.join(texts)}: expected integers, "
                     "separated by commas.") from None
