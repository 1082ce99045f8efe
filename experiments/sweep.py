"""Cells of a study, each computed once.

A cell has a config, which holds everything that the result depends on, and
rows, which are the result. While a study runs, each cell is a folder
`cells/<identity>` in the workdir, so that an interruption loses one cell at
most. `pack` moves the cells of a finished study into one file, cells.jsonl.gz.
The file has one line of JSON per cell, {"config": ..., "rows": [...]}; to look
at the cells:

    zcat cells.jsonl.gz
    pandas.read_json("cells.jsonl.gz", lines=True)
"""

import functools
import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
from typing import Callable
import zlib


def run_cell(folder: pathlib.Path, config: dict,
             compute: Callable[[], list[dict]]) -> list[dict]:
  """Return the rows of a cell; compute the rows if the cell is not done.

  The folder of a cell holds config.json, metrics.jsonl and, when both are
  complete, DONE. A folder without DONE is computed again, unless the cell is
  packed.

  Args:
    folder: the folder "cells" of the study. The packed cells are in the file
      `<folder>.jsonl.gz` next to it.
    config: everything that the result depends on; JSON values.
    compute: returns the rows.

  Returns:
    The rows after a round trip through JSON.

  Raises:
    ValueError: the file of packed cells is damaged.
  """
  cell = folder / identity(config)
  # The folder comes first: `pack` deletes it only after the cell is packed.
  if not (cell / "DONE").exists():
    packed = _packed(_pack_path(folder))
    if cell.name in packed:
      return json.loads(packed[cell.name])["rows"]
    shutil.rmtree(cell, ignore_errors=True)
    rows = compute()
    cell.mkdir(parents=True)
    (cell / "config.json").write_text(_text(config))
    (cell / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows))
    (cell / "DONE").touch()
  return _read_rows(cell)


def pack(folder: pathlib.Path) -> None:
  """Move all cells that are done into `<folder>.jsonl.gz`.

  Equal cells give equal bytes. A kill at any moment loses and duplicates
  nothing, and the next call completes the work. Not for a study that another
  process computes at the same time.

  Args:
    folder: the folder "cells" of the study; without it, nothing happens.

  Raises:
    ValueError: the file of packed cells is damaged.
  """
  if not folder.is_dir():
    return
  path = _pack_path(folder)
  lines = dict(_packed(path))
  for done in folder.glob("*/DONE"):
    config = json.loads((done.parent / "config.json").read_text())
    lines[done.parent.name] = _line(config, _read_rows(done.parent))
  if not lines:
    return
  _write(path, sorted(lines.values()))
  for name in lines:
    # DONE goes first: a folder with DONE must be complete at any moment.
    (folder / name / "DONE").unlink(missing_ok=True)
    shutil.rmtree(folder / name, ignore_errors=True)
  if not any(folder.iterdir()):
    folder.rmdir()


def identity(config: dict) -> str:
  """Return the hash of a config, which names the cell."""
  return hashlib.sha256(_text(config).encode()).hexdigest()[:16]


def _text(config: dict) -> str:
  return json.dumps(config, indent=2, sort_keys=True)


def _line(config: dict, rows: list[dict]) -> str:
  """Return a line of the file of packed cells, without its newline."""
  # The order of keys in a row is kept: it is the order of columns in a table.
  config = json.loads(_text(config))
  return json.dumps({"config": config, "rows": rows})


def _read_rows(cell: pathlib.Path) -> list[dict]:
  text = (cell / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def _pack_path(folder: pathlib.Path) -> pathlib.Path:
  return folder.with_name(f"{folder.name}.jsonl.gz")


def _write(path: pathlib.Path, lines: list[str]) -> None:
  """Write packed cells; the file appears complete or not at all."""
  content = io.BytesIO()
  # No name and no time in the header: equal cells give equal bytes.
  with gzip.GzipFile("", "wb", fileobj=content, mtime=0) as file:
    file.write("".join(f"{line}\n" for line in lines).encode())
  temporary = path.with_name(f"{path.name}.tmp")
  with open(temporary, "wb") as file:
    file.write(content.getvalue())
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def _packed(path: pathlib.Path) -> dict[str, str]:
  """Return {identity: line} of all packed cells; {} if there is no file."""
  if not path.exists():
    return {}
  stat = path.stat()
  return _read_pack(path, stat.st_ino, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)
def _read_pack(path: pathlib.Path, *version: int) -> dict[str, str]:
  """Read packed cells; `version` changes when the file is replaced.

  The cache saves a study from reading the file again for each of its cells.
  """
  del version
  packed = {}
  try:
    # Decompression checks the length and the checksum of the whole file.
    text = gzip.decompress(path.read_bytes()).decode()
    for line in text.splitlines():
      cell = json.loads(line)
      if set(cell) != {"config", "rows"}:
        raise ValueError("a line is not a cell")
      packed[identity(cell["config"])] = line
    if not packed:
      raise ValueError("it is empty")
    return packed
  except (gzip.BadGzipFile, zlib.error, EOFError, ValueError,
          TypeError) as e:
    raise ValueError(
        f"{path} is damaged ({e}). Restore it, or delete it to compute its "
        "cells again.") from e
