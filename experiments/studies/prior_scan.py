"""How well mulo trains before it is meta-trained, by the sizes of its steps.

python -m experiments.studies.prior_scan --workdir=runs/prior

At initialisation mulo is close to Adam, so its multipliers mean for it what a
learning rate means for Adam, and meta-training starts from there. Trains small
networks of several families with factors drawn at random, one for each role of
a parameter, on the update that the parametrization makes of step_mult 1.
Five to ten minutes on two cores. Writes results.csv and table.md: the draws
that are best over all tasks, by the log of mean and final train loss over the
least of the task, and for each task the geometric mean of the eight draws that
are best there. Run again, it skips what is done.
"""

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
from learned_opt.scaling import parametrizations
from learned_opt.scaling import width
from meta_train import build
from meta_train import evaluate
from meta_train import unroll
from tasks import base as tasks_base

_MNIST = {"dataset": "mnist", "image_size": 14}
TASKS = {
    "mlp_w32_d2": {"name": "mlp", **_MNIST, "width": 32, "depth": 2},
    "mlp_w64_d4": {"name": "mlp", **_MNIST, "width": 64, "depth": 4},
    "conv_w8": {"name": "conv", **_MNIST, "image_size": 8, "width": 8,
                "batch_size": 32},
    "conv_w16_norm": {"name": "conv", **_MNIST, "width": 16, "norm": "layer",
                      "batch_size": 32},
    "autoencoder_w32": {"name": "autoencoder", **_MNIST, "image_size": 8,
                        "width": 32},
    "vit_w16": {"name": "vit", **_MNIST, "patch": 7, "width": 16,
                "batch_size": 16},
    "lm_w16": {"name": "transformer_lm", "width": 16, "length": 8,
               "batch_size": 16},
    "rnn_w16": {"name": "rnn_lm", "width": 16, "length": 8, "batch_size": 16}}
ROLES = ("input", "hidden", "output", "vector")
SETTINGS = dict(step_mult=1.0, hidden=4, horizon=True, depth=True)
BEST = 8  # draws of one task that a mean is taken over
FLAGS = flags.FLAGS


def draws(num: int, spread: float) -> np.ndarray:
  """Factors [num, 4], log-uniform within `spread` of 0.3 either way."""
  exponents = np.random.default_rng(0).uniform(-1, 1, (num, len(ROLES)))
  return (0.3 * spread**exponents).astype(np.float32)


def with_factors(lopt, theta, task: tasks_base.Task):
  """An `opt_fn` whose theta are factors on the updates of ROLES, [4]."""
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  index = {"fixed": 0, **{role: i for i, role in enumerate(ROLES)}}
  role = jax.tree.map(
      lambda x, base: index[width.role(x.shape, base.shape)], shapes,
      task.base_shapes)

  def opt_fn(factors, *, num_steps=None):
    inner = lopt.opt_fn(theta, num_steps=num_steps)

    def update(grads, state, params=None, **extra_args):
      updates, state = inner.update(grads, state, params, **extra_args)
      return jax.tree.map(lambda u, i: u * factors[i], updates, role), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
  return opt_fn


def rows(section: dict, parametrization: str, newton_schulz: int,
         grid: np.ndarray, num_steps: int, data_dir: str | None) -> list[dict]:
  """Mean and final train loss for each draw."""
  rule = parametrizations.get(parametrization)
  task = build.task_of(section, rule, data_dir)
  lopt = optimizers.get("mulo", **SETTINGS, newton_schulz=newton_schulz)
  opt_fn = with_factors(lopt, lopt.init(jax.random.key(0)), task)
  result = evaluate.train(
      task, unroll.scaled(opt_fn, rule, task), jnp.asarray(grid),
      jnp.stack([jax.random.key(0)] * len(grid)), num_steps)
  losses = np.nan_to_num(
      result.train_loss, nan=np.inf, posinf=np.inf).astype(float)
  return [{**{role: float(x) for role, x in zip(ROLES, factors)},
           "mean": float(np.mean(loss)),
           "final": float(np.mean(loss[-max(1, num_steps // 10):]))}
          for factors, loss in zip(grid, losses)]


def table(results: pd.DataFrame) -> str:
  """The best draws over all tasks, then the best of each task."""
  keys = list(ROLES)
  results = results.copy()
  for column in ("mean", "final"):
    best = results.groupby("task")[column].transform("min")
    results[f"log ratio, {column} loss"] = np.log(results[column] / best)
  ratios = [f"log ratio, {column} loss" for column in ("mean", "final")]
  results["both"] = results[ratios].sum(axis=1)
  overall = results.groupby(keys)[[*ratios, "both"]].mean().sort_values("both")
  best_of = results.sort_values("both").groupby("task", sort=False)[keys].agg(
      lambda x: float(np.exp(np.mean(np.log(x.head(BEST))))))
  markdown = lambda frame: frame.reset_index().to_markdown(
      index=False, floatfmt=".3g")
  return "\n\n".join(
      (markdown(overall[ratios].head(12)), markdown(best_of.sort_index())))


def define_flags():
  """Defines the flags."""
  flags.DEFINE_string("workdir", None, "Folder of the results.")
  flags.DEFINE_string("parametrization", "mup_balanced",
                      "Of network and update.")
  flags.DEFINE_integer("newton_schulz", 3, "Iterations of mulo.",
                       lower_bound=0)
  flags.DEFINE_integer("num_draws", 64, "Draws of factors.", lower_bound=1)
  flags.DEFINE_float("spread", 10.0, "Largest factor over 0.3.",
                     lower_bound=1.0)
  flags.DEFINE_integer("num_steps", 400, "Steps per run.", lower_bound=1)
  flags.DEFINE_string(
      "data_dir", None, "Folder with data sets; default: MULO_DATA_DIR.")
  flags.mark_flags_as_required(["workdir"])


def main(argv):
  """Writes and prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  folder = pathlib.Path(FLAGS.workdir)
  grid = draws(FLAGS.num_draws, FLAGS.spread)
  frames = []
  try:
    for name, section in tqdm.tqdm(
        TASKS.items(), desc="tasks",
        mininterval=0.5 if sys.stderr.isatty() else 10):
      settings = (section, FLAGS.parametrization, FLAGS.newton_schulz, grid,
                  FLAGS.num_steps)
      config = {"section": section, "draws": grid.tolist(),
                "parametrization": FLAGS.parametrization,
                "newton_schulz": FLAGS.newton_schulz, "settings": SETTINGS,
                "num_steps": FLAGS.num_steps}
      found = sweep.run_cell(folder / "cells", config,
                             lambda: rows(*settings, FLAGS.data_dir))
      frames.append(pd.DataFrame(found).assign(task=name))
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
