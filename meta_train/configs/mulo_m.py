"""mulo-m: the larger recipe, for a GPU.

python -m meta_train.train --config=meta_train/configs/mulo_m.py \
    --workdir=runs/mulo_m --config.max_minutes=9

Run the same command again to continue. Needs CIFAR-10 under MULO_DATA_DIR.
Widths, batch size, horizon and truncation are those of muLO_M (Therien et al.,
2024, https://arxiv.org/abs/2406.00153), which used ImageNet at 32 x 32 pixels
instead of CIFAR-10. Estimator and optimizer are those of mulo-s.
"""

import ml_collections

from meta_train.configs import mulo_s

WIDTHS = (128, 512, 1024)


def get_config() -> ml_collections.ConfigDict:
  """Return a config of three-layer perceptrons on full-size CIFAR-10."""
  config = mulo_s.get_config().unlock()
  config.optimizer.update(hidden=32, recompute=False)
  config.tasks = {
      f"mlp_w{width}": {
          "name": "mlp", "dataset": "cifar10", "width": width, "depth": 3,
          "standardize": True, "batch_size": 4096, "normalizer": "log"}
      for width in WIDTHS}
  config.num_steps = 5000
  config.copies = 8
  config.estimator.update(truncation=50, shortest=100, longest=1000)
  config.evaluation.update(every=250, num_steps=1000, seeds=2)
  config.evaluation.tasks = {
      "mlp_w2048": {
          "name": "mlp", "dataset": "cifar10", "width": 2048, "depth": 3,
          "standardize": True, "batch_size": 4096}}
  config.devices = 0
  return config.lock()
