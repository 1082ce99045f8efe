"""Processes that share the cells of a study: --executor=local:N or submitit:N.

Each process runs the same command. On a disk that all of them see they divide
the cells (`sweep.run_cells`), so nothing else has to be distributed.
"""

import pathlib
import re
import signal
import subprocess
import sys
from typing import Any


def parse(executor: str) -> tuple[str, int]:
  """Return ("local" or "submitit", number of processes).

  Raises:
    ValueError: a text of another form.
  """
  match = re.fullmatch(r"(local|submitit):([1-9][0-9]{0,3})", executor)
  if not match:
    raise ValueError(f"--executor={executor}: expected local:N or submitit:N, "
                     "with the number N of processes.")
  return match[1], int(match[2])


def command_line() -> list[str]:
  """Return the command of this process, without its flags --executor*."""
  # `python -m package.module` sets the spec; `python file.py` does not.
  spec = sys.modules["__main__"].__spec__
  program = [sys.argv[0]] if spec is None else ["-m", spec.name]
  arguments, skip = [], False
  for argument in sys.argv[1:]:
    match = re.match(r"--?executor(?:_settings)?(=|$)", argument)
    if not (skip or match):
      arguments.append(argument)
    skip = match is not None and not match[1] and not skip
  return [sys.executable, *program, *arguments]


def run_local(count: int, command: list[str], folder: pathlib.Path) -> None:
  """Run a command in several processes at a time and wait for all.

  Args:
    count: number of processes.
    command: see `command_line`.
    folder: folder for what they print, one file for each.
  """
  folder.mkdir(parents=True, exist_ok=True)
  workers: list[subprocess.Popen[bytes]] = []
  old = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  try:
    for i in range(count):
      with open(folder / f"{i}.txt", "wb") as log:
        workers.append(subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT))
    failed = [i for i, worker in enumerate(workers) if worker.wait()]
    if failed:
      print(f"Processes {failed} failed, see {folder}; this process computes "
            "what is left.", file=sys.stderr, flush=True)
  finally:
    for worker in workers:
      if worker.poll() is None:
        worker.terminate()
    signal.signal(signal.SIGTERM, old)


class Job:
  """Work of one job of the cluster; submitit pickles it.

  Attributes:
    command: see `command_line`.
  """

  def __init__(self, command: list[str]):
    """Take the command."""
    self.command = command

  def __call__(self, index: int) -> None:
    """Run the command; `index` is the number of the job in the array."""
    subprocess.run(self.command, check=True)

  def checkpoint(self, index: int) -> Any:
    """Return what to submit again after a time-out or preemption: the same.

    Cells that are done are kept.
    """
    import submitit
    return submitit.helpers.DelayedSubmission(self, index)


def submit(count: int, command: list[str], folder: pathlib.Path,
           settings: dict[str, Any]) -> list[str]:
  """Submit an array of jobs to the cluster, through submitit.

  Args:
    count: number of jobs.
    command: see `command_line`.
    folder: folder for what they print.
    settings: parameters of submitit, such as timeout_min, slurm_partition; and
      "cluster", for another one than submitit finds.

  Returns:
    The numbers of the jobs.

  Raises:
    ImportError: submitit is missing.
  """
  try:
    # Imported here, because submitit is an optional dependency.
    import submitit
  except ImportError as e:
    raise ImportError(
        "--executor=submitit needs submitit: pip install submitit.") from e
  settings = dict(settings)
  cluster = settings.pop("cluster", None)
  executor = submitit.AutoExecutor(folder, cluster=cluster)
  executor.update_parameters(**settings)
  return [job.job_id
          for job in executor.map_array(Job(command), list(range(count)))]
