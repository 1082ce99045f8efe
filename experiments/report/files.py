"""Files of a study from which its report is made.

* runs.jsonl.gz: a line for each reported run, with its curve.
* record.json: title, command, seeds, versions, and the text of each entry that
  came as a file.
"""

import gzip
import io
import json
import pathlib
import platform
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np
import optax
import pandas as pd

import mulo

PACKAGES = (mulo, jax, jaxlib, optax, np)


class Saved(NamedTuple):
  """Contents of the files of a study.

  Attributes:
    results: a row for each run.
    record: content of record.json.
  """

  results: pd.DataFrame
  record: dict[str, Any]


def save(folder: pathlib.Path, results: pd.DataFrame, title: str,
         record: dict[str, Any]) -> None:
  """Write the files; equal results give equal bytes.

  Args:
    folder: an existing folder, with command.txt.
    results: a row for each run.
    title: title of the study.
    record: what else the report says: tuning_seeds, tune_on, sources,
      meta_trained.
  """
  content = io.BytesIO()
  with gzip.GzipFile("", "wb", fileobj=content, mtime=0) as file:
    for row in results.to_dict("records"):
      file.write(f"{json.dumps(row)}\n".encode())
  (folder / "runs.jsonl.gz").write_bytes(content.getvalue())
  versions = {"python": platform.python_version(),
              **{x.__name__: x.__version__ for x in PACKAGES}}
  command = folder / "command.txt"
  (folder / "record.json").write_text(json.dumps({
      "title": title, "versions": versions,
      "command": command.read_text().strip() if command.exists() else "",
      **record}, indent=2) + "\n")


def load(folder: pathlib.Path) -> Saved:
  """Read the files.

  Raises:
    FileNotFoundError: the folder is not a study, or from an older version.
    ValueError: a file is damaged.
  """
  paths = [folder / name for name in ("runs.jsonl.gz", "record.json")]
  for path in paths:
    if not path.exists():
      command = folder / "command.txt"
      raise FileNotFoundError(
          f"{path} does not exist. " + (
              "Run the study again, which computes no cell twice: "
              f"{command.read_text().strip()}" if command.exists() else
              f"{folder} is no workdir of experiments.studies.transfer or "
              "experiments.board."))
  try:
    lines = gzip.decompress(paths[0].read_bytes()).decode().splitlines()
    results = pd.DataFrame([json.loads(line) for line in lines])
    return Saved(results, json.loads(paths[1].read_text()))
  except (OSError, EOFError, ValueError, KeyError) as e:
    raise ValueError(f"{folder} has a damaged {paths[0].name} or "
                     f"{paths[1].name} ({e}); run the study again.") from e
