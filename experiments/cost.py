"""Cost of a step of an optimizer on a task, beside AdamW's.

A single run of a network is timed, as a user trains it: batch, gradient, update
of the optimizer. The program takes turns with that of AdamW, and what counts
is the ratio of both in each turn, because the speed of a machine varies.
"""

import functools
import json
import os
import pathlib
import platform
from typing import Any, Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from experiments import baselines
from experiments import methods
from experiments import sweep
from experiments.benchmarks import timing
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import unroll

STEPS, ROUNDS, REPEATS = 20, 8, 3  # steps per call, turns, calls per turn
REFERENCE = "adamw"


def columns(results: pd.DataFrame, compared: list[methods.Method],
            targets: dict[str, dict], folder: pathlib.Path,
            data_dir: str | None) -> pd.DataFrame:
  """Return the results of a study with the cost of each optimizer and target.

  Args:
    results: result of `transfer.Study.compare`.
    compared: see `transfer.Study.compare`.
    targets: see `transfer.Study.compare`.
    folder: folder of the cells.
    data_dir: see `tasks.data.images.image_data`.

  Returns:
    Further columns: seconds (of a step), seconds_error (its standard error,
    relative to AdamW), reference_seconds (of AdamW on the target, the median of
    all measurements), state_bytes (of the optimizer), params (numbers in the
    network), machine.
  """
  rows = []
  # One cell at a time, also if processes share the workdir: programs that are
  # timed at the same time disturb each other.
  for target, method, best in _chosen(results, compared):
    section = targets[target]
    config = {"cost": [STEPS, ROUNDS, REPEATS], "section": section,
              "candidate": best.identity, "reference": REFERENCE,
              "parametrization": method.parametrization,
              "gradient_width": method.gradient_width,
              "device": jax.devices()[0].device_kind, "jax": jax.__version__}
    row, = sweep.run_cell(folder, config, functools.partial(
        _measure, method, best, section, data_dir))
    rows.append({"target": target, "method": method.label, **row})
  costs = pd.DataFrame(rows)
  costs["reference_seconds"] = costs.groupby("target")[
      "reference_seconds"].transform("median")
  costs["seconds"] = costs["ratio"] * costs["reference_seconds"]
  costs["seconds_error"] = costs["ratio_error"] * costs["reference_seconds"]
  return results.merge(costs.drop(columns=["ratio", "ratio_error"]),
                       on=["target", "method"], validate="many_to_one")


def _chosen(results: pd.DataFrame, compared: list[methods.Method]
            ) -> Iterator[tuple[str, methods.Method, methods.Candidate]]:
  """Yield target, method and a candidate that costs as much as the chosen one.

  The learning rate does not matter.
  """
  by_label = {method.label: method for method in compared}
  for (target, label), group in results.groupby(
      ["target", "method"], sort=False):
    method, schedule = by_label[label], group["schedule"].iloc[0]
    yield target, method, next(
        c for c in method.candidates if c.schedule == schedule)


def _measure(method: methods.Method, candidate: methods.Candidate,
             section: dict, data_dir: str | None) -> list[dict]:
  """Return the row of one cell."""
  task, opt_fn = methods.of_task(
      method, candidate.opt_fn, section, data_dir)
  theta = jax.tree.map(jnp.asarray, candidate.theta)
  params = jax.eval_shape(task.init, jax.random.key(0))
  state = jax.eval_shape(
      lambda params: opt_fn(theta, num_steps=jnp.int32(1)).init(params), params)
  size = lambda tree: sum(
      x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  seconds = timing.interleave(
      {"entry": _program(task, opt_fn, theta, section["num_steps"]),
       "reference": _reference(json.dumps(section), data_dir)},
      ROUNDS, REPEATS)
  entry, reference = (np.median(np.reshape(
      seconds[name], (ROUNDS, REPEATS)), 1) / STEPS for name in (
          "entry", "reference"))
  ratio = entry / reference  # of each turn
  return [{"ratio": float(np.median(ratio)),
           "ratio_error": float(np.std(ratio, ddof=1) / ROUNDS**0.5),
           "reference_seconds": float(np.median(reference)),
           "state_bytes": size(state),
           "params": sum(x.size for x in jax.tree.leaves(params)),
           "machine": machine()}]


def _program(task: Any, opt_fn: Callable, theta: Any, num_steps: int
             ) -> Callable[[], Any]:
  """Return a function that takes the first STEPS steps of a run."""
  data = jax.device_put(task.data)
  state = jax.jit(lambda key: unroll.start(
      task, opt_fn, theta, key, jnp.int32(num_steps)))(jax.random.key(0))
  run = jax.jit(lambda theta, state, key, data: unroll.unroll(
      task, opt_fn, theta, state, key, data, STEPS))
  return lambda: run(theta, state, jax.random.key(1), data)


@functools.lru_cache(maxsize=1)
def _reference(section: str, data_dir: str | None) -> Callable[[], Any]:
  """Return the program of AdamW; entries on one target come after each other.

  Args:
    section: section of the target, JSON, because it must be hashable.
    data_dir: see `columns`.
  """
  parsed = json.loads(section)
  task = build.task_of(parsed, parametrizations.get("standard"), data_dir)
  opt_fn = baselines.opt_fn(baselines.get(REFERENCE), "constant")
  return _program(task, opt_fn, jnp.float32(1e-3), parsed["num_steps"])


def machine() -> str:
  """Return the name of this machine's processor or accelerator."""
  kind = jax.devices()[0].device_kind
  if kind != "cpu":
    return kind
  name = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  if cpuinfo.exists():
    models = [line.partition(":")[2].strip() for line in
              cpuinfo.read_text().splitlines() if line.startswith("model name")]
    name = models[0] if models else name
  cores = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
           else os.cpu_count())
  return f"{name}, {cores} cores"
