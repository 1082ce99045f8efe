"""The only code that knows of devices: copies of tasks spread over a mesh.

Theta and data are on every device, the copies of each task and their states are
divided among them. What is estimated is a weighted mean over the devices, so
the results do not depend on their number but for rounding.
"""

import os
from typing import Any, Callable

import jax
from jax.experimental import multihost_utils
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from meta_train import base
from meta_train.devices import pmap

AXIS = "copies"
MAPS = ("shard_map", "pmap")

P = jax.sharding.PartitionSpec


def cpu_cores() -> int:
  """Cores that are ours."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def set_cpu_devices(at_most: int = 0) -> None:
  """Makes CPU devices that `mesh` can use; before anything else.

  More than those: JAX has as many threads as devices, and one that waits, for
  another device or for its share of a matrix product, blocks a thread. Without
  some to spare, all of them can be blocked for good.

  Args:
    at_most: as for `mesh`.
  """
  jax.config.update("jax_num_cpu_devices", 2 * (at_most or cpu_cores()) + 1)


def mesh(copies: int, at_most: int = 0) -> jax.sharding.Mesh:
  """Devices that the copies of a task are divided among, equally.

  Args:
    copies: of each task.
    at_most: use no more devices of a process than that; 0 for all, on a CPU
      for one per core. The largest number is taken that divides the copies.

  Raises:
    ValueError: several processes, and their devices do not divide the copies.
  """
  cpu = jax.default_backend() == "cpu"
  count = at_most or (cpu_cores() if cpu else jax.local_device_count())
  count = min(count, jax.local_device_count())
  processes = jax.process_count()
  while processes == 1 and copies % count:
    count -= 1
  if copies % (processes * count):
    raise ValueError(
        f"{copies} copies of a task cannot be divided among {count} devices of "
        f"each of {processes} processes: let config.copies be a multiple of "
        f"{processes * count}, or change config.devices.")
  by_process: dict[int, list] = {}
  for device in jax.devices():
    by_process.setdefault(device.process_index, []).append(device)
  if any(len(found) != jax.local_device_count()
         for found in by_process.values()):
    raise ValueError("Processes have different numbers of devices: set "
                     "config.devices to what all of them have.")
  devices = [d for found in by_process.values() for d in found[:count]]
  return jax.sharding.Mesh(
      np.array(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def shard(estimators: dict[str, base.GradientEstimator],
          devices: jax.sharding.Mesh, how: str = "shard_map",
          streamed: bool = False) -> tuple[Callable, Callable]:
  """`init` and `estimate` of all tasks' estimators, on all devices of a mesh.

  As in `base.GradientEstimator`, but keys, states, data and `EstimatorOut`s are
  dicts with an entry per task.

  Args:
    estimators: by task; the number of keys must be a multiple of the number
      of devices.
    devices: as `mesh` returns it.
    how: the mapping, one of MAPS; "pmap" for one process only.
    streamed: data are divided like the copies, not on every device.

  Raises:
    ValueError: unknown mapping.
  """
  if how not in MAPS:
    raise ValueError(
        f"Unknown mapping {how!r}; available: {', '.join(MAPS)}.")
  if how == "pmap" and jax.process_count() > 1:
    raise ValueError("Mapping 'pmap' is for one process; use 'shard_map'.")

  def init(keys, theta):
    return {name: estimator.init(keys[name], theta)
            for name, estimator in estimators.items()}

  def estimate(keys, theta, states, data):
    outs, new = {}, {}
    for name, estimator in estimators.items():
      outs[name], new[name] = estimator.estimate(
          keys[name], theta, states[name], data[name])
    return _combine(outs), new

  mapped = {"shard_map": _shard_map, "pmap": pmap.pmap}[how]
  return (
      mapped(init, devices, AXIS, (True, False), True),
      mapped(estimate, devices, AXIS, (True, False, True, streamed),
             (False, True)))


def _shard_map(fn, devices, axis, divided, out_divided):
  """Map `fn` over the devices; arguments as in `pmap.pmap`."""
  spec = lambda flag: P(axis) if flag else P()
  # Not check_vma: with it, a gradient with respect to theta, which is the same
  # everywhere, is summed over the devices, and nothing says so.
  return jax.shard_map(
      fn, mesh=devices, in_specs=tuple(map(spec, divided)),
      out_specs=jax.tree.map(spec, out_divided), check_vma=False)


def _combine(outs: dict[str, base.EstimatorOut]
             ) -> dict[str, base.EstimatorOut]:
  """Means over devices, weighted by the copies that each is over.

  With one collective for everything: a CPU device waits for the others in a
  thread that they may need, and with several, all threads can be waiting.
  """
  def weigh(out):
    # A device that dropped all of its copies has a mean of nothing.
    part = lambda x: jnp.where(out.copies > 0, x * out.copies, 0)
    return out._replace(meta_loss=part(out.meta_loss),
                        grad=jax.tree.map(part, out.grad))

  sums, unravel = jax.flatten_util.ravel_pytree(
      {name: weigh(out) for name, out in outs.items()})
  sums = unravel(jax.lax.psum(sums, AXIS))
  return {name: out._replace(
      meta_loss=out.meta_loss / out.copies,
      grad=jax.tree.map(lambda x, n=out.copies: x / n, out.grad))
          for name, out in sums.items()}


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
  # As bytes: it is a sum with zeros, which would turn -0.0 into 0.0.
  raw = lambda x: np.frombuffer(np.asarray(x).tobytes(), np.uint8)
  found = multihost_utils.broadcast_one_to_all(jax.tree.map(raw, tree))
  return jax.tree.map(
      lambda x, data: np.frombuffer(
          np.asarray(data).tobytes(), np.asarray(x).dtype).reshape(np.shape(x)),
      tree, found)


def anywhere(flag: bool) -> bool:
  """Whether the flag is set on any process."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
