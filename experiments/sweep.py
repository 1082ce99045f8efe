"""Cells of a study: each is computed once, and reports read only its files."""

import hashlib
import json
import pathlib
import shutil
from typing import Callable


def run_cell(folder: pathlib.Path, config: dict,
             compute: Callable[[], list[dict]]) -> list[dict]:
  """Rows of a cell, computed unless they were before.

  The cell is the folder `<hash of the config>` with config.json,
  metrics.jsonl and, when all is written, DONE. A folder without DONE is
  computed anew.

  Args:
    folder: where the cells of the study are.
    config: all that the result depends on; JSON values.
    compute: makes the rows; called if the cell is not done.

  Returns:
    The rows as they are in metrics.jsonl.
  """
  text = json.dumps(config, indent=2, sort_keys=True)
  cell = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
  rows = cell / "metrics.jsonl"
  if not (cell / "DONE").exists():
    shutil.rmtree(cell, ignore_errors=True)
    result = compute()
    cell.mkdir(parents=True)
    (cell / "config.json").write_text(text)
    rows.write_text("".join(json.dumps(row) + "\n" for row in result))
    (cell / "DONE").touch()
  return [json.loads(line) for line in rows.read_text().splitlines()]
