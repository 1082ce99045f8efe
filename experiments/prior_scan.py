"""How well mulo trains before it is meta-trained, by its multipliers.

python -m experiments.prior_scan --workdir=runs/prior

At initialisation mulo is close to Adam, so its multipliers mean for it what a
learning rate means for Adam, and meta-training starts from there. Trains a task
of each family in the suites for training with factors on the updates of
matrices and of vectors, with and without a horizon, and scores each pair of
factors by the log of the mean train loss over the best one's, averaged over
tasks. Five to ten minutes on two cores. Writes table.md and results.csv; run
again, it skips what is done.
"""

import itertools
import pathlib
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
from learned_opt import optimizers
from learned_opt import parametrizations
from meta_train import evaluate
from meta_train import program
from meta_train import unroll
from tasks import suites

TASKS = {"train_small": ("mlp_w32_d4", "conv_w8", "vit_w16", "lm_w16",
                         "autoencoder_w32"),
         "train_wide": ("mlp_w128_d2", "conv_w16_norm", "vit_w32")}
VECTOR_MULTS = (0.03, 0.1, 0.3, 1.0)
FLAGS = flags.FLAGS


def with_factors(lopt, theta):
  """An `opt_fn` whose theta is [factor on all, further one on vectors]."""
  def opt_fn(factors, *, num_steps=None):
    inner = lopt.opt_fn(theta, num_steps=num_steps)

    def update(grads, state, params=None, **extra_args):
      updates, state = inner.update(grads, state, params, **extra_args)
      scale = lambda u: u * factors[0] * (factors[1] if u.ndim < 2 else 1)
      return jax.tree.map(scale, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
  return opt_fn


def rows(section: dict, parametrization: str, step_mults: list[float],
         horizon: bool, num_steps: int, data_dir: str | None) -> list[dict]:
  """Mean and final train loss for each pair of factors."""
  rule = parametrizations.get(parametrization)
  task = program.task_of(section, rule, data_dir)
  lopt = optimizers.get("mulo", step_mult=1.0, hidden=4, horizon=horizon)
  opt_fn = with_factors(lopt, lopt.init(jax.random.key(0)))
  grid = list(itertools.product(step_mults, VECTOR_MULTS))
  result = evaluate.train(
      task, unroll.scaled(opt_fn, rule, task), jnp.array(grid),
      jnp.stack([jax.random.key(0)] * len(grid)), num_steps)
  losses = np.nan_to_num(result.train_loss, nan=np.inf).astype(float)
  return [{"step_mult": step, "vector_mult": vector,
           "mean": float(np.mean(loss)),
           "final": float(np.mean(loss[-max(1, num_steps // 10):]))}
          for (step, vector), loss in zip(grid, losses)]


def table(results: pd.DataFrame) -> str:
  """Mean log ratios to the best loss of each task, best settings first."""
  for column in ("mean", "final"):
    best = results.groupby("task")[column].transform("min")
    results[f"log ratio, {column} loss"] = np.log(results[column] / best)
  found = results.groupby(["horizon", "step_mult", "vector_mult"])[
      ["log ratio, mean loss", "log ratio, final loss"]].mean()
  found = found.sort_values("log ratio, mean loss").reset_index()
  return found.to_markdown(index=False, floatfmt=".3g")


def define_flags():
  """Defines the flags."""
  flags.DEFINE_string("workdir", None, "Folder of the results.")
  flags.DEFINE_string("parametrization", "mup", "Of network and update.")
  flags.DEFINE_list("step_mults", ["0.03", "0.1", "0.3", "1"],
                    "Factors on all updates.")
  flags.DEFINE_integer("num_steps", 300, "Steps per run.", lower_bound=1)
  flags.DEFINE_string(
      "data_dir", None, "Folder with data sets; default: MULO_DATA_DIR.")
  flags.mark_flags_as_required(["workdir"])


def main(argv):
  """Writes and prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  folder = pathlib.Path(FLAGS.workdir)
  cells = [(name, suites.get(suite_name)[name], horizon)
           for suite_name, names in TASKS.items() for name in names
           for horizon in (False, True)]
  frames = []
  try:
    step_mults = [float(x) for x in FLAGS.step_mults]
    for name, section, horizon in tqdm.tqdm(
        cells, desc="tasks", mininterval=0.5 if sys.stderr.isatty() else 10):
      settings = (section, FLAGS.parametrization, step_mults, horizon,
                  FLAGS.num_steps)
      found = sweep.run_cell(
          folder / "cells", {"settings": settings, "grid": VECTOR_MULTS},
          lambda: rows(*settings, FLAGS.data_dir))
      frames.append(pd.DataFrame(found).assign(task=name, horizon=horizon))
  except (ValueError, OSError) as e:
    sys.exit(f"{type(e).__name__}: {e}")
  results = pd.concat(frames, ignore_index=True)
  results.to_csv(folder / "results.csv", index=False)
  text = table(results)
  (folder / "table.md").write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  define_flags()
  app.run(main)
