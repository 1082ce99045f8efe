"""Trained optimizers on Hugging Face, through huggingface_hub."""

import hashlib
import pathlib
import re

from learned_opt import artifact as artifact_lib

PREFIX = "hf://"
FILE = "theta.safetensors"
CARD = "README.md"
# One part of a name. A part cannot begin with a dot, so no part is "..".
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_HASH = re.compile(r"sha256 of the file\s*\|\s*([0-9a-fA-F]{64})\b")


def is_name(name: str) -> bool:
  """Return whether a name means a repository, not a local file."""
  return name.startswith(PREFIX)


def parse(name: str) -> tuple[str, str | None, str]:
  """Split hf://owner/name[@revision][/file].

  Returns:
    (owner/name, revision or None, file).

  Raises:
    ArtifactError: a name of another form, or with characters that could lead
      out of the cache folder.
  """
  parts, revision = name.removeprefix(PREFIX).split("/"), None
  if len(parts) > 1 and "@" in parts[1]:
    parts[1], revision = parts[1].split("@", 1)
  for part in (*parts, *([] if revision is None else [revision])):
    if not _PART.fullmatch(part) or ".." in part:
      raise artifact_lib.ArtifactError(
          f"{name!r} was refused: {part!r} cannot be a part of "
          "hf://owner/name[@revision][/file].")
  if len(parts) < 2:  # an owner without a name
    raise artifact_lib.ArtifactError(
        f"{name!r} was refused: it must be hf://owner/name[@revision][/file].")
  return "/".join(parts[:2]), revision, "/".join(parts[2:]) or FILE


def download(name: str) -> pathlib.Path:
  """Return the local path of a file; download the file if it is not cached.

  The repository's card, README.md, may list hashes of files ("sha256 of the
  file", as experiments/release.py writes them). If the card lists any hashes,
  the file must have one of these hashes.

  Args:
    name: hf://owner/name for the file theta.safetensors, or
      hf://owner/name/file for another file. hf://owner/name@revision is a
      branch, a tag or a commit.

  Raises:
    ImportError: huggingface_hub is not installed.
    ArtifactError: a malformed name, a file outside of the cache, or a file
      whose hash is not on the card.
    OSError: an error of the network or the repository, from huggingface_hub.
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

  # A file of the cache may be a link, which could lead anywhere.
  def fetch(file: str) -> pathlib.Path:
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
    # Offline, the card may exist without being in the cache.
    if isinstance(e, errors.LocalEntryNotFoundError):
      raise
    return path
  hashes = {x.lower() for x in _HASH.findall(card)}
  file_hash = hashlib.sha256(artifact_lib.read_bytes(path)).hexdigest()
  if hashes and file_hash not in hashes:
    raise artifact_lib.ArtifactError(
        f"{name} was refused: its sha256 is {file_hash}, its card says "
        f"{', '.join(sorted(hashes))}.")
  return path
