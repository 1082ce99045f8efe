"""One file with all that a trained optimizer is: a .safetensors and no code.

The header holds one metadata entry, "mulo", a JSON object with sorted keys:
format_version, optimizer, settings, parametrization, record (how it was
meta-trained), licence, sha256 (of the tensors) and header_sha256 (of all the
former). One entry, because the order of several is not fixed by the library,
and equal artifacts shall be equal files.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from learned_opt import base
from learned_opt import optimizers
from learned_opt import parametrizations

FORMAT_VERSION = 1
FIELDS = {
    "format_version": int, "optimizer": str, "settings": dict,
    "parametrization": str, "record": dict, "licence": str, "sha256": str,
    "header_sha256": str}


@dataclasses.dataclass(frozen=True)
class Artifact:
  """A trained optimizer.

  Attributes:
    optimizer: name of a file in learned_opt/optimizers.
    settings: arguments of its `make`, defaults included.
    parametrization: name of a file in learned_opt/parametrizations.
    theta: meta-parameters, tree of float32 arrays.
    record: how theta was found: config, seed, steps, tasks, horizon, software
      versions, git revision; or where it was converted from. JSON values.
    licence: of the weights, an SPDX identifier.

  Raises:
    ValueError: at construction, if theta is not one of this optimizer: other
      names or shapes, another dtype, or numbers that are not finite.
  """

  optimizer: str
  settings: dict
  parametrization: str
  theta: Any
  record: dict = dataclasses.field(default_factory=dict)
  licence: str = "Apache-2.0"

  def __post_init__(self):
    parametrizations.get(self.parametrization)
    expected = _shapes(jax.eval_shape(self.lopt.init, jax.random.key(0)))
    found = _shapes(self.theta)
    if expected != found:
      raise ValueError(
          f"These tensors are not a theta of {self.optimizer} with settings "
          f"{self.settings}. Expected {expected}, found {found}.")
    for name, x in flatten(self.theta).items():
      if not np.all(np.isfinite(x)):
        raise ValueError(f"theta[{name!r}] has numbers that are not finite.")

  @property
  def lopt(self) -> base.LearnedOptimizer:
    """The learned optimizer that theta belongs to."""
    return optimizers.get(self.optimizer, **self.settings)


def flatten(theta) -> dict[str, np.ndarray]:
  """{path joined by "/": array} in the order of the tree."""
  leaves = jax.tree_util.tree_flatten_with_path(theta)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
          for path, x in leaves}


def _shapes(theta) -> dict[str, str]:
  leaves = jax.tree_util.tree_flatten_with_path(theta)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="/"):
          f"{np.dtype(x.dtype)}{list(x.shape)}" for path, x in leaves}


def unflatten(lopt: base.LearnedOptimizer, flat: dict[str, np.ndarray]) -> Any:
  """The theta of `lopt` with the given arrays; inverse of `flatten`.

  Raises:
    ValueError: the names are not those of its theta.
  """
  shapes = jax.eval_shape(lopt.init, jax.random.key(0))
  expected = _shapes(shapes)
  if set(flat) != set(expected):
    raise ValueError(
        f"The tensors do not fit the optimizer: expected {expected}, found "
        f"{_shapes(flat)}.")
  return jax.tree.unflatten(
      jax.tree.structure(shapes), [flat[name] for name in expected])


def sha256(theta: Any) -> str:
  """Hash of the names, dtypes, shapes and numbers of theta."""
  flat = flatten(theta)
  digest = hashlib.sha256()
  for name in sorted(flat):
    x = np.ascontiguousarray(flat[name])
    digest.update(json.dumps([name, str(x.dtype), x.shape]).encode())
    digest.update(x.tobytes())
  return digest.hexdigest()


def header_sha256(header: dict) -> str:
  """Hash of all metadata but itself."""
  rest = {k: v for k, v in header.items() if k != "header_sha256"}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write(path: str | os.PathLike, artifact: Artifact) -> None:
  """Writes an artifact; the file appears whole or not at all.

  Raises:
    OSError: the folder is missing or not writable.
    TypeError: settings or record are not JSON values.
  """
  flat = flatten(artifact.theta)
  header = {
      "format_version": FORMAT_VERSION, "optimizer": artifact.optimizer,
      "settings": artifact.settings,
      "parametrization": artifact.parametrization, "record": artifact.record,
      "licence": artifact.licence, "sha256": sha256(flat)}
  header["header_sha256"] = header_sha256(header)
  content = safetensors_numpy.save(
      flat, {"mulo": json.dumps(header, sort_keys=True)})
  path = pathlib.Path(path)
  with tempfile.NamedTemporaryFile(
      dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
    try:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
      os.chmod(file.name, 0o644)
      os.replace(file.name, path)
    except BaseException:
      os.unlink(file.name)
      raise


def read(path: str | os.PathLike) -> Artifact:
  """Reads an artifact and checks all of it.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not an artifact, damaged, of a newer format, or of an optimizer
      or parametrization that is not installed; the message starts with the
      path.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not a file.")
  try:
    return _read(path)
  except OSError:
    raise
  except Exception as e:  # whatever is in the file, one clear error
    raise ValueError(f"{path} was refused: {e}") from e


def _read(path: pathlib.Path) -> Artifact:
  with safetensors.safe_open(path, framework="numpy") as file:
    text = (file.metadata() or {}).get("mulo")
    if text is None:
      raise ValueError("it is a safetensors file, but not one of mulo's.")
    flat = {name: file.get_tensor(name) for name in file.keys()}
  header = json.loads(text)
  version = header.get("format_version") if isinstance(header, dict) else None
  if type(version) is int and version > FORMAT_VERSION:
    raise ValueError(
        f"its format version is {version}, this software reads up to "
        f"{FORMAT_VERSION}; update mulo.")
  if version != FORMAT_VERSION or set(header) != set(FIELDS) or not all(
      type(header[k]) is t for k, t in FIELDS.items()):
    raise ValueError(f"its metadata must have the fields {sorted(FIELDS)}.")
  if (header["sha256"] != sha256(flat) or
      header["header_sha256"] != header_sha256(header)):
    raise ValueError("its sha256 does not fit its content: it is damaged.")
  lopt = optimizers.get(header["optimizer"], **header["settings"])
  return Artifact(
      header["optimizer"], header["settings"], header["parametrization"],
      unflatten(lopt, flat), header["record"], header["licence"])
