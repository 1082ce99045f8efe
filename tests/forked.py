"""Runs of commands as forks of one process, which has imported what is slow.

`run` starts this file as a program.
"""

import contextlib
import gc
import json
import os
import pathlib
import runpy
import subprocess
import sys
import traceback
from typing import Sequence

import tiny_run


def run(commands: Sequence[Sequence[str]], folder: pathlib.Path
        ) -> list[subprocess.CompletedProcess]:
  """Return the finished processes of commands, run one after the other.

  Args:
    commands: of each, its module and its arguments.
    folder: for files with what the commands print.
  """
  subprocess.run(
      [sys.executable, __file__, str(folder), json.dumps(commands)],
      cwd=tiny_run.ROOT, check=True, stdin=subprocess.DEVNULL,
      # As with python -m, modules are found from the root.
      env={**tiny_run.ENVIRONMENT, "PYTHONPATH": os.pathsep.join(
          [str(tiny_run.ROOT), tiny_run.ENVIRONMENT["PYTHONPATH"]])})
  return [subprocess.CompletedProcess(command, *json.loads(
      (folder / f"{i}.json").read_text())) for i, command in
          enumerate(commands)]


def _fork(module: str, arguments: list[str], stem: pathlib.Path) -> None:
  """Run a command in a fork and write [status, stdout, stderr] to stem.json."""
  paths = [stem.with_suffix(end) for end in (".out", ".err")]
  if not (child := os.fork()):
    for number, path in enumerate(paths, 1):
      os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os._exit(_status(module, arguments))
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  stem.with_suffix(".json").write_text(json.dumps(
      [status, *(path.read_text() for path in paths)]))


def _status(module: str, arguments: list[str]) -> int:
  """Run a module as a program and return its exit status."""
  sys.argv = [module, *arguments]
  status: int | str | None = 0
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  except SystemExit as e:
    status = e.code
  except BaseException:
    traceback.print_exc()
    status = 1
  if isinstance(status, str):
    print(status, file=sys.stderr)
    status = 1
  with contextlib.suppress(OSError):
    sys.stdout.flush()
    sys.stderr.flush()
  return status or 0


if __name__ == "__main__":
  import flax.linen  # noqa: F401
  import jax  # noqa: F401
  import matplotlib.pyplot  # noqa: F401
  import orbax.checkpoint  # noqa: F401
  import pandas  # noqa: F401

  import experiments.methods  # noqa: F401
  import meta_train.build  # noqa: F401

  gc.freeze()
  for index, (name, *rest) in enumerate(json.loads(sys.argv[2])):
    _fork(name, rest, pathlib.Path(sys.argv[1]) / str(index))
