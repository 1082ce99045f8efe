"""One outer step as one XLA program."""

from typing import Any, Callable, Iterable

import jax
import jax.numpy as jnp
import optax

from learned_opt import base as learned_opt_base
from meta_train import base
from meta_train.devices import parallel

InitFn = Callable[[], base.MetaState]
# `(state, {task: data}) -> (state, metrics)`.
StepFn = Callable[[base.MetaState, dict[str, Any]],
                  tuple[base.MetaState, dict[str, jax.Array]]]


def task_keys(key: jax.Array, names: Iterable[str], copies: int
              ) -> dict[str, jax.Array]:
  """Return {task: keys [copies]}, where `names` are the names of all tasks."""
  return {name: jax.random.split(jax.random.fold_in(key, i), copies)
          for i, name in enumerate(sorted(names))}


def key_of_step(seed: int, step: jax.Array) -> jax.Array:
  """Return the key of the outer step that follows `step` outer steps."""
  # 0 and 1 belong to the initial theta and the initial networks.
  return jax.random.fold_in(jax.random.key(seed), step + 2)


def make(lopt: learned_opt_base.LearnedOptimizer,
         estimators: dict[str, base.GradientEstimator],
         theta_opt: optax.GradientTransformation, copies: int, seed: int,
         devices: jax.sharding.Mesh | None = None, how: str = "shard_map",
         weights: dict[str, float] | None = None, streamed: bool = False
         ) -> tuple[InitFn, StepFn]:
  """Return the two functions of meta-training.

  Args:
    lopt: the learned optimizer.
    estimators: one gradient estimator per task. The gradients of the tasks are
      averaged.
    theta_opt: the meta-optimizer.
    copies: number of independent copies of each task.
    seed: seed of all random numbers.
    devices: see `parallel.mesh`; None for one device.
    how: the mapping, see `parallel.shard`.
    weights: weights of tasks in the average; a missing weight is 1.
    streamed: whether `data` are the batches of one outer step, see `stream`.

  Returns:
    `init() -> MetaState` and `step(state, data) -> (state, metrics)`, where
    `data` is {task: data of the task}. `step` donates the state. Metrics are a
    dict of float32 scalars: the norms of gradient and update, and for each task
    and for all tasks together "meta_loss", "inner_steps", "diverged" (fraction
    of inner steps whose loss was not finite) and "dropped" (copies left out).
  """
  root = jax.random.key(seed)
  devices = parallel.mesh(copies, 1) if devices is None else devices
  init_states, estimate = parallel.shard(
      estimators, devices, how, streamed)
  weights = {name: (weights or {}).get(name, 1.0) for name in estimators}
  mean = lambda values: sum(
      weights[name] * x for name, x in values.items()) / sum(weights.values())

  def init():
    theta = lopt.init(jax.random.fold_in(root, 0))
    keys = task_keys(jax.random.fold_in(root, 1), estimators, copies)
    return base.MetaState(
        jnp.zeros([], jnp.int32), theta, theta_opt.init(theta),
        init_states(keys, theta))

  def step(state, data):
    keys = task_keys(key_of_step(seed, state.step), estimators, copies)
    outs, states = estimate(
        keys, state.theta, state.estimator_states, data)
    names, grads = list(outs), [out.grad for out in outs.values()]
    grad = jax.tree.map(lambda *x: mean(dict(zip(names, x))), *grads)
    updates, opt_state = theta_opt.update(grad, state.opt_state, state.theta)
    theta = optax.apply_updates(state.theta, updates)
    metrics = {
        **_metrics(outs, mean), "grad_norm": optax.tree.norm(grad),
        "update_norm": optax.tree.norm(updates)}
    return base.MetaState(state.step + 1, theta, opt_state, states), metrics

  return jax.jit(init), jax.jit(step, donate_argnums=0)


def _metrics(outs: dict[str, base.EstimatorOut], mean: Callable[..., Any]
             ) -> dict[str, jax.Array]:
  """Return "<metric>" of all tasks and "<task>/<metric>" of each task."""
  total = jax.tree.map(lambda *x: sum(x), *[out.info for out in outs.values()])
  metrics = {
      "meta_loss": mean({name: out.meta_loss for name, out in outs.items()}),
      **_fractions(total)}
  for name, out in outs.items():
    values = {"meta_loss": out.meta_loss, **_fractions(out.info)}
    metrics |= {f"{name}/{k}": v for k, v in values.items()}
  return metrics


def _fractions(info: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Return `EstimatorOut.info` with "diverged" as a fraction of inner steps."""
  return {**info, "diverged": info["diverged"] / info["inner_steps"]}
