"""Checkpoints of the MetaState, written in the background."""

import pathlib

import jax
import numpy as np
from orbax import checkpoint as ocp

from meta_train import base


class Checkpointer:
  """Saves states under `folder` and keeps the last `keep`.

  A context manager, which at its end waits until all is written. A checkpoint
  that was being written when the process died is ignored and removed.
  """

  def __init__(self, folder: pathlib.Path, keep: int):
    self._manager = ocp.CheckpointManager(
        folder.absolute(), options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True))

  def save(self, state: base.MetaState) -> None:
    """Copies the state and starts writing it; waits for an earlier one."""
    # A copy, since the next step takes the buffers of the state.
    copy = jax.tree.map(lambda x: np.array(x, copy=True), state)
    self._manager.save(int(state.step), args=ocp.args.StandardSave(copy))

  def restore_latest(self, like: base.MetaState) -> base.MetaState | None:
    """The newest checkpoint, or None. `like` gives shapes and dtypes."""
    step = self._manager.latest_step()
    if step is None:
      return None
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    return self._manager.restore(step, args=ocp.args.StandardRestore(like))

  def __enter__(self):
    return self

  def __exit__(self, *exception) -> None:
    self._manager.close()
