r"""Make a card of every task: size, cost, and the losses of tuned AdamW.

python -m experiments.studies.task_table --workdir=runs/tasks \
    [--suites=train_small]

A card has the number of parameters, the FLOPs of a step, the bytes of data on
the device, the loss of guessing, and the final train and test loss of AdamW.
FLOPs are those of the matrix products and convolutions in loss and gradient,
two per multiply-add. AdamW runs under the standard parametrization with a
constant learning rate, the best of nine by final train loss on a tuning seed.
Its losses are means over three other seeds. Cards of hidden suites have no
AdamW, because nobody may look at these tasks.

Takes 40 minutes on two cores. Writes table.md and results.csv to the workdir.
A second run skips the cells that are done.
"""

import functools
import itertools
import math
import pathlib
import platform

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from experiments import baselines
from experiments import command
from experiments import sweep
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import evaluate
from tasks import base
from tasks import suites

TUNING_SEED = 1000


def products(jaxpr) -> int:
  """Count the FLOPs of the matrix products and convolutions in a jaxpr.

  The body of a scan counts once per iteration, the body of another loop once.
  Of the branches of a conditional, the most expensive one counts.
  """
  total = 0
  for eqn in jaxpr.eqns:
    # Programs inside the equation, such as the body of a scan. Some are wrapped
    # in a closed jaxpr, whose attribute `jaxpr` has the equations.
    inner = [p for p in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
             if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
    counts = [products(getattr(p, "jaxpr", p)) for p in inner]
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      # Each output entry sums over the contracted axes.
      shape = eqn.invars[0].aval.shape
      total += 2 * eqn.outvars[0].aval.size * math.prod(
          shape[axis] for axis in contracted)
    elif eqn.primitive.name == "conv_general_dilated":
      # Each output entry sums over the kernel entries of its output channel.
      kernel = eqn.invars[1].aval.shape
      outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
      total += (2 * eqn.outvars[0].aval.size * math.prod(kernel) // outputs)
    elif eqn.primitive.name == "scan":
      total += eqn.params["length"] * sum(counts)
    elif eqn.primitive.name == "cond":
      total += max(counts)
    else:
      total += sum(counts)
  return total


def card(task: base.Task) -> dict:
  """Return the size and cost of a task.

  Returns:
    Keys params, flops (of a step), bytes (of data on the device) and chance
    (loss of guessing).
  """
  params = jax.eval_shape(task.init, jax.random.key(0))
  batch = jax.eval_shape(
      task.sample_batch, jax.random.key(0), task.data["train"])
  step = jax.make_jaxpr(jax.value_and_grad(task.loss, has_aux=True))(
      params, jax.random.key(0), batch)
  return {"params": sum(x.size for x in jax.tree.leaves(params)),
          "flops": products(step.jaxpr),
          "bytes": sum(x.nbytes for x in jax.tree.leaves(task.data)),
          "chance": task.chance_loss}


def adamw(learning_rate, *, num_steps=None):
  """Return AdamW with a constant learning rate; an `opt_fn`."""
  del num_steps
  return optax.with_extra_args_support(
      baselines.get("adamw").make(learning_rate))


def tuned(task: base.Task, num_steps: int, seeds: int) -> dict:
  """Return the losses of AdamW at its best learning rate.

  Args:
    task: the task.
    num_steps: steps per run.
    seeds: number of runs at the best learning rate.

  Returns:
    Keys learning_rate, grid_edge (whether the best learning rate is the
    smallest or largest of the grid), train_loss and test_loss.
  """
  train = evaluate.trainer(task, adamw)
  # Mean train loss over the last tenth of the steps, [runs].
  last = lambda result: np.mean(
      result.train_loss[:, -max(1, num_steps // 10):], 1)
  grid = baselines.get("adamw").learning_rates
  rates = jnp.asarray(grid, jnp.float32)
  result = train(rates, jnp.stack(
      [jax.random.key(TUNING_SEED)] * len(rates)), num_steps)
  # A run that diverged is never the best.
  losses = np.where(np.isfinite(last(result)), last(result), np.inf)
  best = int(np.argmin(losses))
  result = train(jnp.full(seeds, rates[best]), jnp.stack(
      [jax.random.key(seed) for seed in range(seeds)]), num_steps)
  return {"learning_rate": grid[best],
          "grid_edge": best in (0, len(grid) - 1),
          "train_loss": float(np.mean(last(result))),
          "test_loss": float(np.mean(result.final["test"]["loss"]))}


def table(rows: list[dict]) -> str:
  """Return the cards as a Markdown table, a row per task."""
  frame = pd.DataFrame([{
      "suite": row["suite"], "task": row["task"],
      "family": row["section"]["name"],
      "settings": ", ".join(
          f"{k} {v}" for k, v in row["section"].items()
          if k not in ("name", "augment")) + (
              ", augmented" if "augment" in row["section"] else ""),
      "parameters": f"{row['params']:,}",
      "MFLOPs per step": f"{row['flops'] / 1e6:,.1f}",
      "data, MB": f"{row['bytes'] / 1e6:.1f}",
      "chance loss": f"{row['chance']:.3g}", **_of_adamw(row)}
                        for row in rows])
  frame = frame.loc[:, (frame != "").any()]  # AdamW may be in no row
  return frame.to_markdown(index=False, disable_numparse=True)


def _of_adamw(row: dict) -> dict[str, str]:
  """Return the columns of AdamW, empty for a card without AdamW."""
  if "train_loss" not in row:
    return {f"AdamW {column}": "" for column in ("train", "test", "rate")}
  return {"AdamW train": f"{row['train_loss']:.2g}",
          "AdamW test": f"{row['test_loss']:.2g}",
          "AdamW rate": f"{row['learning_rate']:.1e}" + (
              " (edge)" if row["grid_edge"] else "")}


def cards(names: list[str], folder: pathlib.Path, data_dir: str | None,
          num_steps: int, seeds: int) -> list[dict]:
  """Return the card of each task; cells that are done are not repeated.

  Args:
    names: names of suites.
    folder: the workdir.
    data_dir: see `tasks.data.images.image_data`.
    num_steps: steps of AdamW; 0 leaves AdamW out.
    seeds: runs of AdamW at its best learning rate.

  Raises:
    ValueError: an unknown suite.
    OSError: a missing data set, or a workdir that is not writable.
  """
  parametrization = parametrizations.get("standard")
  sections = [(name, task, section) for name in names
              for task, section in suites.get(name).items()]

  def task_of(section):
    # Without augmentation: it changes the parameters that an optimizer sees,
    # but neither the network nor its loss.
    return build.task_of(
        {k: v for k, v in section.items() if k != "augment"}, parametrization,
        data_dir)

  def compute(identity):
    if identity["suite"] in suites.HIDDEN or not num_steps:
      return [identity]
    return [{**identity,
             **tuned(task_of(identity["section"]), num_steps, seeds)}]

  cells = []
  with command.progress(len(sections), "task", "training") as bar:
    for name, task_name, section in sections:
      # The text "python" is the source code of the running Python.
      identity = {"task": task_name, "section": section, "suite": name,
                  "num_steps": num_steps, "seeds": seeds,
                  "python": platform.python_version(),
                  **card(task_of(section))}
      cells.append(sweep.Cell(identity, functools.partial(compute, identity)))
    found = sweep.run_cells(folder / "cells", cells, bar)
  return list(itertools.chain(*found))


def write(rows: list[dict], folder: pathlib.Path) -> None:
  """Write table.md and results.csv."""
  (folder / "table.md").write_text(table(rows) + "\n")
  pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)


def define_flags() -> None:
  """Define the flags of this command."""
  command.define_workdir()
  command.define_data_dir()
  flags.DEFINE_list(
      "suites", suites.names(), "Suites of tasks (tasks/suites.py).")
  flags.DEFINE_integer(
      "num_steps", 300, "Steps of AdamW; 0 leaves AdamW out.", lower_bound=0)
  flags.DEFINE_integer(
      "seeds", 3, "Runs of AdamW at its best learning rate.", lower_bound=1)


def main(flags) -> None:
  """Make the cards; write and print the table."""
  folder = pathlib.Path(flags.workdir)
  rows = cards(flags.suites, folder, flags.data_dir, flags.num_steps,
               flags.seeds)
  write(rows, folder)
  print(table(rows))


if __name__ == "__main__":
  command.run(define_flags, main)
