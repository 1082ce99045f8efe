"""One file with all that a trained optimizer is: a .safetensors and no code.

The header holds one metadata entry, "mulo", a JSON object with sorted keys:
format_version, optimizer, settings, parametrization, record (how it was
meta-trained), licence, sha256 (of the tensors) and header_sha256 (of all the
former). One entry, because the order of several is not fixed by the library,
and equal artifacts shall be equal files.

A file may come from anyone. What reads one has a bound on its size and on all
that follows from a few bytes of it, and whatever is wrong ends as one
ArtifactError (`experiments/robustness/fuzz.py` tries).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any, Iterator, NamedTuple

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from learned_opt import base
from learned_opt import optimizers
from learned_opt.scaling import parametrizations

FORMAT_VERSION = 1
FIELDS = {
    "format_version": int, "optimizer": str, "settings": dict,
    "parametrization": str, "record": dict, "licence": str, "sha256": str,
    "header_sha256": str}
MAX_BYTES = 2**28  # of a file; the largest published theta has 5 MB
MAX_HEADER = 2**22  # bytes of names and metadata, parsed by Python
MAX_INTEGER = 2**12  # of settings: widths and counts, which programs loop over
MAX_MESSAGE = 2000  # characters


class ArtifactError(ValueError):
  """Weights that were refused; the message says what and why."""


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
  """Turns all that goes wrong inside into one ArtifactError about `what`.

  But not OSError, which is not about content, nor MemoryError, which must not
  happen.
  """
  try:
    yield
  except (OSError, MemoryError):
    raise
  except Exception as e:
    kind = "" if isinstance(e, ValueError) else f"{type(e).__name__}: "
    # The message may quote the file, which must not reach a terminal as it is.
    text = f"{kind}{e}".encode("ascii", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(text) > MAX_MESSAGE:
      text = f"{text[:MAX_MESSAGE]} ..."
    raise ArtifactError(f"{what} was refused: {text}") from e


class Trained(NamedTuple):
  """What an optimizer was meta-trained on, as far as its record says.

  Attributes:
    horizon: (shortest, longest) episode in inner steps, or None.
    widths: (smallest, largest) width of a network, or None.
    batch_sizes: (smallest, largest), or None; tasks at their default batch
      size do not count.
  """

  horizon: tuple[int, int] | None
  widths: tuple[int, int] | None
  batch_sizes: tuple[int, int] | None


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
    ArtifactError: at construction, if theta is not one of this optimizer: other
      names or shapes, another dtype, or numbers that are not finite.
  """

  optimizer: str
  settings: dict
  parametrization: str
  theta: Any
  record: dict = dataclasses.field(default_factory=dict)
  licence: str = "Apache-2.0"

  def __post_init__(self):
    _check_settings(self.settings)
    parametrizations.get(self.parametrization)
    expected = _shapes(jax.eval_shape(self.lopt.init, jax.random.key(0)))
    found = _shapes(self.theta)
    if expected != found:
      raise ArtifactError(
          f"These tensors are not a theta of {self.optimizer} with settings "
          f"{self.settings}. Expected {expected}, found {found}.")
    for name, x in flatten(self.theta).items():
      if not np.all(np.isfinite(x)):
        raise ArtifactError(f"theta[{name!r}] has numbers that are not finite.")

  @property
  def lopt(self) -> base.LearnedOptimizer:
    """The learned optimizer that theta belongs to."""
    return optimizers.get(self.optimizer, **self.settings)

  @property
  def trained(self) -> Trained:
    """What it was meta-trained on."""
    sections = self.record.get("tasks")
    sections = sections.values() if isinstance(sections, dict) else []
    numbers = lambda xs: [x for x in xs if type(x) is int and x > 0]
    ends = lambda xs: (min(xs), max(xs)) if xs else None
    settings = lambda name: ends(numbers(
        x.get(name) for x in sections if isinstance(x, dict)))
    horizon = self.record.get("horizon")
    return Trained(
        ends(numbers(horizon)) if isinstance(horizon, list) else None,
        settings("width"), settings("batch_size"))


def _check_settings(settings: dict) -> None:
  for name, value in settings.items():
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
      raise ArtifactError(
          f"the setting {name} is {value}, more than {MAX_INTEGER}.")


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
    raise ArtifactError(
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
    ArtifactError: not an artifact, damaged, of a newer format, or of an
      optimizer or parametrization that is not installed; the message starts
      with the path.
  """
  content = read_bytes(path)
  with refusing(str(path)):
    return _parse(content)


def read_bytes(path: str | os.PathLike) -> bytes:
  """All of a file.

  Raises:
    FileNotFoundError: no such file.
    ArtifactError: it is larger than a theta can be.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not a file.")
  with open(path, "rb") as file:
    content = file.read(MAX_BYTES + 1)
  if len(content) > MAX_BYTES:
    raise ArtifactError(
        f"{path} was refused: it has more than {MAX_BYTES} bytes.")
  return content


def tensors(content: bytes) -> tuple[dict[str, np.ndarray], dict]:
  """({name: array}, metadata) of a safetensors file.

  Raises:
    Exception: of some kind, for anything else; see `refusing`.
  """
  size = int.from_bytes(content[:8], "little")
  if len(content) < 8 or size > min(MAX_HEADER, len(content) - 8):
    raise ArtifactError("it is not a safetensors file, or its header is cut "
                        f"off or has more than {MAX_HEADER} bytes.")
  metadata = json.loads(content[8:8 + size]).get("__metadata__", {})
  return safetensors_numpy.load(content), metadata


def _parse(content: bytes) -> Artifact:
  flat, metadata = tensors(content)
  text = metadata.get("mulo")
  if text is None:
    raise ArtifactError("it is a safetensors file, but not one of mulo's.")
  header = json.loads(text)
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
  _check_settings(header["settings"])
  lopt = optimizers.get(header["optimizer"], **header["settings"])
  return Artifact(
      header["optimizer"], header["settings"], header["parametrization"],
      unflatten(lopt, flat), header["record"], header["licence"])
