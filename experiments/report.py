"""Tables and plots of comparisons."""

import pathlib

import matplotlib
import numpy as np
import pandas as pd
from scipy import stats

REFERENCE = "AdamW"


def interval(values, statistic=np.mean) -> tuple[float, float]:
  """95 % bootstrap interval of the mean; both ends equal for one value."""
  values = np.asarray(values, float)
  if len(values) == 1 or np.ptp(values) == 0 or not np.all(
      np.isfinite(values)):
    return float(np.mean(values)), float(np.mean(values))
  found = stats.bootstrap(
      (values,), statistic, method="percentile", vectorized=False,
      n_resamples=2000, rng=np.random.default_rng(0))
  return (float(found.confidence_interval.low),
          float(found.confidence_interval.high))


def trailing_mean(curve) -> np.ndarray:
  """Means over the tenth of the curve that ends at each point.

  Single points are noisy: the lowest of many lies below where a run really is,
  which would make every optimizer faster than itself.
  """
  part = max(1, len(curve) // 10)
  return np.convolve(curve, np.full(part, 1 / part), "valid")


def speedup(curve: list[float], reference: np.ndarray) -> float:
  """How many times fewer steps than a reference, to the same loss.

  If the run gets as low as the reference ends: all steps over the steps that it
  needs for that, 1 to 10. Else, less than 1: the steps that the reference needs
  to get as low as the run ends, over all steps. 0 for one that diverged. Losses
  are `trailing_mean`s, so the last one is the final train loss.

  Args:
    curve: losses of the run, at evenly spaced steps.
    reference: the same of the reference.
  """
  if not np.all(np.isfinite(curve)):
    return 0.0
  run, reference = trailing_mean(curve), trailing_mean(reference)
  skipped = len(curve) - len(run)
  needed = lambda losses, goal: (
      skipped + 1 + int(np.argmax(losses <= goal))) / len(curve)
  if run[-1] > reference[-1]:
    return needed(reference, run[-1])
  return 1 / needed(run, reference[-1])


def with_speedup(results: pd.DataFrame) -> pd.DataFrame:
  """A column "speedup" against the mean curve of AdamW, if that is there."""
  if REFERENCE not in set(results["method"]):
    return results
  found = results.copy()
  for target, group in results.groupby("target", sort=False):
    curves = group[group["method"] == REFERENCE]["curve"].tolist()
    reference = np.mean(curves, 0)
    for i, curve in group["curve"].items():
      found.loc[i, "speedup"] = speedup(curve, reference)
  return found


def table(results: pd.DataFrame) -> str:
  """A markdown table, one row per target and method."""
  rows = []
  for (target, method), group in results.groupby(
      ["target", "method"], sort=False):
    with_interval = lambda name, group=group: (
        "{:.3g} ({:.3g} to {:.3g})".format(
            group[name].mean(), *interval(group[name])))
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
    if "speedup" in group:
      row["speed-up"] = with_interval("speedup")
    row["diverged"] = (
        f"{(~np.isfinite(group['final_train_loss'])).sum()} of {len(group)}")
    rows.append(row)
  return pd.DataFrame(rows).fillna("").to_markdown(
      index=False, disable_numparse=True)


def summary(results: pd.DataFrame) -> str:
  """Interquartile means of the speed-ups over all tasks and seeds."""
  if "speedup" not in results:
    return ""
  middle = lambda x: stats.trim_mean(x, 0.25)
  rows = []
  for method, group in results.groupby("method", sort=False):
    values = group["speedup"]
    rows.append({
        "optimizer": method, "runs": len(group),
        "interquartile mean of speed-ups": "{:.2f} ({:.2f} to {:.2f})".format(
            middle(values), *interval(values, middle)),
        "diverged": int((~np.isfinite(group["final_train_loss"])).sum())})
  return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def plot(results: pd.DataFrame, path: pathlib.Path) -> None:
  """Loss against steps for each target, and final loss of all.

  Curves are cut at twice the largest first loss.
  """
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  targets, names = (list(results[x].unique()) for x in ("target", "method"))
  columns = min(len(targets) + 1, 4)
  lines = -(-(len(targets) + 1) // columns)
  figure, grid = plt.subplots(
      lines, columns, figsize=(3.6 * columns, 3.2 * lines), squeeze=False,
      layout="constrained")
  axes = list(grid.flat)
  for axis in axes[len(targets) + 1:]:
    axis.set_visible(False)
  for axis, target in zip(axes, targets):
    starts = []
    for i, name in enumerate(names):
      group = results[(results.target == target) & (results.method == name)]
      curves = np.array(group["curve"].tolist())
      steps = np.linspace(0, group["num_steps"].iloc[0], curves.shape[1])
      axis.plot(steps, np.mean(curves, 0), color=f"C{i}", label=name)
      axis.fill_between(steps, np.min(curves, 0), np.max(curves, 0),
                        color=f"C{i}", alpha=0.2, linewidth=0)
      starts.append(np.nanmax(curves[:, 0], initial=0))
    axis.set(title=target, xlabel="step", yscale="log")
    if max(starts) > 0:  # what goes far beyond would flatten all else
      axis.set_ylim(top=min(axis.get_ylim()[1], 2 * max(starts)))
  axes[0].set_ylabel("train loss\n(mean, range of seeds)")
  figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small",
                loc="outside lower center", ncols=min(len(names), 6))
  last = axes[len(targets)]
  for i, name in enumerate(names):
    groups = [results[(results.target == t) & (results.method == name)]
              for t in targets]
    last.plot(range(len(targets)),
              [g["final_train_loss"].mean() for g in groups], "o-",
              color=f"C{i}")
    ends = np.array([interval(g["final_train_loss"]) for g in groups])
    last.fill_between(range(len(targets)), ends[:, 0], ends[:, 1],
                      color=f"C{i}", alpha=0.2, linewidth=0)
  last.set(title="final train loss", yscale="log", xticks=range(len(targets)))
  last.set_xticklabels(targets, rotation=30, ha="right")
  last.minorticks_off()
  figure.savefig(path, dpi=120)
  plt.close(figure)


def write(results: pd.DataFrame, folder: pathlib.Path) -> str:
  """Writes results.csv, table.md and transfer.png; returns the tables."""
  results = with_speedup(results)
  results.drop(columns="curve").to_csv(folder / "results.csv", index=False)
  text = "\n\n".join(x for x in (table(results), summary(results)) if x)
  (folder / "table.md").write_text(text + "\n")
  plot(results, folder / "transfer.png")
  return f"{text}\n\nPlot: {folder / 'transfer.png'}"
