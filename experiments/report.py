"""Tables and plots of comparisons."""

import pathlib
import re

import matplotlib
import numpy as np
import pandas as pd
from scipy import stats

from experiments import baselines

REFERENCE = baselines.get("adamw").label
# {column: baselines, of which the first that a study has is the reference}.
REFERENCES = {
    "speedup": (REFERENCE, baselines.get("adamw_tuned").label),
    "speedup over Muon": tuple(
        baselines.get(name).label
        for name in ("muon_matrices_tuned", "muon_tuned"))}
SEEDS_ALPHA = 0.2  # opacity of bands over seeds
# Learned optimizers have solid lines in these colors. Baselines have dashed
# lines in shades of grey and another marker.
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple",
          "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
GREYS = ("black", "dimgrey", "darkgrey")
DASHES = ("--", "-.", ":")


def interval(values, statistic=np.mean) -> tuple[float, float]:
  """Return the 95 % bootstrap interval of a statistic.

  Both ends are the mean if there is one value, if all values are equal, or if
  one value is not finite.
  """
  values = np.asarray(values, float)
  if len(values) == 1 or np.ptp(values) == 0 or not np.all(
      np.isfinite(values)):
    return float(np.mean(values)), float(np.mean(values))
  bounds = stats.bootstrap(
      (values,), statistic, method="percentile", vectorized=False,
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


def with_speedup(results: pd.DataFrame) -> pd.DataFrame:
  """Add the columns of REFERENCES, against the mean curve of a baseline.

  "speedup" is against AdamW. A column whose baselines are not in the results is
  left out.
  """
  results = results.copy()
  present = set(results["method"])
  for column, labels in REFERENCES.items():
    for label in [x for x in labels if x in present][:1]:
      for _, group in results.groupby("target", sort=False):
        reference = np.mean(
            group[group["method"] == label]["curve"].tolist(), 0)
        for i, curve in group["curve"].items():
          results.loc[i, column] = speedup(curve, reference)
  return results


def table(results: pd.DataFrame) -> str:
  """Return a Markdown table with a row per target and method.

  Numbers are means over seeds with their 95 % bootstrap interval.
  """
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
    for column in [x for x in REFERENCES if x in group]:
      row[column.replace("speedup", "speed-up")] = with_interval(column)
    row["diverged"] = (
        f"{(~np.isfinite(group['final_train_loss'])).sum()} of {len(group)}")
    rows.append(row)
  return pd.DataFrame(rows).fillna("").to_markdown(
      index=False, disable_numparse=True)


def summary(results: pd.DataFrame) -> str:
  """Return a Markdown table of speed-ups over all tasks and seeds.

  The statistic is the interquartile mean. Results without a column of
  REFERENCES give an empty text.
  """
  columns = [x for x in REFERENCES if x in results]
  if not columns:
    return ""
  interquartile_mean = lambda x: stats.trim_mean(x, 0.25)
  of_values = lambda values: "{:.2f} ({:.2f} to {:.2f})".format(
      interquartile_mean(values), *interval(values, interquartile_mean))
  rows = []
  for method, group in results.groupby("method", sort=False):
    rows.append({
        "optimizer": method, "runs": len(group),
        **{f"interquartile mean of {x.replace('speedup', 'speed-ups')}":
           of_values(group[x]) for x in columns},
        "diverged": int((~np.isfinite(group["final_train_loss"])).sum())})
  return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def styles(results: pd.DataFrame) -> dict[str, dict]:
  """Return {method: arguments of `Axes.plot`}.

  A method without learning rate is a learned optimizer; others are baselines.
  """
  by_method: dict[str, dict] = {}
  learned = baseline = 0
  for method, group in results.groupby("method", sort=False):
    if group["learning_rate"].isna().all():
      by_method[str(method)] = dict(
          color=COLORS[learned % len(COLORS)], marker="o")
      learned += 1
    else:
      by_method[str(method)] = dict(
          color=GREYS[baseline % len(GREYS)], marker="s",
          linestyle=DASHES[baseline % len(DASHES)])
      baseline += 1
  return by_method


def axis_of(targets: list[str]) -> tuple[str, list[float]] | None:
  """Return the name and the values of the axis along which targets lie.

  Returns:
    ("width", [128.0, 512.0]) for ["width 128", "width 512"]; None if targets
    are unrelated tasks or a value is not a positive number.
  """
  matches = [re.fullmatch(r"(\w+) (\d+(?:\.\d+)?)", x) for x in targets]
  names = {match and match[1] for match in matches}
  if None in names or len(names) != 1:
    return None
  values = [float(match[2]) for match in matches if match]
  return (names.pop() or "", values) if min(values) > 0 else None


def plot(results: pd.DataFrame, path: pathlib.Path, title: str = "") -> None:
  """Plot loss against steps for each target, and the final losses.

  Curves are cut at twice the largest first loss, because a run that diverges
  would flatten all others. Targets along an axis share the y axis. Their final
  losses are lines over this axis; those of unrelated tasks are points.

  Args:
    results: result of `transfer.Study.compare`.
    path: file of the plot.
    title: name of the task or the suite.
  """
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  targets = [str(x) for x in results["target"].unique()]
  # The final losses of one target need no panel of their own.
  panels = len(targets) + (len(targets) > 1)
  columns = min(panels, 4)
  lines = -(-panels // columns)
  figure, grid = plt.subplots(
      lines, columns, figsize=(max(3.6 * columns, 5), 3.2 * lines + 0.4),
      squeeze=False, layout="constrained",
      sharey=axis_of(targets) is not None)
  axes = list(grid.flat)
  for panel in axes[panels:]:
    panel.set_visible(False)
  tops = [_plot_curves(panel, results[results.target == target], target,
                       styles(results))
          for panel, target in zip(axes, targets)]
  if panels > len(targets):
    _plot_final(axes[len(targets)], results, targets, styles(results))
  for panel, top in zip(axes[:panels], [*tops, np.inf]):
    top = max(tops) if axis_of(targets) else top
    if top > 0:
      panel.set_ylim(top=min(panel.get_ylim()[1], top))
    _set_log_ticks(panel)
  for row in grid:
    row[0].set_ylabel("train loss\n(mean, range of seeds)")
  figure.suptitle(title)
  figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small",
                loc="outside lower center", ncols=min(len(styles(results)), 6))
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _plot_curves(panel, results: pd.DataFrame, target: str,
                 style_of: dict[str, dict]) -> float:
  """Plot loss against steps for one target; return where to cut the y axis."""
  starts = []
  for name, style in style_of.items():
    group = results[results.method == name]
    curves = np.array(group["curve"].tolist())  # [seeds, points]
    steps = np.linspace(0, group["num_steps"].iloc[0], curves.shape[1])
    panel.plot(steps, np.mean(curves, 0), label=name,
               **{**style, "marker": None})
    panel.fill_between(steps, np.min(curves, 0), np.max(curves, 0),
                       color=style["color"], alpha=SEEDS_ALPHA, linewidth=0)
    starts.append(np.nanmax(curves[:, 0], initial=0))
  panel.set(title=target, xlabel="step", yscale="log")
  return 2 * max(starts)


def _plot_final(panel, results: pd.DataFrame, targets: list[str],
                style_of: dict[str, dict]) -> None:
  """Plot the final train loss of each target with its bootstrap interval."""
  axis = axis_of(targets)
  for i, (name, style) in enumerate(style_of.items()):
    groups = [results[(results.target == target) & (results.method == name)]
              ["final_train_loss"] for target in targets]
    means = np.array([group.mean() for group in groups])
    low, high = np.array([interval(group) for group in groups]).T
    if axis:
      panel.plot(axis[1], means, **style)
      panel.fill_between(axis[1], low, high, color=style["color"],
                         alpha=SEEDS_ALPHA, linewidth=0)
    else:  # next to each other, so that points do not cover each other
      shift = (i + 0.5) / len(style_of) - 0.5
      with np.errstate(invalid="ignore"):  # inf - inf of runs that diverged
        # Not negative, even if the mean is rounded in two ways.
        errors = np.maximum([means - low, high - means], 0)
      panel.errorbar(np.arange(len(targets)) + 0.6 * shift, means, errors,
                     **{**style, "linestyle": "none"})
  panel.set(title="final train loss", yscale="log")
  if axis:
    panel.set(xscale="log", xlabel=axis[0])
    panel.set_xticks(axis[1], [f"{value:g}" for value in axis[1]])
    panel.set_xticks([], minor=True)
  else:
    panel.set_xticks(range(len(targets)), targets, rotation=30, ha="right")


def _set_log_ticks(panel) -> None:
  """Label 1, 2, 3 and 5 times the powers of ten, in plain numbers."""
  from matplotlib import ticker
  panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
  panel.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
  panel.yaxis.set_minor_formatter(ticker.NullFormatter())


def write(results: pd.DataFrame, folder: pathlib.Path, title: str = "") -> str:
  """Write results.csv, table.md and transfer.png; return the tables.

  Args:
    results: result of `transfer.Study.compare`.
    folder: an existing folder.
    title: title of the plot.
  """
  results = with_speedup(results)
  results.drop(columns="curve").to_csv(folder / "results.csv", index=False)
  text = "\n\n".join(x for x in (table(results), summary(results)) if x)
  (folder / "table.md").write_text(text + "\n")
  plot(results, folder / "transfer.png", title)
  return f"{text}\n\nPlot: {folder / 'transfer.png'}"
