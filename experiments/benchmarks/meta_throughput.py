"""How fast meta-training is: inner steps per second, and beside naive ones.

python -m experiments.benchmarks.meta_throughput --workdir=runs/meta_throughput

PES on 64-W-10 classifiers of 8x8 digits (batch 64, muP), one program per outer
step, on all devices (on CPU: one for each core), with the lowerings of this
library and with the naive lowering of the same optimizer. Prints a table and
writes it to the workdir.

Then the share of the time for which the devices are busy in
`meta_train.train`: how long outer steps of a config take one after the other,
over how long they take with metrics and checkpoints.
"""

import pathlib
import tempfile
import time

from absl import app
from absl import flags
import jax
import numpy as np
import optax
import pandas as pd

from experiments import naive
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

FLAGS = flags.FLAGS


def outer_step(lopt: learned_opt_base.LearnedOptimizer, width: int, pairs: int,
               truncation: int):
  """(step, its first state, its data) of meta-training one small task."""
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
  """One row per configuration and lowering."""
  rows = []
  for config in CONFIGS:
    width, pairs, truncation, hidden = config
    lopt = optimizers.get(name, hidden=hidden)
    lopts = {"ours": lopt, "naive": lopt._replace(
        opt_fn=naive.opt_fn(name))}
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
          "inner steps/s": 2 * pairs * truncation / float(
              np.median(seconds[lowering])),
          "times naive": float(np.median(seconds["naive"]) /
                               np.median(seconds[lowering])),
          "compile s": compiled[lowering].seconds,
          "compile, times naive": (compiled[lowering].seconds /
                                   compiled["naive"].seconds)})
  return pd.DataFrame(rows)


def _stepper(call, state, data):
  """A function that takes the next outer step whenever it is called."""
  kept = [state]

  def step():
    kept[0], metrics = call(kept[0], data)
    return metrics

  return step


def busy(config, workdir: pathlib.Path, num_steps: int, rounds: int
         ) -> pd.DataFrame:
  """Outer steps with and without all that the command does besides.

  Args:
    config: of meta-training.
    workdir: for the runs.
    num_steps: outer steps of each.
    rounds: runs of either kind, by turns.

  Returns:
    One row per round: milliseconds per outer step of both, and their ratio.
  """
  with config.unlocked():
    config.num_steps = num_steps
  built = build.build(config, None)
  data, = built.data(0, 1)
  call = jax.jit(built.step, donate_argnums=0)
  state = built.init()
  rows = []
  for i in range(rounds + 1):
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
      train.meta_train(config, folder)
      found = metrics.read(pathlib.Path(folder) / "metrics.jsonl")[1:]
      inside = np.mean([row["inner_steps"] / row["inner_steps_per_second"]
                        for row in found])
    start = time.perf_counter()
    for _ in range(num_steps):
      state, out = call(state, data)
    jax.block_until_ready((state, out))
    alone = (time.perf_counter() - start) / num_steps
    if i:  # the first compiles
      rows.append({"alone ms": 1e3 * alone, "in the command ms": 1e3 * inside,
                   "busy": alone / inside})
  return pd.DataFrame(rows)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  workdir = pathlib.Path(FLAGS.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  parallel.set_cpu_devices()
  tables = {"busy": busy(quickstart.get_config(), workdir, 100, FLAGS.rounds)}
  tables["results"] = pd.concat(
      [measure(name, FLAGS.rounds) for name in FLAGS.optimizers])
  for name, table in tables.items():
    table.to_csv(workdir / f"{name}.csv", index=False)
    text = table.to_markdown(index=False, floatfmt=".3g")
    (workdir / f"{name}.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Folder of the results.", required=True)
  flags.DEFINE_multi_string(
      "optimizers", ["adafac_mlp", "mulo"], "Names in learned_opt.optimizers.")
  flags.DEFINE_integer("rounds", 7, "Turns of each program.")
  app.run(main)
