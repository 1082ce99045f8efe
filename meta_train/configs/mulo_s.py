"""The recipe of mulo-s, for two CPU cores.

MULO_DATA_DIR=... python -m meta_train.train \
    --config=meta_train/configs/mulo_s.py --workdir=runs/mulo_s

Needs MNIST as IDX files, see tasks/data/image_formats/idx.py. The reasons for
the recipe are in docs/meta_training.md.
"""

import ml_collections

from meta_train.configs import quickstart
from tasks import suites

_MNIST = {"dataset": "mnist", "image_size": 8}
_MNIST_14 = {"dataset": "mnist", "image_size": 14}

# Each loss counts by its logarithm, on train batches and on inner_valid, so the
# end of training matters as much as its start. Language models have weights
# because their losses stay high, so the logarithm varies little.
TASKS = {
    "mlp_w16_d2": {"name": "mlp", **_MNIST, "width": 16, "depth": 2},
    # Digits: with 1,438 train images, soon learned by heart.
    "mlp_w32_d4": {"name": "mlp", "standardize": True, "width": 32, "depth": 4},
    # Noise hides the class of half of these images, so gradients stay noisy.
    "mlp_w32_d2_hard": {"name": "mlp", **_MNIST_14, "standardize": True,
                        "pixel_noise": 0.7, "width": 32, "depth": 2},
    "mlp_w32_d2_noisy": {"name": "mlp", **_MNIST, "standardize": True,
                         "label_noise": 0.3, "pixel_noise": 0.3, "width": 32,
                         "depth": 2},
    "conv_w8": {"name": "conv", **_MNIST, "width": 8, "batch_size": 32},
    "autoencoder_w32": {"name": "autoencoder", **_MNIST, "width": 32},
    "lm_w8": {"name": "transformer_lm", "width": 8, "length": 8,
              "batch_size": 16, "weight": 2.0},
    "rnn_w8": {"name": "rnn_lm", "width": 8, "length": 8, "batch_size": 16,
               "weight": 2.0}}


def get_config() -> ml_collections.ConfigDict:
  """Return a config of eight small tasks on MNIST, digits and Python's source.
  """
  config = quickstart.get_config().unlock()
  config.tasks = {name: {**section, "normalizer": "log"}
                  for name, section in TASKS.items()}
  config.optimizer = {
      "name": "mulo", "hidden": 8, "step_mult": 0.1, "horizon": True,
      "depth": True, "newton_schulz": 3,
      # 3.7 times as slow, but needed for the exact bits of the released mulo-s.
      "recompute": True}
  config.parametrization = "mup_balanced"
  config.num_steps = 600
  config.copies = 16
  config.estimator.update(
      name="noise_reuse_es", loss="late", loss_split="both")
  config.theta_opt.update(
      learning_rate=1e-3, final_learning_rate=1e-4, warmup=50)
  # Evaluations take minutes and do not change theta. To have them, set
  # --config.evaluation.every=300.
  config.evaluation.update(every=0, num_steps=500, seeds=2)
  config.evaluation.tasks = suites.get("validation")
  config.devices = 2  # not 0: for the same bits on machines with more cores
  config.log_every = 25
  return config.lock()
