"""JSON that all readers understand in the same way."""

import json
import math
from typing import Any

MAX_INTEGER = 2**53  # some readers round integers beyond it


def parse(text: str | bytes) -> Any:
  """Return a JSON value.

  Raises:
    ValueError: no JSON; a key that occurs twice; a number that is not finite,
      or an integer that some readers round; half a character.
  """
  value = json.loads(text, object_pairs_hook=_once, parse_constant=_number,
                     parse_float=_number, parse_int=_integer)
  # Half a character, a surrogate alone, cannot be encoded.
  json.dumps(value, ensure_ascii=False).encode()
  return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  table = dict(pairs)
  if len(table) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"the key {twice!r} occurs twice.")
  return table


def _number(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"the number {text} is not finite.")
  return value


def _integer(text: str) -> int:
  # Python refuses integers of many digits with an advice for programmers.
  if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
    raise ValueError(f"the integer {text} is more than 2**53.")
  return int(text)
