"""Text files in UTF-8, in `<data_dir>/text/`.

A text is the file `<name>.txt`. If there is no such file, `<name>_valid.txt` is
for training and `<name>_test.txt` for testing.
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
  train = single.with_name(f"{name}_valid.txt")
  test = single.with_name(f"{name}_test.txt")
  if not train.exists() and not test.exists():
    raise FileNotFoundError(f"Neither {single} nor {train} exists.")
  return base.TextParts(read(train), read(test))


def read(path: pathlib.Path) -> np.ndarray:
  """Read the bytes of a text file, uint8 [n].

  Raises:
    FileNotFoundError: no such file.
    ValueError: a file that is empty or is not text in UTF-8.
  """
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist.")
  content = path.read_bytes()
  try:
    if not content or b"\0" in content:
      raise ValueError("empty" if not content else "it has null bytes")
    content.decode("utf-8")
  except ValueError as e:  # UnicodeDecodeError is a ValueError
    raise ValueError(f"{path} is not text in UTF-8: {e}.") from e
  return np.frombuffer(content, np.uint8)
