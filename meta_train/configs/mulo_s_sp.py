"""mulo-s-sp: the recipe of mulo-s with the standard parametrization.

MULO_DATA_DIR=... python -m meta_train.train \
    --config=meta_train/configs/mulo_s_sp.py --workdir=runs/mulo_s_sp
"""

import ml_collections

from meta_train.configs import mulo_s


def get_config() -> ml_collections.ConfigDict:
  """Return the config of mulo_s with a step_mult for this parametrization."""
  config = mulo_s.get_config().unlock()
  config.parametrization = "standard"
  config.optimizer.update(step_mult=0.06, recompute=False)
  return config.lock()
