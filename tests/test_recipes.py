"""Recipes of configs, run for a few steps."""

import os

import numpy as np
import pytest

from meta_train import train
from meta_train.configs import mulo_m
from meta_train.workdir import metrics
import mulo


@pytest.mark.skipif(
    not os.path.isdir(os.path.join(
        os.environ.get("MULO_DATA_DIR", ""), "cifar-10-batches-bin")),
    reason="MULO_DATA_DIR has no CIFAR-10")
def test_the_recipe_for_a_gpu(tmp_path):
  """On a CPU, with one narrow network and small batches."""
  config = mulo_m.get_config().unlock()
  task = config.tasks.mlp_w128.to_dict() | {"width": 8, "batch_size": 16}
  del config["tasks"]
  config.tasks = {"mlp": task}
  config.num_steps, config.copies, config.devices = 3, 1, 1
  config.theta_opt.warmup = 1
  config.estimator.update(truncation=2, shortest=4, longest=8)
  config.evaluation.every, config.log_every, config.checkpoint_every = 0, 1, 1
  path = train.meta_train(config.lock(), str(tmp_path))
  artifact = mulo.read(path)
  assert (artifact.settings["hidden"], artifact.settings["newton_schulz"]) == (
      32, 3)
  rows = metrics.read(tmp_path / "metrics.jsonl")
  assert len(rows) == 3 and all(np.isfinite(row["meta_loss"]) for row in rows)
