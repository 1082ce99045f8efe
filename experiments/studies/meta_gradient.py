"""Signal and noise of meta-gradients, on the tasks of a recipe.

python -m experiments.studies.meta_gradient \
    --config=meta_train/configs/mulo_s2.py:heads --workdir=runs/meta_gradient \
    --variants='std=0.01;std=0.04;name=noise_reuse_es,loss_split=both'

Every variant is the recipe with other settings of config.estimator. Theta stays
where it is: at the start of the recipe, or at that of config.start. Outer steps
of the same recipe then give estimates g_1, g_2, ... of one meta-gradient, and

* signal: the mean of g_i . g_j over pairs that share no noise, the square of
  the norm of the expected gradient, without bias;
* noise: the mean of |g_i|^2, less the signal;
* SNR: signal over noise of one outer step, and of one minute on this machine.
  For estimators that keep noise for an episode, the outer steps of an episode
  count as one estimate, their mean;
* cosine: of the expected gradients of a variant and of the first variant,
  without bias. It tells what a cheaper estimator estimates instead.

Intervals are 90 % intervals over estimates. Run the command again to continue.
Prints a table and writes results.csv and table.md to the workdir.
"""

import functools
import pathlib
import time
from typing import Any

from absl import flags
import jax
import jax.flatten_util
import ml_collections
import numpy as np
import pandas as pd

from experiments import command
from experiments import sweep
from meta_train import build
from meta_train import config_flag
from meta_train.devices import parallel

DRAWS = 1000
WARM_UP = 3  # outer steps, in which running sizes of differences settle


def variant_config(config: ml_collections.ConfigDict, text: str
                   ) -> ml_collections.ConfigDict:
  """Return the recipe with other settings of the estimator.

  Args:
    config: see meta_train/configs.
    text: "name=value,..." of config.estimator. With a "name", settings that the
      other estimator does not have must be left out: "sign=None" leaves out
      sign.

  Raises:
    ValueError: the text has another form.
  """
  changed = config.copy_and_resolve_references().unlock()
  settings = command.parse_settings(text.split(",") if text else [])
  estimator = {**changed.estimator.to_dict(), **settings}
  del changed["estimator"]
  changed.estimator = {k: v for k, v in estimator.items() if v is not None}
  changed.theta_opt.update(
      learning_rate=0.0, final_learning_rate=0.0, weight_decay=0.0)
  return changed.lock()


def estimates(config: ml_collections.ConfigDict, data_dir: str | None,
              steps: int, bar: Any) -> tuple[np.ndarray, float]:
  """Return (estimates [steps, theta], seconds per outer step).

  Args:
    config: a recipe that does not move theta.
    data_dir: see `tasks.data.images.image_data`.
    steps: outer steps, after WARM_UP more.
    bar: progress bar, in outer steps.
  """
  program = build.build(config, data_dir)
  state, grads, seconds = program.init(), [], []
  for data in program.data(0, steps + WARM_UP):
    begin = time.perf_counter()
    state, _ = program.step(state, data)
    grads.append(jax.flatten_util.ravel_pytree(parallel.fetch(state.grad))[0])
    seconds.append(time.perf_counter() - begin)
    bar.update()
  return (np.stack(grads[WARM_UP:]).astype(np.float64),
          float(np.median(seconds[WARM_UP:])))


def blocks(grads: np.ndarray, length: int) -> np.ndarray:
  """Return means of consecutive estimates [n // length, theta]."""
  count = len(grads) // length
  return grads[:count * length].reshape(count, length, -1).mean(1)


def pairs(x: np.ndarray, y: np.ndarray | None = None) -> float:
  """Return the mean of x_i . y_j, over i != j if y is None."""
  if y is not None:
    return float(x.mean(0) @ y.mean(0))
  total, n = x.sum(0), len(x)
  if n < 2:
    return np.nan
  return float((total @ total - np.sum(x * x)) / (n * (n - 1)))


def signal_to_noise(x: np.ndarray) -> float:
  """Return the signal over the noise of one estimate."""
  signal = pairs(x)
  return signal / max(float(np.mean(np.sum(x * x, 1))) - signal, 1e-300)


def cosine(x: np.ndarray, y: np.ndarray) -> float:
  """Return the cosine of expected gradients; NaN without a positive signal."""
  squares = pairs(x) * pairs(y)
  return pairs(x, y) / squares**0.5 if min(pairs(x), pairs(y)) > 0 else np.nan


def interval(function: Any, *arrays: np.ndarray) -> tuple[float, float]:
  """Return the 90 % interval of a function of estimates.

  An estimate that is drawn twice would pass for signal, so half of the
  estimates are drawn without replacement. A mean over them varies about the
  mean over all as much as the latter about the expectation. NaN for less than
  four estimates.
  """
  if min(map(len, arrays)) < 4:
    return np.nan, np.nan
  rng = np.random.default_rng(0)
  values = np.array([function(*[
      x[rng.permutation(len(x))[:(len(x) + 1) // 2]] for x in arrays])
                     for _ in range(DRAWS)])
  if np.all(np.isnan(values)):
    return np.nan, np.nan
  low, high = np.nanquantile(values, [0.05, 0.95])
  return float(low), float(high)


def row(name: str, grads: np.ndarray, first: np.ndarray, seconds: float
        ) -> dict[str, Any]:
  """Return the row of a variant.

  Args:
    name: of the variant.
    grads: its estimates without common noise [n, theta].
    first: those of the first variant.
    seconds: per estimate.
  """
  one = lambda x: f"{x:.3g}"

  def with_interval(function, *arrays):
    low, high = interval(function, *arrays)
    return f"{one(function(*arrays))} ({one(low)} to {one(high)})"

  per_minute = 60 / seconds
  return {
      "variant": name or "the recipe", "estimates": len(grads),
      "seconds per estimate": one(seconds),
      "SNR of an estimate": with_interval(signal_to_noise, grads),
      "SNR of a minute": with_interval(
          lambda x: per_minute * signal_to_noise(x), grads),
      "cosine with the first": "1" if grads is first else with_interval(
          cosine, grads, first)}


def define_flags() -> None:
  """Define the flags."""
  config_flag.define()
  command.define_workdir()
  command.define_data_dir()
  flags.DEFINE_string(
      "variants", "", "Settings of config.estimator, name=value,...; variants "
      "are separated by semicolons. The empty one is the recipe.")
  flags.DEFINE_list(
      "tasks", None, "Tasks of the recipe; default: all.")
  flags.DEFINE_integer(
      "steps", 32, "Outer steps per variant.", lower_bound=8)
  flags.mark_flag_as_required("config")


def main(args: flags.FlagValues) -> None:
  """Measure all variants, then write and print the table."""
  config = args.config.copy_and_resolve_references().unlock()
  if args.tasks is not None:
    missing = set(args.tasks) - set(config.tasks)
    if missing:
      raise ValueError(f"--tasks: the recipe has no {sorted(missing)}; it has "
                       f"{', '.join(config.tasks)}.")
    for name in set(config.tasks) - set(args.tasks):
      del config.tasks[name]
  variants = {text.strip(): variant_config(config, text.strip())
              for text in args.variants.split(";")}
  for changed in variants.values():
    build.check(changed)
  parallel.set_cpu_devices(config.devices)
  workdir = pathlib.Path(args.workdir)
  size = args.steps + WARM_UP
  with command.progress(len(variants) * size, "step", "estimates") as bar:
    def compute(changed):
      grads, seconds = estimates(changed, args.data_dir, args.steps, bar)
      return [{"seconds": seconds, "grads": grads.tolist()}]

    found = sweep.run_cells(workdir / "cells", [sweep.Cell(
        {"study": "meta_gradient", "steps": args.steps,
         "config": changed.to_dict()}, functools.partial(compute, changed),
        size) for changed in variants.values()], bar)
  results = {}
  for (name, changed), (cell,) in zip(variants.items(), found):
    kept = 1 if changed.estimator.name.startswith("full_") else -(
        -changed.estimator.longest // changed.estimator.truncation)
    results[name] = (blocks(np.array(cell["grads"]), kept),
                     cell["seconds"] * kept)
  first = next(iter(results.values()))[0]
  table = pd.DataFrame([row(name, grads, first, seconds)
                        for name, (grads, seconds) in results.items()])
  table.to_csv(workdir / "results.csv", index=False)
  text = table.to_markdown(index=False, disable_numparse=True) + "\n"
  (workdir / "table.md").write_text(text)
  print(text)


if __name__ == "__main__":
  command.run(define_flags, main)
