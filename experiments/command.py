"""What all commands share: flags, progress, errors, and command.txt.

A command is a module that ends with

    if __name__ == "__main__":
      command.run(define_flags, main)

where `define_flags()` calls absl's `flags.DEFINE_...` and `main(flags)` does the
work and returns the exit status, None for success.
"""

import ast
import pathlib
import shlex
import sys
from typing import Any, Callable

from absl import app
from absl import flags
from absl import logging
import tqdm

ERRORS = (ValueError, OSError, ImportError, FloatingPointError)


def run(define_flags: Callable[[], None],
        main: Callable[[flags.FlagValues], int | None]) -> None:
  """Run a command and exit.

  An error that the user can mend ends as one line. If the command has the flag
  --workdir and succeeds, command.txt in the workdir says how it was called.

  Args:
    define_flags: defines the flags; not called at import, because absl's flags
      are global.
    main: see the module docstring.
  """
  define_flags()

  def start(argv):
    if len(argv) > 1:
      raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    try:
      status = main(flags.FLAGS)
      if "workdir" in flags.FLAGS:
        write_command(pathlib.Path(flags.FLAGS.workdir))
    except ERRORS as e:
      sys.exit(f"{type(e).__name__}: {e}")
    sys.exit(status or 0)

  app.run(start)


def write_command(folder: pathlib.Path) -> None:
  """Write command.txt: the command line of this process."""
  module = sys.modules["__main__"].__spec__
  name = "unknown" if module is None else module.name
  (folder / "command.txt").write_text(
      f"python -m {name} {shlex.join(sys.argv[1:])}\n")


def define_workdir() -> None:
  """Define the flag --workdir, which is required."""
  flags.DEFINE_string("workdir", None, "Folder for the results.", required=True)


def define_data_dir() -> None:
  """Define the flag --data_dir."""
  flags.DEFINE_string(
      "data_dir", None, "Folder of data sets; default: $MULO_DATA_DIR.")


def define_task() -> None:
  """Define the flags --task and --settings."""
  flags.DEFINE_string("task", "mlp", "Family of tasks.")
  flags.DEFINE_list("settings", [], "Settings of the task: name=value,...")


def progress(total: int, unit: str, description: str | None = None,
             **settings: Any) -> tqdm.tqdm:
  """Return a progress bar; ten seconds between lines outside a terminal.

  Args:
    total: number of units.
    unit: name of one unit, such as "step".
    description: shown in front of the bar.
    **settings: of `tqdm.tqdm`.
  """
  return tqdm.tqdm(
      total=total, unit=unit, desc=description,
      mininterval=0.5 if sys.stderr.isatty() else 10, **settings)


def parse_settings(texts: list[str]) -> dict[str, Any]:
  """Turn `["width=8", "dataset=mnist"]` into a dict.

  Values are Python literals, or else text.

  Raises:
    ValueError: a text without "=".
  """
  settings: dict[str, Any] = {}
  for text in texts:
    name, equals, value = text.partition("=")
    if not equals:
      raise ValueError(f"{text!r} is not of the form setting=value.")
    settings[name] = parse_value(value)
  return settings


def parse_value(text: str) -> Any:
  """Turn text into the Python literal that it is, or leave it text."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
