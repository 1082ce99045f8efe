"""metrics.jsonl: one JSON object per line, in the order of steps."""

import json
import math
import os
import pathlib
import sys
import time
from typing import Any, TextIO


class Writer:
  """Appends rows to a metrics file; a context manager that closes the file.

  A killed run may have written rows after its last checkpoint, and an
  unfinished last line. These are removed first.
  """

  def __init__(self, path: pathlib.Path | None, step: int,
               tensorboard: pathlib.Path | None = None):
    """Open the file.

    Args:
      path: the metrics file. None: write nothing, as one of several processes
        writes for all.
      step: outer steps taken. Rows of later steps are removed.
      tensorboard: folder for TensorBoard's files; None for none.

    Raises:
      ValueError: `tensorboard` is given, but tensorboardX is not installed.
    """
    self._first, self._began = step, time.monotonic()
    # A new run has no rows, not even the row of step 0: it is written again.
    self._rows = [row for row in read(path, warn=True) if row["step"] <= step
                  ] if path and step else []
    self._file: TextIO | None = None
    self._board: Any = None
    if path is None:
      return
    new = path.with_name(f".{path.name}.new")
    new.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
    os.replace(new, path)
    self._file = path.open("a")
    if tensorboard is not None:
      self._board = _board(tensorboard)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Append one row."""
    self._rows.append({"step": step, **values})
    if self._file is not None:
      self._file.write(json.dumps(self._rows[-1]) + "\n")
      self._file.flush()
    if self._board is not None:
      for name, value in values.items():
        self._board.add_scalar(name, value, step)

  def lowest(self, name: str) -> float:
    """Return the minimum finite value of a metric; infinity if it has none."""
    return min((row[name] for row in self._rows
                if math.isfinite(row.get(name, math.inf))), default=math.inf)

  def summary(self, result: pathlib.Path) -> str:
    """Return a summary of the run, in some lines.

    Args:
      result: path of theta.safetensors.
    """
    steps = [row for row in self._rows if row["step"]]
    last = steps[-1]
    new = [row for row in self._rows if row["step"] > self._first]
    lines = [f"{last['step']} outer steps, meta-loss "
             f"{steps[0]['meta_loss']:.4f} -> {last['meta_loss']:.4f}"]
    if new:
      minutes = (time.monotonic() - self._began) / 60
      rates = sorted(row["inner_steps_per_second"] for row in new)
      lines.append(
          f"the last {last['step'] - self._first} in {minutes:.1f} minutes, "
          f"{rates[len(rates) // 2]:,.0f} inner steps per second")
    diverged = sum(row["diverged"] > 0 for row in steps)
    if diverged:
      lines.append(f"inner steps with a loss that was not finite in {diverged} "
                   f"of {len(steps)} rows of metrics")
    if math.isfinite(self.lowest("evaluation")):
      best = min((row["evaluation"], row["step"]) for row in self._rows
                 if math.isfinite(row.get("evaluation", math.inf)))
      lines.append(f"lowest loss on held-out tasks {best[0]:.4f}, after "
                   f"{best[1]} steps: {result.with_name('best.safetensors')}")
    return "\n".join([*lines, f"Wrote {result}"])

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *exception: object) -> None:
    for file in (self._file, self._board):
      if file is not None:
        file.close()


def _board(folder: pathlib.Path) -> Any:
  """Return a writer of TensorBoard's files."""
  try:
    # Imported here, because tensorboardX is an optional dependency.
    from tensorboardX import SummaryWriter
  except ImportError as e:
    raise ValueError("--tensorboard needs tensorboardX: pip install "
                     "'mulo[tensorboard]'.") from e
  return SummaryWriter(str(folder))


def read(path: pathlib.Path, warn: bool = False) -> list[dict[str, Any]]:
  """Return the rows of a metrics file that are whole.

  Args:
    path: the file, which may be missing.
    warn: copy the file to metrics.damaged.jsonl and say so, if it has a line
      that is not a row. An unfinished last line is usual after a kill.
  """
  rows: list[dict[str, Any]] = []
  text = path.read_bytes() if path.exists() else b""
  bad = []
  for number, line in enumerate(text.splitlines(), 1):
    try:
      row = json.loads(line)
    except ValueError:
      row = None
    if isinstance(row, dict) and type(row.get("step")) is int:
      rows.append(row)
    else:
      bad.append(number)
  unfinished = [] if text.endswith(b"\n") else [text.count(b"\n") + 1]
  if warn and bad and bad != unfinished:
    copy = path.with_suffix(f".damaged{path.suffix}")
    copy.write_bytes(text)
    print(f"Warning: line {bad[0]} of {path} is not a row of metrics. All rows "
          f"that are whole are kept, the damaged file is {copy}.",
          file=sys.stderr, flush=True)
  return rows


def check_finite(rows: list[dict[str, Any]], first_step: int) -> None:
  """Raise FloatingPointError if a metric is not finite.

  Args:
    rows: metrics of consecutive outer steps.
    first_step: number of the first of these steps, for the message.
  """
  for i, row in enumerate(rows):
    bad = {name: float(x) for name, x in row.items() if not math.isfinite(x)}
    if bad:
      raise FloatingPointError(
          f"Outer step {first_step + i} gave {bad}. Set config.estimator."
          "drop_nonfinite to leave out copies with such a meta-loss (of no use "
          "if all copies of a task have one), or lower config.theta_opt."
          "learning_rate. Use another --workdir: with either change it is "
          "another run.")
