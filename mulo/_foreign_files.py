"""Arrays from files of other projects, for `mulo.convert`.

Two formats: safetensors, and the msgpack of flax.serialization, in which
google/learned_optimization publishes its `theta.state`. The latter can nest and
can announce any size, so the parser gets bounds on both.
"""

import math
import os
from typing import Any

import ml_dtypes
import numpy as np

from learned_opt import artifact as artifact_lib
from mulo import _hub as hub

DTYPES = {name: np.dtype(name) for name in (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64")} | {
        "bfloat16": np.dtype(ml_dtypes.bfloat16)}
ARRAY, SCALAR = 1, 3  # kinds of flax's extensions of msgpack; 2 is complex
MAX_AXES = 16
MAX_ENTRIES = 20000  # of maps and lists together
MAX_NAME = 4096  # characters, of the names on the way to an array, joined
# What learned_optimization has around a theta.
CHECKPOINT = {"params", "gen_id", "step"}


def read_arrays(name_or_path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The arrays in a safetensors file or in one of flax.serialization.

  Args:
    name_or_path: a path, or hf://owner/name/file.

  Returns:
    {names joined by "/": array}. What learned_optimization puts around a theta,
    its step and identifier, is left out.

  Raises:
    FileNotFoundError: no such file.
    ArtifactError: neither of the two formats, or a file beyond their bounds.
    ImportError: the package msgpack or huggingface_hub is needed, and missing.
  """
  name = os.fspath(name_or_path)
  content = artifact_lib.read_bytes(
      hub.download(name) if hub.is_name(name) else name)
  # Length of the header, and the header, JSON; no theta.state begins so.
  if content[8:9] == b"{":
    with artifact_lib.refusing(name):
      return artifact_lib.tensors(content)[0]
  try:
    import msgpack
  except ImportError as e:
    raise ImportError(
        f"{name} needs the package msgpack: pip install 'mulo[hub]'.") from e
  with artifact_lib.refusing(name):
    return _flat(_unpack(msgpack, content))


def _unpack(msgpack, content: bytes) -> Any:
  """The tree in a msgpack file, of dicts, arrays and plain values."""
  left = [MAX_ENTRIES]

  def count(entries):
    left[0] -= len(entries) + 1
    if left[0] < 0:
      raise artifact_lib.ArtifactError(
          f"it has more than {MAX_ENTRIES} entries.")
    return entries

  # Lists take their memory when they are announced, so few may be long.
  bounds: dict[str, Any] = dict(
      max_array_len=MAX_AXES, max_map_len=MAX_ENTRIES, list_hook=count,
      object_hook=count, max_str_len=MAX_NAME)

  def extension(kind, data):
    count(())
    if kind not in (ARRAY, SCALAR):
      raise artifact_lib.ArtifactError(
          f"it has data of kind {kind}; arrays are of kind {ARRAY}.")
    return _array(*msgpack.unpackb(data, raw=False, **bounds))

  return msgpack.unpackb(
      content, raw=False, ext_hook=extension, **bounds)


def _array(shape, dtype, data) -> np.ndarray:
  """An array as flax writes it."""
  if not (isinstance(shape, list) and isinstance(data, bytes) and all(
      type(n) is int and 0 <= n <= artifact_lib.MAX_BYTES for n in shape)):
    raise artifact_lib.ArtifactError(f"an array has the shape {shape!r}.")
  if dtype not in DTYPES:
    raise artifact_lib.ArtifactError(
        f"an array has dtype {dtype!r}; known: {', '.join(DTYPES)}.")
  size = math.prod(shape) * DTYPES[dtype].itemsize
  if size != len(data):
    raise artifact_lib.ArtifactError(
        f"an array of shape {shape} and dtype {dtype} has {len(data)} bytes, "
        f"not {size}.")
  return np.frombuffer(data, DTYPES[dtype]).reshape(shape)


def _flat(tree) -> dict[str, np.ndarray]:
  """{names joined by "/": array} of nested dicts."""
  if isinstance(tree, dict) and "params" in tree and set(tree) <= CHECKPOINT:
    tree = tree["params"]
  found: dict[str, np.ndarray] = {}
  rest = [("", tree)]
  while rest:
    path, x = rest.pop()
    if isinstance(x, dict):
      for name, value in x.items():
        if not isinstance(name, str):
          raise artifact_lib.ArtifactError(f"it has the name {name!r}.")
        name = f"{path}/{name}" if path else name
        if len(name) > MAX_NAME:
          raise artifact_lib.ArtifactError(
              f"it has a name of more than {MAX_NAME} characters.")
        rest.append((name, value))
    elif isinstance(x, np.ndarray) or type(x) in (int, float):
      if path in found or not path:
        raise artifact_lib.ArtifactError(f"it has two arrays at {path!r}, or "
                                         "one without a name.")
      found[path] = np.asarray(x)
    else:
      raise artifact_lib.ArtifactError(
          f"at {path!r} it has {type(x).__name__}, not an array.")
  return dict(sorted(found.items()))
