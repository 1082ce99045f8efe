r"""Steps that nowcasting saves, beside averages and straight lines.

python -m experiments.around.nowcasting --workdir=runs/nowcast \
    --weights=wnn.safetensors --task=mlp \
    --settings=dataset=cifar10,image_size=8,standardize=True,batch_size=128

Adam trains a network as it is, and with each of

* nowcast: jumps to the predictions of --weights, see `mulo.nowcast`;
* line: jumps along straight lines, which need no weights;
* lookahead: after five steps, half of the way back, as in local updates of a
  single worker;
* average: an exponential moving average of the parameters is evaluated.

Every method is tuned over the same learning rates, by the mean train loss at
the end of a run with a seed of its own. A goal is the loss of Adam at the end,
the mean over all seeds. The report has the steps of each method to this goal,
relative to the steps of a run, on 2,048 train and test examples that are
evaluated every ten steps.

Writes results.csv, table.md, nowcast.png and command.txt to the workdir. A
second run skips the cells that are done.
"""

import pathlib
from typing import Any, Callable, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
from matplotlib import figure as figure_lib
import numpy as np
import optax
import pandas as pd

from experiments import command
from experiments import report
from experiments import sweep
from learned_opt import artifact as artifact_lib
from learned_opt import nowcasting as nowcasting_lib
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import unroll
import mulo

TUNING_SEED = 1000
SAMPLES = 2048
EVERY = 10  # steps between two evaluations
SPLITS = {"train": "train", "test": "test"}
AVERAGE_DECAY = 0.99
ADAM = "Adam"


class Method(NamedTuple):
  """A way to train.

  Attributes:
    label: name in table and plot.
    opt_fn: `opt_fn(learning rate, num_steps=...)`.
    shown: `(inner state of unroll) -> parameters` that are evaluated.
    floats: numbers that it keeps per parameter, besides Adam's two.
  """

  label: str
  opt_fn: Callable
  shown: Callable
  floats: int


class Averaged(NamedTuple):
  """Adam's state, and the sum of an average that is corrected for bias."""

  inner: Any
  total: Any


def averaged(rate, *, num_steps=None) -> optax.GradientTransformationExtraArgs:
  """Return Adam that keeps an average of the parameters."""
  del num_steps
  adam = optax.adam(rate)

  def init(params):
    return Averaged(adam.init(params), jax.tree.map(jnp.zeros_like, params))

  def update(grads, state, params=None, **extra_args):
    del extra_args
    updates, inner = adam.update(grads, state.inner, params)
    new = optax.apply_updates(params, updates)
    return updates, Averaged(inner, jax.tree.map(
        lambda t, p: AVERAGE_DECAY * t + (1 - AVERAGE_DECAY) * p,
        state.total, new))

  return optax.GradientTransformationExtraArgs(init, update)


def _average(state: unroll.InnerState) -> Any:
  """Return the average of the parameters so far; at first the parameters."""
  weight = 1 - AVERAGE_DECAY**state.step.astype(jnp.float32)
  return jax.tree.map(
      lambda t, p: jnp.where(state.step > 0, t / jnp.maximum(weight, 1e-6), p),
      state.opt_state.total, state.params)


def methods(every: int, weights: str | None) -> list[Method]:
  """Return the methods.

  Args:
    every: steps between jumps.
    weights: see `mulo.nowcast`; None to leave these jumps out.
  """
  params = lambda state: state.params
  jumps = lambda theta: lambda rate, *, num_steps=None: nowcasting_lib.nowcast(
      optax.adam(rate), theta, every=every, num_steps=num_steps)
  adam = lambda rate, *, num_steps=None: optax.with_extra_args_support(
      optax.adam(rate))
  found = [Method(ADAM, adam, params, 0)]
  if weights is not None:
    found.append(Method("nowcast", jumps(mulo.read(weights).theta), params, 5))
  return found + [
      Method("line", jumps(None), params, 5),
      Method("lookahead", lambda rate, *, num_steps=None: mulo.local_updates(
          optax.adam(rate), optax.sgd(0.5), every=5), params, 1),
      Method("average", averaged, _average, 1)]


def runs(section: dict, method: Method, rates: list[float], seeds: list[int],
         num_steps: int, data_dir: str | None,
         on_chunk: Callable[[int], None]) -> list[dict]:
  """Return a row for each learning rate and seed.

  Args:
    section: of the task.
    method: the method.
    rates: learning rates.
    seeds: of the runs with each of them.
    num_steps: steps of a run.
    data_dir: see `tasks.data.images.image_data`.
    on_chunk: called with the number of steps since the last call.

  Returns:
    Rows with "rate", "seed", for each of SPLITS the losses before the first
    step and after every EVERY steps, and "batch", the loss of each batch.
  """
  task = build.task_of(section, parametrizations.get("standard"), data_dir)
  keys = jax.random.split(
      jax.random.key(0), -(-SAMPLES // section.get("batch_size", 64)))
  batches = {name: jax.vmap(task.sample_batch, (0, None))(
      keys, jax.device_put(task.data[split]))
             for name, split in SPLITS.items()}
  data = {"train": jax.device_put(task.data["train"])}

  @jax.jit
  def start(rate, key):
    return unroll.start(task, method.opt_fn, rate, jax.random.fold_in(key, 0),
                        jnp.int32(num_steps))

  @jax.jit
  def advance(state, rate, key, data):
    return unroll.unroll(task, method.opt_fn, rate, state, jax.random.fold_in(
        key, 1 + state.step), data, EVERY)

  @jax.jit
  def losses(state):
    params = method.shown(state)
    of_batch = lambda batch: task.loss(params, keys[0], batch)[0]
    return {name: jnp.mean(jax.lax.map(of_batch, x))
            for name, x in batches.items()}

  rows = []
  # One run at a time: under vmap, every step would compute a jump as well.
  for rate, seed in [(rate, seed) for rate in rates for seed in seeds]:
    key = jax.random.key(seed)
    state = start(jnp.float32(rate), key)
    parts, seen = [losses(state)], []
    for _ in range(num_steps // EVERY):
      state, batch = advance(state, jnp.float32(rate), key, data)
      seen.append(batch)
      parts.append(losses(state))
    found = {name: np.array([p[name] for p in parts]) for name in SPLITS}
    found["batch"] = np.concatenate(jax.device_get(seen))
    rows.append({"rate": rate, "seed": seed, **{
        name: [round(float(y), 5) for y in x] for name, x in found.items()}})
    on_chunk(num_steps)
  return rows


def ended(curve: list[float]) -> float:
  """Return the mean of the last five evaluations, inf if it is not finite."""
  value = float(np.mean(curve[-5:]))
  return value if np.isfinite(value) else np.inf


def steps_to(curve: list[float], goal: float) -> float:
  """Return the steps until the mean of five evaluations is at most the goal.

  inf if it never is. A single evaluation may be low by chance, or lie between
  a jump and its rise.
  """
  means = np.convolve(curve, np.full(5, 0.2), "valid")
  below = np.flatnonzero(means <= goal)
  return EVERY * (int(below[0]) + 4) if len(below) else np.inf


def spike(batch: list[float], every: int) -> float:
  """Return the largest loss of a batch after a jump / mean of ten before it."""
  starts = range(every, len(batch), every)
  return max(
      batch[s] / float(np.mean(batch[s - 11:s - 1])) for s in starts)


def compare(flags, section: dict, method: Method, bar) -> sweep.Chain:
  """Chain of a method; its result: the rows at its best learning rate."""
  rates, seeds = list(map(float, flags.rates)), list(range(flags.seeds))
  weights = artifact_lib.sha256(
      mulo.read(flags.weights).theta) if method.label == "nowcast" else ""
  identity = {
      "study": "nowcast", "section": section, "method": method.label,
      "every": flags.every, "num_steps": flags.num_steps, "samples": SAMPLES,
      "evaluated": EVERY, "decay": AVERAGE_DECAY, "weights": weights}

  def cell(rates, seeds):
    return sweep.Cell(
        {**identity, "rates": rates, "seeds": seeds}, lambda: runs(
            section, method, rates, seeds, flags.num_steps, flags.data_dir,
            bar.update), len(rates) * len(seeds) * flags.num_steps)

  tuned, = yield [cell(rates, [TUNING_SEED])]
  best = min(tuned, key=lambda row: ended(row["train"]))["rate"]
  rows, = yield [cell([best], seeds)]
  return pd.DataFrame(rows).assign(
      method=method.label, floats=method.floats,
      edge=best in (rates[0], rates[-1]))


def table(results: pd.DataFrame, num_steps: int, every: int) -> str:
  """Return a Markdown table with a row for each method.

  Args:
    results: rows of all methods.
    num_steps: steps of a run.
    every: steps between jumps.
  """
  rows = []
  adam = results[results["method"] == ADAM]
  goals = {name: float(np.mean([ended(x) for x in adam[name]]))
           for name in SPLITS}
  for method, group in results.groupby("method", sort=False):
    edge = " (grid edge)" if group["edge"].iloc[0] else ""
    row = {"method": method, "bytes per parameter besides Adam's":
           4 * group["floats"].iloc[0],
           "learning rate": f"{group['rate'].iloc[0]:g}{edge}"}
    for name in SPLITS:
      steps = np.array([steps_to(x, goals[name]) for x in group[name]])
      saved = 100 * (1 - steps / num_steps)
      row[f"{name}: % of steps saved"] = "{:.0f} ({:.0f} to {:.0f})".format(
          float(saved.mean()), *report.interval(saved)) if np.all(
              np.isfinite(saved)) else (
                  f"never in {np.sum(~np.isfinite(saved))} of {len(saved)}")
      last = [ended(x) for x in group[name]]
      row[f"{name} loss at the end"] = "{:.4f} ({:.4f} to {:.4f})".format(
          float(np.mean(last)), *report.interval(last))
    jumps = method in ("nowcast", "line")
    row["loss after a jump"] = "x {:.1f}".format(float(np.mean([
        spike(x, every) for x in group["batch"]]))) if jumps else ""
    rows.append(row)
  return pd.DataFrame(rows).to_markdown(index=False)


def plot(results: pd.DataFrame, path: pathlib.Path, title: str) -> None:
  """Draw the mean losses against steps."""
  figure = figure_lib.Figure((10, 3.6), layout="constrained")
  axes = figure.subplots(1, len(SPLITS))
  for i, (method, group) in enumerate(results.groupby("method", sort=False)):
    for axis, name in zip(axes, SPLITS):
      curve = np.array(group[name].tolist())
      steps = EVERY * np.arange(curve.shape[1])
      axis.plot(steps, curve.mean(0), label=method, linewidth=1,
                color="black" if method == ADAM else report.COLORS[i])
      axis.set(xlabel="step", ylabel=f"{name} loss", title=title)
  for axis, name in zip(axes, SPLITS):
    adam = np.array(results[results["method"] == ADAM][name].tolist()).mean(0)
    axis.set_ylim(0.9 * adam.min(), adam[len(adam) // 10] * 1.3)
  axes[0].legend(fontsize=8)
  figure.savefig(path, dpi=120)


def define_flags() -> None:
  """Define the flags of this command."""
  command.define_workdir()
  command.define_data_dir()
  command.define_task()
  flags.DEFINE_string(
      "weights", None, "Weights of nowcast_adam, a .safetensors file; without "
      "them, the method nowcast is left out.")
  flags.DEFINE_list(
      "rates", ["0.001", "0.003", "0.01"], "Learning rates of Adam.")
  flags.DEFINE_integer("every", 100, "Steps from one jump to the next.")
  flags.DEFINE_integer("num_steps", 1000, "Steps per run.", lower_bound=100)
  flags.DEFINE_integer("seeds", 5, "Runs per method.", lower_bound=1)


def main(flags) -> None:
  """Compare the methods; write and print the table.

  Raises:
    ValueError: a flag makes no sense.
  """
  if flags.num_steps % EVERY:
    raise ValueError(f"--num_steps must be a multiple of {EVERY}, got "
                     f"{flags.num_steps}.")
  if flags.num_steps <= flags.every:
    raise ValueError(f"--num_steps={flags.num_steps} must be more than "
                     f"--every={flags.every}, or nothing jumps.")
  compared = methods(flags.every, flags.weights)
  mulo.nowcast(optax.adam(1.0), every=flags.every, num_steps=flags.num_steps)
  section = {"name": flags.task, **command.parse_settings(flags.settings)}
  build.task_of(section, parametrizations.get("standard"), flags.data_dir)
  folder = pathlib.Path(flags.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  command.write_command(folder)
  total = len(compared) * flags.num_steps * (len(flags.rates) + flags.seeds)
  with command.progress(total, "step", "training", unit_scale=True) as bar:
    results = pd.concat(sweep.run_chains(
        folder / "cells", [compare(flags, section, method, bar)
                           for method in compared], bar), ignore_index=True)
  results.drop(columns=[*SPLITS, "batch"]).assign(**{
      f"{name} end": results[name].map(ended) for name in SPLITS}).to_csv(
          folder / "results.csv", index=False)
  plot(results, folder / "nowcast.png", flags.task)
  text = table(results, flags.num_steps, flags.every)
  (folder / "table.md").write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  command.run(define_flags, main)
