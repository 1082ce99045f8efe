"""Plots of comparisons as files of pixels."""

import pathlib
import re
import textwrap

import matplotlib
import numpy as np
import pandas as pd

from experiments.report import statistics
from experiments.report import styles as styles_lib

SEEDS_ALPHA = 0.2  # opacity of bands over seeds
# Of studies with other optimizers than the registry has: learned ones have
# solid lines in these colors, baselines broken ones in shades of grey.
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple",
          "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
GREYS = ("black", "dimgrey", "darkgrey")
DASHES = ("--", "-.", ":")


def styles(results: pd.DataFrame) -> dict[str, dict]:
  """Return {method: arguments of `Axes.plot`}, see `styles.of`."""
  return {method: dict(
      color=style.color, marker="s" if style.kind == "baseline" else "o",
      linestyle=(0, style.dash) if style.dash else "-",
      linewidth=1.2 if style.kind == "baseline" else 2.0)
          for method, style in styles_lib.of(results).items()}


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
  figure.suptitle(textwrap.fill(title, 45 * columns))
  figure.legend(
      *axes[0].get_legend_handles_labels(), fontsize="small",
      loc="outside lower center",
      ncols=min(len(styles(results)), 2 * columns, 6))
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


def plot_final(results: pd.DataFrame, path: pathlib.Path, title: str,
               meta_trained: dict[str, dict[str, tuple[int, int]]]) -> None:
  """Plot the final train losses of targets along an axis, alone and large.

  Grey is the range of meta-training. Losses of runs that diverge are cut off.

  Args:
    results: see `plot`; their targets lie along an axis.
    path: file of the plot.
    title: name of the task.
    meta_trained: {method: {axis: (smallest, largest)}}.
  """
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  targets = [str(x) for x in results["target"].unique()]
  name, values = axis_of(targets) or ("", [])
  figure, panel = plt.subplots(figsize=(8, 4.2), layout="constrained")
  style_of = styles(results)
  _plot_final(panel, results, targets, style_of)
  ranges = [x[name] for x in meta_trained.values() if name in x]
  if ranges:
    low, high = min(x for x, _ in ranges), max(x for _, x in ranges)
    panel.axvspan(low, high, color="0.88", zorder=0, label="meta-training")
    values = sorted({*values, low, high})
    panel.set_xticks(values, [f"{value:g}" for value in values])
  starts = [curve[0] for curve in results["curve"]]
  panel.set_ylim(top=min(
      panel.get_ylim()[1], 2 * np.nanmax(starts, initial=0) or np.inf))
  _set_log_ticks(panel)
  panel.set(ylabel="final train loss")
  panel.set_title(title, fontsize="medium")
  for line, method in zip(panel.get_lines(), style_of):
    line.set_label(method)
  # In the order of the lines' right ends, from above; grey comes last.
  ends = {line.get_label(): np.nan_to_num(
      np.asarray(line.get_ydata())[-1], nan=np.inf)
          for line in panel.get_lines()}
  legend = sorted(zip(*panel.get_legend_handles_labels()),
                  key=lambda entry: -ends.get(entry[1], -np.inf))
  figure.legend(*zip(*legend), loc="outside right upper", fontsize="medium")
  figure.savefig(path, dpi=150)
  plt.close(figure)


def _plot_final(panel, results: pd.DataFrame, targets: list[str],
                style_of: dict[str, dict]) -> None:
  """Plot the final train loss of each target with its bootstrap interval."""
  axis = axis_of(targets)
  for i, (name, style) in enumerate(style_of.items()):
    groups = [results[(results.target == target) & (results.method == name)]
              ["final_train_loss"] for target in targets]
    means = np.array([group.mean() for group in groups])
    low, high = np.array([statistics.interval(group) for group in groups]).T
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
  """Label powers of ten in plain numbers, over few decades 2, 3 and 5, too."""
  from matplotlib import ticker
  low, high = panel.get_ylim()
  panel.yaxis.set_major_locator(ticker.LogLocator(
      subs=(1, 2, 3, 5) if high < 1e3 * low else (1,)))
  panel.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
  panel.yaxis.set_minor_formatter(ticker.NullFormatter())
