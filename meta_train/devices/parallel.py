"""Copies of tasks divided among a mesh of devices.

No other module but pmap.py knows how. Theta and data are on every device. The
copies of each task and their states are divided among the devices. Estimates
are averaged over the devices, weighted by copies, so the results do not depend
on the number of devices, except for rounding.
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
  """Return the number of CPU cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def set_cpu_devices(at_most: int = 0, copies: int | None = None) -> None:
  """Create CPU devices for `mesh`; call it before any other use of JAX.

  After that, nothing happens: the devices stay as they are.

  Creates more devices than `mesh` uses. JAX has as many threads as CPU devices.
  A device that waits for another device, or for its part of a matrix product,
  blocks a thread. Without spare threads, all threads can be blocked for good.

  Args:
    at_most: see `mesh`.
    copies: see `mesh`, which uses no more devices.
  """
  count = at_most or cpu_cores()
  count = count if copies is None else min(count, copies)
  try:
    jax.config.update("jax_num_cpu_devices", 2 * count + 1)
  except RuntimeError:
    pass  # JAX was used before, in a process that calls this program


def mesh(copies: int, at_most: int = 0) -> jax.sharding.Mesh:
  """Return the devices that the copies of a task are divided among, equally.

  One process uses the largest possible number of devices that divides `copies`.

  Args:
    copies: number of copies of each task.
    at_most: maximum number of devices of a process. 0: all devices, but on a
      CPU one device per core.

  Raises:
    ValueError: there are several processes, and `copies` is not a multiple of
      their number of devices.
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
  by_process: dict[int, list[jax.Device]] = {}
  for device in jax.devices():
    by_process.setdefault(device.process_index, []).append(device)
  if any(len(local_devices) != jax.local_device_count()
         for local_devices in by_process.values()):
    raise ValueError("Processes have different numbers of devices: set "
                     "config.devices to what all of them have.")
  devices = [device for local_devices in by_process.values()
             for device in local_devices[:count]]
  return jax.sharding.Mesh(
      np.array(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def shard(estimators: dict[str, base.GradientEstimator],
          devices: jax.sharding.Mesh, how: str = "shard_map",
          streamed: bool = False
          ) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Return `init` and `estimate` of all tasks, on all devices of a mesh.

  They have the arguments and results of `base.GradientEstimator`, but keys,
  states, data and `EstimatorOut`s are dicts with one entry per task.

  Args:
    estimators: {task name: estimator}. The number of keys of a task must be a
      multiple of the number of devices.
    devices: a mesh from `mesh`.
    how: the mapping, one of MAPS; "pmap" for one process only.
    streamed: whether data are divided like the copies. Otherwise they are whole
      on every device.

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
    outs, new_states = {}, {}
    for name, estimator in estimators.items():
      outs[name], new_states[name] = estimator.estimate(
          keys[name], theta, states[name], data[name])
    return _combine(outs), new_states

  # For each argument and result: whether it is divided among the devices.
  mapped = {"shard_map": _shard_map, "pmap": pmap.pmap}[how]
  return (
      mapped(init, devices, AXIS, (True, False), True),
      mapped(estimate, devices, AXIS, (True, False, True, streamed),
             (False, True)))


def _shard_map(fn: Callable[..., Any], devices: jax.sharding.Mesh, axis: str,
               divided: tuple[bool, ...], out_divided: Any
               ) -> Callable[..., Any]:
  """Map `fn` over the devices; see `pmap.pmap` for the arguments."""
  spec = lambda flag: P(axis) if flag else P()
  # With check_vma=True, JAX would sum gradients with respect to theta over the
  # devices, because theta is the same on all of them. No error would say so.
  return jax.shard_map(
      fn, mesh=devices, in_specs=tuple(map(spec, divided)),
      out_specs=jax.tree.map(spec, out_divided), check_vma=False)


def _combine(outs: dict[str, base.EstimatorOut]
             ) -> dict[str, base.EstimatorOut]:
  """Return the means over devices, weighted by the copies of each device.

  Uses a single collective. A CPU device waits for the other devices in a thread
  that they may need. With several collectives, all threads can be waiting.
  """
  def weigh(out):
    # The mean of a device that dropped all of its copies may be NaN.
    total = lambda x: jnp.where(out.copies > 0, x * out.copies, 0)
    return out._replace(meta_loss=total(out.meta_loss),
                        grad=jax.tree.map(total, out.grad))

  sums, unravel = jax.flatten_util.ravel_pytree(
      {name: weigh(out) for name, out in outs.items()})
  sums = unravel(jax.lax.psum(sums, AXIS))
  return {name: out._replace(
      meta_loss=out.meta_loss / out.copies,
      grad=jax.tree.map(lambda x, n=out.copies: x / n, out.grad))
          for name, out in sums.items()}


def replicate(tree: Any, devices: jax.sharding.Mesh) -> Any:
  """Put host arrays on the devices, whole on every device."""
  return _put(tree, jax.sharding.NamedSharding(devices, P()))


def spread(tree: Any, devices: jax.sharding.Mesh) -> Any:
  """Put host arrays on the devices, divided along their first axis."""
  return _put(tree, jax.sharding.NamedSharding(devices, P(AXIS)))


def place(state: base.MetaState, devices: jax.sharding.Mesh) -> base.MetaState:
  """Put a state of host arrays on the devices, for `step` of `step.make`."""
  return base.MetaState(**{
      name: (spread if name == "estimator_states" else replicate)(x, devices)
      for name, x in state._asdict().items()})


def _put(tree: Any, sharding: jax.sharding.Sharding) -> Any:
  put = lambda x: jax.make_array_from_callback(
      np.shape(x), sharding, lambda index: np.asarray(x)[index])
  return jax.tree.map(put, tree)


def fetch(tree: Any) -> Any:
  """Return device arrays as host arrays, whole on every process."""
  def fetch_array(x):
    if x.is_fully_addressable or x.is_fully_replicated:
      return np.array(x, copy=True)  # the device array may be donated later
    return np.array(multihost_utils.process_allgather(x, tiled=True))
  return jax.tree.map(fetch_array, tree)


def from_first(tree: Any) -> Any:
  """Return the host arrays of process 0, on every process."""
  if jax.process_count() == 1:
    return tree
  # As bytes: the broadcast is a sum with zeros, and -0.0 + 0.0 is 0.0.
  to_bytes = lambda x: np.frombuffer(np.asarray(x).tobytes(), np.uint8)
  received = multihost_utils.broadcast_one_to_all(jax.tree.map(to_bytes, tree))
  return jax.tree.map(
      lambda x, data: np.frombuffer(
          np.asarray(data).tobytes(), np.asarray(x).dtype).reshape(np.shape(x)),
      tree, received)


def anywhere(flag: bool) -> bool:
  """Return whether the flag is set on any process."""
  return bool(highest(int(flag)))


def highest(number: int) -> int:
  """Return the highest number of all processes."""
  if jax.process_count() == 1:
    return number
  return int(np.max(multihost_utils.process_allgather(np.array(number))))
