"""Trained optimizers as files: one .safetensors each, and no code.

The header holds one metadata entry, "mulo", a JSON object with sorted keys:
format_version, optimizer, settings, parametrization, record (how theta was
meta-trained), licence, sha256 (of the tensors) and header_sha256 (of all the
other fields). All fields are in one entry, because safetensors does not fix the
order of several entries, and equal artifacts must be equal files.

A file may come from anyone. Its size is bounded, and so is the work that a few
bytes of the file can cause. The file may name code ("package.module:make"), but
only names that the caller trusts are imported. Whatever is wrong with a file
ends as one ArtifactError; `experiments/robustness/fuzz.py` tests that.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any, Collection, Iterable, Iterator, NamedTuple

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from learned_opt import base
from learned_opt import optimizers
from learned_opt import registry
from learned_opt import strict_json
from learned_opt.scaling import parametrizations

FORMAT_VERSION = 1
# Fields of the metadata, with their JSON types.
FIELDS = {
    "format_version": int, "optimizer": str, "settings": dict,
    "parametrization": str, "record": dict, "licence": str, "sha256": str,
    "header_sha256": str}
MAX_BYTES = 2**28  # of a file; the largest published theta has 5 MB
MAX_HEADER = 2**22  # bytes of names and metadata, parsed by Python
MAX_INTEGER = 2**12  # of settings: widths and counts, which programs loop over
MAX_NUMBER = 1e6  # of settings and theta: far more gives infinite updates
MAX_MESSAGE = 2000  # characters


class ArtifactError(ValueError):
  """Weights were refused; the message says which weights and why."""


@contextlib.contextmanager
def refusing(subject: str) -> Iterator[None]:
  """Turn every error inside into one ArtifactError about `subject`.

  Two kinds of error pass unchanged: OSError, which is not about the content of
  a file, and MemoryError, which must not happen.

  Args:
    subject: name of the file or argument; the message begins with it.
  """
  try:
    yield
  except (OSError, MemoryError):
    raise
  except Exception as e:
    kind = "" if isinstance(e, ValueError) else f"{type(e).__name__}: "
    # The message may quote the file. Control characters of the file must not
    # reach a terminal, so everything unprintable is escaped.
    text = f"{kind}{e}" if str(e) else type(e).__name__
    text = text.encode("ascii", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(text) > MAX_MESSAGE:
      text = f"{text[:MAX_MESSAGE]} ..."
    raise ArtifactError(f"{subject} was refused: {text}") from e


class Trained(NamedTuple):
  """Range of the meta-training tasks, as far as the record has it.

  Attributes:
    horizon: (shortest, longest) episode in inner steps, or None.
    widths: (smallest, largest) width of a network, or None.
    batch_sizes: (smallest, largest) batch size, or None; tasks at their default
      batch size do not count.
  """

  horizon: tuple[int, int] | None
  widths: tuple[int, int] | None
  batch_sizes: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Artifact:
  """A trained optimizer.

  Attributes:
    optimizer: name of the optimizer, see `learned_opt.registry`; its folder is
      learned_opt/optimizers.
    settings: arguments of the optimizer's `make`, defaults included.
    parametrization: name of the parametrization, see `learned_opt.registry`;
      its folder is learned_opt/scaling/parametrizations.
    theta: meta-parameters, a tree of float32 arrays.
    record: how theta was made: config, seed, steps, tasks, horizon, software
      versions, git revision; or the source that theta was converted from. JSON
      values.
    licence: licence of the weights, an SPDX identifier.

  Raises:
    ArtifactError: at construction, if theta does not fit the optimizer: wrong
      names, shapes or dtypes, or numbers that are not finite.
    ValueError: at construction, an unknown optimizer or parametrization, or
      settings that the optimizer does not take.
  """

  optimizer: str
  settings: dict[str, Any]
  parametrization: str
  theta: Any
  record: dict[str, Any] = dataclasses.field(default_factory=dict)
  licence: str = "Apache-2.0"

  def __post_init__(self) -> None:
    _check_settings(self.settings)
    parametrizations.get(self.parametrization)
    expected = _shapes(
        optimizers.theta_shapes(self.optimizer, **self.settings))
    given = _shapes(self.theta)
    if expected != given:
      raise ArtifactError(
          f"These tensors are not a theta of {self.optimizer} with settings "
          f"{self.settings}. Expected {expected}, found {given}.")
    for name, x in flatten(self.theta).items():
      if not np.all(np.isfinite(x)):
        raise ArtifactError(f"theta[{name!r}] has numbers that are not finite.")
      if not np.all(np.abs(x) <= MAX_NUMBER):
        raise ArtifactError(
            f"theta[{name!r}] has numbers beyond {MAX_NUMBER:g}.")

  def __repr__(self) -> str:
    """Return five lines, instead of all numbers of theta."""
    size = sum(x.size for x in jax.tree.leaves(self.theta))
    settings = ", ".join(f"{k}={v!r}" for k, v in self.settings.items())
    return "\n".join([
        f"Artifact of {self.optimizer!r} under {self.parametrization!r}",
        f"  theta: {size} numbers, sha256 {sha256(self.theta)}",
        f"  settings: {settings or 'none'}",
        f"  trained: {self.trained}",
        f"  licence: {self.licence!r}"])

  @property
  def lopt(self) -> base.LearnedOptimizer:
    """The learned optimizer that theta belongs to."""
    return optimizers.get(self.optimizer, **self.settings)

  @property
  def trained(self) -> Trained:
    """Range of the tasks that theta was meta-trained on."""
    # The record of a file from elsewhere may hold any JSON values.
    tasks = self.record.get("tasks")
    sections = [section for section in tasks.values()
                if isinstance(section, dict)] if isinstance(tasks, dict) else []
    horizon = self.record.get("horizon")
    return Trained(
        _range(horizon) if isinstance(horizon, list) else None,
        _range(section.get("width") for section in sections),
        _range(section.get("batch_size") for section in sections))


def _range(values: Iterable[Any]) -> tuple[int, int] | None:
  """Return (smallest, largest) of the positive integers among `values`."""
  # Not isinstance, for which True is an integer, too.
  numbers = [x for x in values if type(x) is int and x > 0]
  return (min(numbers), max(numbers)) if numbers else None


def _check_settings(settings: dict[str, Any]) -> None:
  """Raise ArtifactError if a setting is a huge number or not finite."""
  for name, value in settings.items():
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
      raise ArtifactError(
          f"the setting {name} is {value}, more than {MAX_INTEGER}.")
    if isinstance(value, float) and not abs(value) <= MAX_NUMBER:
      raise ArtifactError(
          f"the setting {name} is {value}, not within {MAX_NUMBER:g}.")


def flatten(theta: Any) -> dict[str, np.ndarray]:
  """Return {path joined by "/": array}, in the order of the tree."""
  leaves = jax.tree_util.tree_flatten_with_path(theta)[0]
  # In C order: safetensors writes the bytes of a transposed array as they lie.
  return {jax.tree_util.keystr(path, simple=True, separator="/"):
          np.asarray(x, order="C") for path, x in leaves}


def _shapes(theta: Any) -> dict[str, str]:
  """Return {path joined by "/": dtype and shape, such as "float32[4, 4]"}."""
  leaves = jax.tree_util.tree_flatten_with_path(theta)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="/"):
          f"{np.dtype(x.dtype)}{list(x.shape)}" for path, x in leaves}


def unflatten(shapes: Any, flat: dict[str, np.ndarray]) -> Any:
  """Return the theta with the given arrays; inverse of `flatten`.

  Args:
    shapes: tree of shapes, see `optimizers.theta_shapes`.
    flat: {path joined by "/": array}.

  Raises:
    ArtifactError: the names are not those of `shapes`.
  """
  expected = _shapes(shapes)
  if set(flat) != set(expected):
    raise ArtifactError(
        f"The tensors do not fit the optimizer: expected {expected}, found "
        f"{_shapes(flat)}.")
  return jax.tree.unflatten(
      jax.tree.structure(shapes), [flat[name] for name in expected])


def sha256(theta: Any) -> str:
  """Return a hash of the names, dtypes, shapes and numbers of theta."""
  flat = flatten(theta)
  digest = hashlib.sha256()
  for name in sorted(flat):
    x = np.ascontiguousarray(flat[name])
    digest.update(json.dumps([name, str(x.dtype), x.shape]).encode())
    digest.update(x.tobytes())
  return digest.hexdigest()


def header_sha256(header: dict[str, Any]) -> str:
  """Return a hash of the metadata without the field header_sha256."""
  hashed = {k: v for k, v in header.items() if k != "header_sha256"}
  return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def write(path: str | os.PathLike[str], artifact: Artifact) -> None:
  """Write an artifact to a file; the file appears complete or not at all.

  Raises:
    OSError: the folder is missing or not writable.
    TypeError: settings or record are not JSON values.
    ValueError: settings or record have numbers that are not finite, which JSON
      does not have.
  """
  flat = flatten(artifact.theta)
  header = {
      "format_version": FORMAT_VERSION, "optimizer": artifact.optimizer,
      "settings": artifact.settings,
      "parametrization": artifact.parametrization, "record": artifact.record,
      "licence": artifact.licence, "sha256": sha256(flat)}
  header["header_sha256"] = header_sha256(header)
  content = safetensors_numpy.save(
      flat, {"mulo": json.dumps(header, sort_keys=True, allow_nan=False)})
  path = pathlib.Path(path)
  # A temporary file in the same folder takes the name when all is on the disk.
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


def read(path: str | os.PathLike[str], trust: Collection[str] = ()) -> Artifact:
  """Read an artifact from a file and check all of it.

  Args:
    path: the file.
    trust: names of the form "package.module:make" that the file may give as
      its optimizer or parametrization. Reading the file runs their code.

  Raises:
    FileNotFoundError: no such file.
    ArtifactError: not an artifact, damaged, of a newer format, of an optimizer
      or parametrization that is not installed, or naming code that is not in
      `trust`. The message starts with the path.
    ValueError: `trust` is a string, not a collection of strings.
  """
  if isinstance(trust, str):  # `name in trust` would look for a substring
    raise ValueError(
        f"trust must be a collection of names, such as ({trust!r},), got the "
        f"string {trust!r}.")
  content = read_bytes(path)
  with refusing(str(path)):
    return _parse(content, trust)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """Return the content of a file.

  Raises:
    FileNotFoundError: no such file.
    ArtifactError: the file is larger than MAX_BYTES.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not a file.")
  with open(path, "rb") as file:
    # The size first: a large file must not fill the memory. It may grow.
    size = os.fstat(file.fileno()).st_size
    content = b"" if size > MAX_BYTES else file.read(MAX_BYTES + 1)
  if max(size, len(content)) > MAX_BYTES:
    raise ArtifactError(
        f"{path} was refused: it has more than {MAX_BYTES} bytes.")
  return content


def tensors(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Return ({name: array}, metadata) of the bytes of a safetensors file.

  Raises:
    Exception: of any kind, if the bytes are anything else; see `refusing`.
  """
  # The first 8 bytes are the length of the header, which is JSON.
  size = int.from_bytes(content[:8], "little")
  if len(content) < 8 or size > min(MAX_HEADER, len(content) - 8):
    raise ArtifactError("it is not a safetensors file, or its header is cut "
                        f"off or has more than {MAX_HEADER} bytes.")
  header = strict_json.parse(content[8:8 + size])
  metadata = None if not isinstance(header, dict) else header.get(
      "__metadata__", {})
  if not isinstance(metadata, dict):
    raise ArtifactError("its header is not a table of tensors and metadata.")
  return safetensors_numpy.load(content), metadata


def _parse(content: bytes, trust: Collection[str]) -> Artifact:
  """Return the artifact in the bytes of a file; see `read`."""
  flat, metadata = tensors(content)
  text = metadata.get("mulo")
  if text is None:
    raise ArtifactError("it is a safetensors file, but not one of mulo's.")
  header = strict_json.parse(text)
  _check_header(header, flat)
  # Before the first look-up of a name, because a look-up may import code.
  _check_trust((header["optimizer"], header["parametrization"]), trust)
  _check_settings(header["settings"])
  settings = optimizers.current_settings(
      header["optimizer"], header["settings"])
  shapes = optimizers.theta_shapes(header["optimizer"], **settings)
  return Artifact(
      header["optimizer"], settings, header["parametrization"],
      unflatten(shapes, flat), header["record"], header["licence"])


def _check_header(header: Any, flat: dict[str, np.ndarray]) -> None:
  """Raise ArtifactError unless the metadata are complete and fit the tensors.

  Args:
    header: the metadata, any JSON value.
    flat: {name: array}.
  """
  version = header.get("format_version") if isinstance(header, dict) else None
  if type(version) is int and version > FORMAT_VERSION:
    raise ArtifactError(
        f"its format version is {version}, this software reads up to "
        f"{FORMAT_VERSION}; update mulo.")
  if version != FORMAT_VERSION or set(header) != set(FIELDS) or not all(
      type(header[k]) is t for k, t in FIELDS.items()):
    raise ArtifactError(f"its metadata must have the fields {sorted(FIELDS)}.")
  if (header["sha256"] != sha256(flat) or
      header["header_sha256"] != header_sha256(header)):
    raise ArtifactError("its sha256 does not fit its content: it is damaged.")


def _check_trust(names: Iterable[str], trust: Collection[str]) -> None:
  """Raise ArtifactError if a name would import code that is not in `trust`.

  Args:
    names: optimizer and parametrization, as the file gives them.
    trust: see `read`.
  """
  code = [name for name in names
          if registry.is_import(name) and name not in trust]
  if code:
    quoted = ", ".join(f'"{name}"' for name in code)
    raise ArtifactError(
        f"it names {quoted}: loading would run that code. If you trust the "
        f"file, pass trust=({quoted},), or install the part as an entry point.")
