"""One outer step as one XLA program."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax

from learned_opt import base as learned_opt_base
from meta_train import base


def make(lopt: learned_opt_base.LearnedOptimizer,
         estimators: dict[str, base.GradientEstimator],
         theta_opt: optax.GradientTransformation, copies: int, seed: int
         ) -> tuple[Callable[[], base.MetaState], Callable]:
  """The two functions that meta-training is made of.

  Args:
    lopt: the learned optimizer.
    estimators: one gradient estimator per task; their gradients are averaged.
    theta_opt: the meta-optimizer.
    copies: independent copies of each task.
    seed: decides everything that is random.

  Returns:
    `init() -> MetaState`, and `step(state, data) -> (state, metrics)` with
    `data` {task: its data}; metrics are a dict of float32 scalars. `step`
    donates the state.
  """
  root = jax.random.key(seed)

  def task_keys(key) -> dict[str, Any]:
    return {name: jax.random.split(jax.random.fold_in(key, i), copies)
            for i, name in enumerate(sorted(estimators))}

  def init():
    theta = lopt.init(jax.random.fold_in(root, 0))
    keys = task_keys(jax.random.fold_in(root, 1))
    states = {name: estimator.init(keys[name], theta)
              for name, estimator in estimators.items()}
    return base.MetaState(
        jnp.zeros([], jnp.int32), theta, theta_opt.init(theta), states)

  def step(state, data):
    keys = task_keys(jax.random.fold_in(root, state.step + 2))
    outs, states = {}, {}
    metrics: dict[str, Any] = {}
    for name, estimator in estimators.items():
      outs[name], states[name] = estimator.estimate(
          keys[name], state.theta, state.estimator_states[name], data[name])
      metrics[f"{name}/meta_loss"] = outs[name].meta_loss
      metrics |= {f"{name}/{k}": v for k, v in outs[name].info.items()}
    grad = jax.tree.map(
        lambda *x: sum(x) / len(x), *[out.grad for out in outs.values()])
    updates, opt_state = theta_opt.update(grad, state.opt_state, state.theta)
    theta = optax.apply_updates(state.theta, updates)
    metrics |= {
        "meta_loss": sum(o.meta_loss for o in outs.values()) / len(outs),
        "inner_steps": sum(o.info["inner_steps"] for o in outs.values()),
        "grad_norm": optax.tree.norm(grad),
        "update_norm": optax.tree.norm(updates)}
    return base.MetaState(state.step + 1, theta, opt_state, states), metrics

  return jax.jit(init), jax.jit(step, donate_argnums=0)
