"""Text files in UTF-8.

`<data_dir>/text/<name>.txt`, or, if there is no such file, `<name>_valid.txt`
for training and `<name>_test.txt`.
"""

import pathlib

import numpy as np

from tasks.data import base

DATASETS = ("*",)
LOCAL = True


def load(name: str, folder: pathlib.Path) -> base.TextParts:
  """Read a text from `folder / "text"`; see `tasks.data.text_formats`."""
  single = folder / "text" / f"{name}.txt"
  if single.exists():
    return base.TextParts(read(single), None)
  both = [single.with_name(f"{name}_{part}.txt") for part in ("valid", "test")]
  if not any(path.exists() for path in both):
    raise FileNotFoundError(f"Neither {single} nor {both[0]} exists.")
  return base.TextParts(*map(read, both))


def read(path: pathlib.Path) -> np.ndarray:
  """The bytes of a text file, uint8 [n].

  Raises:
    FileNotFoundError: no such file.
    ValueError: an empty file, or one that is not text in UTF-8.
  """
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist.")
  content = path.read_bytes()
  try:
    if not content or b"\0" in content:
      raise ValueError("empty" if not content else "it has null bytes")
    content.decode("utf-8")
  except ValueError as e:  # UnicodeDecodeError is one
    raise ValueError(f"{path} is not text in UTF-8: {e}.") from e
  return np.frombuffer(content, np.uint8)
