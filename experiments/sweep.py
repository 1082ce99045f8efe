"""Cells of a study, each computed once, by any number of processes.

A cell has a config, which holds everything that the result depends on, and
rows, which are the result. While a study runs, each cell is a folder
`cells/<identity>` in the workdir, so that an interruption loses one cell at
most. `pack` moves the cells of a finished study into one file, cells.jsonl.gz.
The file has one line of JSON per cell, {"config": ..., "rows": [...]}; to look
at the cells:

    zcat cells.jsonl.gz
    pandas.read_json("cells.jsonl.gz", lines=True)

Processes that share the workdir divide the cells: each claims a cell before it
computes the cell (`meta_train.workdir.claim`), and all read the rows of the
one that is published first.

Cells that depend on the rows of others, such as runs with the settings that
tuning has chosen, belong to a chain: a generator that yields the cells that it
needs next, receives their rows, and returns its result.
"""

import functools
import gzip
import hashlib
import io
import itertools
import json
import os
import pathlib
import shutil
import sys
import time
from typing import Any, Callable, Generator, NamedTuple, Sequence
import zlib

import tqdm

from meta_train.workdir import claim as claim_lib

POLL = 1.0  # seconds between two looks at cells that others compute

Rows = list[dict]


class Cell(NamedTuple):
  """A cell, before it is computed.

  Attributes:
    config: everything that the result depends on, JSON values.
    compute: returns the rows.
    size: what the cell counts on a progress bar.
  """

  config: dict
  compute: Callable[[], Rows]
  size: int = 1


Chain = Generator[list[Cell], list[Rows], Any]


class Incomplete(Exception):
  """Cells are left to other shards; this process has done its own."""


class Shard:
  """The part of all cells that this process computes; all by default.

  Of the process, because studies do not know of it: `command.run` sets it.
  """

  index, count = 0, 1

  @classmethod
  def has(cls, name: str) -> bool:
    """Return whether a cell belongs to this process.

    Args:
      name: identity of the cell.
    """
    return int(name, 16) % cls.count == cls.index


def run_cell(folder: pathlib.Path, config: dict,
             compute: Callable[[], Rows]) -> Rows:
  """Return the rows of one cell; see `run_cells`."""
  return run_cells(folder, [Cell(config, compute)])[0]


def run_chains(folder: pathlib.Path, chains: Sequence[Chain],
               bar: tqdm.tqdm | None = None) -> list[Any]:
  """Return the results of chains; see `run_cells` for arguments and errors.

  All cells that chains need next are divided between the processes. Then the
  chains go on.
  """
  results: dict[int, Any] = {}
  rows: dict[int, Any] = dict.fromkeys(range(len(chains)))
  while rows:
    needed = {}
    for i, received in rows.items():
      try:
        needed[i] = chains[i].send(received)
      except StopIteration as e:
        results[i] = e.value
    found = iter(run_cells(
        folder, list(itertools.chain(*needed.values())), bar))
    rows = {i: list(itertools.islice(found, len(cells)))
            for i, cells in needed.items()}
  return [results[i] for i in range(len(chains))]


def run_cells(folder: pathlib.Path, cells: Sequence[Cell],
              bar: tqdm.tqdm | None = None) -> list[Rows]:
  """Return the rows of independent cells; compute those that are not done.

  The folder of a cell holds config.json, metrics.jsonl and DONE, the number
  and hash of the rows. It appears complete. A cell that does not fit its DONE
  is computed again, and a line says so. Cells that another process computes
  are left to it as long as it lives.

  Args:
    folder: the folder "cells" of the study. The packed cells are in the file
      `<folder>.jsonl.gz` next to it.
    cells: the cells, which do not depend on each other.
    bar: progress bar. It advances by the size of each cell, whether or not its
      `compute` advances the bar.

  Returns:
    The rows of each cell after a round trip through JSON.

  Raises:
    ValueError: the file of packed cells is damaged, or a config is not made
      of JSON values.
    Incomplete: see `Shard`.
  """
  rows: dict[int, Rows] = {}
  left = dict(enumerate(cells))
  done = bar.n if bar is not None else 0
  while left:
    for i, cell in list(left.items()):
      found = _find(folder, identity(cell.config))
      if found is None and Shard.has(identity(cell.config)):
        found = _compute(folder, cell.config, cell.compute)
      if found is not None:
        rows[i] = found
        del left[i]
        done += cell.size
        if bar is not None:
          bar.update(done - bar.n)
    if left and not any(Shard.has(identity(cell.config))
                        for cell in left.values()):
      raise Incomplete(
          f"Shard {Shard.index}/{Shard.count}: {len(rows)} of {len(cells)} "
          f"cells are done, {len(left)} belong to other shards. Run this "
          "command again when those have ended, or without --shard.")
    if left:
      time.sleep(POLL)
  return [rows[i] for i in range(len(cells))]


def pack(folder: pathlib.Path) -> None:
  """Move all cells that are done into `<folder>.jsonl.gz`.

  Equal cells give equal bytes. A kill at any moment loses and duplicates
  nothing, and the next call completes the work. While another process packs,
  nothing happens.

  Args:
    folder: the folder "cells" of the study; without it, nothing happens.

  Raises:
    ValueError: the file of packed cells is damaged.
  """
  if not folder.is_dir():
    return
  path = _pack_path(folder)
  claim = claim_lib.take(folder.with_name(f"{folder.name}.packing"))
  if claim is None:
    return
  with claim:
    lines = dict(_packed(path))
    for done in folder.glob("*/DONE"):
      rows = _find(folder, done.parent.name)
      if rows is not None and done.parent.name not in lines:
        config = json.loads((done.parent / "config.json").read_text())
        lines[done.parent.name] = _line(config, rows)
    if not lines:
      return
    _write(path, sorted(lines.values()))
    for name in lines:
      # DONE goes first: a folder with DONE must be complete at any moment.
      (folder / name / "DONE").unlink(missing_ok=True)
      shutil.rmtree(folder / name, ignore_errors=True)
      # A process that was killed after it published the cell left its claim.
      shutil.rmtree(folder / f"{name}.claim", ignore_errors=True)
    try:
      folder.rmdir()
    except OSError:
      pass  # other processes have cells in it


def identity(config: dict) -> str:
  """Return the hash of a config, which names the cell."""
  return hashlib.sha256(_text(config).encode()).hexdigest()[:16]


def _compute(folder: pathlib.Path, config: dict,
             compute: Callable[[], Rows]) -> Rows | None:
  """Claim a cell, compute and publish it, and return its rows.

  Returns None if another process has the claim.
  """
  cell = folder / identity(config)
  if identity(json.loads(_text(config))) != cell.name:
    raise ValueError(f"A cell's config must be JSON values: {config}.")
  folder.mkdir(parents=True, exist_ok=True)
  claim = claim_lib.take(cell.with_suffix(".claim"))
  if claim is None:
    return None
  with claim:
    # Another process may have published the cell just before the claim.
    if (rows := _find(folder, cell.name)) is not None:
      return rows
    if (cell / "DONE").exists():
      print(f"{cell} is damaged; it is computed again.", file=sys.stderr,
            flush=True)
    rows = compute()
    # A folder of the claim's own, so that no other process writes to it.
    new = claim.file.with_name(f"new-{claim.file.name}")
    try:
      _write_cell(new, config, rows)
      # If this process was frozen, another one has taken over: its rows count.
      if _find(folder, cell.name) is None:
        if cell.exists():
          cell.rename(claim.file.with_name(f"damaged-{claim.file.name}"))
        new.rename(cell)
    except OSError:
      if not claim.lost():
        raise
    finally:
      shutil.rmtree(new, ignore_errors=True)
    return _find(folder, cell.name)


def _write_cell(new: pathlib.Path, config: dict, rows: Rows) -> None:
  """Write the folder of a cell; DONE last, when all else is on the disk."""
  text = "".join(json.dumps(row) + "\n" for row in rows)
  new.mkdir()
  for name, content in (
      ("config.json", _text(config)), ("metrics.jsonl", text),
      ("DONE", json.dumps(_seal(config, text)))):
    with open(new / name, "w", encoding="utf-8") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())


def _seal(config: dict, text: str) -> dict:
  """Return the content of DONE.

  Args:
    config: config of the cell.
    text: content of metrics.jsonl.
  """
  content = f"{_text(config)}\n{text}"
  return {"rows": text.count("\n"),
          "sha256": hashlib.sha256(content.encode()).hexdigest()}


def _find(folder: pathlib.Path, name: str) -> Rows | None:
  """Return the rows of a cell; None if it is not done, or damaged.

  Args:
    folder: see `run_cells`.
    name: identity of the cell.
  """
  # The folder comes first: `pack` deletes it only after the cell is packed.
  rows = _read_rows(folder / name)
  if rows is not None:
    return rows
  packed = _packed(_pack_path(folder))
  return json.loads(packed[name])["rows"] if name in packed else None


def _read_rows(cell: pathlib.Path) -> Rows | None:
  """Return the rows of a folder; None unless it is whole and fits its DONE."""
  try:
    done = (cell / "DONE").read_text()
    config = json.loads((cell / "config.json").read_text())
    text = (cell / "metrics.jsonl").read_text()
    # Earlier versions wrote an empty DONE: there, rows must at least be whole.
    whole = (json.loads(done) == _seal(config, text) if done
             else text.endswith("\n"))
    if identity(config) != cell.name or not whole:
      return None
    rows = [json.loads(line) for line in text.splitlines()]
    return rows if all(isinstance(row, dict) for row in rows) else None
  except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
    return None


def _text(config: dict) -> str:
  return json.dumps(config, indent=2, sort_keys=True)


def _line(config: dict, rows: Rows) -> str:
  """Return a line of the file of packed cells, without its newline."""
  # The order of keys in a row is kept: it is the order of columns in a table.
  config = json.loads(_text(config))
  return json.dumps({"config": config, "rows": rows})


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
