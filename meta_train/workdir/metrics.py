"""metrics.jsonl: one JSON object per line, in order of steps."""

import json
import math
import os
import pathlib
import time


class Writer:
  """Appends to a metrics file; a context manager that closes it.

  Rows past `step`, which a killed run wrote after its last checkpoint, and a
  last line that it did not finish, are removed first. With no path, writes
  nothing: one of several processes does it for all.
  """

  def __init__(self, path: pathlib.Path | None, step: int,
               tensorboard: pathlib.Path | None = None):
    self._first, self._began = step, time.monotonic()
    # A run that begins has no rows, not even of the time before the first step.
    self._rows = [row for row in read(path) if row["step"] <= step
                  ] if path and step else []
    self._file = self._board = None
    if path is None:
      return
    new = path.with_name(f".{path.name}.new")
    new.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
    os.replace(new, path)
    self._file = path.open("a")
    if tensorboard is not None:
      self._board = _board(tensorboard)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one row."""
    self._rows.append({"step": step, **values})
    if self._file is not None:
      self._file.write(json.dumps(self._rows[-1]) + "\n")
      self._file.flush()
    if self._board is not None:
      for name, value in values.items():
        self._board.add_scalar(name, value, step)

  def lowest(self, name: str) -> float:
    """The least finite value of a metric so far; infinity if it has none."""
    return min((row[name] for row in self._rows
                if math.isfinite(row.get(name, math.inf))), default=math.inf)

  def summary(self, result: pathlib.Path) -> str:
    """What a run did, in some lines."""
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

  def __enter__(self):
    return self

  def __exit__(self, *exception) -> None:
    for file in (self._file, self._board):
      if file is not None:
        file.close()


def _board(folder):
  """A writer of TensorBoard's files."""
  try:
    # Here, since it is an extra.
    from tensorboardX import SummaryWriter
  except ImportError as e:
    raise ValueError("--tensorboard needs tensorboardX: pip install "
                     "'mulo[tensorboard]'.") from e
  return SummaryWriter(str(folder))


def read(path: pathlib.Path) -> list[dict]:
  """Rows of a metrics file up to the first that is not whole."""
  rows: list[dict] = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows
