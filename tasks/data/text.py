"""Texts, split in their order.

Bytes stay uint8 until they are used.
"""

import functools
import pathlib
from typing import NamedTuple

import numpy as np

from tasks.data import base

FORMATS = "tasks.data.text_formats"


class TextData(NamedTuple):
  """Text by split.

  Attributes:
    splits: {split: {"token": uint8 or uint16 [n]}}.
    vocab_size: number of different tokens.
  """

  splits: dict[str, dict[str, np.ndarray]]
  vocab_size: int


def text_data(name: str, data_dir: str | None = None, vocab: str = "bytes",
              vocab_size: int = 1024) -> TextData:
  """Load a text.

  "python" is the source of Python's own standard library. Any other is read
  from `<data_dir>/text/`: `<name>.txt`, or, where there is no such file,
  `<name>_valid.txt` for training and `<name>_test.txt`. Each format is a file
  of tasks/data/text_formats.

  Args:
    name: of the text.
    data_dir: see `tasks.data.images.image_data`.
    vocab: "bytes", or "bpe": byte pairs, learned from the train split (needs
      the library `tokenizers`).
    vocab_size: of "bpe", from 257 to 65,536.

  Raises:
    ValueError: an unknown vocab or size, or a file that is damaged or no text.
    FileNotFoundError: no data_dir, or a file is missing.
    ImportError: "bpe" without the library `tokenizers`.
  """
  if pathlib.PurePath(name).name != name:
    raise ValueError(f"The name of a text is no path, got {name!r}.")
  module = base.find(FORMATS, name)
  if vocab not in ("bytes", "bpe"):
    raise ValueError(f"Unknown vocab {vocab!r}; available: bytes, bpe.")
  if vocab == "bpe" and not 257 <= vocab_size <= 65536:
    raise ValueError(
        f"vocab_size must be from 257 to 65536, got {vocab_size}.")
  folder = base.folder_of(module, name, data_dir)
  return _text_data(module, name, folder, vocab_size if vocab == "bpe" else 256)


@functools.lru_cache(maxsize=4)
def _text_data(module, name, folder, vocab_size) -> TextData:
  train, test = module.load(name, folder)
  if test is None:
    train, test = np.split(train, [round(0.9 * len(train))])
  parts = dict(zip(base.FRACTIONS, np.split(train, base.bounds(len(train)))),
               test=test)
  if vocab_size > 256:
    parts = _byte_pairs(parts, vocab_size)
  return TextData({split: {"token": x} for split, x in parts.items()},
                  vocab_size)


def _byte_pairs(parts: dict[str, np.ndarray], vocab_size: int):
  """Tokens of byte pairs that are learned from parts["train"]."""
  try:
    import tokenizers
  except ImportError as e:
    raise ImportError("bpe needs a library: pip install tokenizers.") from e
  text = {split: x.tobytes().decode("utf-8", errors="replace")
          for split, x in parts.items()}
  tokenizer = tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(
      text["train"].splitlines(keepends=True), vocab_size, show_progress=False)
  found = {}
  for split, x in text.items():
    lines = tokenizer.encode_batch(x.splitlines(keepends=True))
    found[split] = np.asarray(
        [token for line in lines for token in line.ids], np.uint16)
  return found
