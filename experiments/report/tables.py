"""Tables of comparisons."""

import numpy as np
import pandas as pd

from experiments.report import ranks
from experiments.report import statistics


def table(results: pd.DataFrame) -> str:
  """Return `runs` as Markdown."""
  return markdown(runs(results))


def summary(results: pd.DataFrame) -> str:
  """Return `spread` as Markdown, "" for results without speed-ups."""
  return markdown(spread(results)) if statistics.speedups(results) else ""


def markdown(frame: pd.DataFrame) -> str:
  """Return a table in Markdown; cells are written as they are."""
  return frame.fillna("").to_markdown(index=False, disable_numparse=True)


def overall(standings: pd.DataFrame) -> pd.DataFrame:
  """Return a table of `ranks.overall`, for readers."""
  table = ranks.overall(standings).rename(columns={"method": "optimizer"})
  means = [name for name in table if str(name).startswith("rank by")]
  return table.assign(**{name: table[name].map("{:.2f}".format)
                         for name in means})


def with_error(value: float, error: float) -> str:
  """Return a number and its standard error."""
  return f"{value:.3g} ± {error:.2g}"


def runs(results: pd.DataFrame) -> pd.DataFrame:
  """Return a table with a row per target and method.

  Numbers are means over seeds with their 95 % bootstrap interval.
  """
  rows = []
  for (target, method), group in results.groupby(
      ["target", "method"], sort=False):
    with_interval = lambda name, group=group: (
        "{:.3g} ({:.3g} to {:.3g})".format(
            group[name].mean(), *statistics.interval(group[name])))
    rate, schedule = group["learning_rate"].iloc[0], group["schedule"].iloc[0]
    row = {
        "task": target, "optimizer": method,
        "learning rate": "none" if pd.isna(rate) else (
            f"{rate:.1e} {schedule}" +
            (" (grid edge)" if group["grid_edge"].iloc[0] else "")),
        "mean train loss": with_interval("mean_train_loss"),
        "final train loss": with_interval("final_train_loss"),
        "validation loss": with_interval("outer_valid_loss"),
        "test loss": with_interval("test_loss")}
    if "test_accuracy" in group and group["test_accuracy"].notna().all():
      row["test accuracy"] = f"{group['test_accuracy'].mean():.1%}"
    for column in statistics.speedups(group):
      row[column.replace("speedup", "speed-up")] = with_interval(column)
    row["diverged"] = (
        f"{(~np.isfinite(group['final_train_loss'])).sum()} of {len(group)}")
    rows.append(row)
  return pd.DataFrame(rows)


def spread(results: pd.DataFrame) -> pd.DataFrame:
  """Return a table of speed-ups over all tasks and seeds.

  The statistic is the interquartile mean; its interval resamples the runs of
  all tasks.
  """
  iqm = statistics.interquartile_mean
  of_values = lambda values: "{:.2f} ({:.2f} to {:.2f})".format(
      float(iqm(values)), *statistics.interval(values, iqm))
  rows = []
  for method, group in results.groupby("method", sort=False):
    rows.append({
        "optimizer": method, "runs": len(group),
        **{f"interquartile mean of {x.replace('speedup', 'speed-ups')}":
           of_values(group[x]) for x in statistics.speedups(results)},
        "diverged": int((~np.isfinite(group["final_train_loss"])).sum())})
  return pd.DataFrame(rows)
