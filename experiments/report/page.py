"""Sections of the page about a study, with tables and plots."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.report import figures
from experiments.report import panels
from experiments.report import ranks
from experiments.report import statistics
from experiments.report import tables


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    title: heading.
    text: sentences; lines that begin with "- " are a list.
    table: a table, or None.
    plots: SVG.
    code: text that is shown as it is.
  """

  title: str
  text: str = ""
  table: pd.DataFrame | None = None
  plots: tuple[str, ...] = ()
  code: str = ""


def sections(results: pd.DataFrame, record: dict[str, Any]) -> list[Section]:
  """Return the sections about a study.

  Args:
    results: see `files.Saved`.
    record: see `files.Saved`.
  """
  results = statistics.with_speedup(results)
  parts = [_about(results, record)]
  standings = None
  if "target_loss" in results:
    standings = ranks.standings(results)
    parts.append(_overall(standings))
  parts += [_speedups(results), Section("Final losses", plots=panels.final(
      results)), *_tasks(results, standings), _tuning(results, record)]
  if "seconds" in results:
    parts.append(_cost(results))
  parts.append(_failures(results, standings))
  parts += [Section(f"File of {label}", code=text)
            for label, text in record.get("sources", {}).items()]
  return parts


def _about(results: pd.DataFrame, record: dict[str, Any]) -> Section:
  seeds = ", ".join(str(x) for x in sorted(set(results["seed"])))
  tuned = ", ".join(str(x) for x in record.get("tuning_seeds", []))
  versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
  machines = sorted(set(results["machine"])) if "machine" in results else []
  lines = [f"Seeds {seeds}; tuning had the seeds {tuned} and minimised "
           f"{record.get('tune_on', 'final_train_loss')}.",
           "Losses are means over seeds; bands and bars of curves are their "
           "range, intervals in tables are 95 % bootstrap intervals of the "
           "mean.", f"Versions: {versions}."]
  if machines:
    lines.append(f"Steps were timed on: {'; '.join(machines)}.")
  return Section("How it was made", "\n".join(f"- {x}" for x in lines),
                 code=record["command"])


def _overall(standings: pd.DataFrame) -> Section:
  return Section(
      "Standings",
      f"Mean rank over tasks, by steps and by seconds to the target loss. A "
      f"win needs a difference of {ranks.Z:g} standard errors over seeds; the "
      "rank on a task is 1 plus the number of optimizers that win against it. "
      "On a task where not all of its runs reach the target, an optimizer "
      "counts as behind all that do.", tables.overall(standings))


def _standings(standings: pd.DataFrame) -> pd.DataFrame:
  """Return the ranks on one task, best first, for the page."""
  rows = []
  for _, row in standings.sort_values(
      ["steps rank", "steps"], kind="stable").iterrows():
    reached = row["reached"] == row["runs"]
    cells = {"optimizer": row["method"], "target reached":
             f"{'' if reached else 'NOT: '}{row['reached']} of {row['runs']}"}
    for name in ranks.MEASURES:
      if standings[name].notna().any():
        cells[f"rank by {name}"] = (
            f"{row[f'{name} rank']:.0f}" if reached else "")
        cells[name] = tables.with_error(
            row[name], row[f"{name} error"]) if reached else ""
    rows.append(cells)
  return pd.DataFrame(rows)


def _speedups(results: pd.DataFrame) -> Section:
  columns = statistics.speedups(results)
  if not columns:
    return Section("Speed-ups", "The study has neither AdamW nor Muon to "
                   "compare with.")
  references = "; ".join(
      f"{column.replace('speedup', 'speed-up')}: over {label}"
      for column in statistics.REFERENCES
      if (label := statistics.reference(results, column)))
  return Section(
      "Speed-ups",
      f"Steps that the reference needs, divided by those of the run, to the "
      f"loss that the worse of both ends with ({references}). In seconds, a "
      "step counts as long as it takes. Interquartile means over all runs; "
      "their intervals resample the runs. The plots show the share of tasks "
      "with a speed-up above x.", tables.spread(results).rename(
          columns=lambda name: name.removeprefix("interquartile mean of ")),
      panels.profiles(results, columns))


def _tasks(results: pd.DataFrame, standings: pd.DataFrame | None
           ) -> list[Section]:
  axis = figures.axis_of([str(x) for x in results["target"].unique()])
  plots = panels.curves(results, axis is not None)
  table = tables.runs(results).drop(columns="learning rate")
  parts = []
  for target, group in table.groupby("task", sort=False):
    group = group.drop(columns="task").dropna(axis=1, how="all")
    text = ""
    if standings is not None:
      here = standings[standings["target"] == target]
      group = _standings(here).merge(group, on="optimizer")
      text = (f"Target loss: {here['target_loss'].iloc[0]:g}. Steps and "
              "seconds to the target have the standard errors of their means.")
    parts.append(Section(str(target), text, group, plots[str(target)]))
  return parts


def _tuning(results: pd.DataFrame, record: dict[str, Any]) -> Section:
  """Return what was tuned, and what it cost."""
  rows = []
  for method, group in results.groupby("method", sort=False):
    first = group.drop_duplicates("target")
    spent = first["tuning_runs"]
    chosen = [
        f"{row.target}: " + ("nothing to choose" if pd.isna(row.learning_rate)
                             else f"{row.learning_rate:.1e} {row.schedule}")
        for row in first.itertuples()]
    edges = first[first["grid_edge"].astype(bool)]["target"]
    rows.append({
        "optimizer": method, "tuning runs": int(spent.sum()),
        "tuning runs for each task": f"{spent.mean():.3g}",
        "grid edge": f"GRID EDGE: {'; '.join(edges)}" if len(edges) else "",
        "setting": "; ".join(dict.fromkeys(chosen)) if (
            spent.sum()) else chosen[0].partition(": ")[2]})
  seeds = len(record.get("tuning_seeds", []))
  return Section(
      "Cost of tuning",
      f"Each setting was run with {seeds} tuning seed(s), apart from the seeds "
      "that are reported. An optimizer without tuning runs was used as it is. "
      "A grid edge means that the best learning rate was the smallest or "
      "largest one tried: the optimizer may be better than shown.",
      pd.DataFrame(rows))


def _cost(results: pd.DataFrame) -> Section:
  rows = []
  for method, group in results.groupby("method", sort=False):
    first = group.drop_duplicates("target")
    ratio = first["seconds"] / first["reference_seconds"]
    state = first["state_bytes"] / first["params"]
    rows.append({
        "optimizer": method,
        "step, times AdamW": f"{np.exp(np.mean(np.log(ratio))):.2f}",
        "state, bytes per parameter": f"{state.mean():.3g}",
        **{f"{row.target}, ms": tables.with_error(
            1e3 * row.seconds, 1e3 * row.seconds_error)
           for row in first.itertuples()}})
  return Section(
      "Cost of a step", "A whole step of one network: batch, gradient and "
      "update, timed in turns with AdamW; with the standard error.",
      pd.DataFrame(rows), panels.costs(results))


def _failures(results: pd.DataFrame, standings: pd.DataFrame | None
              ) -> Section:
  lines = []
  for (target, method), group in results.groupby(
      ["target", "method"], sort=False):
    diverged = int((~np.isfinite(group["final_train_loss"])).sum())
    if diverged:
      lines.append(f"- {target}, {method}: {diverged} of {len(group)} runs "
                   "diverged")
    if group["grid_edge"].iloc[0]:
      lines.append(f"- {target}, {method}: the best learning rate is at the "
                   f"edge of the grid, {group['learning_rate'].iloc[0]:.1e}")
  if standings is not None:
    missed = standings[standings["reached"] < standings["runs"]]
    lines += [f"- {row.target}, {row.method}: {row.runs - row.reached} of "
              f"{row.runs} runs did not reach the target loss"
              for row in missed.itertuples()]
  return Section("Failures", "\n".join(lines) or "None.")
