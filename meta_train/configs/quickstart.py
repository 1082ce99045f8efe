"""A small optimizer on small digit classifiers, in one or two minutes.

python -m meta_train.train --config=meta_train/configs/quickstart.py \
    --workdir=runs/quickstart
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Return a config of two small networks, with episodes up to 1,000 steps."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.num_steps = 750  # outer steps
  # Path of the weights file to start from; "": the start of the optimizer. A
  # run notes the sha256 of the theta there and goes on with no other.
  config.start = ""
  config.start_sha256 = ""
  config.optimizer = {"name": "mulo", "hidden": 8, "step_mult": 0.1}
  config.parametrization = "mup"
  # A theta of shallow networks alone takes steps that are too large for deeper
  # networks, hence depth 4.
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
      # "package.module:make" for another meta-optimizer: `make(num_steps)`
      # returns an optax transformation. The other settings then do nothing.
      "make": ""}
  # The result is the mean of theta over this last part of the outer steps; 0:
  # theta of the last step.
  config.average = 0.0
  # Networks are trained with theta on these tasks, before the first outer step
  # and every `every` outer steps (0: never), for num_steps, with `seeds` seeds.
  config.evaluation = {
      "every": 0, "num_steps": 300, "seeds": 2, "tasks": {
          "digits_w64": {"name": "mlp", "dataset": "digits", "width": 64,
                         "depth": 2, "batch_size": 64}}}
  # Maximum number of devices that copies are divided among; 0: all devices, or
  # all CPU cores.
  config.devices = 0
  config.mapping = "shard_map"  # or "pmap", see meta_train/devices/pmap.py
  config.stream = False  # True: data stay on the host, batches are sent
  config.max_minutes = 0.0  # stop before this time is over; 0: no limit
  config.log_every = 10  # outer steps; a run stops at a multiple of log_every
  config.checkpoint_every = 50  # outer steps, a multiple of log_every
  config.keep_checkpoints = 2
  return config.lock()
