"""Small runs to compare recipes, minutes on one core: docs/meta_training.md.

python -m meta_train.train --config=meta_train/configs/search.py:mnist,log \
    --workdir=runs/search [--config.theta_opt.learning_rate=1e-3 ...]

After the colon comes the data set, "digits" or "mnist" (needs MULO_DATA_DIR).
With ",log" after the data set, each loss counts by its logarithm.
"""

import ml_collections

from meta_train.configs import mulo_s
from tasks import suites

_TASKS = {
    "digits": {
        "mlp_w16_d2": {"name": "mlp", "width": 16, "depth": 2},
        "mlp_w32_d4": {"name": "mlp", "width": 32, "depth": 4},
        "mlp_w32_d2_noisy": {"name": "mlp", "width": 32, "depth": 2,
                             "label_noise": 0.3},
        "conv_w8": {"name": "conv", "width": 8, "batch_size": 32}},
    "mnist": {name: mulo_s.TASKS[name] for name in (
        "mlp_w16_d2", "mlp_w32_d4", "mlp_w32_d2_hard", "mlp_w32_d2_noisy",
        "conv_w8")}}

_EVALUATION = {
    "digits": {
        "mlp_w128_d3": {"name": "mlp", "width": 128, "depth": 3},
        "mlp_w64_d2_large": {"name": "mlp", "width": 64, "depth": 2,
                             "image_size": 16, "label_noise": 0.1},
        "conv_w32": {"name": "conv", "width": 32, "depth": 3},
        "vit_w16": {"name": "vit", "width": 16, "batch_size": 16}},
    "mnist": {name: suites.get("validation")[name] for name in (
        "mlp_w128", "mlp_w64_d4", "conv_w16", "vit_w16")}}


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  """Return a config of perceptrons and a convolutional network.

  Args:
    variant: "digits", "mnist", "digits,log" or "mnist,log".

  Raises:
    ValueError: another variant.
  """
  dataset, _, log = variant.partition(",")
  if dataset not in _TASKS or log not in ("", "log"):
    raise ValueError(f"Unknown variant {variant!r}; available: digits, mnist, "
                     "each also with ',log'.")
  config = mulo_s.get_config().unlock()
  del config["tasks"]
  config.tasks = {
      name: section | ({"normalizer": "log"} if log else {})
      for name, section in _TASKS[dataset].items()}
  del config.evaluation["tasks"]
  config.evaluation.tasks = _EVALUATION[dataset]
  config.evaluation.update(every=400, seeds=4 if dataset == "digits" else 2)
  config.num_steps = 400
  config.optimizer.recompute = False
  config.estimator.loss = "mean"
  config.devices = 1
  config.log_every = 10
  return config.lock()
