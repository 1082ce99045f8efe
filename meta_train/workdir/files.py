"""The workdir of a run that this process writes to, and no other."""

import contextlib
import pathlib
import sys
from typing import Any, Iterator, NamedTuple

import ml_collections

from meta_train import base
from meta_train.workdir import checkpoint
from meta_train.workdir import claim
from meta_train.workdir import metrics
from meta_train.workdir import run_record


class Files(NamedTuple):
  """Files that process 0 writes to the workdir.

  Attributes:
    folder: the workdir.
    lock: claim on the workdir.
    checkpointer: writes checkpoints.
    software: see `run_record.note`.
  """

  folder: pathlib.Path
  lock: claim.Claim
  checkpointer: checkpoint.Checkpointer
  software: list[dict[str, Any]]

  def save(self, state: base.MetaState) -> None:
    """Start writing a checkpoint, and note that there are some."""
    self.checkpointer.save(state)
    if self.checkpointer.any():
      run_record.note_checkpoint(self.folder / "config.json")

  def check(self) -> None:
    """Raise OSError if another process has taken the workdir over."""
    if self.lock.lost():
      raise OSError(
          f"{self.folder} was taken over by another process, because this one "
          "gave no sign of life. That process continues the run.")


@contextlib.contextmanager
def opened(config: ml_collections.ConfigDict, folder: pathlib.Path,
           devices: int, data: dict[str, str]) -> Iterator[Files]:
  """Lock the workdir, compare its data and note what is used now.

  Args:
    config: config of this run.
    folder: the workdir; created if missing.
    devices: number of devices.
    data: {task: hash of its data}.

  Raises:
    ValueError: the run in the workdir began with other data.
    OSError: another process has the workdir, or it cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with claim.hold(folder / "lock", str(folder)) as lock:
    # Of a process that was killed while it wrote the result.
    for path in folder.glob(".*.safetensors.*"):
      path.unlink()
    run_record.compare_data(data, folder / "config.json")
    software = run_record.note(config, folder / "config.json", devices, data)
    with checkpoint.Checkpointer(
        folder / "checkpoints", config.keep_checkpoints) as checkpointer:
      yield Files(folder, lock, checkpointer, software)


def begins_anew(folder: pathlib.Path) -> None:
  """Say that a run without a checkpoint begins anew; OSError if it had one."""
  path = folder / "metrics.jsonl"
  last = max((row["step"] for row in metrics.read(path)), default=0)
  if run_record.had_checkpoint(folder / "config.json"):
    raise OSError(
        f"The checkpoints in {folder / 'checkpoints'} are gone. Put them back, "
        f"or remove {folder / 'config.json'} to begin anew.")
  if last:
    print(f"{folder} has no checkpoint yet: begins anew, after {last} outer "
          "steps.", file=sys.stderr, flush=True)
