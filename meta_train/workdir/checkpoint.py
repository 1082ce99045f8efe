"""Checkpoints of the MetaState, written in the background."""

import contextlib
import hashlib
import logging
import pathlib
import shutil
import sys
import threading
import traceback
from typing import Any, Iterator

import jax
import numpy as np
from orbax import checkpoint as ocp

from meta_train import base


class Checkpointer:
  """Saves states in a folder and keeps the newest ones.

  A context manager that waits at its end until everything is written. If the
  process dies while it writes a checkpoint, the unfinished checkpoint is
  ignored and removed later. Damage to a finished checkpoint is detected by its
  hash.
  """

  def __init__(self, folder: pathlib.Path, keep: int):
    """Open or create the folder.

    Args:
      folder: folder of the checkpoints.
      keep: number of checkpoints to keep.
    """
    folder.mkdir(exist_ok=True)
    # Threads of orbax print every error, which reaches `_writing` as well.
    logging.getLogger("absl").addFilter(_not_of_orbax)
    self._old_hook = threading.excepthook
    threading.excepthook = self._thread_error
    _ignore_closed_loops()
    self._manager = ocp.CheckpointManager(
        folder.absolute(), options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=False, cleanup_tmp_directories=True,
            # Of several processes, only process 0 has a Checkpointer.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0},
                barrier_sync_key_prefix="first")))

  def save(self, state: base.MetaState) -> None:
    """Start writing a state of host arrays, after earlier states are written.
    """
    with self._writing():
      self._manager.save(int(state.step), args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          hash=ocp.args.JsonSave({"sha256": _hash(state)})))

  def wait(self) -> None:
    """Wait until everything is written."""
    with self._writing():
      self._manager.wait_until_finished()

  def any(self) -> bool:
    """Return whether a checkpoint is complete."""
    folder = pathlib.Path(self._manager.directory)
    return any(path.name.isdigit() for path in folder.iterdir())

  def restore_latest(self, like: base.MetaState) -> base.MetaState | None:
    """Return the newest readable state, or None if there is no checkpoint.

    Warns of each checkpoint that cannot be read. If an earlier one can be read,
    the damaged ones are moved to the folder "damaged".

    Args:
      like: tree with the shapes and dtypes of the state.

    Returns:
      A state of host arrays, or None.

    Raises:
      OSError: there are checkpoints, but none of them can be read.
    """
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        state = self._restore(step, like)
      # Damaged bytes can cause any exception in the libraries below.
      except Exception as e:  # pylint: disable=broad-except
        reason = (str(e).splitlines() or [""])[0][:200]
        print(f"Warning: the checkpoint of step {step} cannot be read "
              f"({type(e).__name__}: {reason}).", file=sys.stderr, flush=True)
        damaged.append(step)
        continue
      for damaged_step in damaged:
        self._set_aside(damaged_step)
      return state
    if damaged:
      raise OSError(
          f"None of the checkpoints in {self._manager.directory} can be read. "
          "Remove that folder to begin again.")
    return None

  def _set_aside(self, step: int) -> None:
    """Move the checkpoint of a step to the folder "damaged"."""
    folder = pathlib.Path(self._manager.directory)
    kept = folder.with_name("damaged")
    kept.mkdir(exist_ok=True)
    shutil.rmtree(kept / str(step), ignore_errors=True)
    (folder / str(step)).rename(kept / str(step))
    self._manager.reload()

  def _restore(self, step: int, like: base.MetaState) -> base.MetaState:
    """Return the state of a step; raise OSError if its hash is wrong."""
    restored = self._manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(like), hash=ocp.args.JsonRestore()))
    if _hash(restored.state) != restored.hash["sha256"]:
      raise OSError("its contents do not have the hash they were saved with")
    return restored.state

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, *exception: object) -> None:
    try:
      with self._writing():
        self._manager.close()
    finally:
      threading.excepthook = self._old_hook

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turn what can go wrong in writing into one OSError of one line."""
    try:
      yield
    except Exception as e:
      reason = " ".join(str(e).split())[:300]
      raise OSError(
          f"A checkpoint cannot be written to {self._manager.directory} "
          f"({type(e).__name__}: {reason}). Earlier checkpoints are not lost: "
          "see that there is space, and run the same command again.") from e

  def _thread_error(self, error: Any) -> None:
    frames = traceback.extract_tb(error.exc_traceback)
    if not any(_is_orbax(frame.filename) for frame in frames):
      self._old_hook(error)


def _ignore_closed_loops() -> None:
  """Do not print what C++ threads report to an event loop that orbax closed.

  After one error of writing, the other writes still end, some after the
  Checkpointer.
  """
  old = sys.unraisablehook
  if getattr(old, "ignores_closed_loops", False):
    return

  def hook(error: Any) -> None:
    if str(error.exc_value) != "Event loop is closed":
      old(error)

  hook.ignores_closed_loops = True  # type: ignore[attr-defined]
  sys.unraisablehook = hook


def _is_orbax(path: str) -> bool:
  return "orbax" in pathlib.Path(path).parts


def _not_of_orbax(record: logging.LogRecord) -> bool:
  return not _is_orbax(record.pathname)


def _hash(state: base.MetaState) -> str:
  """Return the sha256 of names, dtypes, shapes and bytes of all arrays."""
  digest = hashlib.sha256()
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    x = np.asarray(x)
    name = f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}"
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(x).tobytes())
  return digest.hexdigest()
