"""What one step of an optimizer costs: time, memory, compilation.

python -m experiments.benchmarks.step_cost --workdir=runs/step_cost

optax's optimizers, the learned ones at several sizes, and these in their naive
lowering (experiments/naive.py) take turns in one process, on the parameters of
an MLP and of a small transformer. Each step is `update` and `apply_updates`,
compiled together, with parameters and state donated. Prints the measured
roofline of the machine and how close each lowering comes, and writes
results.csv, table.md and step_cost.png to the workdir.
"""

import pathlib
from typing import Any, Callable, NamedTuple

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd

from experiments import naive
from experiments.benchmarks import timing
from learned_opt import optimizers

FLAGS = flags.FLAGS


class Case(NamedTuple):
  """An optimizer to measure.

  Attributes:
    tx: the transformation.
    hidden: hidden units of a learned optimizer, else 0.
    naive: name of the case that is its naive lowering, or "".
  """

  tx: optax.GradientTransformation
  hidden: int = 0
  naive: str = ""


def networks(width: int) -> dict[str, Any]:
  """Parameters by network: an MLP of this width, and a transformer."""
  matrix = lambda *shape: np.zeros(shape, np.float32)
  sizes = (784, width, width, 10)
  mlp = {f"layer_{i}": {"w": matrix(n, m), "b": matrix(m)}
         for i, (n, m) in enumerate(zip(sizes, sizes[1:]))}
  d, layers = max(width // 8, 16), 6
  block = lambda: {
      "qkv": matrix(d, 3 * d), "out": matrix(d, d), "up": matrix(d, 4 * d),
      "up_bias": matrix(4 * d), "down": matrix(4 * d, d),
      "down_bias": matrix(d), "norm_1": matrix(d), "norm_2": matrix(d)}
  transformer = {
      "embed": matrix(2 * d, d), "positions": matrix(d // 2, d),
      "blocks": [block() for _ in range(layers)], "norm": matrix(d),
      "unembed": matrix(d, 2 * d)}
  return {"MLP": mlp, "transformer": transformer}


def cases(hidden_sizes: list[int], lowering: str | None) -> dict[str, Case]:
  """All optimizers by name."""
  found = {
      "sgd": Case(optax.sgd(1e-3)), "adam": Case(optax.adam(1e-3)),
      "adamw": Case(optax.adamw(1e-3)), "lion": Case(optax.lion(1e-3)),
      "adafactor": Case(optax.adafactor(1e-3)),
      "muon": Case(optax.contrib.muon(1e-3))}
  for hidden in hidden_sizes:
    for name in sorted(naive.RULES):
      lopt = optimizers.get(name, hidden=hidden, lowering=lowering)
      theta = lopt.init(jax.random.key(0))
      label = f"{name} H={hidden}"
      found[label] = Case(lopt.opt_fn(theta), hidden, f"{label} naive")
      found[f"{label} naive"] = Case(naive.opt_fn(name)(theta), hidden)
  shipped = optimizers.get("mulo", newton_schulz=3, lowering=lowering)
  found["mulo H=8, Newton-Schulz"] = Case(
      shipped.opt_fn(shipped.init(jax.random.key(0))), 8)
  return found


def flops_per_parameter(hidden: int) -> int:
  """Of 16 element features, two hidden layers and two outputs."""
  return 2 * (16 * hidden + hidden**2 + 2 * hidden)


def measure(network: str, params: Any, all_cases: dict[str, Case],
            rounds: int, roofline: timing.Roofline) -> pd.DataFrame:
  """One row per optimizer."""
  rng = np.random.default_rng(0)
  normal = lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32)
  params, grads = jax.tree.map(normal, params), jax.tree.map(normal, params)
  count = sum(x.size for x in jax.tree.leaves(params))
  compiled, state_bytes = {}, {}
  steps: dict[str, Callable] = {}
  for name, case in all_cases.items():
    def step(params, state, grads, tx=case.tx):
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state

    state = case.tx.init(params)
    state_bytes[name] = sum(x.nbytes for x in jax.tree.leaves(state))
    compiled[name] = timing.compile_fn(
        step, params, state, grads, donate=(0, 1))
    kept = [jax.tree.map(jnp.copy, (params, state))]
    del state

    def advance(kept=kept, call=compiled[name].call):
      kept[0] = call(*kept[0], grads)
      return kept[0]

    steps[name] = advance
  medians = {name: float(np.median(seconds)) for name, seconds in
             timing.interleave(steps, rounds, 3).items()}
  rows = []
  for name, case in all_cases.items():
    seconds = medians[name]
    floor = (flops_per_parameter(case.hidden) / roofline.flops +
             (2 * state_bytes[name] / count + 12) / roofline.bandwidth)
    rows.append({
        "network": network, "optimizer": name, "ms": 1e3 * seconds,
        "ns per parameter": 1e9 * seconds / count,
        "times adamw": seconds / medians["adamw"],
        "times faster than naive": (
            medians[case.naive] / seconds if case.naive else np.nan),
        "temporary bytes per parameter": (
            compiled[name].temporary_bytes / count),
        "state bytes per parameter": state_bytes[name] / count,
        "compile s": compiled[name].seconds,
        "share of roofline": floor * count / seconds})
  return pd.DataFrame(rows)


def plot(table: pd.DataFrame, path: pathlib.Path) -> None:
  """Bars of time per parameter, one panel for each network."""
  matplotlib.use("Agg")
  groups = list(table.groupby("network", sort=False))
  figure, axes = plt.subplots(
      1, len(groups), figsize=(5.5 * len(groups), 5), squeeze=False)
  for ax, (network, rows) in zip(axes[0], groups):
    is_naive = rows["optimizer"].str.endswith("naive")
    learned = rows["optimizer"].str.contains("H=")
    colors = np.where(is_naive, "tab:gray",
                      np.where(learned, "tab:blue", "tab:orange"))
    ax.barh(rows["optimizer"], rows["ns per parameter"], color=colors)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlabel("ns per parameter and step")
    ax.set_title(network)
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  workdir = pathlib.Path(FLAGS.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  roofline = timing.roofline()
  all_cases = cases([int(h) for h in FLAGS.hidden], FLAGS.lowering)
  table = pd.concat([
      measure(network, params, all_cases, FLAGS.rounds, roofline)
      for network, params in networks(FLAGS.width).items()])
  table.to_csv(workdir / "results.csv", index=False)
  machine = (f"{jax.devices()[0].device_kind}, jax {jax.__version__}: "
             f"{roofline.flops / 1e9:.0f} GF/s in a matrix product, "
             f"{roofline.bandwidth / 1e9:.0f} GB/s in adding in place.\n\n")
  table["times faster than naive"] = table["times faster than naive"].map(
      "{:.3g}".format).replace("nan", "")
  text = machine + table.to_markdown(
      index=False, floatfmt=".3g", disable_numparse=[5]) + "\n"
  (workdir / "table.md").write_text(text)
  plot(table, workdir / "step_cost.png")
  print(text)


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)
  flags.DEFINE_integer("width", 2048, "Hidden units of the MLP, eight times "
                       "those of the transformer.", lower_bound=16)
  flags.DEFINE_list("hidden", ["4", "8", "32"],
                    "Hidden units of the learned optimizers.")
  flags.DEFINE_string("lowering", None, "See learned_opt/update/mlp.py.")
  flags.DEFINE_integer("rounds", 5, "Turns of each optimizer.", lower_bound=1)
  app.run(main)
