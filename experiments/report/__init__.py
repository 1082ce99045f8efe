"""Reports of comparisons: tables, plots, and a page.

python -m experiments.report --workdir=... writes the page.
"""

import pathlib
from typing import Any

import pandas as pd

from experiments.report import figures
from experiments.report import files
from experiments.report import page
from experiments.report import render
from experiments.report import statistics
from experiments.report import tables

COLORS = figures.COLORS
GREYS = figures.GREYS
DASHES = figures.DASHES
SEEDS_ALPHA = figures.SEEDS_ALPHA
REFERENCE = statistics.REFERENCE
interval = statistics.interval
speedup = statistics.speedup
with_speedup = statistics.with_speedup
table = tables.table
summary = tables.summary
markdown = tables.markdown
overall = tables.overall
axis_of = figures.axis_of
plot = figures.plot


def write(results: pd.DataFrame, folder: pathlib.Path, title: str = "",
          **record: Any) -> str:
  """Write the files of a comparison; return the tables.

  The files are results.csv, table.md, transfer.png, final.png if the targets
  lie along an axis, and what `write_page` reads.

  Args:
    results: result of `transfer.Study.compare`.
    folder: an existing folder.
    title: title of the plot and of the page.
    **record: see `files.save`.
  """
  files.save(folder, results, title, record)
  results = statistics.with_speedup(results)
  results.drop(columns="curve").to_csv(folder / "results.csv", index=False)
  text = "\n\n".join(x for x in (table(results), summary(results)) if x)
  (folder / "table.md").write_text(text + "\n")
  plot(results, folder / "transfer.png", title)
  if axis_of(list(results["target"].unique())):
    figures.plot_final(results, folder / "final.png", title,
                       record.get("meta_trained", {}))
  return f"{text}\n\nPlot: {folder / 'transfer.png'}"


def write_page(folder: pathlib.Path) -> pathlib.Path:
  """Write report.html and report.md about a study; return the first.

  Args:
    folder: workdir of a study.

  Raises:
    FileNotFoundError, ValueError: see `files.load`.
  """
  results, record = files.load(folder)
  parts = page.sections(results, record)
  title = record["title"] or folder.name
  (folder / "report.md").write_text(render.as_markdown(title, parts))
  path = folder / "report.html"
  path.write_text(render.as_html(title, results, parts), encoding="utf-8")
  return path
