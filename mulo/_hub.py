"""Trained optimizers from and to Hugging Face, through huggingface_hub."""

import hashlib
import importlib.resources
import json
import pathlib
import re
import tempfile
from typing import Any

from learned_opt import artifact as artifact_lib
from learned_opt import registry
from learned_opt.scaling import parametrizations

PREFIX = "hf://"
FILE = "theta.safetensors"
CARD = "README.md"
LICENCE = "LICENSE"
# Licence that the package has the text of, and names that the hub knows.
OWN_LICENCE = "Apache-2.0"
KNOWN_LICENCES = ("apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0",
                  "cc-by-nc-4.0", "cc0-1.0", "gpl-3.0", "mit")
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
    text = artifact_lib.read_bytes(fetch(CARD)).decode("utf-8", "replace")
  except errors.EntryNotFoundError as e:
    # Offline, the card may exist without being in the cache.
    if isinstance(e, errors.LocalEntryNotFoundError):
      raise
    return path
  _check_hash(name, path, text)
  return path


def _check_hash(name: str, path: pathlib.Path, text: str) -> None:
  """Raise ArtifactError if a card lists hashes, but not the file's.

  Args:
    name: of the file, for the message.
    path: the file.
    text: of the card.
  """
  hashes = {x.lower() for x in _HASH.findall(text)}
  file_hash = hashlib.sha256(artifact_lib.read_bytes(path)).hexdigest()
  if hashes and file_hash not in hashes:
    raise artifact_lib.ArtifactError(
        f"{name} was refused: its sha256 is {file_hash}, its card says "
        f"{', '.join(sorted(hashes))}.")


def front_matter(artifact: artifact_lib.Artifact) -> str:
  """Return what Hugging Face reads at the top of a card, in YAML."""
  name = artifact.licence.lower()
  lines = [f"license: {name}"] if name in KNOWN_LICENCES else [
      "license: other", f"license_name: {json.dumps(name)}",
      f"license_link: {LICENCE}"]
  return "\n".join(["---", *lines, "library_name: mulo", "tags:", *(
      f"- {tag}" for tag in ("jax", "optax", "learned-optimizer")), "---", ""])


def card(repository: str, artifact: artifact_lib.Artifact, file_sha256: str
         ) -> str:
  """Return a card with what the artifact itself says, in Markdown.

  Args:
    repository: owner/name.
    artifact: the optimizer.
    file_sha256: hash of its file.
  """
  record, settings = artifact.record, artifact.settings
  code = [x for x in (artifact.optimizer, artifact.parametrization)
          if registry.is_import(x)]
  arguments = [json.dumps(f"{PREFIX}{repository}")]
  if parametrizations.get(artifact.parametrization).needs_base_shapes:
    arguments.append("base_shapes=...")
  if settings.get("horizon"):
    arguments.append("num_steps=...")
  if code:
    arguments.append(f"trust={code!r}")
  rows = {
      "optimizer": artifact.optimizer,
      "parametrization": artifact.parametrization,
      "settings": ", ".join(f"{k} {v}" for k, v in settings.items()),
      "numbers in theta": str(sum(
          x.size for x in artifact_lib.flatten(artifact.theta).values())),
      "licence": artifact.licence,
      "sha256 of theta": artifact_lib.sha256(artifact.theta),
      "sha256 of the file": file_sha256}
  table = "\n".join(f"| {k} | {_cell(v)} |" for k, v in rows.items())
  return f"""{front_matter(artifact)}
# {repository.partition("/")[2]}

A learned optimizer for JAX. It is loaded with mulo:

```python
tx = mulo.load({", ".join(arguments)})
```

| | |
| --- | --- |
{table}

The card was written by `mulo.push`, and has no comparison with other
optimizers.

## How it was made

```json
{json.dumps(record, indent=2, sort_keys=True)}
```
"""


def _cell(text: str) -> str:
  """Return the text of a cell of a table."""
  return " ".join(text.replace("|", "\\|").split())


def write_folder(folder: pathlib.Path, repository: str,
                 artifact: artifact_lib.Artifact, *,
                 card_text: str | None = None,
                 licence_text: str | None = None) -> None:
  """Write the files of a repository: weights, card and licence.

  Args:
    folder: an empty folder.
    repository: owner/name.
    artifact: see `push`.
    card_text: see `push`.
    licence_text: see `push`.

  Raises:
    ValueError: see `push`.
  """
  if licence_text is None:
    if artifact.licence != OWN_LICENCE:
      raise ValueError(
          f"the licence of the weights is {artifact.licence!r}, whose text "
          "mulo does not have: pass it as licence_text.")
    own: Any = importlib.resources.files("mulo") / "pretrained" / LICENCE
    licence_text = own.read_text()
  path = folder / FILE
  artifact_lib.write(path, artifact)
  if card_text is None:
    card_text = card(repository, artifact,
                     hashlib.sha256(path.read_bytes()).hexdigest())
  elif not card_text.startswith("---\n"):
    card_text = f"{front_matter(artifact)}\n{card_text}"
  _check_hash("artifact", path, card_text)  # `download` would refuse it
  (folder / CARD).write_text(card_text, encoding="utf-8")
  (folder / LICENCE).write_text(licence_text, encoding="utf-8")


def push(repository: str, artifact: artifact_lib.Artifact, *,
         card_text: str | None = None, licence_text: str | None = None,
         private: bool = False) -> str:
  """Upload a trained optimizer to Hugging Face: weights, card and licence.

  A repository that does not exist is created. Files of earlier uploads stay in
  its history.

  Args:
    repository: "owner/name".
    artifact: the optimizer, see `mulo.read`.
    card_text: Markdown of the card. None: what the artifact itself says, with
      settings, hashes and how theta was made.
    licence_text: text of the licence `artifact.licence`; may be left out for
      Apache-2.0.
    private: whether a new repository is hidden from others.

  Returns:
    The name of this upload for `mulo.load`, "hf://owner/name@commit".

  Raises:
    ArtifactError: a name of another form, or a card with the hash of another
      file.
    ValueError: a licence without its text.
    ImportError: huggingface_hub is not installed.
    PermissionError: there is no token.
    OSError: an error of the network or the repository, from huggingface_hub.
  """
  name = parse(f"{PREFIX}{repository}")[0]
  if name != repository:
    raise artifact_lib.ArtifactError(
        f"{repository!r} was refused: push takes owner/name.")
  try:
    import huggingface_hub
  except ImportError as e:
    raise ImportError("push needs the package huggingface_hub: pip install "
                      "'mulo[hub]'.") from e
  if not huggingface_hub.get_token():
    raise PermissionError(
        "push needs a token of Hugging Face that may write: run `hf auth "
        "login`, or set HF_TOKEN.")
  with tempfile.TemporaryDirectory() as folder:
    write_folder(pathlib.Path(folder), name, artifact, card_text=card_text,
                 licence_text=licence_text)
    hub = huggingface_hub.HfApi()
    hub.create_repo(name, private=private, exist_ok=True)
    commit = hub.upload_folder(
        repo_id=name, folder_path=folder, commit_message="Upload from mulo")
  return f"{PREFIX}{name}@{commit.oid}"
