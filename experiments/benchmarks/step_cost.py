"""Cost of one step of an optimizer: time, memory, compilation.

python -m experiments.benchmarks.step_cost --workdir=runs/step_cost

Optimizers of optax, the learned optimizers at several sizes, and their naive
lowering (experiments/naive_optimizers.py) take turns in one process. A step is
`update` and `apply_updates`, compiled as one program, with parameters and state
donated. The networks are an MLP and a small transformer.

The command also measures the roofline of the machine. It prints a table and
writes results.csv, table.md and step_cost.png to the workdir.
"""

import pathlib
from typing import Any, Callable, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd

from experiments import baselines
from experiments import command
from experiments import naive_optimizers
from experiments.benchmarks import timing
from learned_opt import optimizers

# Settings of the optimizers of optax, which are measured in their plain forms.
OPTAX: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": None}, "adam": {}, "adamw": {}, "lion": {},
    "adafactor": {}, "muon": {"consistent_rms": None}}


class Case(NamedTuple):
  """An optimizer to measure.

  Attributes:
    tx: the transformation.
    hidden: hidden units of a learned optimizer; 0 for optimizers of optax.
    naive: name of the case that is the naive lowering of this case, or "".
  """

  tx: optax.GradientTransformation
  hidden: int = 0
  naive: str = ""


def networks(width: int) -> dict[str, Any]:
  """Return {name: zero parameters} of an MLP and of a transformer.

  Args:
    width: hidden units of the MLP, eight times the width of the transformer.
  """
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
  """Return {name: case} of all optimizers.

  Args:
    hidden_sizes: hidden units of the learned optimizers.
    lowering: lowering of the learned optimizers, see
      learned_opt/update/mlp.py; None for their default.

  Raises:
    ValueError: an unknown lowering, or a size that is not positive.
  """
  by_name = {name: Case(baselines.get(name).make(1e-3, **settings))
             for name, settings in OPTAX.items()}
  for hidden in hidden_sizes:
    for name in sorted(naive_optimizers.OPTIMIZERS):
      lopt = optimizers.get(name, hidden=hidden, lowering=lowering)
      theta = lopt.init(jax.random.key(0))
      label = f"{name} H={hidden}"
      by_name[label] = Case(lopt.opt_fn(theta), hidden, f"{label} naive")
      by_name[f"{label} naive"] = Case(
          naive_optimizers.opt_fn(name)(theta), hidden)
  shipped = optimizers.get("mulo", newton_schulz=3, lowering=lowering)
  by_name["mulo H=8, Newton-Schulz"] = Case(
      shipped.opt_fn(shipped.init(jax.random.key(0))), 8)
  return by_name


def flops_per_parameter(hidden: int) -> int:
  """Return the minimum number of operations of the MLP for one parameter.

  The MLP has 16 features that differ between entries of a parameter (the other
  features only change biases), two hidden layers and two outputs.
  """
  return 2 * (16 * hidden + hidden**2 + 2 * hidden)


def measure(network: str, params: Any, all_cases: dict[str, Case],
            rounds: int, roofline: timing.Roofline) -> pd.DataFrame:
  """Measure all optimizers on one network.

  Args:
    network: name for the table.
    params: parameters of the network; only shapes matter.
    all_cases: {name: case}; must contain "adamw".
    rounds: turns of each optimizer.
    roofline: limits of this machine.

  Returns:
    One row per optimizer. "share of roofline" is the minimum time of a step on
    this machine divided by the measured time.
  """
  rng = np.random.default_rng(0)
  normal = lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32)
  params, grads = jax.tree.map(normal, params), jax.tree.map(normal, params)
  count = sum(x.size for x in jax.tree.leaves(params))
  compiled, state_bytes = {}, {}
  steps: dict[str, Callable] = {}
  with command.progress(len(all_cases), "optimizer", f"compiling, {network}",
                        leave=False) as bar:
    for name, case in all_cases.items():
      state = case.tx.init(params)
      state_bytes[name] = sum(x.nbytes for x in jax.tree.leaves(state))
      compiled[name] = timing.compile_fn(
          _step_fn(case.tx), params, state, grads, donate=(0, 1))
      steps[name] = _stepper(compiled[name].call, params, state, grads)
      del state  # `_stepper` has its own copy
      bar.update()
  medians = {name: float(np.median(seconds)) for name, seconds in
             timing.interleave(steps, rounds, 3).items()}
  rows = []
  for name, case in all_cases.items():
    seconds = medians[name]
    # Minimum time per parameter: the operations of the MLP, then reading and
    # writing the state, plus 12 bytes to read parameter and gradient and to
    # write the parameter.
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


def _step_fn(tx: optax.GradientTransformation) -> Callable:
  """Return `(params, state, grads) -> (params, state)`."""
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return step


def _stepper(call: Callable, params: Any, state: Any, grads: Any) -> Callable:
  """Return a function that takes the next step at each call."""
  # `call` overwrites its arguments: each optimizer needs a copy of its own.
  kept = [jax.tree.map(jnp.copy, (params, state))]

  def advance():
    kept[0] = call(*kept[0], grads)
    return kept[0]

  return advance


def plot(table: pd.DataFrame, path: pathlib.Path) -> None:
  """Plot time per parameter as bars, one panel per network."""
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


def write(table: pd.DataFrame, roofline: timing.Roofline,
          workdir: pathlib.Path) -> str:
  """Write all files to the workdir and return the text of table.md."""
  table.to_csv(workdir / "results.csv", index=False)
  machine = (f"{jax.devices()[0].device_kind}, jax {jax.__version__}: "
             f"{roofline.flops / 1e9:.0f} GF/s in a matrix product, "
             f"{roofline.bandwidth / 1e9:.0f} GB/s in adding in place.\n\n")
  # Optimizers of optax have no naive lowering: an empty field instead of "nan".
  ratio = table["times faster than naive"].map("{:.3g}".format)
  text = machine + table.assign(**{
      "times faster than naive": ratio.replace("nan", "")}).to_markdown(
          index=False, floatfmt=".3g", disable_numparse=[5]) + "\n"
  (workdir / "table.md").write_text(text)
  plot(table, workdir / "step_cost.png")
  return text


def define_flags() -> None:
  """Define the flags."""
  command.define_workdir()
  flags.DEFINE_integer(
      "width", 2048, "Hidden units of the MLP; the transformer has an eighth "
      "of this width.", lower_bound=16)
  flags.DEFINE_list("hidden", ["4", "8", "32"],
                    "Hidden units of the learned optimizers.")
  flags.DEFINE_string(
      "lowering", None, "Lowering of the learned optimizers, see "
      "learned_opt/update/mlp.py; default: chosen by size.")
  flags.DEFINE_integer("rounds", 5, "Turns of each optimizer.", lower_bound=1)


def main(args: flags.FlagValues) -> None:
  """Measure the cost, then write and print the table."""
  all_cases = cases([int(h) for h in args.hidden], args.lowering)
  workdir = pathlib.Path(args.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  roofline = timing.roofline()
  table = pd.concat([
      measure(network, params, all_cases, args.rounds, roofline)
      for network, params in networks(args.width).items()])
  print(write(table, roofline, workdir))


if __name__ == "__main__":
  command.run(define_flags, main)
