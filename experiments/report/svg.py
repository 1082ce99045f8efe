"""Plots as SVG that a page of HTML holds: its text and lines follow the page.

The parts of an optimizer have the class that `Line.name` says, so that the page
can hide them.
"""

import html
import math
from typing import Callable, Iterable, NamedTuple, Sequence

import numpy as np

from experiments.report import styles

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 26, 54  # margins around the axes
BAND = 0.15  # opacity of bands over seeds


class Line(NamedTuple):
  """Line and band of one optimizer.

  Attributes:
    name: class of the parts in the page.
    label: name of the optimizer.
    style: see `styles.of`.
    x: [n].
    y: [n].
    low: lower end of the band or bars [n], or None.
    high: upper end.
  """

  name: str
  label: str
  style: styles.Style
  x: np.ndarray
  y: np.ndarray
  low: np.ndarray | None = None
  high: np.ndarray | None = None


class Axis(NamedTuple):
  """An axis of a plot.

  Attributes:
    label: text beside it.
    low: value at its start; positive if it is logarithmic.
    high: value at its end.
    log: whether it is logarithmic.
    marks: values and their names, instead of round numbers.
  """

  label: str
  low: float
  high: float
  log: bool = False
  marks: Sequence[tuple[float, str]] = ()

  def position(self, values: np.ndarray) -> np.ndarray:
    """Return positions from 0 to 1; NaN for what cannot be drawn."""
    f = np.log if self.log else np.asarray
    with np.errstate(divide="ignore", invalid="ignore"):
      place = (f(values) - f(self.low)) / (f(self.high) - f(self.low))
    return np.where(np.isfinite(place), place, np.nan)

  def ticks(self) -> list[tuple[float, str]]:
    """Return values and labels, three to seven where that is possible."""
    if self.marks:
      return list(self.marks)
    values = log_ticks(self.low, self.high) if self.log else round_ticks(
        self.low, self.high)
    return [(x, f"{x:g}") for x in values]


def axis_around(label: str, values: Iterable[float], log: bool) -> Axis:
  """Return an axis that has all values that can be drawn, with some room."""
  known = np.asarray([x for x in values if np.isfinite(x) and (
      x > 0 or not log)], float)
  if not len(known):
    return Axis(label, 0.1 if log else 0.0, 1.0, log)
  low, high = known.min(), known.max()
  if log:
    room = max((high / low)**0.05, 1.05)
    return Axis(label, low / room, high * room, True)
  room = 0.05 * (high - low) or 1.0
  return Axis(label, low - room, high + room)


def log_ticks(low: float, high: float) -> list[float]:
  """Return round numbers on a logarithmic axis.

  On an axis without three of 1, 2, 3, 5, 7 times a power of ten, numbers are as
  far apart as on a linear one.
  """
  first, last = (math.floor(math.log10(x)) for x in (low, high))
  ticks: list[float] = []
  for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7)):
    ticks = [x for e in range(first, last + 1) for digit in digits
             if low <= (x := float(f"{digit}e{e}")) <= high]
    if len(ticks) >= 3:
      return ticks[::-(-len(ticks) // 7)]
  return round_ticks(low, high)


def round_ticks(low: float, high: float) -> list[float]:
  """Return three to seven multiples of 1, 2 or 5 times a power of ten."""
  unit = 10.0**math.floor(math.log10((high - low) / 2))
  step = next(x * unit / 10 for x in (1, 2, 5, 10, 20, 50, 100)
              if (high - low) / (x * unit / 10) <= 6)
  first = math.ceil(low / step - 1e-9)
  return [float(f"{i * step:.12g}")
          for i in range(first, math.floor(high / step + 1e-9) + 1)]


def plot(title: str, lines: Sequence[Line], x: Axis, y: Axis,
         points: bool = False, mark: float | None = None) -> str:
  """Return a plot.

  Args:
    title: text above it.
    lines: what is drawn, the last one on top.
    x: horizontal axis.
    y: vertical axis.
    points: draw points with bars instead of lines with bands.
    mark: a value of y at which a line goes from left to right.
  """
  across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
  x_of = lambda values: across * x.position(values)
  y_of = lambda values: up * (1 - y.position(values))
  draw = _points if points else _curve
  inside = "".join(
      f'<g class="{line.name}"><title>{html.escape(line.label)}</title>'
      f"{draw(line, x_of, y_of)}</g>" for line in lines)
  if mark is not None:
    at = float(y_of(np.array(mark)))
    inside += (f'<line class="mark" x1="0" x2="{across}" y1="{at:.1f}" '
               f'y2="{at:.1f}"/>')
  # The inner svg cuts off what lies outside the axes.
  return (
      f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="'
      f'{html.escape(title, True)}"><text x="{LEFT}" y="16" class="title">'
      f"{html.escape(title)}</text>{_axes(x, y, across, up)}"
      f'<svg x="{LEFT}" y="{TOP}" width="{across}" height="{up}">{inside}'
      "</svg></svg>")


def _axes(x: Axis, y: Axis, across: int, up: int) -> str:
  """Return grid, numbers and labels."""
  parts = []
  bottom = TOP + up
  for value, label in y.ticks():
    at = TOP + up * (1 - float(y.position(np.array(value))))
    parts.append(
        f'<line class="grid" x1="{LEFT}" x2="{LEFT + across}" y1="{at:.1f}" '
        f'y2="{at:.1f}"/><text x="{LEFT - 6}" y="{at + 4:.1f}" '
        f'class="end">{html.escape(label)}</text>')
  slanted = sum(len(label) for _, label in x.ticks()) > 45
  for value, label in x.ticks():
    at = LEFT + across * float(x.position(np.array(value)))
    turn = (f' class="end" transform="rotate(-25 {at:.1f} {bottom + 14})"'
            if slanted else ' class="middle"')
    parts.append(
        f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" '
        f'y2="{bottom + 4}"/><text x="{at:.1f}" y="{bottom + 17}"{turn}>'
        f"{html.escape(label)}</text>")
  if x.label:
    parts.append(f'<text x="{LEFT + across / 2}" y="{TOP + up + 36}" '
                 f'class="middle">{html.escape(x.label)}</text>')
  if y.label:
    parts.append(f'<text x="12" y="{TOP + up / 2}" class="middle" transform='
                 f'"rotate(-90 12 {TOP + up / 2})">{html.escape(y.label)}'
                 "</text>")
  parts.append(f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{across}" '
               f'height="{up}"/>')
  return "".join(parts)


_Place = Callable[[np.ndarray], np.ndarray]


def _stroke(style: styles.Style) -> str:
  """Return the attributes of a line."""
  dash = f' stroke-dasharray="{" ".join(map(str, style.dash))}"'
  width = 1.6 if style.kind == "baseline" else 2.2
  return (f'fill="none" stroke="{style.color}" stroke-width="{width}"'
          f'{dash if style.dash else ""}')


def _path(xs: np.ndarray, ys: np.ndarray) -> str:
  """Return the path through points, with a gap where one is not known."""
  parts, pen = [], "M"
  for x, y in zip(xs, ys):
    if np.isfinite(x) and np.isfinite(y):
      parts.append(f"{pen}{x:.1f} {y:.1f}")
    pen = "L" if np.isfinite(x) and np.isfinite(y) else "M"
  return "".join(parts)


def _curve(line: Line, x_of: _Place, y_of: _Place) -> str:
  """Return a line with its band."""
  band = ""
  if line.low is not None and line.high is not None:
    keep = np.isfinite(y_of(line.low)) & np.isfinite(y_of(line.high)) & (
        np.isfinite(x_of(line.x)))
    xs = np.concatenate([line.x[keep], line.x[keep][::-1]])
    ys = np.concatenate([line.high[keep], line.low[keep][::-1]])
    band = (f'<path d="{_path(x_of(xs), y_of(ys))}" fill="{line.style.color}" '
            f'opacity="{BAND}"/>')
  return (f'{band}<path d="{_path(x_of(line.x), y_of(line.y))}" '
          f'{_stroke(line.style)}/>')


def _points(line: Line, x_of: _Place, y_of: _Place) -> str:
  """Return points with their bars; a square is a baseline."""
  parts = []
  low, high = (line.y if end is None else end for end in (line.low, line.high))
  for x, y, a, b in zip(x_of(line.x), y_of(line.y), y_of(low), y_of(high)):
    if not np.isfinite([x, y]).all():
      continue
    if np.isfinite([a, b]).all() and a != b:
      parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{a:.1f}" '
                   f'y2="{b:.1f}" stroke="{line.style.color}"/>')
    if line.style.kind == "baseline":
      parts.append(f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" '
                   f'height="6" fill="{line.style.color}"/>')
    else:
      parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" '
                   f'fill="{line.style.color}"/>')
  return "".join(parts)
