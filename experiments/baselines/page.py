"""Page of all baselines: what each is, and what it is tuned over.

python -m experiments.baselines.page > docs/baselines.md
"""

import re
from typing import Any, Callable

import pandas as pd

from experiments import baselines
from experiments import methods

INTRODUCTION = """\
# Baselines

This page is printed by `python -m experiments.baselines.page >
docs/baselines.md`.

A study tunes each baseline on each task; those called "transferred" only at the
first value of the axis. All settings of a row are tried: each learning rate
with each schedule and each further setting. Tuning has seeds of its own. While
the best learning rate is the smallest or largest one tried with its schedule
and setting, the next half decade is tried, at most {growth} times: the columns
`grown` and `grid_edge` of results.csv say how often, and whether the best is
still at an edge. `tuning_runs` counts the runs of the choice.

Baselines with {budget} settings have the budget of the comparison. The others
are older, or have one setting: what a user takes who does not tune. A learned
optimizer has no settings; `untrained:...` is its start, without meta-training.
Rules that are not of optax are functions in `experiments/baselines/`, whose
docstrings have formulas and sources.

Schedules: "linear" and "cosine" rise linearly over the first {warm_up:.0%} of
the steps, then fall to 0; "warm_up" stays at 1 after the rise. "as named" are
the schedules of the flag --schedules, by default constant and cosine.
"""


def _rule(make: Callable) -> str:
  """Return the name of the rule and the arguments that it is given."""
  settings: dict[str, Any] = {}
  while hasattr(make, "func"):
    settings = {**make.keywords, **settings}  # type: ignore[attr-defined]
    make = make.func
  own = make.__module__.startswith("experiments")
  if own:
    where = make.__module__.rpartition(".")[2]
  else:
    where = "optax" + ".contrib" * (".contrib" in make.__module__)
  name = f"{where}.{make.__name__}"
  return f"`{name}`" + "".join(f", {k} {v}" for k, v in settings.items())


def _variants(variants: tuple[dict[str, Any], ...]) -> str:
  return "; ".join(", ".join(f"{k} {v:g}" if isinstance(v, float) else
                             f"{k} {v}" for k, v in variant.items())
                   for variant in variants)


def table() -> str:
  """Return a Markdown table of all baselines."""
  rows = []
  for name in baselines.names():
    baseline = baselines.get(name)
    method, = methods.parse([name], ["constant", "cosine"])
    rates = baseline.learning_rates
    rows.append({
        "name": f"`{name}`", "label": baseline.label,
        "rule": _rule(baseline.make), "network": baseline.parametrization,
        "learning rates": f"{rates[0]:.2g}" if len(rates) == 1 else (
            f"{len(rates)}, {rates[0]:.2g} to {rates[-1]:.2g}"),
        "schedules": ", ".join(baseline.schedules or ["as named"]),
        "further settings": _variants(baseline.variants),
        "settings": len(method.candidates)})
  text = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
  return re.sub(r" +\|", " |", re.sub(r"-+\|", "-|", text))  # no padding


def page() -> str:
  """Return the page."""
  return INTRODUCTION.format(
      growth=baselines.MAX_GROWTH, budget=baselines.BUDGET,
      warm_up=baselines.base.WARM_UP) + "\n" + table()


if __name__ == "__main__":
  print(page())
