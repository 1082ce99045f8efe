"""Compile for a Hopper GPU on a machine without one, and read the program.

Needs the wheels of JAX's CUDA plugin (extra `gpu-plan`), no driver and no GPU.
The program is the one that a GPU would run, but for choices that XLA makes by
timing kernels.
"""

import contextlib
import importlib
import math
import re
import time
from typing import Any, Callable, Iterator, NamedTuple

import jax
from jax.experimental import topologies

from learned_opt.update import platform

PLUGINS = ("xla_cuda13", "xla_cuda12")
# As XLA describes a device: what the vendor publishes about an H100 SXM.
TARGET = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 85899345920
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# XLA times candidates of kernels unless told not to, which needs a GPU.
OPTIONS: Any = {"xla_gpu_autotune_level": 0}
# Instructions that run no kernel.
FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element",
        "after-all", "partition-id", "replica-id"}
BITS = {"pred": 8, "s4": 4, "u4": 4}


class Program(NamedTuple):
  """A program for a GPU.

  Attributes:
    launches: kernels and copies in one run.
    syncs: loops and branches for which the host waits for the device.
    bytes: read and written by all kernels, without caches.
    temporary_bytes: memory besides inputs and outputs.
    seconds: duration of tracing and compilation, on this machine.
  """

  launches: int
  syncs: int
  bytes: int
  temporary_bytes: int
  seconds: float


def why_not() -> str:
  """Return why this machine cannot compile for a GPU, or ""."""
  if not _plugin():
    return "JAX's CUDA plugin is not installed: pip install 'mulo[gpu-plan]'."
  try:
    _device()
  except Exception as e:  # pylint: disable=broad-except
    return f"The CUDA plugin cannot compile here: {str(e).splitlines()[0]}"
  return ""


def compile_fn(fn: Callable, *args: Any, donate: tuple[int, ...] = ()
               ) -> Program:
  """Compile `fn(*args)` for a Hopper GPU.

  Args:
    fn: function of trees of arrays; not traced before.
    *args: trees of `jax.ShapeDtypeStruct`.
    donate: positions of the arguments that the program may overwrite.
  """
  sharding = jax.sharding.SingleDeviceSharding(_device())
  start = time.perf_counter()
  with platform.tracing_for("cuda"), _without_cache():
    compiled = jax.jit(
        fn, donate_argnums=donate, in_shardings=sharding,
        out_shardings=sharding).lower(*args).compile(compiler_options=OPTIONS)
  seconds = time.perf_counter() - start
  text: Any = compiled.as_text()
  analysis: Any = compiled.memory_analysis()
  return Program(*read(text), analysis.temp_size_in_bytes, seconds)


def read(text: str) -> tuple[int, int, int]:
  """Return (launches, syncs, bytes) of a compiled program in XLA's text."""
  computations, entry = _parse(text)
  return _count(computations, entry)


class _Instruction(NamedTuple):
  """One instruction: its operation, types, operands and whole line."""

  name: str
  type: str
  operation: str
  operands: list[str]
  line: str


def _parse(text):
  """Return ({name of a computation: its instructions}, name of the entry)."""
  computations: dict[str, dict[str, _Instruction]] = {}
  entry = current = ""
  for line in text.splitlines():
    head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
    if head:
      current = head[2]
      entry = current if head[1] else entry
      computations[current] = {}
      continue
    # Lists of arrays count their elements in comments: /*index=5*/.
    found = re.match(
        r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)",
        re.sub(r"/\*.*?\*/", "", line))
    if found and current:
      inside = _until_closed(found[4])
      computations[current][found[1]] = _Instruction(
          found[1], found[2], found[3], re.findall(r"%([\w.\-]+)", inside),
          line)
  return computations, entry


def _until_closed(text):
  """Return text up to the parenthesis that closes one opened before."""
  depth = 1
  for i, c in enumerate(text):
    depth += (c == "(") - (c == ")")
    if not depth:
      return text[:i]
  return text


def _count(computations, name):
  """Return (launches, syncs, bytes) of one computation."""
  launches = syncs = total = 0
  for x in computations[name].values():
    called = [y for group in re.findall(
        r"(?:body|to_apply|calls|branch_computations|true_computation|"
        r"false_computation|called_computations)=(\{[^}]*\}|%?[\w.\-]+)",
        x.line) for y in re.findall(r"[\w.\-]+", group) if y in computations]
    if x.operation in FREE or x.operation.endswith("-done"):
      continue
    if x.operation in ("while", "conditional", "call", "async-start"):
      trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', x.line)
      times = int(trips[1]) if trips else 1
      parts = [_count(computations, y) for y in called] or [(0, 0, 0)]
      launches += times * sum(part[0] for part in parts)
      syncs += times * sum(part[1] for part in parts)
      total += times * sum(part[2] for part in parts)
      syncs += x.operation == "conditional" or (
          x.operation == "while" and not trips)
      continue
    launches += 1
    total += _traffic(computations, name, x, called)
  return launches, syncs, total


def _traffic(computations, name, x, called):
  """Return the bytes that a kernel reads and writes."""
  own = computations[name]
  operands = [own[y].type for y in x.operands if y in own]
  if x.operation != "fusion" or not called:
    return _bytes(x.type) + sum(map(_bytes, operands))
  inside = computations[called[0]]
  users: dict[str, list[_Instruction]] = {}
  for y in inside.values():
    for operand in y.operands:
      users.setdefault(operand, []).append(y)
  parameters = [y for y in inside.values() if y.operation == "parameter"]
  # Of an array that is sliced, the slices are read.
  read = sum(min(_bytes(y.type), sum(
      _bytes(user.type) if user.operation in ("slice", "dynamic-slice")
      else _bytes(y.type) for user in users.get(y.name, [])))
             for y in parameters)
  updates = [y for y in inside.values()
             if y.operation == "dynamic-update-slice"]
  if updates:  # written in place
    return read + sum(_bytes(inside[y.operands[1]].type) for y in updates)
  return read + _bytes(x.type)


def _bytes(type_):
  """Return the size of an array type, or of all arrays of a tuple type."""
  total = 0
  for kind, shape in re.findall(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]", type_):
    digits = re.search(r"\d+", kind)
    bits = BITS.get(kind) or int(digits[0] if digits else 0)
    total += math.prod(int(n) for n in shape.split(",") if n) * bits // 8
  return total


def _plugin():
  """Return the module of the CUDA plugin, or None."""
  for name in PLUGINS:
    try:
      return importlib.import_module(f"jax_plugins.{name}")
    except ImportError:
      continue
  return None


def _device():
  """Return a device that can be compiled for, and nothing else."""
  describe = lambda: topologies.get_topology_desc(
      platform="cuda", target_config=TARGET, topology="1x1x1").devices[0]
  try:
    return describe()
  except NotImplementedError:
    # Without CUDA libraries, JAX leaves the plugin out unless it is told that
    # the plugin is not to run anything.
    chosen = jax.config.read("jax_platforms")
    jax.config.update("jax_platforms", "cpu")
    try:
      _plugin().initialize()
    finally:
      jax.config.update("jax_platforms", chosen)
    return describe()


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
  """Compile anew, as timings need, and leave no programs behind."""
  enabled = jax.config.values["jax_enable_compilation_cache"]
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", enabled)
