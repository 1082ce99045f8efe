"""Colours of optimizers, readable on white and on black.

A baseline of the registry has the same colour on every page: blue for rules of
entries, green for rules of matrices, grey for transferred ones; its line is
thin and broken. Learned optimizers have solid lines in warm colours, in their
order on the page, and so have the entries of users, in violet.
"""

import colorsys
from typing import NamedTuple

import pandas as pd

from experiments import baselines

WARM = ("#e0401b", "#e8890c", "#d4266e", "#a8620f", "#c9a400", "#f0706a")
VIOLET = ("#8b45d6", "#b65fe0", "#6a4df0", "#c03fb8")
DASHES = ((6, 3), (2, 2), (9, 3, 2, 3), (4, 2, 1, 2), (12, 4), (1, 3))
# Ranges of hue and saturation by the room's file that has the baseline.
HUES = {"elementwise": (0.53, 0.66, 0.75), "matrices": (0.27, 0.46, 0.65),
        "transferred": (0.0, 0.0, 0.0)}


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
      rgb = colorsys.hls_to_rgb(hue, (0.40, 0.58, 0.48)[i % 3], saturation)
      color = "#" + "".join(f"{round(255 * x):02x}" for x in rgb)
      styles[label] = Style(color, DASHES[i % len(DASHES)], "baseline")
  return styles


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
