"""Generated texts: sums, and nested brackets."""

import pathlib

import numpy as np

from tasks.data import base

DATASETS = ("sums", "brackets")
LOCAL = False
LINES, LENGTH = 80_000, 800_000
PAIRS = ("()", "[]", "{}", "<>")


def load(name: str, folder: pathlib.Path | None) -> base.TextParts:
  """Generate a text with a fixed seed; see `tasks.data.text_formats`.

  * sums: lines such as "137+58=195".
  * brackets: four kinds of brackets, nested up to 8 deep.
  """
  del folder
  text = _sums() if name == "sums" else _brackets()
  return base.TextParts(np.frombuffer(text.encode(), np.uint8), None)


def _sums() -> str:
  rng = np.random.default_rng(40)
  numbers = np.floor(10**rng.uniform(0, 3, (LINES, 2))).astype(int)
  return "".join(f"{a}+{b}={a + b}\n" for a, b in numbers.tolist())


def _brackets() -> str:
  rng = np.random.default_rng(41)
  opens = rng.uniform(size=LENGTH) < 0.5
  kinds = rng.integers(len(PAIRS), size=LENGTH)
  text: list[str] = []
  stack: list[str] = []  # brackets that will close those that are open
  for is_open, kind in zip(opens.tolist(), kinds.tolist()):
    if stack and (len(stack) == 8 or not is_open):
      text.append(stack.pop())
    else:
      text.append(PAIRS[kind][0])
      stack.append(PAIRS[kind][1])
  return "".join(text)
