"""What a learned optimizer does: its updates beside gradient, momentum, Adam's.

python -m experiments.studies.learned_rule --optimizer=mulo-s --workdir=runs/rule \
    [--task=mlp --settings=width=128,dataset=mnist,image_size=14]

Trains a network with it, and at every step compares the update of each
parameter with three directions computed from the same gradients: the cosine
with each, and its RMS over that of Adam's direction, which is the learning rate
that Adam would need. Averages by role of the parameter. Writes rule.csv,
table.md and rule.png to the workdir.
"""

import pathlib
import sys

from absl import app
from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pandas as pd

from experiments.studies import transfer
from learned_opt import artifact as artifact_lib
from learned_opt.scaling import parametrizations
from learned_opt.scaling import width
from meta_train import build
from meta_train import unroll
import mulo
from tasks import base as tasks_base

MEASURES = ("learning rate of Adam", "cosine, gradient", "cosine, momentum",
            "cosine, Adam")
POINTS = 100  # of a curve


def measures(update, grad, momentum, adam) -> jax.Array:
  """MEASURES of one parameter's update, float32 [4]."""
  norm = lambda x: jnp.linalg.norm(x.reshape(-1))
  over = lambda x, y: jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)
  cosine = lambda direction: over(
      -jnp.vdot(update, direction), norm(update) * norm(direction))
  return jnp.stack([over(norm(update), norm(adam)), cosine(grad),
                    cosine(momentum), cosine(adam)])


def follow(task: tasks_base.Task, tx: optax.GradientTransformationExtraArgs,
           key: jax.Array, num_steps: int) -> dict[str, np.ndarray]:
  """Trains a network; {path of a parameter: MEASURES [num_steps, 4]}."""
  adam = optax.scale_by_adam()

  def run(params, data, keys):
    def step(carry, key):
      params, state, adam_state = carry
      batch_key, loss_key = jax.random.split(key)
      batch = task.sample_batch(batch_key, data)
      grads = jax.grad(lambda p: task.loss(p, loss_key, batch)[0])(params)
      updates, state = tx.update(grads, state, params)
      direction, adam_state = adam.update(grads, adam_state)
      found = jax.tree.map(measures, updates, grads, adam_state.mu, direction)
      return (optax.apply_updates(params, updates), state, adam_state), found

    start = params, tx.init(params), adam.init(params)
    return jax.lax.scan(step, start, keys)[1]

  data = jax.device_put(task.data["train"])
  found = jax.jit(run)(task.init(jax.random.fold_in(key, 0)), data,
                       jax.random.split(key, num_steps))
  return artifact_lib.flatten(found)


def by_role(found: dict[str, np.ndarray], task: tasks_base.Task
            ) -> pd.DataFrame:
  """Means over parameters of a role and over a hundredth of the steps.

  Returns:
    Columns role, part (of the steps that is over) and MEASURES.
  """
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  roles = artifact_lib.flatten(jax.tree.map(
      lambda x, base: width.role(x.shape, base.shape), shapes,
      task.base_shapes))
  frames = []
  for role in dict.fromkeys(str(x) for x in roles.values()):
    mean = np.mean([x for path, x in found.items() if roles[path] == role], 0)
    parts = np.array_split(mean, min(POINTS, len(mean)))
    frames.append(pd.DataFrame(
        [part.mean(0) for part in parts], columns=list(MEASURES)).assign(
            role=role, part=(np.arange(len(parts)) + 1) / len(parts)))
  return pd.concat(frames, ignore_index=True)


def table(rows: pd.DataFrame) -> str:
  """Markdown: early, in the middle and at the end."""
  moments = [rows.part.min(), 0.1, 0.5, 1.0]
  chosen = pd.concat([rows[np.isclose(rows.part, m)] for m in moments])
  chosen = chosen.drop_duplicates().sort_values(["role", "part"])
  return chosen[["role", "part", *MEASURES]].to_markdown(
      index=False, floatfmt=".3g")


def plot(rows: pd.DataFrame, path: pathlib.Path) -> None:
  """A panel for each measure, a line for each role."""
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  figure, axes = plt.subplots(1, len(MEASURES), figsize=(14, 3.2),
                              layout="constrained")
  for axis, measure in zip(axes, MEASURES):
    for role, group in rows.groupby("role", sort=False):
      axis.plot(group.part, group[measure], label=role)
    axis.set(title=measure, xlabel="part of the steps",
             yscale="log" if measure == MEASURES[0] else "linear")
  axes[0].legend(fontsize="small")
  figure.savefig(path, dpi=120)
  plt.close(figure)


def define_flags() -> None:
  """Defines the flags; not at import, where they would be everyone's."""
  flags.DEFINE_string("optimizer", None, "Pretrained name or artifact.")
  flags.DEFINE_string("workdir", None, "Folder for the results.")
  flags.DEFINE_string("task", "mlp", "Family.")
  flags.DEFINE_list("settings", [], "Settings of the task: setting=value.")
  flags.DEFINE_integer("num_steps", 1000, "Steps.", lower_bound=1)
  flags.DEFINE_string(
      "data_dir", None, "Folder with data sets; default: MULO_DATA_DIR.")
  flags.mark_flags_as_required(["optimizer", "workdir"])


def main(argv):
  """Writes and prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  asked, folder = flags.FLAGS, pathlib.Path(flags.FLAGS.workdir)
  try:
    artifact = mulo.read(asked.optimizer)
    rule = parametrizations.get(artifact.parametrization)
    task = build.task_of({"name": asked.task, **transfer.parse(
        asked.settings)}, rule, asked.data_dir)
    if task.base_shapes is None:
      raise ValueError(f"{asked.task} has no width, so no roles.")
    theta = jax.tree.map(jnp.asarray, artifact.theta)
    tx = unroll.scaled(artifact.lopt.opt_fn, rule, task)(
        theta, num_steps=asked.num_steps)
    rows = by_role(
        follow(task, tx, jax.random.key(0), asked.num_steps), task)
    folder.mkdir(parents=True, exist_ok=True)
  except (ValueError, OSError) as e:
    sys.exit(f"{type(e).__name__}: {e}")
  rows.to_csv(folder / "rule.csv", index=False)
  (folder / "table.md").write_text(table(rows) + "\n")
  plot(rows, folder / "rule.png")
  print(f"{table(rows)}\n\nPlot: {folder / 'rule.png'}")


if __name__ == "__main__":
  define_flags()
  app.run(main)
