"""Checkpoints of the MetaState, written in the background."""

import hashlib
import pathlib
import shutil
import sys

import jax
import numpy as np
from orbax import checkpoint as ocp

from meta_train import base


class Checkpointer:
  """Saves states under `folder` and keeps the last `keep`.

  A context manager, which at its end waits until all is written. A checkpoint
  that was being written when the process died is ignored and removed; one that
  was damaged later is noticed by its hash.
  """

  def __init__(self, folder: pathlib.Path, keep: int):
    folder.mkdir(exist_ok=True)
    self._manager = ocp.CheckpointManager(
        folder.absolute(), options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=False, cleanup_tmp_directories=True,
            # Of several processes, only the first one has a Checkpointer.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0},
                barrier_sync_key_prefix="first")))

  def save(self, state: base.MetaState) -> None:
    """Starts writing a state of host arrays; waits for an earlier one."""
    self._manager.save(int(state.step), args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        hash=ocp.args.JsonSave({"sha256": _hash(state)})))

  def restore_latest(self, like: base.MetaState) -> base.MetaState | None:
    """The newest state that can be read, as host arrays; None if none is saved.

    Warns of checkpoints that cannot be read, and moves them to the folder
    "damaged" once an earlier one could be.

    Args:
      like: gives shapes and dtypes.

    Raises:
      OSError: there are checkpoints, but none that can be read.
    """
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        state = self._restore(step, like)
      # Whatever the libraries below raise at whatever the bytes have become.
      except Exception as e:  # pylint: disable=broad-except
        reason = (str(e).splitlines() or [""])[0][:200]
        print(f"Warning: the checkpoint of step {step} cannot be read "
              f"({type(e).__name__}: {reason}).", file=sys.stderr, flush=True)
        damaged.append(step)
        continue
      for bad in damaged:
        self._set_aside(bad)
      return state
    if damaged:
      raise OSError(
          f"None of the checkpoints in {self._manager.directory} can be read. "
          "Remove that folder to begin again.")
    return None

  def _set_aside(self, step):
    folder = pathlib.Path(self._manager.directory)
    kept = folder.with_name("damaged")
    kept.mkdir(exist_ok=True)
    shutil.rmtree(kept / str(step), ignore_errors=True)
    (folder / str(step)).rename(kept / str(step))
    self._manager.reload()

  def _restore(self, step, like):
    found = self._manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(like), hash=ocp.args.JsonRestore()))
    if _hash(found.state) != found.hash["sha256"]:
      raise OSError("its contents do not have the hash they were saved with")
    return found.state

  def __enter__(self):
    return self

  def __exit__(self, *exception) -> None:
    self._manager.close()


def _hash(state: base.MetaState) -> str:
  """sha256 of names, dtypes, shapes and bytes."""
  digest = hashlib.sha256()
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    x = np.asarray(x)
    name = f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}"
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(x).tobytes())
  return digest.hexdigest()
