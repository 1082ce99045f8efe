r"""Compare the updates of a learned optimizer with gradient, momentum and Adam.

python -m experiments.studies.learned_rule --workdir=runs/rule \
    --optimizer=mulo-s [--settings=width=128,dataset=mnist,image_size=14]

Trains a network with the learned optimizer. At every step, compares the update
of each parameter with three directions that are computed from the same
gradients: gradient, momentum and Adam's direction. The results are the cosine
with each direction, and RMS(update) / RMS(Adam's direction), which is the
learning rate that Adam would need. The results are averaged over parameters of
the same role.

First prints the gates of experiments/gates.py; with --num_steps=0, only these.

Writes rule.csv, table.md and rule.png to the workdir.
"""

import pathlib
from typing import Callable

from absl import flags
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pandas as pd

from experiments import command
from experiments import gates
from learned_opt import artifact as artifact_lib
from learned_opt.scaling import fan
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import unroll
import mulo
from tasks import base as tasks_base

MEASURES = ("learning rate of Adam", "cosine, gradient", "cosine, momentum",
            "cosine, Adam")
POINTS = 100  # of a curve
CHUNK = 50  # steps per call of the device


def measures(update, grad, momentum, adam) -> jax.Array:
  """Return the MEASURES of one parameter's update, float32 [4].

  Args:
    update: update of the parameter.
    grad: its gradient, of the same shape.
    momentum: moving average of its gradients.
    adam: Adam's direction, with the sign of the gradient.
  """
  norm = lambda x: jnp.linalg.norm(x.reshape(-1))
  # A ratio is 0 where its denominator is 0. The inner `where` avoids NaN.
  ratio = lambda x, y: jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)
  # An update is added, so it descends along the negative direction.
  cosine = lambda direction: ratio(
      -jnp.vdot(update, direction), norm(update) * norm(direction))
  return jnp.stack([ratio(norm(update), norm(adam)), cosine(grad),
                    cosine(momentum), cosine(adam)])


def follow(task: tasks_base.Task, tx: optax.GradientTransformationExtraArgs,
           key: jax.Array, num_steps: int,
           on_chunk: Callable[[int], None] = lambda steps: None
           ) -> dict[str, np.ndarray]:
  """Train a network and measure every update.

  Args:
    task: the task.
    tx: the optimizer.
    key: determines the initial parameters and the batches.
    num_steps: number of steps.
    on_chunk: called with the number of steps since the last call.

  Returns:
    {path of a parameter: MEASURES of each step, [num_steps, 4]}.
  """
  adam = optax.scale_by_adam()

  @jax.jit
  def advance(state, data, keys):
    def step(state, key):
      params, opt_state, adam_state = state
      batch_key, loss_key = jax.random.split(key)
      batch = task.sample_batch(batch_key, data)
      grads = jax.grad(lambda p: task.loss(p, loss_key, batch)[0])(params)
      updates, opt_state = tx.update(grads, opt_state, params)
      direction, adam_state = adam.update(grads, adam_state)
      measured = jax.tree.map(
          measures, updates, grads, adam_state.mu, direction)
      return (optax.apply_updates(params, updates), opt_state,
              adam_state), measured

    return jax.lax.scan(step, state, keys)

  data = jax.device_put(task.data["train"])
  params = task.init(jax.random.fold_in(key, 0))
  state = params, tx.init(params), adam.init(params)
  keys = jax.random.split(key, num_steps)
  chunks = []
  for first in range(0, num_steps, CHUNK):
    state, measured = advance(state, data, keys[first:first + CHUNK])
    chunks.append(jax.device_get(measured))
    on_chunk(min(CHUNK, num_steps - first))
  return artifact_lib.flatten(
      jax.tree.map(lambda *x: np.concatenate(x), *chunks))


def by_role(measured: dict[str, np.ndarray], task: tasks_base.Task
            ) -> pd.DataFrame:
  """Average over the parameters of a role and over hundredths of the steps.

  Args:
    measured: result of `follow`.
    task: the task that was trained.

  Returns:
    Columns role, part (fraction of the steps that is over) and MEASURES.
  """
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  roles = artifact_lib.flatten(jax.tree.map(
      lambda x, base: fan.role(x.shape, base.shape), shapes,
      task.base_shapes))
  frames = []
  for role in dict.fromkeys(str(x) for x in roles.values()):
    mean = np.mean(
        [x for path, x in measured.items() if roles[path] == role], 0)
    parts = np.array_split(mean, min(POINTS, len(mean)))
    frames.append(pd.DataFrame(
        [part.mean(0) for part in parts], columns=list(MEASURES)).assign(
            role=role, part=(np.arange(len(parts)) + 1) / len(parts)))
  return pd.concat(frames, ignore_index=True)


def table(rows: pd.DataFrame) -> str:
  """Return a Markdown table: first part, 10 %, 50 % and 100 % of the steps."""
  moments = [rows.part.min(), 0.1, 0.5, 1.0]
  chosen = pd.concat([rows[np.isclose(rows.part, m)] for m in moments])
  chosen = chosen.drop_duplicates().sort_values(["role", "part"])
  return chosen[["role", "part", *MEASURES]].to_markdown(
      index=False, floatfmt=".3g")


def plot(rows: pd.DataFrame, path: pathlib.Path) -> None:
  """Plot the rows of `by_role`: a panel per measure, a line per role."""
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  figure, axes = plt.subplots(1, len(MEASURES), figsize=(14, 3.2),
                              layout="constrained")
  for axis, measure in zip(axes, MEASURES):
    for role, group in rows.groupby("role", sort=False):
      axis.plot(group.part, group[measure], label=role)
    axis.set(title=measure, xlabel="fraction of the steps",
             yscale="log" if measure == MEASURES[0] else "linear")
  axes[0].legend(fontsize="small")
  figure.savefig(path, dpi=120)
  plt.close(figure)


def define_flags() -> None:
  """Define the flags of this command."""
  command.define_workdir()
  command.define_data_dir()
  command.define_trust()
  command.define_task()
  flags.DEFINE_string(
      "optimizer", None,
      "Learned optimizer: a pretrained name or a .safetensors file.",
      required=True)
  flags.DEFINE_integer(
      "num_steps", 1000, "Steps to train.", lower_bound=0)


def main(flags) -> None:
  """Measure the updates; write and print the table.

  Raises:
    ValueError: flags that do not fit together, or a task without width.
    OSError: a missing artifact or data set, or a workdir that is not writable.
  """
  artifact = mulo.read(flags.optimizer, flags.trust)
  parametrization = parametrizations.get(artifact.parametrization)
  task = build.task_of(
      {"name": flags.task, **command.parse_settings(flags.settings)},
      parametrization, flags.data_dir)
  if task.base_shapes is None:
    raise ValueError(f"{flags.task} has no width, so no roles.")
  print(f"{gates.table(gates.measure(artifact))}\n")
  if not flags.num_steps:
    return
  theta = jax.tree.map(jnp.asarray, artifact.theta)
  tx = unroll.scaled(artifact.lopt.opt_fn, parametrization, task)(
      theta, num_steps=flags.num_steps)
  with command.progress(flags.num_steps, "step", "training") as bar:
    rows = by_role(follow(
        task, tx, jax.random.key(0), flags.num_steps, bar.update), task)
  folder = pathlib.Path(flags.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  rows.to_csv(folder / "rule.csv", index=False)
  (folder / "table.md").write_text(table(rows) + "\n")
  plot(rows, folder / "rule.png")
  print(f"{table(rows)}\n\nPlot: {folder / 'rule.png'}")


if __name__ == "__main__":
  command.run(define_flags, main)
