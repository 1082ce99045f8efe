"""The only code that knows of devices: copies of tasks spread over a mesh.

Theta and data are on every device, the copies of each task and their states are
divided among them. What is estimated is a weighted mean over the devices, so
the results do not depend on their number but for rounding.
"""

from typing import Any, Sequence

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from meta_train import base

AXIS = "copies"
MAPS = ("shard_map", "pmap")

P = jax.sharding.PartitionSpec


def mesh(copies: int, at_most: int = 0) -> jax.sharding.Mesh:
  """Devices that the copies of a task are divided among, equally.

  Args:
    copies: of each task.
    at_most: use no more devices than that; 0 for all. Of one process' devices,
      the largest number is taken that divides the copies.

  Raises:
    ValueError: the devices of several processes do not divide the copies.
  """
  devices = jax.devices()
  if jax.process_count() > 1:
    if copies % len(devices):
      raise ValueError(
          f"{copies} copies of a task cannot be divided among the "
          f"{len(devices)} devices of {jax.process_count()} processes: let "
          "config.copies be a multiple of that.")
    return _mesh(devices)
  count = min(at_most or len(devices), len(devices))
  while copies % count:
    count -= 1
  return _mesh(devices[:count])


def _mesh(devices: Sequence) -> jax.sharding.Mesh:
  return jax.sharding.Mesh(
      np.array(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def shard(estimator: base.GradientEstimator, devices: jax.sharding.Mesh,
          how: str = "shard_map", streamed: bool = False
          ) -> base.GradientEstimator:
  """The same estimator, on all devices of a mesh.

  Args:
    estimator: see `base.GradientEstimator`; the number of keys must be a
      multiple of the number of devices.
    devices: as `mesh` returns it.
    how: the mapping, one of MAPS; "pmap" for one process only.
    streamed: data are divided like the copies, not on every device.

  Raises:
    ValueError: unknown mapping.
  """
  if how not in MAPS:
    raise ValueError(
        f"Unknown mapping {how!r}; available: {', '.join(MAPS)}.")

  def estimate(keys, theta, state, data):
    out, state = estimator.estimate(keys, theta, state, data)
    return _combine(out), state

  def run(fn, args, sharded, out_sharded):
    if how == "shard_map":
      # Not check_vma: with it, a gradient with respect to theta, which is the
      # same everywhere, is summed over the devices, and nothing says so.
      spec = lambda flags: tuple(P(AXIS) if flag else P() for flag in flags)
      specs = spec(out_sharded)
      return jax.shard_map(
          fn, mesh=devices, in_specs=spec(sharded),
          out_specs=specs if len(specs) > 1 else specs[0], check_vma=False)(
              *args)
    split = lambda x: x.reshape((devices.size, -1) + x.shape[1:])
    join = lambda x: x.reshape((-1,) + x.shape[2:])
    args = [jax.tree.map(split, x) if flag else x
            for x, flag in zip(args, sharded)]
    outs = jax.pmap(
        fn, AXIS, in_axes=tuple(0 if flag else None for flag in sharded),
        devices=list(devices.devices.flat))(*args)
    pick = lambda x, flag: jax.tree.map(
        join if flag else lambda y: y[0], x)
    if len(out_sharded) == 1:
      return pick(outs, out_sharded[0])
    return tuple(pick(x, flag) for x, flag in zip(outs, out_sharded))

  return base.GradientEstimator(
      lambda keys, theta: run(
          estimator.init, (keys, theta), (True, False), (True,)),
      lambda keys, theta, state, data: run(
          estimate, (keys, theta, state, data), (True, False, True, streamed),
          (False, True)))


def _combine(out: base.EstimatorOut) -> base.EstimatorOut:
  """Means over devices, weighted by the copies that each is over."""
  total = jax.lax.psum(out.copies, AXIS)

  def mean(x):
    # A device that dropped all of its copies has a mean of nothing.
    part = jnp.where(out.copies > 0, x * out.copies, jnp.zeros_like(x))
    return jax.lax.psum(part, AXIS) / total

  return base.EstimatorOut(
      mean(out.meta_loss), jax.tree.map(mean, out.grad), total,
      jax.lax.psum(out.info, AXIS))


def replicate(tree: Any, devices: jax.sharding.Mesh) -> Any:
  """Host arrays as device arrays, whole on every device."""
  return _put(tree, jax.sharding.NamedSharding(devices, P()))


def spread(tree: Any, devices: jax.sharding.Mesh) -> Any:
  """Host arrays as device arrays, their first axis divided."""
  return _put(tree, jax.sharding.NamedSharding(devices, P(AXIS)))


def place(state: base.MetaState, devices: jax.sharding.Mesh) -> base.MetaState:
  """A state of host arrays on the devices, as `step.make`'s `step` has it."""
  whole = lambda tree: replicate(tree, devices)
  return base.MetaState(
      whole(state.step), whole(state.theta), whole(state.opt_state),
      spread(state.estimator_states, devices))


def _put(tree, sharding):
  put = lambda x: jax.make_array_from_callback(
      np.shape(x), sharding, lambda index: np.asarray(x)[index])
  return jax.tree.map(put, tree)


def fetch(tree: Any) -> Any:
  """Device arrays as host arrays, whole on every process."""
  def one(x):
    if x.is_fully_addressable or x.is_fully_replicated:
      return np.array(x, copy=True)
    return np.array(multihost_utils.process_allgather(x, tiled=True))
  return jax.tree.map(one, tree)


def connect(coordinator: str | None, processes: int | None,
            process: int | None) -> None:
  """Joins the processes of a run on several hosts; before anything else.

  Args:
    coordinator: address:port of process 0; None to find out all three, as on
      Cloud TPUs and under Slurm.
    processes: how many there are.
    process: number of this one.
  """
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(coordinator, processes, process)


def from_first(tree: Any) -> Any:
  """Host arrays of process 0, on every process."""
  if jax.process_count() == 1:
    return tree
  return jax.tree.map(
      np.asarray, multihost_utils.broadcast_one_to_all(tree))


def anywhere(flag: bool) -> bool:
  """Whether the flag is set on any process."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
