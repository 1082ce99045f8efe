"""A small optimizer on small digit classifiers, in one or two minutes.

python -m meta_train.train --config=meta_train/configs/quickstart.py \
    --workdir=runs/quickstart
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Two small networks; episodes of 100 to 1,000 inner steps."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.num_steps = 750  # outer steps
  config.optimizer = {"name": "mulo", "hidden": 8, "step_mult": 0.1}
  config.parametrization = "mup"
  # The deeper one keeps theta from steps that only shallow networks survive.
  config.tasks = {
      f"digits_w{width}_d{depth}": {
          "name": "mlp", "dataset": "digits", "width": width, "depth": depth,
          "batch_size": 64} for width, depth in ((16, 2), (32, 4))}
  config.copies = 16  # perturbed pairs per task
  config.estimator = {
      "name": "pes", "std": 0.01, "truncation": 25, "shortest": 100,
      "longest": 1000, "curriculum": 0, "loss": "mean", "loss_split": "train",
      "clip": 0.0, "sign": 0.0, "drop_nonfinite": False}
  config.theta_opt = {
      "learning_rate": 3e-3, "final_learning_rate": 3e-4, "warmup": 20,
      "weight_decay": 0.0, "clip": 1.0,
      "expression": ""}  # instead of all that, Python that may use optax
  # Losses on these tasks before the first outer step and every so many, 0 for
  # never: of networks that are trained with theta for num_steps, `seeds` each.
  config.evaluation = {
      "every": 0, "num_steps": 300, "seeds": 2, "tasks": {
          "digits_w64": {"name": "mlp", "dataset": "digits", "width": 64,
                         "depth": 2, "batch_size": 64}}}
  config.devices = 0  # that copies are divided among; 0: all, or all CPU cores
  config.mapping = "shard_map"  # or "pmap"
  config.stream = False  # keep data on the host, and send batches
  config.max_minutes = 0.0  # stop in time, to be run again; 0: do not
  config.log_every = 10  # outer steps; runs can stop there
  config.checkpoint_every = 50  # outer steps, a multiple of log_every
  config.keep_checkpoints = 2
  return config.lock()
