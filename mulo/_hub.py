"""Trained optimizers on Hugging Face, through huggingface_hub."""

import hashlib
import pathlib
import re

from learned_opt import artifact as artifact_lib

PREFIX = "hf://"
FILE = "theta.safetensors"
CARD = "README.md"
# One part of a name. It does not begin with a dot, so none is ".." either.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_HASH = re.compile(r"sha256 of the file\s*\|\s*([0-9a-fA-F]{64})\b")


def is_name(name: str) -> bool:
  """Whether a name means a repository, not a file."""
  return name.startswith(PREFIX)


def parse(name: str) -> tuple[str, str | None, str]:
  """(owner/name, revision or None, file) of hf://owner/name[@revision][/file].

  Raises:
    ArtifactError: another form, or characters that could lead out of the
      folder of the cache.
  """
  rest, revision = name.removeprefix(PREFIX), None
  parts = rest.split("/")
  if len(parts) > 1 and "@" in parts[1]:
    parts[1], revision = parts[1].split("@", 1)
  for part in (*parts, *([] if revision is None else [revision])):
    if not _PART.fullmatch(part) or ".." in part:
      raise artifact_lib.ArtifactError(
          f"{name!r} was refused: {part!r} cannot be a part of "
          "hf://owner/name[@revision][/file].")
  if len(parts) < 2:
    raise artifact_lib.ArtifactError(
        f"{name!r} was refused: it must be hf://owner/name[@revision][/file].")
  return "/".join(parts[:2]), revision, "/".join(parts[2:]) or FILE


def download(name: str) -> pathlib.Path:
  """The file on this machine, from the cache of huggingface_hub if it is there.

  Where the repository has a card, README.md, that gives hashes of files
  ("sha256 of the file", as experiments/release.py writes), the file must have
  one of them.

  Args:
    name: hf://owner/name for theta.safetensors, hf://owner/name/file for
      another file; owner/name@revision for a branch, tag or commit.

  Raises:
    ImportError: huggingface_hub is not installed.
    ArtifactError: a name that makes no sense, a file outside of the cache, or
      one with another hash.
    OSError: whatever huggingface_hub says of network and repository.
  """
  repository, revision, file = parse(name)
  try:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub import errors
  except ImportError as e:
    raise ImportError(
        f"{name} needs the package huggingface_hub: pip install 'mulo[hub]'."
        ) from e
  cache = pathlib.Path(constants.HF_HUB_CACHE).resolve()

  def fetch(file):
    path = pathlib.Path(huggingface_hub.hf_hub_download(
        repository, file, revision=revision, cache_dir=str(cache)))
    if not path.resolve().is_relative_to(cache):
      raise artifact_lib.ArtifactError(
          f"{name} was refused: its file is at {path.resolve()}, outside of "
          f"the cache {cache}.")
    return path

  path = fetch(file)
  try:
    card = artifact_lib.read_bytes(fetch(CARD)).decode("utf-8", "replace")
  except errors.EntryNotFoundError as e:
    if isinstance(e, errors.LocalEntryNotFoundError):
      raise  # offline, so nobody knows whether there is a card
    return path
  hashes = {x.lower() for x in _HASH.findall(card)}
  found = hashlib.sha256(artifact_lib.read_bytes(path)).hexdigest()
  if hashes and found not in hashes:
    raise artifact_lib.ArtifactError(
        f"{name} was refused: its sha256 is {found}, its card says "
        f"{', '.join(sorted(hashes))}.")
  return path
