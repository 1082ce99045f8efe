r"""Outer optimizers of local SGD: loss against rounds and bytes.

python -m experiments.around.communication --workdir=runs/communication \
    --outer=local_sgd,slowmo,diloco,mulo-s-sp --task=mlp \
    --settings=dataset=cifar10,image_size=16,standardize=True --every=4,16

Several workers take local steps of SGD; then an outer optimizer moves the
common parameters by the mean of what the workers did. Every method is tuned
over the local learning rate, and the baselines over outer learning rate and
momentum, by the mean validation loss of a run with a seed of its own. While the
best local rate is at an edge of the grid, the next one is tried. Learned
optimizers have nothing else to tune. They see an average gradient: the
difference divided by (local learning rate * local steps).

Writes results.csv, table.md, communication.png and command.txt to the workdir.
The table has the rounds until the test loss is as low as that of local SGD at
half of the rounds and at the end. The bytes are those that each worker sends in
these rounds, 4 per parameter and round; an optimizer that reads the spread of
workers sends four times as many. A second run skips the cells that are done.
"""

import pathlib
from typing import Callable, Sequence

from absl import flags
import jax
import jax.numpy as jnp
from matplotlib import figure as figure_lib
import numpy as np
import pandas as pd

from experiments import command
from experiments import report
from experiments import sweep
from experiments.around import outers
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import unroll
from meta_train import workers

TUNING_SEED = 1000
SAMPLES = 2048  # of the validation and of the test split
MAX_GROWTH = 4  # local learning rates that are tried beyond the grid
EVERY = 2  # rounds between two evaluations


def curves(section: dict, outer: outers.Outer,
           candidates: list[tuple[float, int]], seeds: list[int],
           num_rounds: int, data_dir: str | None,
           on_chunk: Callable[[int], None]) -> list[dict]:
  """Return the losses of a run for each candidate and seed.

  Args:
    section: of the task; its entry "workers" has no learning rate.
    outer: the outer optimizer.
    candidates: pairs of a local learning rate and an index of `outer.thetas`.
    seeds: of the runs of each candidate.
    num_rounds: rounds of a run.
    data_dir: see `tasks.data.images.image_data`.
    on_chunk: called with the number of rounds since the last call.

  Returns:
    Rows with "seed", "local_rate", "theta" (the index), "parameters", and
    "valid" and "test", the losses of the common parameters before the first
    round and after every EVERY rounds.
  """
  standard = parametrizations.get("standard")
  plain = build.task_of({**section, "workers": None}, standard, data_dir)
  data = {"train": jax.device_put(plain.data["train"])}
  size = section.get("batch_size", 64)
  keys = jax.random.split(jax.random.key(0), -(-SAMPLES // size))
  # The same examples in each evaluation.
  batches = {split: jax.vmap(plain.sample_batch, (0, None))(
      keys, jax.device_put(plain.data[name]))
             for split, name in (("valid", "outer_valid"), ("test", "test"))}
  pairs = [(x, seed) for x in candidates for seed in seeds]
  runs = (jnp.array([rate for (rate, _), _ in pairs], jnp.float32),
          jax.tree.map(lambda *x: jnp.stack(x), *[
              outer.thetas[i] for (_, i), _ in pairs]),
          jnp.stack([jax.random.key(seed) for _, seed in pairs]))

  def start(rate, theta, key):
    return unroll.start(plain, outer.opt_fn(rate), theta,
                        jax.random.fold_in(key, 0), jnp.int32(num_rounds))

  def advance(state, rate, theta, key, data):
    task = workers.local_rounds(
        standard, plain, learning_rate=rate, **section["workers"])
    return unroll.unroll(task, outer.opt_fn(rate), theta, state,
                         jax.random.fold_in(key, 1 + state.step), data,
                         EVERY)[0]

  def losses(params):
    of_batch = lambda batch: plain.loss(params, keys[0], batch)[0]
    return {split: jnp.mean(jax.lax.map(of_batch, x))
            for split, x in batches.items()}

  # The learning rates are arguments, so that all runs share a program.
  advance = jax.jit(jax.vmap(advance, (0, 0, 0, 0, None)))
  losses = jax.jit(jax.vmap(losses))
  state = jax.jit(jax.vmap(start))(*runs)
  parts = [jax.device_get(losses(state.params))]
  for _ in range(num_rounds // EVERY):
    state = advance(state, *runs, data)
    parts.append(jax.device_get(losses(state.params)))
    on_chunk(EVERY * len(pairs))
  found = {split: np.stack([p[split] for p in parts], 1).astype(float)
           for split in batches}
  count = sum(x[0].size for x in jax.tree.leaves(state.params))
  return [{"seed": seed, "local_rate": rate, "theta": theta,
           "parameters": count, **{k: list(x[i]) for k, x in found.items()}}
          for i, ((rate, theta), seed) in enumerate(pairs)]


class Study:
  """Cells of one workdir."""

  def __init__(self, flags, bar):
    self._flags, self._bar = flags, bar
    self._folder = pathlib.Path(flags.workdir) / "cells"

  def _cell(self, section, outer, candidates, seeds) -> sweep.Cell:
    """Return the cell with the `curves` of some candidates."""
    flags = self._flags
    config = {"study": "communication", "section": section,
              "outer": outer.identity, "num_rounds": flags.num_rounds,
              "candidates": [{"local rate": rate, **outer.settings[i]}
                             for rate, i in candidates],
              "seeds": seeds, "samples": SAMPLES, "every": EVERY}
    return sweep.Cell(
        config, lambda: curves(
            section, outer, candidates, seeds, flags.num_rounds,
            flags.data_dir, self._bar.update),
        len(candidates) * len(seeds) * flags.num_rounds)

  def compare(self, section: dict, outer: outers.Outer) -> sweep.Chain:
    """Chain of a method; its result: rows of the best candidate for each seed.

    Args:
      section: see `curves`.
      outer: the outer optimizer.
    """
    rates = sorted(float(rate) for rate in self._flags.local_rates)
    seeds = list(range(self._flags.seeds))
    # With few candidates, compilation takes longer than runs of all seeds.
    few = len(outer.thetas) == 1
    new, parts, grown = rates, [], 0
    while True:
      candidates = [(rate, i) for rate in new for i in range(len(outer.thetas))]
      found = yield [self._cell(
          section, outer, candidates, [TUNING_SEED, *seeds * few])]
      parts += found[0]
      rows = pd.DataFrame(parts)
      tuning = rows[rows["seed"] == TUNING_SEED].reset_index()
      scores = np.nan_to_num([np.mean(x) for x in tuning["valid"]], nan=np.inf)
      row = tuning.iloc[int(np.argmin(scores))]
      best = float(row["local_rate"]), int(row["theta"])
      beyond = _beyond(best[0], rates)
      if beyond is None or grown == MAX_GROWTH:
        break
      new, rates, grown = [beyond], sorted([*rates, beyond]), grown + 1
    if few:
      rows = rows[(rows["local_rate"] == best[0]) & (
          rows["seed"] != TUNING_SEED)]
    else:
      found = yield [self._cell(section, outer, [best], seeds)]
      rows = pd.DataFrame(found[0])
    return rows.assign(
        method=outer.label, workers=section["workers"]["count"],
        every=section["workers"]["every"], edge=beyond is not None,
        settings=", ".join(
            f"{k} {v:g}" for k, v in outer.settings[best[1]].items()),
        bytes_per_round=outer.bytes_per_parameter * rows["parameters"])

  def run(self, chains: list[sweep.Chain]) -> pd.DataFrame:
    """Return the results of all chains."""
    return pd.concat(sweep.run_chains(self._folder, chains, self._bar),
                     ignore_index=True)


def _beyond(best: float, rates: list[float]) -> float | None:
  """Return the learning rate beyond the best one if it is at an edge.

  The next one is as far off as the two at the edge are apart.

  Args:
    best: one of the rates.
    rates: increasing; one alone has no edge.
  """
  if len(rates) == 1:
    return None
  if best == rates[0]:
    return float(f"{best * best / rates[1]:.3g}")
  if best == rates[-1]:
    return float(f"{best * best / rates[-2]:.3g}")
  return None


def rounds_to(curve: Sequence[float], goal: float) -> float:
  """Return the rounds until a loss is at most the goal, inf if it never is.

  Between two evaluations the loss counts as a straight line.
  """
  below = np.flatnonzero(np.asarray(curve) <= goal)
  if not len(below):
    return np.inf
  i = int(below[0])
  if not i:
    return 0.0
  high, low = curve[i - 1], curve[i]
  return EVERY * (i - 1 + (high - goal) / (high - low))


def with_rounds(results: pd.DataFrame) -> pd.DataFrame:
  """Return the results with the rounds to the two losses of local SGD."""
  frames = []
  for _, group in results.groupby(["workers", "every"], sort=False):
    reference = np.mean(
        group[group["method"] == outers.LOCAL_SGD]["test"].tolist(), 0)
    group = group.copy()
    for name, goal in (("half", reference[len(reference) // 2]),
                       ("end", reference[-1])):
      group[f"goal {name}"] = goal
      group[f"rounds {name}"] = [rounds_to(x, goal) for x in group["test"]]
    group["final"] = [x[-1] for x in group["test"]]
    group["lowest"] = [min(x) for x in group["test"]]
    frames.append(group)
  return pd.concat(frames, ignore_index=True)


def table(results: pd.DataFrame) -> str:
  """Return a Markdown table with a row for each setting and method.

  Args:
    results: see `with_rounds`. Numbers are means over seeds; in parentheses is
      the range. A method counts as never there if one seed is not.
  """
  def spread(x, form):
    if not np.all(np.isfinite(x)):
      return "never"
    mean, low, high = (form.format(y) for y in (np.mean(x), min(x), max(x)))
    return mean if len(x) == 1 else f"{mean} ({low} to {high})"

  rows = []
  for (count, every, method), group in results.groupby(
      ["workers", "every", "method"], sort=False):
    megabytes = group["bytes_per_round"].iloc[0] / 1e6
    row = {"workers": count, "local steps": every, "outer": method,
           "local rate": f"{group['local_rate'].iloc[0]:g}" + (
               " (grid edge)" if group["edge"].iloc[0] else ""),
           "outer settings": group["settings"].iloc[0]}
    for name in ("half", "end"):
      goal, x = group[f"goal {name}"].iloc[0], list(group[f"rounds {name}"])
      row[f"rounds to {name}"] = f"{spread(x, '{:.0f}')} [{goal:.3f}]"
      row[f"MB to {name}"] = spread([y * megabytes for y in x], "{:.1f}")
    row["final test loss"] = spread(list(group["final"]), "{:.3f}")
    row["lowest test loss"] = spread(list(group["lowest"]), "{:.3f}")
    rows.append(row)
  return pd.DataFrame(rows).to_markdown(index=False)


def plot(results: pd.DataFrame, path: pathlib.Path, title: str) -> None:
  """Draw test losses against rounds and against bytes, a row per setting."""
  groups = list(results.groupby(["workers", "every"], sort=False))
  figure = figure_lib.Figure((10, 3.2 * len(groups)), layout="constrained")
  axes = figure.subplots(len(groups), 2, squeeze=False)
  for ((count, every), group), pair in zip(groups, axes):
    methods = list(dict.fromkeys(group["method"]))
    names = {x[0] for x in outers.BASELINES.values()}
    for i, method in enumerate(methods):
      own = group[group["method"] == method]
      curve = np.array(own["test"].tolist())
      rounds = EVERY * np.arange(curve.shape[1])
      style = {"color": report.GREYS[i % 3], "linestyle": report.DASHES[i % 3]
               } if method in names else {
                   "color": report.COLORS[i % len(report.COLORS)]}
      for axis, x in zip(pair, (
          rounds, rounds * own["bytes_per_round"].iloc[0] / 1e6)):
        axis.plot(x, curve.mean(0), label=method, **style)
        axis.fill_between(x, curve.min(0), curve.max(0), linewidth=0,
                          color=style["color"], alpha=report.SEEDS_ALPHA)
    end = EVERY * (curve.shape[1] - 1) * 4e-6 * group["parameters"].iloc[0]
    top = np.nanmax([row[0] for row in group["test"]])
    for axis, label in zip(pair, ("rounds", "MB sent by each worker")):
      axis.set(xlabel=label, ylabel="test loss", ylim=(None, 1.05 * top),
               title=f"{title}, {count} workers, {every} local steps")
    pair[1].set_xlim(0, end)
    pair[0].legend(fontsize=8)
  figure.savefig(path, dpi=120)


def define_flags() -> None:
  """Define the flags of this command."""
  command.define_workdir()
  command.define_data_dir()
  command.define_trust()
  command.define_task()
  flags.DEFINE_list(
      "outer", None, f"Outer optimizers: {', '.join(outers.BASELINES)}, or "
      "[label=]artifact, a pretrained name or a .safetensors file. local_sgd "
      "is the reference and always runs.", required=True)
  flags.DEFINE_list("workers", ["8"], "Numbers of workers.")
  flags.DEFINE_list("every", ["4"], "Numbers of local steps in a round.")
  flags.DEFINE_list(
      "local_rates", ["0.03", "0.1", "0.3"], "Local learning rates to try; "
      f"at most {MAX_GROWTH} beyond them.")
  flags.DEFINE_integer(
      "num_rounds", 100, f"Rounds per run, a multiple of {EVERY}.",
      lower_bound=EVERY)
  flags.DEFINE_integer("seeds", 3, "Runs per method.", lower_bound=1)


def main(flags) -> None:
  """Compare outer optimizers; write and print the table.

  Raises:
    ValueError: a flag makes no sense.
  """
  if flags.num_rounds % EVERY:
    raise ValueError(f"--num_rounds must be a multiple of {EVERY}, got "
                     f"{flags.num_rounds}.")
  counts = command.parse_integers("workers", flags.workers)
  steps = command.parse_integers("every", flags.every)
  names = list(dict.fromkeys(["local_sgd", *flags.outer]))
  sections = [
      {"name": flags.task, **command.parse_settings(flags.settings),
       "workers": {"count": count, "every": every}}
      for count in counts for every in steps]
  compared = {every: [outers.get(name, every, flags.trust) for name in names]
              for every in steps}
  standard = parametrizations.get("standard")
  for section in sections:  # so that wrong settings are found before any run
    build.task_of({**section, "workers": {
        **section["workers"], "learning_rate": float(flags.local_rates[0])}},
                  standard, flags.data_dir)
  folder = pathlib.Path(flags.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  command.write_command(folder)
  candidates = [len(outer.thetas) for outer in compared[steps[0]]]
  runs = sum(len(flags.local_rates) * (n if n > 1 else 1 + flags.seeds) +
             flags.seeds * (n > 1) for n in candidates)
  with command.progress(len(sections) * runs * flags.num_rounds, "round",
                        "comparing", unit_scale=True) as bar:
    study = Study(flags, bar)
    results = with_rounds(study.run([
        study.compare(section, outer) for section in sections
        for outer in compared[section["workers"]["every"]]]))
  results.drop(columns=["valid", "test", "theta"]).to_csv(
      folder / "results.csv", index=False)
  plot(results, folder / "communication.png", flags.task)
  text = table(results)
  (folder / "table.md").write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  command.run(define_flags, main)
