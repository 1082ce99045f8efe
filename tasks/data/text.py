"""Texts, split in reading order.

Tokens stay uint8 or uint16 until a network reads them, to save memory.
"""

import functools
import pathlib
from typing import Callable, NamedTuple

import numpy as np

from tasks.data import base

FORMATS = "tasks.data.text_formats"


class TextData(NamedTuple):
  """Text by split.

  Attributes:
    splits: {split: {"token": uint8 or uint16 [n]}}.
    vocab_size: tokens are from 0 to vocab_size - 1.
  """

  splits: dict[str, dict[str, np.ndarray]]
  vocab_size: int


def text_data(name: str, data_dir: str | None = None, vocab: str = "bytes",
              vocab_size: int = 1024) -> TextData:
  """Load a text.

  "python" is the source of Python's own standard library; "sums" and "brackets"
  are generated. Any other text is read from the file
  `<data_dir>/text/<name>.txt`. If there is no such file, `<name>_valid.txt` is
  for training and `<name>_test.txt` for testing. Each file in
  tasks/data/text_formats adds texts of one format.

  Args:
    name: name of the text.
    data_dir: see `tasks.data.images.image_data`.
    vocab: "bytes"; or "bpe", byte pairs learned from the train split, which
      needs the library `tokenizers`.
    vocab_size: number of tokens of "bpe", from 257 to 65,536; "bytes" has 256.

  Raises:
    ValueError: an unknown vocab, an impossible vocab_size, or a file that is
      damaged or is not text.
    FileNotFoundError: data_dir is not given, or a file is missing.
    ImportError: "bpe" without the library `tokenizers`.
  """
  if pathlib.PurePath(name).name != name:
    raise ValueError(f"The name of a text must not be a path, got {name!r}.")
  text_format = base.find(FORMATS, name)
  if vocab not in ("bytes", "bpe"):
    raise ValueError(f"Unknown vocab {vocab!r}; available: bytes, bpe.")
  if vocab == "bpe" and not 257 <= vocab_size <= 65536:
    raise ValueError(
        f"vocab_size must be from 257 to 65536, got {vocab_size}.")
  folder = base.folder_of(text_format, name, data_dir)
  return _text_data(
      text_format.load, name, folder, vocab_size if vocab == "bpe" else 256)


@functools.lru_cache(maxsize=4)
def _text_data(load: Callable[..., base.TextParts], name: str,
               folder: pathlib.Path | None, vocab_size: int) -> TextData:
  """Load, split and tokenize a text; see `text_data`."""
  train, test = load(name, folder)
  if test is None:
    train, test = np.split(train, [round(0.9 * len(train))])
  # In reading order, not at random: neighbouring lines are too much alike.
  tokens = dict(zip(base.FRACTIONS, np.split(train, base.bounds(len(train)))),
                test=test)
  if vocab_size > 256:
    tokens = _byte_pairs(tokens, vocab_size)
  return TextData({split: {"token": x} for split, x in tokens.items()},
                  vocab_size)


def _byte_pairs(splits: dict[str, np.ndarray], vocab_size: int
                ) -> dict[str, np.ndarray]:
  """Return the tokens of byte pairs, learned from the train split.

  Args:
    splits: {split: bytes of UTF-8, uint8 [n]}.
    vocab_size: number of tokens.

  Returns:
    {split: tokens, uint16 [m]}.
  """
  try:
    import tokenizers
  except ImportError as e:
    raise ImportError("bpe needs a library: pip install tokenizers.") from e
  # A split can begin or end within a character: hence errors="replace".
  text = {split: x.tobytes().decode("utf-8", errors="replace")
          for split, x in splits.items()}
  tokenizer = tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(
      text["train"].splitlines(keepends=True), vocab_size, show_progress=False)
  tokens = {}
  for split, x in text.items():
    lines = tokenizer.encode_batch(x.splitlines(keepends=True))
    tokens[split] = np.asarray(
        [token for line in lines for token in line.ids], np.uint16)
  return tokens
