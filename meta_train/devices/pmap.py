"""Copies divided among devices by `jax.pmap`, instead of `jax.shard_map`.

Both mappings give the same meta-gradients (tests/test_parallel.py). The
default, `config.mapping = "shard_map"`, also runs on several hosts. "pmap" runs
on one host only. It is for a JAX version or backend that has trouble with
`shard_map`, and for finding out whether a difference comes from the mapping.
"""

from typing import Any, Callable

import jax


def pmap(fn: Callable[..., Any], devices: jax.sharding.Mesh, axis: str,
         divided: tuple[bool, ...], out_divided: Any) -> Callable[..., Any]:
  """Map `fn` over the devices of a mesh with `jax.pmap`.

  Args:
    fn: function that each device computes.
    devices: one-dimensional mesh.
    axis: name of the mesh axis, for the collectives in `fn`.
    divided: for each argument, whether its arrays are divided along their first
      axis. Otherwise they are whole on every device.
    out_divided: tree of bools, the same for the results of `fn`.

  Returns:
    A function that takes and returns whole arrays.
  """
  # pmap wants the devices as an axis: [copies, ...] -> [devices, copies per
  # device, ...], and back.
  split = lambda x: x.reshape((devices.size, -1) + x.shape[1:])
  join = lambda x: x.reshape((-1,) + x.shape[2:])
  first = lambda x: x[0]  # of results that are equal on all devices

  def mapped(*args):
    args = tuple(jax.tree.map(split, x) if flag else x
                 for x, flag in zip(args, divided))
    outs = jax.pmap(
        fn, axis, in_axes=tuple(0 if flag else None for flag in divided),
        devices=list(devices.devices.flat))(*args)
    return jax.tree.map(
        lambda flag, x: jax.tree.map(join if flag else first, x),
        out_divided, outs)

  return mapped
