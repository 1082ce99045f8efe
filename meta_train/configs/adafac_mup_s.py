"""adafac-mup-s: the published architecture, with the recipe of mulo-s.

MULO_DATA_DIR=... python -m meta_train.train \
    --config=meta_train/configs/adafac_mup_s.py --workdir=runs/adafac_mup_s
"""

import ml_collections

from meta_train.configs import mulo_s


def get_config() -> ml_collections.ConfigDict:
  """Return the config of mulo_s with small_fc_lopt, as large as mulo-s.

  Parametrization and step_mult are those of Therien et al., 2024,
  https://arxiv.org/abs/2406.00153.
  """
  config = mulo_s.get_config().unlock()
  del config["optimizer"]
  config.optimizer = {"name": "adafac_mlp", "hidden": 8, "step_mult": 0.01}
  config.parametrization = "mup"
  return config.lock()
