"""A card of every task: its size, its cost, and what tuned AdamW makes of it.

python -m experiments.studies.task_table --workdir=runs/tasks [--suites=train_small]

For each task of the suites: parameters, FLOPs of a step (the matrix products of
loss and gradient, two per multiplication), bytes of data on the device, the
loss of chance, and the final train and test loss of AdamW under the standard
parametrization, at the best of nine constant learning rates by final train
loss, tuned on another seed: means over three seeds. Half an hour on two cores.
Writes table.md and results.csv to the workdir; run again, it skips what is
done.
"""

import math
import pathlib
import platform
import sys

from absl import app
from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import tqdm

from experiments import sweep
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import evaluate
from tasks import base
from tasks import suites

LEARNING_RATES = [10**(e / 2) for e in range(-8, 1)]  # 1e-4 to 1
TUNING_SEED = 1000

FLAGS = flags.FLAGS


def products(jaxpr) -> int:
  """FLOPs of the matrix products and convolutions in a jaxpr.

  A scan counts as often as it runs, any other loop once, and of branches the
  most expensive one.
  """
  total = 0
  for eqn in jaxpr.eqns:
    inner = [p for p in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
             if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
    counts = [products(getattr(p, "jaxpr", p)) for p in inner]
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      shape = eqn.invars[0].aval.shape
      total += 2 * eqn.outvars[0].aval.size * math.prod(
          shape[axis] for axis in contracted)
    elif eqn.primitive.name == "conv_general_dilated":
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
  """Parameters, FLOPs of a step and bytes on the device."""
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
  """optax.adamw as an `opt_fn` whose theta is the learning rate."""
  del num_steps
  return optax.with_extra_args_support(optax.adamw(learning_rate))


def tuned(task: base.Task, num_steps: int, seeds: int) -> dict:
  """What AdamW reaches at its best learning rate; a NaN is never the best."""
  train = evaluate.trainer(task, adamw)
  last = lambda result: np.mean(
      result.train_loss[:, -max(1, num_steps // 10):], 1)
  rates = jnp.asarray(LEARNING_RATES, jnp.float32)
  result = train(rates, jnp.stack(
      [jax.random.key(TUNING_SEED)] * len(rates)), num_steps)
  losses = np.where(np.isfinite(last(result)), last(result), np.inf)
  best = int(np.argmin(losses))
  result = train(jnp.full(seeds, rates[best]), jnp.stack(
      [jax.random.key(seed) for seed in range(seeds)]), num_steps)
  return {"learning_rate": LEARNING_RATES[best],
          "grid_edge": best in (0, len(LEARNING_RATES) - 1),
          "train_loss": float(np.mean(last(result))),
          "test_loss": float(np.mean(result.final["test"]["loss"]))}


def table(rows: list[dict]) -> str:
  """The cards in Markdown."""
  frame = pd.DataFrame([{
      "suite": row["suite"], "task": row["task"],
      "family": row["section"]["name"],
      "settings": ", ".join(
          f"{k} {v}" for k, v in row["section"].items()
          if k not in ("name", "num_steps", "augment")) + (
              ", augmented" if "augment" in row["section"] else ""),
      "parameters": f"{row['params']:,}",
      "MFLOPs per step": f"{row['flops'] / 1e6:,.1f}",
      "data, MB": f"{row['bytes'] / 1e6:.1f}",
      "chance loss": f"{row['chance']:.3g}",
      "AdamW train": f"{row['train_loss']:.2g}",
      "AdamW test": f"{row['test_loss']:.2g}",
      "AdamW rate": f"{row['learning_rate']:.1e}" + (
          " (edge)" if row["grid_edge"] else "")} for row in rows])
  return frame.to_markdown(index=False, disable_numparse=True)


def cards(names: list[str], folder: pathlib.Path, data_dir: str | None,
          num_steps: int, seeds: int) -> list[dict]:
  """A row for each task of the suites, computed unless it was before."""
  parametrization = parametrizations.get("standard")
  rows = []
  sections = [(name, task, section) for name in names
              for task, section in suites.get(name).items()]
  for name, task_name, section in tqdm.tqdm(
      sections, desc="tasks", unit="task",
      mininterval=0.5 if sys.stderr.isatty() else 10):
    identity = {"task": task_name, "section": section, "suite": name,
                "num_steps": num_steps, "seeds": seeds,
                "python": platform.python_version()}  # whose source is a text
    # Without the factors of augmentation, which an optimizer alone would see.
    task = build.task_of(
        {k: v for k, v in section.items() if k != "augment"}, parametrization,
        data_dir)
    identity |= card(task)

    def compute(task=task, identity=identity):
      return [{**identity, **tuned(task, num_steps, seeds)}]

    rows += sweep.run_cell(folder / "cells", identity, compute)
  return rows


def write(rows: list[dict], folder: pathlib.Path) -> None:
  """Writes table.md and results.csv."""
  (folder / "table.md").write_text(table(rows) + "\n")
  pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)


def define_flags():
  """Defines the flags."""
  flags.DEFINE_string("workdir", None, "Folder of the results.")
  flags.DEFINE_list("suites", suites.names(), "Suites to look at.")
  flags.DEFINE_integer("num_steps", 300, "Steps of AdamW.", lower_bound=1)
  flags.DEFINE_integer("seeds", 3, "Seeds of AdamW.", lower_bound=1)
  flags.DEFINE_string(
      "data_dir", None, "Folder with data sets; default: MULO_DATA_DIR.")
  flags.mark_flags_as_required(["workdir"])


def main(argv):
  """Writes and prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  folder = pathlib.Path(FLAGS.workdir)
  try:
    rows = cards(FLAGS.suites, folder, FLAGS.data_dir, FLAGS.num_steps,
                 FLAGS.seeds)
  except (ValueError, OSError, ImportError) as e:
    sys.exit(f"{type(e).__name__}: {e}")
  write(rows, folder)
  print(table(rows))


if __name__ == "__main__":
  define_flags()
  app.run(main)
