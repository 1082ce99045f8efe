"""Settings of full ES, and what an outer step logs about its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_estimators as lib

from learned_opt import base as learned_opt_base
from learned_opt.scaling import parametrizations
from meta_train import estimators
from meta_train import step as step_lib
from meta_train import unroll
from tasks import families

TASK, THETA, sgd = lib.TASK, lib.THETA, lib.sgd
# Copies begin at different points.
RANDOM = families.get("quadratic", None, dim=3)


def estimate(task=TASK, copies=4, steps=2, first=None, name="full_es",
             **settings):
  """Return the estimates of several outer steps."""
  settings = {"std": 0.01, "truncation": 2, "shortest": 4, "longest": 8,
              **settings}
  estimator = estimators.get(name, task=task, opt_fn=sgd, **settings)
  keys = jax.random.split(jax.random.key(3), copies)[:first]
  state, outs = estimator.init(keys, THETA), []
  run = jax.jit(estimator.estimate)
  for _ in range(steps):
    out, state = run(keys, THETA, state, jax.device_put(task.data))
    outs.append(out)
  return outs


@pytest.mark.parametrize("name", ["full_es", "pes"])
def test_relative_differences_do_not_depend_on_the_size_of_losses(name):
  larger = TASK._replace(normalize=lambda x: 1024 * TASK.normalize(x))
  for relative in (True, False):
    small, large = (estimate(task, name=name, relative=relative)[-1].grad
                    for task in (TASK, larger))
    ratio = float(large["momentum"] / small["momentum"])
    np.testing.assert_allclose(ratio, 1 if relative else 1024, rtol=1e-4)


def test_relative_differences_have_the_running_size():
  """The first difference of a copy counts as +-1."""
  out, = estimate(copies=1, steps=1, relative=True, std=0.1)
  raw, = estimate(copies=1, steps=1, std=0.1)
  ratio = raw.grad["momentum"] / out.grad["momentum"]  # |difference|
  assert ratio > 0
  np.testing.assert_allclose(
      raw.info["gradient_squares"] / out.info["gradient_squares"], ratio**2,
      rtol=1e-4)


def test_each_is_the_mean_over_train_and_validation():
  task = families.get(
      "mlp", parametrizations.get("standard"), width=2, depth=1, batch_size=2)
  grads = {split: estimate(task, steps=1, loss_split=split)[0].grad
           for split in ("train", "inner_valid", "each")}
  assert abs(grads["train"]["momentum"] - grads["inner_valid"]["momentum"]) > 0
  for name in THETA:
    np.testing.assert_allclose(
        grads["each"][name],
        (grads["train"][name] + grads["inner_valid"][name]) / 2, rtol=1e-3)
  for other in ("pes", "truncated_backprop"):
    with pytest.raises(ValueError, match="Unknown loss_split 'each'"):
      estimators.get(other, task=TASK, opt_fn=sgd, loss_split="each")


def test_one_length_for_all_copies():
  """Lengths differ between outer steps, not between copies."""
  settings = dict(shortest=2, longest=40, steps=4, copies=3)
  steps = lambda **more: [float(out.info["inner_steps"]) for out in estimate(
      **settings, **more)]
  alone = [float(out.info["inner_steps"]) for out in estimate(
      **settings, same_length=True, first=1)]
  assert steps(same_length=True) == [3 * x for x in alone]
  assert len(set(alone)) > 1
  assert any(x % 3 for x in np.array(steps()) / 4)


def test_standard_deviations_of_groups():
  frozen, = estimate(copies=64, steps=1, std_mults={"mom.*": 0.0})
  assert frozen.grad["momentum"] == 0 and frozen.grad["log_step"] != 0
  # The mean stays that of the exact gradient.
  exact = jax.grad(lambda theta: jnp.mean(unroll.unroll(
      TASK, sgd, theta, unroll.start(TASK, sgd, theta, jax.random.key(0), 8),
      jax.random.key(0), TASK.data, 8)[1]))(THETA)
  out, = estimate(copies=4096, steps=1, std=1e-3, shortest=8,
                  std_mults={"momentum": 3.0})
  for name in THETA:
    np.testing.assert_allclose(out.grad[name], exact[name], rtol=0.2)
  for wrong in ({"nope": 1.0}, {"momentum": -1.0}):
    with pytest.raises(ValueError, match="std_mults"):
      estimate(std_mults=wrong)


def outer_steps(name, copies, count, average_after=None, rate=0.1):
  lopt = learned_opt_base.LearnedOptimizer(lambda key: THETA, sgd)
  settings = {} if name == "full_es" else {"stagger": False}
  estimator = estimators.get(name, task=RANDOM, opt_fn=sgd, truncation=2,
                             shortest=4, longest=4, **settings)
  init, step = step_lib.make(
      lopt, {"a": estimator, "b": estimator}, optax.sgd(rate), copies, seed=1,
      average_after=average_after, weights={"b": 3.0})
  data, state, rows = {"a": RANDOM.data, "b": RANDOM.data}, init(), []
  for _ in range(count):
    state, metrics = step(state, data)
    rows.append((jax.device_get(state), jax.device_get(metrics)))
  return estimator, rows


@pytest.mark.parametrize("name", ["full_es", "pes", "truncated_backprop"])
def test_signal_to_noise(name):
  """The variance is that of the copies' own gradients."""
  copies = 5
  estimator, rows = outer_steps(name, copies, 1, rate=0.0)
  keys = step_lib.task_keys(
      step_lib.key_of_step(1, jnp.int32(0)), ["a", "b"], copies)
  states = step_lib.task_keys(
      jax.random.fold_in(jax.random.key(1), 1), ["a", "b"], copies)
  run = jax.jit(estimator.estimate)
  gradients = {}
  for task in ("a", "b"):
    gradients[task] = np.array([jax.flatten_util.ravel_pytree(run(
        keys[task][i:i + 1], THETA,
        estimator.init(states[task][i:i + 1], THETA), RANDOM.data)[0].grad)[0]
                                for i in range(copies)])
  variance = lambda g: np.sum(np.var(g, 0, ddof=1)) / copies
  square = lambda g: np.sum(np.mean(g, 0)**2)
  metrics = rows[0][1]
  for task, g in gradients.items():
    np.testing.assert_allclose(
        metrics[f"{task}/snr"], square(g) / variance(g), rtol=1e-3)
  mean = 0.25 * gradients["a"] + 0.75 * gradients["b"]
  np.testing.assert_allclose(metrics["snr"], square(mean) / (
      variance(gradients["a"]) / 16 + variance(gradients["b"]) * 9 / 16),
                             rtol=1e-3)


def test_average_of_theta_and_autocorrelation():
  _, rows = outer_steps("pes", 2, 5, average_after=2)
  thetas = [float(state.theta["momentum"]) for state, _ in rows]
  averages = [float(state.average["momentum"]) for state, _ in rows]
  assert averages[:2] == [0, 0] and len(set(thetas)) == 5
  np.testing.assert_allclose(
      averages[2:], [np.mean(thetas[2:i]) for i in (3, 4, 5)], rtol=1e-6)
  flat = [jax.flatten_util.ravel_pytree(state.grad)[0] for state, _ in rows]
  for i in range(1, 5):
    np.testing.assert_allclose(
        rows[i][1]["autocorrelation"], flat[i] @ flat[i - 1] / np.sqrt(
            flat[i] @ flat[i] * (flat[i - 1] @ flat[i - 1])), rtol=1e-4)
  assert rows[0][1]["autocorrelation"] == 0
