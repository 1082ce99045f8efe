"""From a config to functions: meta-optimizer, streamed data, metrics files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_estimators as shared
import tiny_config

from learned_opt import base as learned_opt_base
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import estimators
from meta_train import step as step_lib
from meta_train import train
from meta_train import unroll
from meta_train.workdir import metrics
import mulo
from tasks import families


def sgd(num_steps):
  """Return another meta-optimizer, for theta_opt.make."""
  return optax.sgd(1 / num_steps)


def test_both_is_the_mean_of_train_and_validation_loss():
  standard = parametrizations.get("standard")
  task = families.get("mlp", standard, width=2, depth=1, batch_size=2)
  inner_opt = lambda theta, num_steps: optax.sgd(0.1)
  state = unroll.start(task, inner_opt, None, jax.random.key(0), 5)
  data = jax.tree.map(jnp.asarray, task.data)
  losses = {split: np.array(unroll.unroll(
      task, inner_opt, None, state, jax.random.key(1), data, 5, split)[1])
            for split in ("train", "inner_valid", "both")}
  assert np.all(losses["train"] != losses["inner_valid"])
  np.testing.assert_allclose(
      losses["both"], (losses["train"] + losses["inner_valid"]) / 2, rtol=1e-6)


@pytest.mark.parametrize("loss_split", ["train", "both"])
def test_streamed_batches_are_those_of_resident_data(loss_split, tmp_path):
  config = tiny_config.get_config()
  config.num_steps = 8
  config.estimator.loss_split = loss_split
  results = []
  for stream, devices in ((False, 2), (True, 2)):
    config.update(stream=stream, devices=devices)
    path = train.meta_train(config, str(tmp_path / str(stream)))
    results.append(mulo.read(path).theta)
  for name, x in results[0].items():
    np.testing.assert_array_equal(results[1][name], x)


def test_an_optimizer_from_another_module(tmp_path, capsys):
  """A run reads its own files, although they name code of its config."""
  config = tiny_config.get_config()
  with config.unlocked():
    config.num_steps = 3
    del config["optimizer"], config.tasks["digits"]
    config.optimizer = {"name": "learned_opt.optimizers.hyperparam_adam:make"}
  path = train.meta_train(config, str(tmp_path))
  train.meta_train(config, str(tmp_path))
  assert "is finished" in capsys.readouterr().out
  with pytest.raises(ValueError, match='names "learned_opt.*trust'):
    mulo.read(path)


def test_meta_optimizer():
  """The gradient is clipped before AdamW; after it, a clip would do nothing."""
  section = tiny_config.get_config().theta_opt.to_dict()
  theta = {"x": np.ones(4, np.float32)}
  direction = {"x": np.array([0.5, -0.5, 0.5, -0.5], np.float32)}

  def update(sizes, **settings):
    """Return the update after gradients of these sizes."""
    tx = build.theta_optimizer(section | settings, 40)
    state = tx.init(theta)
    for size in sizes:
      grads = jax.tree.map(lambda x, size=size: size * x, direction)
      updates, state = tx.update(grads, state, theta)
    return updates["x"]

  outlier, constant = (1.0, 1e3, 1.0), (1.0, 1.0, 1.0)
  clipped = update(outlier, clip=1.0)
  np.testing.assert_allclose(clipped, update(constant, clip=1.0), rtol=1e-5)
  assert np.abs(update(outlier, clip=1e9) - clipped).max() > 1e-4
  np.testing.assert_allclose(
      update((1.0,), make="test_build:sgd"), -direction["x"] / 40, rtol=1e-6)


def test_tensorboard(tmp_path):
  board = pytest.importorskip("tensorboardX")
  del board
  with metrics.Writer(tmp_path / "m.jsonl", 0, tmp_path / "board") as writer:
    writer.write(1, {"x": 0.5})
  assert list((tmp_path / "board").iterdir())


def test_metrics_file(tmp_path):
  path = tmp_path / "metrics.jsonl"
  with metrics.Writer(path, 0) as writer:
    for step in (1, 2, 3):
      writer.write(step, {"x": 0.5 * step})
  with metrics.Writer(path, 2):
    pass
  assert metrics.read(path) == [{"step": 1, "x": 0.5}, {"step": 2, "x": 1.0}]
  assert json.loads(path.read_text().splitlines()[-1])["step"] == 2


def test_tasks_have_weights():
  task, inner_opt = shared.TASK, shared.sgd
  other = task._replace(init=lambda key: {"p": jnp.array([0.5, 0.5, -1.0])})
  lopt = learned_opt_base.LearnedOptimizer(lambda key: shared.THETA, inner_opt)
  estimator = lambda task: estimators.get(
      "truncated_backprop", task=task, opt_fn=inner_opt, truncation=2,
      shortest=2, longest=2)
  results = {}
  for weights in ({"a": 3.0}, {"a": 1.0, "b": 1e-9}, {"a": 1e-9, "b": 1.0}):
    init, step = step_lib.make(
        lopt, {"a": estimator(task), "b": estimator(other)}, optax.sgd(1.0), 1,
        seed=0, weights=weights)
    state, metrics_of_step = step(init(), {"a": task.data, "b": task.data})
    results[tuple(weights.values())] = (
        np.asarray(state.theta["log_step"]), metrics_of_step["meta_loss"])
  both, a, b = results.values()
  np.testing.assert_allclose(both, 0.75 * np.array(a) + 0.25 * np.array(b),
                             rtol=1e-5)
