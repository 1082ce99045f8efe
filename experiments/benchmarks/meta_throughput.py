"""Speed of meta-training, next to a naive lowering, and busy time of devices.

python -m experiments.benchmarks.meta_throughput --workdir=runs/meta_throughput

Speed: PES trains 64-W-10 classifiers of 8x8 digits (batch size 64, muP). An
outer step is one program on all devices (on a CPU: one device per core). The
program is measured twice, with the optimizer of this library and with the naive
lowering of the same optimizer. Prints a table and writes results.csv and
results.md to the workdir.

Busy time: the fraction of time for which the devices are busy in
`meta_train.train`. The fraction is the time per outer step of the programs
alone, divided by the time per outer step with metrics and checkpoints. Prints a
table and writes busy.csv and busy.md.
"""

import pathlib
import tempfile
import time
from typing import Any, Callable

from absl import flags
import jax
import ml_collections
import numpy as np
import optax
import pandas as pd

from experiments import command
from experiments import naive_optimizers
from experiments.benchmarks import timing
from learned_opt import base as learned_opt_base
from learned_opt import optimizers
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import estimators
from meta_train import step as step_lib
from meta_train import train
from meta_train import unroll
from meta_train.configs import quickstart
from meta_train.devices import parallel
from meta_train.workdir import metrics
from tasks import families

# (width, pairs, truncation, hidden units)
CONFIGS = [(32, 4, 10, 4), (32, 16, 20, 4), (32, 16, 20, 8), (128, 16, 20, 4),
           (128, 16, 20, 8), (32, 16, 20, 32)]
BUSY_STEPS = 100  # outer steps of a run that measures busy time


def outer_step(lopt: learned_opt_base.LearnedOptimizer, width: int, pairs: int,
               truncation: int) -> tuple[Callable, Any, Any]:
  """Return (step, initial state, data) of meta-training on a small task.

  Args:
    lopt: the learned optimizer.
    width: width of the classifier.
    pairs: pairs of networks that are trained at the same time.
    truncation: inner steps per outer step.
  """
  parametrization = parametrizations.get("mup")
  task = families.get("mlp", parametrization, width=width, depth=1)
  estimator = estimators.get(
      "pes", task=task,
      opt_fn=unroll.scaled(lopt.opt_fn, parametrization, task),
      truncation=truncation, shortest=5 * truncation,
      longest=50 * truncation)
  devices = parallel.mesh(pairs)
  init, step = step_lib.make(
      lopt, {"task": estimator}, optax.adam(1e-3), pairs, 0, devices)
  return step, init(), parallel.replicate({"task": task.data}, devices)


def measure(name: str, rounds: int) -> pd.DataFrame:
  """Measure the speed with one optimizer.

  Args:
    name: a key of `naive.OPTIMIZERS`.
    rounds: turns of each program.

  Returns:
    One row per configuration and lowering.
  """
  rows = []
  with command.progress(len(CONFIGS), "configuration", name) as bar:
    for width, pairs, truncation, hidden in CONFIGS:
      lopt = optimizers.get(name, hidden=hidden)
      lopts = {"ours": lopt, "naive": lopt._replace(
          opt_fn=naive_optimizers.opt_fn(name))}
      steps, compiled = {}, {}
      for lowering, variant in lopts.items():
        step, state, data = outer_step(variant, width, pairs, truncation)
        compiled[lowering] = timing.compile_fn(step, state, data, donate=(0,))
        steps[lowering] = _stepper(compiled[lowering].call, state, data)
      seconds = timing.interleave(steps, rounds, 3)
      for lowering in lopts:
        rows.append({
            "optimizer": name, "width": width, "pairs": pairs,
            "truncation": truncation, "hidden": hidden, "lowering": lowering,
            # Both networks of a pair count.
            "inner steps/s": 2 * pairs * truncation / float(
                np.median(seconds[lowering])),
            "times naive": float(np.median(seconds["naive"]) /
                                 np.median(seconds[lowering])),
            "compile s": compiled[lowering].seconds,
            "compile, times naive": (compiled[lowering].seconds /
                                     compiled["naive"].seconds)})
      bar.update()
  return pd.DataFrame(rows)


def _stepper(call: Callable, state: Any, data: Any) -> Callable:
  """Return a function that takes the next outer step at each call."""
  kept = [state]

  def step():
    kept[0], info = call(kept[0], data)
    return info

  return step


def busy(config: ml_collections.ConfigDict, workdir: pathlib.Path,
         num_steps: int, rounds: int) -> pd.DataFrame:
  """Measure outer steps of the programs alone and in the command.

  Args:
    config: config of meta-training; its num_steps is changed.
    workdir: folder for the runs, which are deleted afterwards.
    num_steps: outer steps per run.
    rounds: runs of each kind. The two kinds take turns.

  Returns:
    One row per round: milliseconds per outer step alone and in the command, and
    their ratio.
  """
  with config.unlocked():
    config.num_steps = num_steps
  program = build.build(config, None)
  data, = program.data(0, 1)
  call = jax.jit(program.step, donate_argnums=0)
  state = program.init()
  rows = []
  with command.progress(rounds + 1, "round", "busy time") as bar:
    for i in range(rounds + 1):
      with tempfile.TemporaryDirectory(dir=workdir) as folder:
        train.meta_train(config, folder)
        # The first row of metrics includes compilation.
        logged = metrics.read(pathlib.Path(folder) / "metrics.jsonl")[1:]
        inside = np.mean([row["inner_steps"] / row["inner_steps_per_second"]
                          for row in logged])
      start = time.perf_counter()
      for _ in range(num_steps):
        state, out = call(state, data)
      jax.block_until_ready((state, out))
      alone = (time.perf_counter() - start) / num_steps
      if i:  # the first round compiles
        rows.append({"alone ms": 1e3 * alone, "in the command ms": 1e3 * inside,
                     "busy": alone / inside})
      bar.update()
  return pd.DataFrame(rows)


def define_flags() -> None:
  """Define the flags."""
  command.define_workdir()
  flags.DEFINE_multi_enum(
      "optimizers", list(naive_optimizers.OPTIMIZERS),
      list(naive_optimizers.OPTIMIZERS),
      "Optimizers to measure the speed of; repeat the flag for several.")
  flags.DEFINE_integer("rounds", 7, "Turns of each program.", lower_bound=1)


def main(args: flags.FlagValues) -> None:
  """Measure busy time and speed; write and print both tables."""
  workdir = pathlib.Path(args.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  parallel.set_cpu_devices()
  tables = {
      "busy": busy(quickstart.get_config(), workdir, BUSY_STEPS, args.rounds),
      "results": pd.concat(
          [measure(name, args.rounds) for name in args.optimizers])}
  for name, table in tables.items():
    table.to_csv(workdir / f"{name}.csv", index=False)
    text = table.to_markdown(index=False, floatfmt=".3g")
    (workdir / f"{name}.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
  command.run(define_flags, main)
