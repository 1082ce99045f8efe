"""adafac-mup-s: the published architecture, by the recipe of mulo-s.

MULO_DATA_DIR=... python -m meta_train.train \
    --config=meta_train/configs/adafac_mup_s.py --workdir=runs/adafac_mup_s
"""

import ml_collections

from meta_train.configs import mulo_s


def get_config() -> ml_collections.ConfigDict:
  """As mulo_s, with small_fc_lopt in the size of mulo-s.

  Parametrization and step multiplier are those of Therien et al., 2024,
  https://arxiv.org/abs/2406.00153.
  """
  config = mulo_s.get_config().unlock()
  del config["optimizer"]
  config.optimizer = {"name": "adafac_mlp", "hidden": 8, "step_mult": 0.01}
  config.parametrization = "mup"
  return config.lock()
