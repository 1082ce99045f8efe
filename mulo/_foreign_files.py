"""Read arrays from files of other projects, for `mulo.convert`.

Two formats are known: safetensors, and the msgpack of flax.serialization, in
which google/learned_optimization publishes its `theta.state`. A msgpack file
can be nested to any depth and can announce any size. The parser limits both.
"""

import math
import os
from typing import Any, Sized

import ml_dtypes
import numpy as np

from learned_opt import artifact as artifact_lib
from mulo import _hub as hub

DTYPES = {name: np.dtype(name) for name in (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64")} | {
        "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# Codes of flax's msgpack extensions. Code 2, complex numbers, is refused.
ARRAY, SCALAR = 1, 3
MAX_AXES = 16
MAX_ENTRIES = 20000  # of all maps and lists together
MAX_NAME = 4096  # characters of a path to an array
# Keys of the dict that learned_optimization wraps around a theta.
CHECKPOINT = {"params", "gen_id", "step"}


def read_arrays(name_or_path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Return the arrays in a safetensors or flax.serialization file.

  Args:
    name_or_path: a path, or hf://owner/name/file.

  Returns:
    {path joined by "/": array}. A checkpoint of learned_optimization also
    holds a step and an identifier, which are left out.

  Raises:
    FileNotFoundError: no such file.
    ArtifactError: a file of another format, or beyond a limit of the parser.
    ImportError: the package msgpack or huggingface_hub is needed but missing.
  """
  name = os.fspath(name_or_path)
  content = artifact_lib.read_bytes(
      hub.download(name) if hub.is_name(name) else name)
  # A safetensors file begins with the length of its header (8 bytes), and the
  # header is JSON. No theta.state has "{" at this place.
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


def _unpack(msgpack: Any, content: bytes) -> Any:
  """Return the tree in a msgpack file: dicts, arrays and plain values.

  Args:
    msgpack: the package.
    content: bytes of the file.
  """
  left = [MAX_ENTRIES]  # a list, so that `count` can change the number

  def count(entries: Sized) -> Sized:
    left[0] -= len(entries) + 1
    if left[0] < 0:
      raise artifact_lib.ArtifactError(
          f"it has more than {MAX_ENTRIES} entries.")
    return entries

  def once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    count(pairs)
    table = dict(pairs)
    if len(table) < len(pairs):
      raise artifact_lib.ArtifactError("it has a table with one name twice.")
    return table

  # The parser allocates a list as soon as its length is announced, so long
  # lists are refused. The only lists in files of flax are shapes.
  bounds: dict[str, Any] = dict(
      max_array_len=MAX_AXES, max_map_len=MAX_ENTRIES, list_hook=count,
      object_pairs_hook=once, max_str_len=MAX_NAME)

  def extension(code: int, data: bytes) -> np.ndarray:
    count(())
    if code not in (ARRAY, SCALAR):
      raise artifact_lib.ArtifactError(
          f"it has data of kind {code}; arrays are of kind {ARRAY}.")
    return _array(*msgpack.unpackb(data, raw=False, **bounds))

  return msgpack.unpackb(
      content, raw=False, ext_hook=extension, **bounds)


def _array(shape: Any, dtype: Any, data: Any) -> np.ndarray:
  """Return an array from the three values that flax writes for an array.

  Raises:
    ArtifactError: the values are not a shape, a known dtype and the number of
      bytes that follows from shape and dtype.
  """
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


def _flat(tree: Any) -> dict[str, np.ndarray]:
  """Return {path joined by "/": array} of nested dicts."""
  if isinstance(tree, dict) and "params" in tree and set(tree) <= CHECKPOINT:
    tree = tree["params"]
  arrays: dict[str, np.ndarray] = {}
  # Not recursive: a hostile file may be nested deeper than Python's stack.
  pending = [("", tree)]
  while pending:
    path, x = pending.pop()
    if isinstance(x, dict):
      for name, value in x.items():
        if not isinstance(name, str):
          raise artifact_lib.ArtifactError(f"it has the name {name!r}.")
        name = f"{path}/{name}" if path else name
        if len(name) > MAX_NAME:
          raise artifact_lib.ArtifactError(
              f"it has a name of more than {MAX_NAME} characters.")
        pending.append((name, value))
    elif isinstance(x, np.ndarray) or type(x) in (int, float):
      if path in arrays or not path:
        raise artifact_lib.ArtifactError(f"it has two arrays at {path!r}, or "
                                         "one without a name.")
      arrays[path] = np.asarray(x)
    else:
      raise artifact_lib.ArtifactError(
          f"at {path!r} it has {type(x).__name__}, not an array.")
  return dict(sorted(arrays.items()))
