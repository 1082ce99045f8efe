"""metrics.jsonl: one JSON object per line, in order of steps."""

import json
import os
import pathlib


class Writer:
  """Appends to a metrics file; a context manager that closes it.

  Rows past `step`, which a killed run wrote after its last checkpoint, and a
  last line that it did not finish, are removed first.
  """

  def __init__(self, path: pathlib.Path, step: int):
    kept = [row for row in read(path) if row["step"] <= step]
    new = path.with_name(f".{path.name}.new")
    new.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(new, path)
    self._file = path.open("a")

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one row."""
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    self._file.flush()

  def __enter__(self):
    return self

  def __exit__(self, *exception) -> None:
    self._file.close()


def read(path: pathlib.Path) -> list[dict]:
  """Rows of a metrics file up to the first that is not whole."""
  rows: list[dict] = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows
