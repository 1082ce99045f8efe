"""Meta-training that starts from a theta in a file."""

import jax
import numpy as np
import pytest
import tiny_config

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from meta_train import build
from meta_train import train
import mulo


def written(path, log_learning_rate):
  """Write a theta of the optimizer of tiny_config."""
  settings = optimizers.all_settings("hyperparam_adam", learning_rate=0.1)
  theta = optimizers.get("hyperparam_adam", **settings).init(jax.random.key(0))
  theta = jax.tree.map(
      lambda x: np.full_like(x, log_learning_rate), jax.device_get(theta))
  mulo.save(path, artifact_lib.Artifact(
      "hyperparam_adam", settings, "mup", theta))
  return theta


def config_of(path, **settings):
  config = tiny_config.get_config().unlock()
  config.start = str(path)
  config.num_steps = 4
  config.update(settings)
  return config.lock()


def test_a_run_starts_from_the_file_and_goes_on_with_no_other(tmp_path):
  path, folder = tmp_path / "start.safetensors", tmp_path / "run"
  theta = written(path, 0.01)
  config = config_of(path)
  state = build.build(config, None).init()
  jax.tree.map(np.testing.assert_array_equal, state.theta, theta)
  train.meta_train(config, str(folder))
  record = mulo.read(folder / "theta.safetensors").record
  assert record["config"]["start_sha256"] == artifact_lib.sha256(theta)
  written(path, 0.02)
  with pytest.raises(ValueError, match="start_sha256"):
    train.meta_train(config, str(folder))


def test_wrong_files_are_refused(tmp_path):
  path = tmp_path / "start.safetensors"
  for wrong, message in (
      (config_of(tmp_path / "missing"), "config.start: .*missing"),
      (config_of(path, start_sha256="0" * 64), "not 0000"),
      (config_of(path, optimizer={"name": "nn_adam"}), "belongs to hyper")):
    written(path, 0.01)
    with pytest.raises(ValueError, match=message):
      train.meta_train(wrong, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
