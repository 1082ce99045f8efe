"""The recipe of LAgg: a learned step on what several workers did locally.

MULO_DATA_DIR=... python -m meta_train.train \
    --config=meta_train/configs/lagg.py --workdir=runs/lagg

Needs MNIST as IDX files, see tasks/data/image_formats/idx.py. Inner steps are
rounds. The numbers of workers and local steps differ from task to task, and so
do local learning rates: one theta has to serve all of them.
"""

import ml_collections

from meta_train.configs import quickstart

_MNIST = {"dataset": "mnist", "image_size": 8, "normalizer": "log",
          "batch_size": 32}


def _workers(count: int, every: int, learning_rate: float) -> dict:
  """Return the entry "workers" of a task."""
  return {"count": count, "every": every, "learning_rate": learning_rate}


TASKS = {
    "mlp_k8_h4": {"name": "mlp", **_MNIST, "width": 32, "depth": 2,
                  "workers": _workers(8, 4, 0.3)},
    "mlp_k4_h8": {"name": "mlp", **_MNIST, "width": 32, "depth": 2,
                  "standardize": True, "workers": _workers(4, 8, 0.1)},
    # Noise hides the class of half of these images, so workers disagree.
    "mlp_k4_h4_hard": {"name": "mlp", **_MNIST, "width": 32, "depth": 3,
                       "standardize": True, "pixel_noise": 0.7,
                       "workers": _workers(4, 4, 0.1)},
    "conv_k4_h4": {"name": "conv", **_MNIST, "width": 8,
                   "workers": _workers(4, 4, 0.3)}}


def get_config() -> ml_collections.ConfigDict:
  """Return a config of four small tasks on MNIST."""
  config = quickstart.get_config().unlock()
  config.tasks = TASKS
  config.optimizer = {"name": "lagg"}
  config.parametrization = "standard"
  config.num_steps = 300
  config.copies = 8
  config.estimator.update(
      name="noise_reuse_es", loss="late", shortest=50, longest=200)
  config.theta_opt.update(
      learning_rate=3e-3, final_learning_rate=3e-4, warmup=20)
  config.devices = 2  # not 0: for the same bits on machines with more cores
  return config.lock()
