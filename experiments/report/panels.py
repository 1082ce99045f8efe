"""Plots of the page: curves, final losses, profiles, costs."""

from typing import Callable

import numpy as np
import pandas as pd

from experiments.report import figures
from experiments.report import statistics
from experiments.report import styles
from experiments.report import svg

SPEEDUPS = (0.1, 10.0)  # range of the profiles; see `statistics.speedup`


def names(results: pd.DataFrame) -> dict[str, str]:
  """Return {method: class in the page}."""
  return {str(method): f"m{i}" for i, method in enumerate(
      results["method"].unique())}


def _lines(results: pd.DataFrame,
           draw: Callable[[int, pd.DataFrame], tuple]) -> list[svg.Line]:
  """Return a line for each method, learned ones on top.

  Args:
    results: rows of all methods.
    draw: `draw(i, rows of method i)` returns x, y, low and high.
  """
  style_of, name_of = styles.of(results), names(results)
  lines = [svg.Line(name_of[str(method)], str(method), style_of[str(method)],
                    *draw(i, group))
           for i, (method, group) in enumerate(
               results.groupby("method", sort=False))]
  return sorted(lines, key=lambda line: line.style.kind != "baseline")


def curves(results: pd.DataFrame, shared: bool) -> dict[str, tuple[str, ...]]:
  """Return plots of the loss of each target against steps, and seconds.

  Args:
    results: rows of all targets.
    shared: whether all targets have the same axis of losses.
  """
  groups = {str(target): group for target, group in results.groupby(
      "target", sort=False)}
  limits = {target: _limits(group) for target, group in groups.items()}
  if shared:
    low, high = zip(*limits.values())
    limits = {target: (min(low), max(high)) for target in groups}
  return {target: tuple(
      _curves(group, limits[target], target, seconds)
      for seconds in ((False, True) if "seconds" in group else (False,)))
          for target, group in groups.items()}


def _limits(group: pd.DataFrame) -> tuple[float, float]:
  """Return the range of losses that is shown: divergence is cut off."""
  losses = np.array(group["curve"].tolist(), float)
  top = 1.5 * np.nanmax(losses[:, 0], initial=0)
  shown = losses[np.isfinite(losses) & (losses > 0) & (losses <= top)]
  return (shown.min(), shown.max()) if len(shown) else (0.1, 1.0)


def _curves(results: pd.DataFrame, limits: tuple[float, float], target: str,
            seconds: bool) -> str:
  """Return the plot of one target."""

  def draw(i: int, group: pd.DataFrame) -> tuple:
    del i
    losses = np.array(group["curve"].tolist(), float)  # [seeds, points]
    ends = np.arange(1, losses.shape[1] + 1) / losses.shape[1]
    x = ends * group["num_steps"].iloc[0]
    return (x * group["seconds"].iloc[0] if seconds else x,
            np.mean(losses, 0), np.min(losses, 0), np.max(losses, 0))

  lines = _lines(results, draw)
  x = svg.axis_around("seconds" if seconds else "step",
                      np.concatenate([line.x for line in lines]), seconds)
  loss = results.iloc[0].get("target_loss")
  return svg.plot(
      f"{target}: loss against {'seconds' if seconds else 'steps'}", lines,
      x if seconds else x._replace(low=0.0),
      svg.axis_around("train loss", limits, True), mark=loss)


def final(results: pd.DataFrame) -> tuple[str, ...]:
  """Return plots of final losses: lines along an axis, points on tasks."""
  targets = [str(x) for x in results["target"].unique()]
  axis = figures.axis_of(targets)
  count = results["method"].nunique()
  top = 1.5 * np.nanmax([curve[0] for curve in results["curve"]], initial=0)
  lines = {}
  for score, title in (("final_train_loss", "final train loss"),
                       ("outer_valid_loss", "validation loss"),
                       ("test_loss", "test loss")):

    def draw(i: int, group: pd.DataFrame, score: str = score) -> tuple:
      runs = [group[group["target"] == target][score] for target in targets]
      x = np.array(axis[1]) if axis else np.arange(len(targets)) + (
          0.7 * ((i + 0.5) / count - 0.5))
      low, high = np.array([statistics.interval(x) for x in runs]).T
      return x, np.array([np.mean(x) for x in runs]), low, high

    lines[title] = _lines(results, draw)
  x = _places(targets) if axis is None else svg.axis_around(
      axis[0], axis[1], True)._replace(marks=[(v, f"{v:g}") for v in axis[1]])
  values = np.concatenate([y for part in lines.values() for line in part
                           for y in (line.y, line.low, line.high)])
  y = svg.axis_around("loss", values[values <= top], True)
  return tuple(svg.plot(title, part, x, y, axis is None)
               for title, part in lines.items())


def _places(targets: list[str]) -> svg.Axis:
  """Return an axis with a place for each target."""
  return svg.Axis("", -0.5, len(targets) - 0.5,
                  marks=list(enumerate(targets)))


def profiles(results: pd.DataFrame, columns: list[str]) -> tuple[str, ...]:
  """Return plots of the share of tasks with more than a speed-up."""
  xs = np.geomspace(*SPEEDUPS, 121)
  plots = []
  for column in columns:
    shares = list(statistics.profile(results, column, xs).values())

    def draw(i: int, group: pd.DataFrame, shares: list = shares) -> tuple:
      del group
      return xs, shares[i]

    lines = _lines(results, draw)
    plots.append(svg.plot(
        column.replace("speedup", "speed-up"), lines,
        svg.Axis("x", *SPEEDUPS, log=True),
        svg.Axis("share of tasks above x", -0.02, 1.02)))
  return tuple(plots)


def costs(results: pd.DataFrame) -> tuple[str, ...]:
  """Return a plot of the time of a step on each task."""
  targets = [str(x) for x in results["target"].unique()]
  count = results["method"].nunique()

  def draw(i: int, group: pd.DataFrame) -> tuple:
    rows = group.drop_duplicates("target").set_index("target").loc[targets]
    ms, error = 1e3 * rows["seconds"], 1e3 * rows["seconds_error"]
    x = np.arange(len(targets)) + 0.7 * ((i + 0.5) / count - 0.5)
    return x, ms.to_numpy(), (ms - error).to_numpy(), (ms + error).to_numpy()

  lines = _lines(results, draw)
  return (svg.plot(
      "Time of a step", lines, _places(targets),
      svg.axis_around("ms", np.concatenate([line.y for line in lines]), True),
      True),)
