"""Intervals over seeds, speed-ups, and how they spread over tasks."""

import numpy as np
import pandas as pd

from experiments import baselines

REFERENCE = baselines.get("adamw").label
# {column: baselines, of which the first that a study has is the reference}.
REFERENCES = {
    "speedup": (REFERENCE, baselines.get("adamw_tuned").label),
    "speedup over Muon": tuple(
        baselines.get(name).label
        for name in ("muon_matrices_tuned", "muon_tuned"))}
SECONDS = " in seconds"  # end of the names of columns of speed-ups in time


def interval(values, statistic=np.mean) -> tuple[float, float]:
  """Return the 95 % bootstrap interval of a statistic, a function with `axis`.

  Both ends are the mean if there is one value, if all values are equal, or if
  one value is not finite.
  """
  values = np.asarray(values, float)
  if len(values) == 1 or np.ptp(values) == 0 or not np.all(
      np.isfinite(values)):
    return float(np.mean(values)), float(np.mean(values))
  from scipy import stats  # here: a second, which a wrong flag need not wait
  bounds = stats.bootstrap(
      (values,), statistic, method="percentile", vectorized=True,
      n_resamples=2000, rng=np.random.default_rng(0)).confidence_interval
  return float(bounds.low), float(bounds.high)


def trailing_mean(curve) -> np.ndarray:
  """Return means over a tenth of the curve, ending at each point.

  Single points are noisy. The lowest of many points lies below the level of its
  run, which would make every optimizer faster than itself.
  """
  window = max(1, len(curve) // 10)
  return np.convolve(curve, np.full(window, 1 / window), "valid")


def speedup(curve: list[float], reference: np.ndarray) -> float:
  """Return steps of the reference / steps of the run, to the same loss.

  Let n be the number of steps of both, and compare the curves after
  `trailing_mean`.

  * The run ends at least as low as the reference: n / (steps that the run needs
    to reach the final loss of the reference), from 1 to 10.
  * The run ends higher: (steps that the reference needs to reach the final loss
    of the run) / n, less than 1.
  * The run diverged: 0.

  Args:
    curve: losses of the run, at evenly spaced steps.
    reference: losses of the reference, at the same steps.
  """
  if not np.all(np.isfinite(curve)):
    return 0.0
  run, reference = trailing_mean(curve), trailing_mean(reference)
  skipped = len(curve) - len(run)  # points before the first trailing mean
  # Fraction of the steps after which losses are at most `goal`.
  needed = lambda losses, goal: (
      skipped + 1 + int(np.argmax(losses <= goal))) / len(curve)
  if run[-1] > reference[-1]:
    return needed(reference, run[-1])
  return 1 / needed(run, reference[-1])


def reference(results: pd.DataFrame, column: str) -> str | None:
  """Return the label of the reference of a column of REFERENCES, or None."""
  present = set(results["method"])
  return next((x for x in REFERENCES[column] if x in present), None)


def with_speedup(results: pd.DataFrame) -> pd.DataFrame:
  """Add the columns of REFERENCES, against the mean curve of a baseline.

  "speedup" is against AdamW. A column whose baselines are not in the results is
  left out. Results with the column "seconds" get the speed-ups in time, too: a
  step counts as many seconds as it takes.
  """
  results = results.copy()
  for column in REFERENCES:
    label = reference(results, column)
    if label is None:
      continue
    for _, group in results.groupby("target", sort=False):
      of_reference = group[group["method"] == label]
      curve = np.mean(of_reference["curve"].tolist(), 0)
      for i, run in group["curve"].items():
        results.loc[i, column] = speedup(run, curve)
      if "seconds" in group:
        results.loc[group.index, column + SECONDS] = (
            results.loc[group.index, column] *
            of_reference["seconds"].iloc[0] / group["seconds"])
  return results


def speedups(results: pd.DataFrame) -> list[str]:
  """Return the names of the columns of speed-ups."""
  names = [x + end for x in REFERENCES for end in ("", SECONDS)]
  return [x for x in names if x in results]


def interquartile_mean(values, axis=0) -> np.ndarray:
  """Return the mean of the values without a quarter at each end."""
  from scipy import stats  # here, see `interval`
  return stats.trim_mean(values, 0.25, axis=axis)


def profile(results: pd.DataFrame, column: str, xs: np.ndarray
            ) -> dict[str, np.ndarray]:
  """Return the share of tasks on which an optimizer has more than a speed-up.

  A task counts as the share of its runs.

  Args:
    results: result of `with_speedup`.
    column: of speed-ups.
    xs: speed-ups, [n].

  Returns:
    {method: share [n]}.
  """
  shares = {}
  for method, group in results.groupby("method", sort=False):
    of_tasks = [np.mean(np.asarray(runs)[:, None] > xs[None], 0)
                for _, runs in group.groupby("target")[column]]
    shares[str(method)] = np.mean(of_tasks, 0)
  return shares
