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
         weights: dict[str, float] | None = None, streamed: bool = False,
         average_after: int | None = None) -> tuple[InitFn, StepFn]:
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
    average_after: `MetaState.average` is the mean over all later outer steps;
      None: there is none.

  Returns:
    `init() -> MetaState` and `step(state, data) -> (state, metrics)`, where
    `data` is {task: data of the task}. `step` donates the state. Metrics are a
    dict of float32 scalars: the norms of gradient and update, "autocorrelation"
    (cosine of the gradient and that of the outer step before), and for each
    task and for all tasks together "meta_loss", "inner_steps", "diverged"
    (fraction of inner steps whose loss was not finite), "dropped" (copies left
    out) and "snr" (squared norm of the gradient, over the variance of this mean
    across copies; 1 for noise alone).
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
    zeros = lambda: jax.tree.map(jnp.zeros_like, theta)
    return base.MetaState(
        jnp.zeros([], jnp.int32), theta, zeros(), zeros(),
        theta_opt.init(theta), init_states(keys, theta))

  def step(state, data):
    keys = task_keys(key_of_step(seed, state.step), estimators, copies)
    outs, states = estimate(
        keys, state.theta, state.estimator_states, data)
    names, grads = list(outs), [out.grad for out in outs.values()]
    grad = jax.tree.map(lambda *x: mean(dict(zip(names, x))), *grads)
    updates, opt_state = theta_opt.update(grad, state.opt_state, state.theta)
    theta = optax.apply_updates(state.theta, updates)
    average = state.average
    if average_after is not None:
      count = jnp.maximum(state.step + 1 - average_after, 0)
      average = jax.tree.map(
          lambda old, new: jnp.where(count > 0, old + (new - old) / jnp.maximum(
              count, 1), old), average, theta)
    grad_norm = optax.tree.norm(grad)
    metrics = {
        **_metrics(outs, mean, weights, grad_norm), "grad_norm": grad_norm,
        "update_norm": optax.tree.norm(updates), "autocorrelation": _ratio(
            optax.tree.vdot(grad, state.grad),
            grad_norm * optax.tree.norm(state.grad))}
    return base.MetaState(state.step + 1, theta, average, grad, opt_state,
                          states), metrics

  return jax.jit(init), jax.jit(step, donate_argnums=0)


def _metrics(outs: dict[str, base.EstimatorOut], mean: Callable[..., Any],
             weights: dict[str, float], grad_norm: jax.Array
             ) -> dict[str, jax.Array]:
  """Return "<metric>" of all tasks and "<task>/<metric>" of each task."""
  total = jax.tree.map(lambda *x: sum(x), *[out.info for out in outs.values()])
  variances = {name: _variance(out) for name, out in outs.items()}
  variance = jnp.stack([
      (weights[name] / sum(weights.values()))**2 * x
      for name, x in variances.items()]).sum()
  metrics = {
      "meta_loss": mean({name: out.meta_loss for name, out in outs.items()}),
      **_fractions(total), "snr": _ratio(grad_norm**2, variance)}
  for name, out in outs.items():
    values = {"meta_loss": out.meta_loss, **_fractions(out.info), "snr": _ratio(
        optax.tree.norm(out.grad)**2, variances[name])}
    metrics |= {f"{name}/{k}": v for k, v in values.items()}
  return metrics


def _variance(out: base.EstimatorOut) -> jax.Array:
  """Return the variance of the mean gradient, summed over its entries.

  It is 0 if there are less than two copies.
  """
  excess = (out.info["gradient_squares"] / jnp.maximum(out.copies, 1) -
            optax.tree.norm(out.grad)**2)
  return jnp.where(out.copies > 1, jnp.maximum(excess, 0) / jnp.maximum(
      out.copies - 1, 1), 0)


def _ratio(x: jax.Array, y: jax.Array) -> jax.Array:
  """Return x / y, or 0 where y is 0."""
  return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)


def _fractions(info: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Return `EstimatorOut.info` with "diverged" as a fraction of inner steps."""
  info = {k: v for k, v in info.items() if k != "gradient_squares"}
  return {**info, "diverged": info["diverged"] / info["inner_steps"]}
