"""Weights files as another reader understands them, to compare with mulo.

Only for files that mulo has accepted: this reader checks nothing and would fill
the memory for a hostile file.
"""

import json
from typing import Any, Mapping

from flax import serialization
from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from learned_opt import artifact as artifact_lib

DTYPES = {
    "BOOL": "bool", "BF16": jnp.bfloat16, "F16": "<f2", "F32": "<f4",
    "F64": "<f8", **{f"{kind}{8 * n}": f"<{kind.lower()}{n}"
                     for kind in "IU" for n in (1, 2, 4, 8)}}


class Different(Exception):
  """Difference between the result of mulo and the content of a file."""


def parse(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Return ({path: array}, header) of a safetensors or flax file.

  Args:
    content: the bytes of the file.
  """
  if content[8:9] == b"{":
    start = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:start])
    metadata = table.pop("__metadata__", {})
    header = json.loads(metadata.get("mulo", "{}"))
    return {name: _array(content[start:], **entry)
            for name, entry in table.items()}, header
  tree = serialization.msgpack_restore(content)
  # A checkpoint has the parameters and what else learned_optimization keeps.
  if "params" in tree and not {*tree} - {"params", "step", "gen_id"}:
    tree = tree["params"]
  flat = traverse_util.flatten_dict(tree, sep="/")
  return {name: np.asarray(x) for name, x in flat.items()}, {}


def _array(data: bytes, dtype: str, shape: list[int],
           data_offsets: list[int]) -> np.ndarray:
  """Return the array of an entry of a safetensors header."""
  return np.frombuffer(data[slice(*data_offsets)], DTYPES[dtype]).reshape(shape)


def check_arrays(content: bytes, read: Mapping[str, np.ndarray]) -> None:
  """Raise Different unless the arrays are those of a file."""
  expected = parse(content)[0]
  text = lambda x: (str(x.dtype), x.shape, x.tobytes())
  wrong = {*expected} ^ {*read} or [
      name for name, x in expected.items() if text(x) != text(read[name])]
  if wrong:
    raise Different(f"arrays {sorted(wrong)[:3]} are not those of the file")


def check_artifact(content: bytes, artifact: artifact_lib.Artifact) -> None:
  """Raise Different unless an artifact is that of a file."""
  check_arrays(content, artifact_lib.flatten(artifact.theta))
  header = parse(content)[1]
  # Settings that the file lacks have their defaults.
  found = {name: artifact.settings.get(name) for name in header["settings"]}
  for field in ("optimizer", "settings", "parametrization", "record",
                "licence"):
    value = found if field == "settings" else getattr(artifact, field)
    if json.dumps(value, sort_keys=True) != json.dumps(
        header[field], sort_keys=True):
      raise Different(f"{field} is {value!r:.300}, in the file "
                      f"{header[field]!r:.300}")


def check_converted(arrays: Mapping[str, Any], settings: Mapping[str, Any],
                    artifact: artifact_lib.Artifact) -> None:
  """Raise Different unless an artifact has the numbers of published arrays.

  Args:
    arrays: {published name: array}.
    settings: arguments of `convert`; some are arrays that belong to theta.
    artifact: what `convert` returned.
  """
  theta = artifact_lib.flatten(artifact.theta)
  given = [*arrays.values(), *(x for name, x in settings.items()
                               if name in theta)]
  # Conversion splits, joins and transposes arrays: it keeps the numbers.
  numbers = lambda xs: np.sort(np.concatenate(
      [np.ravel(x).astype(np.float32) for x in xs]))
  if not np.array_equal(numbers(given), numbers(theta.values())):
    raise Different("theta has other numbers than the published arrays")
  for name, value in settings.items():
    if name not in theta and artifact.settings.get(name) != value:
      raise Different(f"{name} is {artifact.settings.get(name)!r}, not {value}")
