"""One outer step as one XLA program."""

from typing import Callable, Iterable

import jax
import jax.numpy as jnp
import optax

from learned_opt import base as learned_opt_base
from meta_train import base
from meta_train.devices import parallel


def task_keys(key: jax.Array, names: Iterable[str], copies: int
              ) -> dict[str, jax.Array]:
  """Keys [copies] for each task."""
  return {name: jax.random.split(jax.random.fold_in(key, i), copies)
          for i, name in enumerate(sorted(names))}


def key_of_step(seed: int, step: jax.Array) -> jax.Array:
  """The key of the outer step after `step` others."""
  return jax.random.fold_in(jax.random.key(seed), step + 2)


def make(lopt: learned_opt_base.LearnedOptimizer,
         estimators: dict[str, base.GradientEstimator],
         theta_opt: optax.GradientTransformation, copies: int, seed: int,
         devices: jax.sharding.Mesh | None = None, how: str = "shard_map",
         weights: dict[str, float] | None = None, streamed: bool = False
         ) -> tuple[Callable[[], base.MetaState], Callable]:
  """The two functions that meta-training is made of.

  Args:
    lopt: the learned optimizer.
    estimators: one gradient estimator per task; their gradients are averaged.
    theta_opt: the meta-optimizer.
    copies: independent copies of each task.
    seed: decides everything that is random.
    devices: see `parallel.mesh`; None for one device.
    how: see `parallel.shard`.
    weights: of the tasks in the average; 1 where there is none.
    streamed: data are the batches of one outer step, see `stream`.

  Returns:
    `init() -> MetaState`, and `step(state, data) -> (state, metrics)` with
    `data` {task: its data}; metrics are a dict of float32 scalars: for each
    task and for all "meta_loss", "inner_steps", "diverged" (the share of inner
    steps whose loss was not finite) and "dropped" (copies left out), and the
    norms of gradient and update. `step` donates the state.
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


def _metrics(outs: dict[str, base.EstimatorOut], mean: Callable) -> dict:
  """Metrics of each task, and of all."""
  total = jax.tree.map(lambda *x: sum(x), *[out.info for out in outs.values()])
  metrics = {
      "meta_loss": mean({name: out.meta_loss for name, out in outs.items()}),
      **_shares(total)}
  for name, out in outs.items():
    values = {"meta_loss": out.meta_loss, **_shares(out.info)}
    metrics |= {f"{name}/{k}": v for k, v in values.items()}
  return metrics


def _shares(info: dict) -> dict:
  return {**info, "diverged": info["diverged"] / info["inner_steps"]}
