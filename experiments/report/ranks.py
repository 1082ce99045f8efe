"""Ranks of optimizers by steps, and by seconds, to a target loss.

A run reaches the target at the first step at which the mean of its last losses
(`statistics.trailing_mean`) is at most the target. An optimizer has a rank on a
task if all of its runs reach the target.

An optimizer wins against another one if it needs less, and the difference of
their means over seeds is at least Z of its standard errors. The rank is 1 plus
the number of wins against the optimizer. So optimizers that nothing beats share
the first rank, even if one of their means is lower.

With three seeds each, chance makes a difference of 3 standard errors in one of
25 pairs of equal optimizers, in one direction or the other (Student's t with 4
degrees of freedom).
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.report import statistics

Z = 3.0
MEASURES = ("steps", "seconds")


class Mean(NamedTuple):
  """A mean over seeds, with its standard error."""

  mean: float
  error: float


def steps_to(curve: list[float], num_steps: int, target: float) -> float:
  """Return the steps until a run reaches the target; infinite if never.

  Args:
    curve: losses at evenly spaced steps.
    num_steps: number of steps of the run.
    target: loss to reach.
  """
  smooth = statistics.trailing_mean(curve)
  reached = np.flatnonzero(smooth <= target)
  if not len(reached):
    return np.inf
  return (len(curve) - len(smooth) + 1 + reached[0]) * num_steps / len(curve)


def mean_steps(steps: np.ndarray, resolution: float) -> Mean:
  """Return the mean of steps to the target.

  Args:
    steps: of each seed, finite.
    resolution: steps between two points of a curve. Rounding to them is a part
      of the error, so that equal numbers are not beyond doubt.

  Returns:
    The error is infinite for one seed, because nothing is known about it.
  """
  if len(steps) < 2:
    return Mean(float(np.mean(steps)), np.inf)
  variance = np.var(steps, ddof=1) + resolution**2 / 12
  return Mean(float(np.mean(steps)), float((variance / len(steps))**0.5))


def times(a: Mean, b: Mean) -> Mean:
  """Return the product of independent means."""
  return Mean(a.mean * b.mean, float(np.hypot(a.error * b.mean,
                                              a.mean * b.error)))


def z(a: Mean, b: Mean) -> float:
  """Return by how many standard errors a is less than b."""
  error = np.hypot(a.error, b.error)
  return (b.mean - a.mean) / error if np.isfinite(error) else 0.0


def ranks(means: dict[str, Mean]) -> dict[str, int]:
  """Return 1 plus the number of wins against each optimizer."""
  return {name: 1 + sum(z(other, mean) >= Z for other in means.values())
          for name, mean in means.items()}


def standings(results: pd.DataFrame) -> pd.DataFrame:
  """Return how each optimizer does on each task.

  Args:
    results: of a study, with the column target_loss.

  Returns:
    A row per target and method: runs, reached (runs that reach the target), and
    for each of MEASURES (seconds only if they were measured) the mean, "NAME
    error" and "NAME rank", which are NaN unless all runs reach the target.
  """
  rows = []
  for target, group in results.groupby("target", sort=False):
    here: dict[str, dict] = {}
    means: dict[str, dict[str, Mean]] = {name: {} for name in MEASURES}
    for method, runs in group.groupby("method", sort=False):
      first, label = runs.iloc[0], str(method)
      steps = np.array([steps_to(curve, first["num_steps"], loss)
                        for curve, loss in zip(
                            runs["curve"], runs["target_loss"])])
      here[label] = {
          "target": target, "target_loss": first["target_loss"],
          "method": label, "runs": len(steps),
          "reached": int(np.isfinite(steps).sum())}
      if np.all(np.isfinite(steps)):
        mean = mean_steps(steps, first["num_steps"] / len(first["curve"]))
        means["steps"][label] = mean
        if "seconds" in runs:
          means["seconds"][label] = times(
              mean, Mean(first["seconds"], first["seconds_error"]))
    for name, of_methods in means.items():
      rank = ranks(of_methods)
      for label, row in here.items():
        mean = of_methods.get(label, Mean(np.nan, np.nan))
        row |= {name: mean.mean, f"{name} error": mean.error,
                f"{name} rank": rank.get(label, np.nan)}
    rows += list(here.values())
  return pd.DataFrame(rows)


def overall(table: pd.DataFrame) -> pd.DataFrame:
  """Return mean ranks over tasks, best first.

  On a task where it has no rank, an optimizer counts as behind all that have.

  Args:
    table: result of `standings`.

  Returns:
    A row per method: tasks, reached (tasks on which all runs reach the target),
    "rank by steps" and "rank by seconds".
  """
  table = table.copy()
  names = [name for name in MEASURES if table[name].notna().any()]
  for name in names:
    last = 1 + table.groupby("target")[f"{name} rank"].transform("count")
    table[f"rank by {name}"] = table[f"{name} rank"].fillna(last)
  rows = [{"method": method, "tasks": len(group),
           "reached": int((group["reached"] == group["runs"]).sum()),
           **{f"rank by {name}": group[f"rank by {name}"].mean()
              for name in names}}
          for method, group in table.groupby("method", sort=False)]
  frame = pd.DataFrame(rows)
  by = [x for x in frame if str(x).startswith("rank by")]
  return frame.sort_values(by or ["reached"], kind="stable",
                           ascending=bool(by), ignore_index=True)
