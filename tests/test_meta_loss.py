"""Meta-losses that estimators report: mean, late and last loss of an episode.
"""

import jax
import numpy as np
import pytest
import test_estimators as lib

from meta_train import estimators
from meta_train import unroll

LENGTH, TRUNCATION = lib.LENGTH, lib.TRUNCATION
TASK, THETA, sgd = lib.TASK, lib.THETA, lib.sgd


def late_loss(losses):
  """Return `n -> mean of losses[t - 1] * 2 t / n` for t from 1 to n."""
  return lambda n: np.mean(losses[:n] * 2 * np.arange(1, n + 1) / n)


def end_loss(losses):
  """Return `n -> sum of the losses after 80 % of n steps / (0.2 n)`."""
  return lambda n: np.sum(losses[:n][np.arange(1, n + 1) > 0.8 * n]) / (0.2 * n)


@pytest.mark.parametrize("name", ["full_es", "full_backprop"])
@pytest.mark.parametrize("loss", ["mean", "late", "end", "last"])
def test_meta_loss_of_an_episode(name, loss):
  """Steps after the end of an episode do not count."""
  almost_no_noise = dict(std=1e-9) if name == "full_es" else {}
  estimator = estimators.get(
      name, task=TASK, opt_fn=sgd, truncation=TRUNCATION, shortest=TRUNCATION,
      longest=LENGTH, loss=loss, **almost_no_noise)
  state = unroll.start(TASK, sgd, THETA, jax.random.key(0), LENGTH)
  _, losses = unroll.unroll(TASK, sgd, THETA, state, jax.random.key(0),
                            TASK.data, LENGTH)
  value = {"mean": lambda n: np.mean(losses[:n]), "late": late_loss(losses),
           "end": end_loss(losses), "last": lambda n: losses[n - 1]}[loss]
  for seed in range(4):
    keys = jax.random.split(jax.random.key(seed), 1)
    out, _ = jax.jit(estimator.estimate)(
        keys, THETA, estimator.init(keys, THETA), TASK.data)
    networks = 2 if name == "full_es" else 1
    length = int(out.info["inner_steps"]) // networks
    np.testing.assert_allclose(out.meta_loss, value(length), rtol=1e-5)


@pytest.mark.parametrize("name", [
    name for name in estimators.names() if not name.startswith("full_")])
def test_late_loss_over_truncations(name):
  almost_no_noise = {} if name.endswith("backprop") else {"std": 1e-9}
  estimator = estimators.get(
      name, task=TASK, opt_fn=sgd, truncation=TRUNCATION, shortest=LENGTH,
      longest=LENGTH, stagger=False, loss="late", **almost_no_noise)
  start = unroll.start(TASK, sgd, THETA, jax.random.key(0), LENGTH)
  _, losses = unroll.unroll(TASK, sgd, THETA, start, jax.random.key(0),
                            TASK.data, LENGTH)
  keys = jax.random.split(jax.random.key(0), 2)
  state, values = estimator.init(keys, THETA), []
  step = jax.jit(estimator.estimate)
  for _ in range(LENGTH // TRUNCATION):
    out, state = step(keys, THETA, state, TASK.data)
    values.append(out.meta_loss)
  np.testing.assert_allclose(
      np.mean(values), late_loss(losses)(LENGTH), rtol=1e-5)
