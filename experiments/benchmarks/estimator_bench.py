"""Bias, variance and cost of all gradient estimators on a toy problem.

python -m experiments.benchmarks.estimator_bench --workdir=runs/estimators

Gradient descent with momentum trains a small quadratic. theta is the logarithm
of the step size and the momentum. One direction of the quadratic is so flat
that theta affects it only over a whole episode: according to a truncation, the
momentum should be lower; according to the episode, it should be higher.

Start and curvature are fixed, so that one exact meta-gradient exists: the
gradient of the mean loss over the episode.

* Bias and variance: each estimator is run on many independent episodes of one
  copy each, and its estimates are averaged over the outer steps of the episode.
  All estimators get the same keys. Estimators that draw their noise alike, such
  as full_es and noise_reuse_es, get the same noise.
* Cost: the estimators take turns on the same problem with many copies.

Prints a table and writes results.csv, table.md and estimators.png to the
workdir.
"""

import pathlib
from typing import Any, Callable

from absl import flags
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd

from experiments import command
from experiments.benchmarks import timing
from learned_opt import registry
from meta_train import base
from meta_train import estimators
from tasks import base as tasks_base
from tasks import families

THETA = {"log_step": np.float32(-0.5), "momentum": np.float32(0.7)}
TRUNCATION, LENGTH = 5, 40  # inner steps
DIM, CONDITION = 3, 100.0
# Standard deviation of perturbations. It is small enough that the gradients of
# the smoothed loss and of the loss agree to 1e-4, and large enough that
# differences of losses in float32 have this precision, too.
STD = 1e-3
# Relative error up to which an estimate without variance counts as exact.
ROUNDING = 1e-3
CHUNK = 4096  # episodes that are run at once


def sgd(theta: Any, *, num_steps: Any = None
        ) -> optax.GradientTransformationExtraArgs:
  """Return gradient descent with momentum; `theta` has the keys of THETA."""
  del num_steps
  return optax.with_extra_args_support(optax.chain(
      optax.trace(theta["momentum"]), optax.scale(-jnp.exp(theta["log_step"]))))


def loss(task: tasks_base.Task, params: Any) -> jax.Array:
  """Return the loss of the quadratic, which has no noise and no batches."""
  return task.loss(params, jax.random.key(0), {})[0]


def make_task() -> tasks_base.Task:
  """Return the quadratic with one start, where directions have equal losses."""
  task = families.get("quadratic", None, dim=DIM, condition=CONDITION)
  curvature = jax.grad(lambda p: loss(task, {"p": p}))(jnp.ones(DIM))
  start = 1 / jnp.sqrt(DIM * curvature)
  return task._replace(init=lambda key: {"p": start})


def mean_loss(theta: Any) -> jax.Array:
  """Return the mean loss over an episode, without meta_train and optax."""
  task = make_task()
  value_and_grad = jax.value_and_grad(lambda p: loss(task, p))
  params = task.init(jax.random.key(0))

  def step(carry, _):
    params, velocity = carry
    value, grad = value_and_grad(params)
    velocity = theta["momentum"] * velocity + grad["p"]
    moved = params["p"] - jnp.exp(theta["log_step"]) * velocity
    return ({"p": moved}, velocity), value

  _, losses = jax.lax.scan(
      step, (params, jnp.zeros(DIM)), None, length=LENGTH)
  return jnp.mean(losses)


def exact() -> np.ndarray:
  """Return the exact meta-gradient [theta], in the order of THETA."""
  grad = jax.jit(jax.grad(mean_loss))(THETA)
  return np.array([grad[name] for name in THETA], np.float64)


def make(name: str, std: float = STD) -> tuple[base.GradientEstimator, int]:
  """Return an estimator on the problem, and its outer steps per episode."""
  settings = {
      "task": make_task(), "opt_fn": sgd, "truncation": TRUNCATION,
      "shortest": LENGTH, "longest": LENGTH}
  known = registry.all_settings(estimators.__name__, name, **settings)
  if "std" in known:
    settings["std"] = std
  # Only estimators that truncate episodes have the setting "stagger". Without
  # staggering, the first outer step starts an episode for every copy.
  truncated = "stagger" in known
  if truncated:
    settings["stagger"] = False
  return (estimators.get(name, **settings),
          LENGTH // TRUNCATION if truncated else 1)


def estimates(name: str, repeats: int, seed: int, std: float = STD,
              progress: Callable[[], Any] = lambda: None) -> np.ndarray:
  """Return estimates from independent episodes of one copy each.

  Args:
    name: name of the estimator.
    repeats: number of episodes.
    seed: seed of the episodes.
    std: standard deviation of the perturbations; unused by estimators without
      perturbations.
    progress: called after each CHUNK of episodes.

  Returns:
    Means over the outer steps of an episode, [repeats, theta].
  """
  estimator, outer_steps = make(name, std)
  data = make_task().data

  def episode(key):
    keys = jax.random.split(key, outer_steps + 1)

    def outer_step(state, key):
      out, state = estimator.estimate(key[None], THETA, state, data)
      return state, jnp.stack([out.grad[part] for part in THETA])

    # One key starts the episode, one key belongs to each outer step.
    state = estimator.init(keys[:1], THETA)
    _, grads = jax.lax.scan(outer_step, state, keys[1:])
    return jnp.mean(grads, 0)

  run = jax.jit(jax.vmap(episode))
  keys = jax.random.split(jax.random.key(seed), repeats)
  chunks = []
  for begin in range(0, repeats, CHUNK):
    chunks.append(np.float64(run(keys[begin:begin + CHUNK])))
    progress()
  return np.concatenate(chunks)


def accuracy(grads: np.ndarray, target: np.ndarray) -> dict[str, Any]:
  """Return columns on bias and variance, in units of the norm of `target`.

  Args:
    grads: estimates [repeats, theta].
    target: exact gradient [theta].
  """
  unit = np.linalg.norm(target)
  error = (np.mean(grads, 0) - target) / unit
  std = np.std(grads, 0, ddof=1) / unit
  bars = 3 * std / np.sqrt(len(grads))
  # An estimator without variance has bars of 0, but still rounds.
  within = np.all(np.abs(error) < np.maximum(bars, ROUNDING))
  columns = {
      "bias": np.linalg.norm(error),
      "3 standard errors": np.linalg.norm(bars),
      "within 3 standard errors": "yes" if within else "no",
      "std per copy": np.linalg.norm(std)}
  for name, e, bar in zip(THETA, error, bars):
    columns |= {f"error {name}": e, f"3 SE {name}": bar}
  return columns


def accuracies(names: list[str], repeats: int, seed: int) -> pd.DataFrame:
  """Measure bias and variance of estimators: one row per estimator.

  Args:
    names: names of the estimators.
    repeats: episodes of each estimator.
    seed: seed of the episodes.
  """
  target, rows = exact(), []
  chunks = -(-repeats // CHUNK)  # rounded up
  with command.progress(len(names) * chunks, "chunk", leave=False) as bar:
    for name in names:
      bar.set_description(name)
      grads = estimates(name, repeats, seed, progress=bar.update)
      rows.append({"estimator": name, "outer steps per episode": make(name)[1],
                   **accuracy(grads, target)})
  return pd.DataFrame(rows)


def costs(names: list[str], copies: int, rounds: int) -> pd.DataFrame:
  """Measure the time per outer step of estimators that take turns.

  Args:
    names: names of the estimators.
    copies: copies in an outer step.
    rounds: turns of each estimator.

  Returns:
    One row per estimator.
  """
  data = make_task().data
  # All steps use the same keys: to make new keys would take time, too.
  keys = jax.random.split(jax.random.key(0), copies)
  steps: dict[str, Callable] = {}
  inner_steps = {}
  with command.progress(len(names), "estimator", "compiling",
                        leave=False) as bar:
    for name in names:
      estimator, _ = make(name)
      call = jax.jit(estimator.estimate)
      out, state = call(keys, THETA, estimator.init(keys, THETA), data)
      inner_steps[name] = int(out.info["inner_steps"])
      kept = [state]

      # Defaults bind the values of this iteration.
      def advance(call=call, kept=kept):
        out, kept[0] = call(keys, THETA, kept[0], data)
        return out, kept[0]

      steps[name] = advance
      bar.update()
  seconds = {name: float(np.median(values)) for name, values in
             timing.interleave(steps, rounds, 5).items()}
  return pd.DataFrame([{
      "estimator": name, "ms per outer step": 1e3 * seconds[name],
      "inner steps per outer step": inner_steps[name],
      "inner steps per second": inner_steps[name] / seconds[name]}
      for name in names])


def plot(table: pd.DataFrame, path: pathlib.Path) -> None:
  """Plot errors with their error bars, and standard deviations."""
  matplotlib.use("Agg")
  figure, (left, right) = plt.subplots(
      1, 2, figsize=(11, 4), sharey=True, width_ratios=(3, 2))
  rows = np.arange(len(table))
  for i, name in enumerate(THETA):  # the two components, one above the other
    left.errorbar(
        table[f"error {name}"], rows + 0.24 * (i - 0.5),
        xerr=table[f"3 SE {name}"], fmt="os"[i], capsize=3, label=name)
  left.axvline(0, color="black", linewidth=0.8)
  left.set_xscale("symlog", linthresh=0.1, subs=(2, 5))
  left.xaxis.set_major_formatter("{x:g}")
  left.xaxis.set_minor_formatter("{x:g}")
  left.margins(x=0.08)
  left.set_xlabel("(mean estimate - exact) / |exact|, logarithmic from 0.1\n"
                  "bars: 3 standard errors")
  left.set_yticks(rows, table["estimator"])
  left.invert_yaxis()
  left.grid(axis="x", which="both", alpha=0.3)
  left.legend(title="component of theta")
  bars = right.barh(rows, table["std per copy"], color="tab:gray")
  right.bar_label(bars, fmt="%.3g", padding=3)
  right.margins(x=0.15)
  right.set_xlabel("standard deviation of one copy / |exact|")
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)


def write(table: pd.DataFrame, header: str, workdir: pathlib.Path) -> str:
  """Write all files to the workdir and return the text of table.md."""
  workdir.mkdir(parents=True, exist_ok=True)
  table.to_csv(workdir / "results.csv", index=False)
  plot(table, workdir / "estimators.png")
  components = [c for name in THETA for c in (f"error {name}", f"3 SE {name}")]
  text = header + "\n\n" + table.drop(columns=components).to_markdown(
      index=False, floatfmt=".3g") + "\n"
  (workdir / "table.md").write_text(text)
  return text


def define_flags() -> None:
  """Define the flags."""
  command.define_workdir()
  flags.DEFINE_integer(
      "repeats", 2**16, "Episodes of one copy per estimator, for bias and "
      "variance.", lower_bound=2)
  # With few copies, calling a program takes longer than running the program.
  flags.DEFINE_integer(
      "copies", 1024, "Copies in an outer step, for the cost.", lower_bound=1)
  flags.DEFINE_integer(
      "rounds", 20, "Turns of each estimator, for the cost.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Seed of the episodes.")


def main(args: flags.FlagValues) -> None:
  """Measure all estimators, then write and print the table."""
  names = estimators.names()
  table = accuracies(names, args.repeats, args.seed).merge(
      costs(names, args.copies, args.rounds))
  header = (
      f"{jax.devices()[0].device_kind}, jax {jax.__version__}. Episodes of "
      f"{LENGTH} inner steps, truncations of {TRUNCATION}. Bias and standard "
      f"deviation from {args.repeats} episodes of one copy, in units of the "
      f"exact gradient; cost with {args.copies} copies, where both networks "
      "of a pair count.")
  print(write(table, header, pathlib.Path(args.workdir)))


if __name__ == "__main__":
  command.run(define_flags, main)
