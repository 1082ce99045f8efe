"""The equivariant optimizer unf on small perceptrons and convolutions.

python -m meta_train.train --config=meta_train/configs/unf.py \
    --workdir=runs/unf [--config.seed=1]

With ":alone" after the file, elements do not hear of each other: the control.
"""

import ml_collections

from meta_train.configs import quickstart


def get_config(what: str = "unf") -> ml_collections.ConfigDict:
  """Return a config of three small networks on digits.

  Args:
    what: "unf" or "alone", see above.
  """
  if what not in ("unf", "alone"):
    raise ValueError(f"Unknown choice {what!r}; available: unf, alone.")
  config = quickstart.get_config().unlock()
  config.num_steps = 500
  config.optimizer = {"name": "unf", "equivariant": what == "unf"}
  config.parametrization = "standard"
  image = {"dataset": "digits", "standardize": True, "batch_size": 64}
  config.tasks = {
      "mlp_d1": {"name": "mlp", "width": 32, "depth": 1, **image},
      "mlp_d2": {"name": "mlp", "width": 32, "depth": 2, **image},
      "conv": {"name": "conv", "width": 8, **image, "batch_size": 16}}
  config.copies = 4
  config.estimator.update(
      std=0.03, longest=400, shortest=100, relative=True)
  config.theta_opt.update(learning_rate=3e-3, clip=1.0)
  config.average = 0.3
  config.evaluation.every = 0
  config.devices = 1
  return config.lock()
