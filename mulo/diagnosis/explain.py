"""A page of what an optimizer did: `mulo.explain`."""

import html
import math
import os
import pathlib
from typing import Callable, TypeAlias

import numpy as np
import optax

from mulo.diagnosis import probe as probe_lib

_Axis: TypeAlias = Callable[[float], float]  # value -> coordinate
LOGARITHMIC = ("step", "rms")  # measures on a logarithmic axis
COLORS = ("#2f6fdb", "#d1590f", "#178a4c", "#b3261e", "#7a4fcf", "#8a6a00",
          "#c2388a", "#00838f")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 300, 70, 40, 12
STYLE = """
:root { color-scheme: light dark; --line: #8886; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; }
svg text { fill: currentColor; font-size: 13px; }
figure { margin: 0 0 2rem; }
figcaption { font-weight: 600; }
.plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
i { display: inline-block; width: .8em; height: .8em; margin-right: .5em; }
"""


def explain(state: optax.OptState, path: str | os.PathLike[str]) -> None:
  """Write a page of HTML about the run of an optimizer with `mulo.probe`.

  The page has a plot of every measure over the steps, with a line for each
  tensor, and a table of the means. It needs no other file.

  Args:
    state: see `recorded` in `mulo.diagnosis.probe`.
    path: file that is written.

  Raises:
    ValueError: a state without records.
  """
  names, steps, records = probe_lib.recorded(state)
  figures = "\n".join(
      f"<figure><figcaption>{html.escape(about)}</figcaption>"
      f"{plot(steps, records[name], names, name in LOGARITHMIC)}</figure>"
      for name, about in probe_lib.MEASURES.items())
  pathlib.Path(path).write_text(
      '<!doctype html>\n<html lang="en"><meta charset="utf-8">\n'
      '<meta name="viewport" content="width=device-width">\n'
      f"<title>What the optimizer did</title>\n<style>{STYLE}</style>\n"
      "<h1>What the optimizer did</h1>\n"
      f"<p>{len(steps)} of its steps, from step {steps[0]} to {steps[-1]}."
      "</p>\n"
      f'<div class="plots">{figures}</div>\n<h2>Means over these steps</h2>\n'
      f'<div class="scroll">{table(records, names)}</div></html>\n',
      encoding="utf-8")


def table(records: dict[str, np.ndarray], names: list[str]) -> str:
  """Return a table of HTML: the mean of each measure, by tensor."""
  head = "".join(f"<th>{name}</th>" for name in ("tensor", *records))
  rows = []
  for i, name in enumerate(names):
    cells = [f'<i style="background:{COLORS[i % len(COLORS)]}"></i>'
             f"{html.escape(name)}"]
    for values in records.values():
      known = values[:, i][np.isfinite(values[:, i])]
      cells.append(f"{np.mean(known):.3g}" if len(known) else "")
    rows.append("".join(f"<td>{cell}</td>" for cell in cells))
  return f"<table><tr>{head}</tr>" + "".join(
      f"<tr>{row}</tr>" for row in rows) + "</table>"


def plot(steps: np.ndarray, values: np.ndarray, names: list[str],
         logarithmic: bool) -> str:
  """Return lines over steps as SVG.

  Args:
    steps: [n].
    values: [n, tensors]; a line has gaps where values are not finite, or not
      positive on a logarithmic axis.
    names: of the tensors.
    logarithmic: whether the axis of the values is.
  """
  known = np.isfinite(values) & (values > 0 if logarithmic else True)
  if not np.any(known):
    return "<p>No values.</p>"
  scaled = np.log10(np.where(known, values, 1)) if logarithmic else values
  marks = ticks(scaled[known].min(), scaled[known].max(), logarithmic)
  low, high = marks[0], marks[-1]
  right = WIDTH - 12
  x_of: _Axis = lambda step: LEFT + (right - LEFT) * step / max(steps[-1], 1)
  y_of: _Axis = lambda y: HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (
      y - low) / (high - low)
  parts = []
  for mark in marks:
    label = f"1e{mark:.0f}" if logarithmic else f"{mark:.3g}"
    parts.append(
        f'<line x1="{LEFT}" x2="{right}" y1="{y_of(mark):.1f}" '
        f'y2="{y_of(mark):.1f}" stroke="var(--line)"/><text x="{LEFT - 8}" '
        f'y="{y_of(mark) + 4:.1f}" text-anchor="end">{label}</text>')
  for step, anchor in ((0, "start"), (int(steps[-1]), "end")):
    parts.append(f'<text x="{x_of(step):.1f}" y="{HEIGHT - BOTTOM + 20}" '
                 f'text-anchor="{anchor}">step {step}</text>')
  for i, name in enumerate(names):
    parts.append(_line(x_of, y_of, steps, scaled[:, i], known[:, i],
                       COLORS[i % len(COLORS)], name))
  return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
          f'{"".join(parts)}</svg>')


def _line(x_of: _Axis, y_of: _Axis, steps: np.ndarray, values: np.ndarray,
          known: np.ndarray, color: str, name: str) -> str:
  """Return the path of one tensor, a dot for a single value, "" for none."""
  if not np.any(known):
    return ""
  title = f"<title>{html.escape(name)}</title>"
  if known.sum() == 1:
    i = int(np.argmax(known))
    return (f'<circle cx="{x_of(steps[i]):.1f}" cy="{y_of(values[i]):.1f}" '
            f'r="3" fill="{color}">{title}</circle>')
  path, pen = [], "M"
  for step, value, here in zip(steps, values, known):
    if here:
      path.append(f"{pen}{x_of(step):.1f},{y_of(value):.1f}")
    pen = "L" if here else "M"
  return (f'<path d="{"".join(path)}" fill="none" stroke="{color}" '
          f'stroke-width="1.5" opacity="0.8">{title}</path>')


def ticks(low: float, high: float, whole: bool) -> list[float]:
  """Return 2 to 7 round numbers, the first <= low and the last >= high.

  Args:
    low: smallest value.
    high: largest value.
    whole: whether only integers are round enough.
  """
  span = max(high - low, 0.01 * max(abs(low), abs(high)), 1e-12)
  exponent = math.floor(math.log10(span)) - 1
  steps = [digit * 10.0**(exponent + i) for i in range(4)
           for digit in (1, 2, 5)]
  step = next(x for x in steps if (x >= 1 or not whole) and
              math.ceil(high / x) - math.floor(low / x) <= 6)
  first, last = math.floor(low / step), math.ceil(high / step)
  return [step * i for i in range(first, max(last, first + 1) + 1)]
