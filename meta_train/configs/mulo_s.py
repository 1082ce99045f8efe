"""mulo-s: what ships, meta-trained on a CPU, without any files.

python -m meta_train.train --config=meta_train/configs/mulo_s.py \
    --workdir=runs/mulo_s
"""

import ml_collections

from meta_train.configs import quickstart

TASKS = {
    "mlp_w16_d2": {"name": "mlp", "width": 16, "depth": 2},
    "mlp_w32_d4": {"name": "mlp", "width": 32, "depth": 4},
    # Labels that cannot be learned, so gradients stay noisy to the end.
    "mlp_w32_d2_noisy": {"name": "mlp", "width": 32, "depth": 2,
                         "label_noise": 0.3},
    # Four times as many inputs.
    "mlp_w32_d2_large": {"name": "mlp", "width": 32, "depth": 2,
                         "image_size": 16},
    "conv_w8": {"name": "conv", "width": 8, "batch_size": 32},
    "autoencoder_w32": {"name": "autoencoder", "width": 32},
    "lm_w8": {"name": "transformer_lm", "width": 8, "length": 8,
              "batch_size": 16}}


def get_config() -> ml_collections.ConfigDict:
  """Seven small tasks on digits and on the source of Python."""
  config = quickstart.get_config().unlock()
  config.tasks = TASKS
  config.optimizer = {
      "name": "mulo", "hidden": 8, "step_mult": 0.3, "vector_mult": 0.1,
      "horizon": True}
  config.num_steps = 4000
  config.copies = 16
  config.theta_opt.update(
      learning_rate=2e-3, final_learning_rate=1e-4, warmup=100)
  config.evaluation.update(every=200, num_steps=500, seeds=4)
  config.evaluation.tasks = {
      "mlp_w128_d3": {"name": "mlp", "width": 128, "depth": 3},
      "mlp_w64_d2_large": {"name": "mlp", "width": 64, "depth": 2,
                           "image_size": 16, "label_noise": 0.1},
      "conv_w32": {"name": "conv", "width": 32, "depth": 3},
      "vit_w16": {"name": "vit", "width": 16, "batch_size": 16},
      "rnn_w16": {"name": "rnn_lm", "width": 16, "length": 16}}
  return config.lock()
