"""Colours of optimizers, readable on white and on black.

A baseline of the registry has the same colour on every page: blue for rules of
entries, green for rules of matrices, brown for transferred ones; its line is
thin and broken. Learned optimizers have solid lines in warm colours, in their
order on the page, and so have the entries of users, in violet.
"""

import colorsys
from typing import NamedTuple

import pandas as pd

from experiments import baselines

WARM = ("#e73a23", "#d57605", "#da1f6d", "#916308", "#b28b00", "#e36363")
VIOLET = ("#8e34d4", "#bb56d5", "#7252f1", "#c946b4")
# Of a colour between black, 0, and white, 1. All are at least three times as
# light as a dark page, and a light page three times as light as they.
LUMINANCES = (0.13, 0.28, 0.19)
DASHES = ((6, 3), (3, 2), (9, 3, 2, 3), (5, 2, 1, 2), (12, 4), (2, 1))
# Ranges of hue and saturation by the room's file that has the baseline.
HUES = {"elementwise": (0.53, 0.66, 0.75), "matrices": (0.27, 0.46, 0.65),
        "transferred": (0.04, 0.14, 0.25)}


class Style(NamedTuple):
  """How the line of an optimizer is drawn.

  Attributes:
    color: "#rrggbb".
    dash: lengths of strokes and gaps; () for a solid line.
    kind: "learned", "entry" (a file of a user) or "baseline".
  """

  color: str
  dash: tuple[int, ...]
  kind: str


def _registered() -> dict[str, Style]:
  """Return {label: style} of all baselines."""
  rooms = {"elementwise": baselines.elementwise, "matrices": baselines.matrices,
           "transferred": baselines.transferred}
  styles = {}
  for name, room in rooms.items():
    labels = [baseline.label for part in ("FIRST", "SECOND", "TUNED")
              for baseline in getattr(room, part, {}).values()]
    low, high, saturation = HUES[name]
    for i, label in enumerate(labels):
      # Neighbours differ in hue, in lightness and in their dashes.
      hue = low + (high - low) * (i * 5 % 8) / 7
      styles[label] = Style(_color(hue, saturation, LUMINANCES[i % 3]),
                            DASHES[i % len(DASHES)], "baseline")
  return styles


def _color(hue: float, saturation: float, luminance: float) -> str:
  """Return the colour "#rrggbb" of a luminance."""
  low, high = 0.0, 1.0
  for _ in range(20):
    middle = (low + high) / 2
    rgb = colorsys.hls_to_rgb(hue, middle, saturation)
    color = "#" + "".join(f"{round(255 * x):02x}" for x in rgb)
    low, high = (
        (middle, high) if luminance_of(color) < luminance else (low, middle))
  return color


def luminance_of(color: str) -> float:
  """Return the relative luminance of "#rrggbb", as WCAG 2 defines it."""
  channels = [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055)**2.4
            for x in channels]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def of(results: pd.DataFrame) -> dict[str, Style]:
  """Return {method: style}; a method without learning rate is learned."""
  registered = _registered()
  warm = violet = 0
  styles = {}
  for method, group in results.groupby("method", sort=False):
    label = str(method)
    if label in registered:
      styles[label] = registered[label]
    elif group["learning_rate"].isna().all():
      styles[label] = Style(WARM[warm % len(WARM)], (), "learned")
      warm += 1
    else:
      styles[label] = Style(VIOLET[violet % len(VIOLET)], (), "entry")
      violet += 1
  return styles
