"""The page as one file of HTML, and as Markdown without plots."""

import html
import re

import pandas as pd

from experiments.report import page
from experiments.report import panels
from experiments.report import ranks
from experiments.report import statistics
from experiments.report import styles
from experiments.report import tables

MANY = 10  # optimizers; of more, the plots show a few at first
STYLE = """
:root { color-scheme: light dark; --line: #8885; --back: Canvas; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 88rem;
  margin: 0 auto; padding: 1rem; background: Canvas; color: CanvasText; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
pre { overflow-x: auto; padding: .7rem; border: 1px solid var(--line);
  border-radius: 4px; font-size: 13px; }
.plots { display: grid; gap: 1rem; margin-bottom: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.plots > svg { width: 100%; max-width: 34rem; height: auto; }
svg text { fill: currentColor; font: 12px system-ui, sans-serif; }
svg .title { font-size: 14px; font-weight: 600; }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; }
svg .grid { stroke: var(--line); } svg .frame { stroke: #888; fill: none; }
svg .mark { stroke: currentColor; stroke-dasharray: 1 4; opacity: .8; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0;
  background: var(--back); }
td.long { white-space: normal; min-width: 24rem; }
i { display: inline-block; width: .8em; height: .8em; margin-right: .5em; }
.legend { position: sticky; top: 0; background: var(--back); z-index: 1;
  padding: .4rem 0; border-bottom: 1px solid var(--line); font-size: 14px; }
.legend label { display: inline-block; margin-right: 1rem;
  white-space: nowrap; }
.legend svg { width: 34px; height: 10px; vertical-align: middle; }
@media (max-width: 700px), (max-height: 700px) {
  .legend { position: static; } }
"""


def first_shown(results: pd.DataFrame) -> set[str]:
  """Return the optimizers whose lines the page shows at first.

  If there are more than MANY: the learned ones, those that came as files, the
  references of speed-ups, and the four best of the others.
  """
  kinds = {name: style.kind for name, style in styles.of(results).items()}
  if len(kinds) <= MANY:
    return set(kinds)
  chosen = {name for name, kind in kinds.items() if kind != "baseline"}
  chosen |= {label for column in statistics.REFERENCES
             if (label := statistics.reference(results, column))}
  if "target_loss" in results:
    best = list(ranks.overall(ranks.standings(results))["method"])
  else:
    best = list(results.groupby(["target", "method"])["final_train_loss"].mean()
                .groupby("target").rank().groupby("method").mean()
                .sort_values(kind="stable").index)
  return chosen | set([name for name in best if name not in chosen][:4])


def as_html(title: str, results: pd.DataFrame, parts: list[page.Section]
            ) -> str:
  """Return the page of HTML, which needs no other file."""
  names = panels.names(results)
  hide = "\n".join(f"body:has(#{x}:not(:checked)) g.{x} {{ display: none; }}"
                   for x in names.values())
  body = "\n".join(_section(part, results) for part in parts)
  return (
      '<!doctype html>\n<html lang="en"><meta charset="utf-8">\n'
      '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
      f"<title>{html.escape(title)}</title>\n<style>{STYLE}{hide}\n</style>\n"
      f"<h1>{html.escape(title)}</h1>\n{_legend(results, names)}\n{body}\n"
      "</html>\n")


def _legend(results: pd.DataFrame, names: dict[str, str]) -> str:
  """Return the names of all optimizers, which hide and show their lines."""
  shown, entries = first_shown(results), []
  for label, style in styles.of(results).items():
    name = names[label]
    dash = " ".join(map(str, style.dash)) or "none"
    entries.append(
        f'<label><input type="checkbox" id="{name}"'
        f'{" checked" if label in shown else ""}> <svg viewBox="0 0 34 10">'
        f'<line x1="0" x2="34" y1="5" y2="5" stroke="{style.color}" '
        f'stroke-width="3" stroke-dasharray="{dash}"/></svg> '
        f"{html.escape(label)}</label>")
  return f'<div class="legend">{"".join(entries)}</div>'


def _section(part: page.Section, results: pd.DataFrame) -> str:
  """Return the HTML of a section."""
  pieces = [f"<h2>{html.escape(part.title)}</h2>"]
  items = [html.escape(line[2:]) for line in part.text.splitlines()
           if line.startswith("- ")]
  if items:
    pieces.append("<ul>" + "".join(f"<li>{x}</li>" for x in items) + "</ul>")
  elif part.text:
    pieces.append(f"<p>{html.escape(part.text)}</p>")
  if part.code:
    pieces.append(f"<pre>{html.escape(part.code)}</pre>")
  if part.plots:
    pieces.append(f'<div class="plots">{"".join(part.plots)}</div>')
  if part.table is not None:
    pieces.append(_table(part.table, results))
  return "\n".join(pieces)


def _table(frame: pd.DataFrame, results: pd.DataFrame) -> str:
  """Return a table of HTML; optimizers have their colour."""
  colors = {name: style.color for name, style in styles.of(results).items()}
  rows = []
  for row in frame.fillna("").itertuples(index=False):
    cells = []
    for name, value in zip(frame.columns, row):
      text = html.escape(str(value))
      if name == "optimizer":
        text = f'<i style="background:{colors[str(value)]}"></i>{text}'
      cells.append(f'<td{" class=long" if len(text) > 90 else ""}>{text}</td>')
    rows.append(f"<tr>{''.join(cells)}</tr>")
  head = "".join(f"<th>{html.escape(str(x))}</th>" for x in frame.columns)
  return (f'<div class="scroll"><table><tr>{head}</tr>\n'
          + "\n".join(rows) + "\n</table></div>")


def as_markdown(title: str, parts: list[page.Section]) -> str:
  """Return the page as Markdown; the plots are in report.html only."""
  pieces = [f"# {title}", "The page with plots: [report.html](report.html)."]
  for part in parts:
    if not part.text and not part.code and part.table is None:
      continue  # plots alone
    pieces.append(f"## {part.title}")
    pieces += [part.text] if part.text else []
    if part.code:
      fence = "`" * max(3, 1 + max(map(len, re.findall("`+", part.code)),
                                   default=0))
      pieces.append(f"{fence}\n{part.code.rstrip()}\n{fence}")
    if part.table is not None:
      pieces.append(re.sub(r" +\|", " |", re.sub(
          r"-+\|", "-|", tables.markdown(part.table))))  # no padding
  return "\n\n".join(pieces) + "\n"
