"""mulo-s2: mulo2 on many small families of tasks, for one CPU core.

python -m meta_train.train --config=meta_train/configs/mulo_s2.py \
    --workdir=runs/mulo_s2 [--config.seed=1]

Tasks are those of the suite prior_train, most of them narrower and with smaller
batches, and a classifier of noisy images. Episodes are whole. The meta-loss
counts the last fifth of an episode, on train batches; differences of each task
count relative to their size.

With ":heads" after the file there is no MLP: 46 numbers remain, of the mixture,
of sizes, of shares, of the exponent and of decays. A step takes half the time.
"""

import ml_collections

from meta_train.configs import quickstart
from tasks import suites

# {task of prior_train: changed settings}.
SMALLER = {
    "diabetes": {},
    "heavy_tails": {"batch_size": 32},
    "waves": {"batch_size": 64},
    "mlp": {"width": 32, "batch_size": 32},
    "autoencoder": {"width": 32, "batch_size": 32},
    "vae": {"width": 32, "batch_size": 32},
    "conv": {"width": 8, "batch_size": 16},
    "pairs": {"batch_size": 16},
    "rows": {"batch_size": 16},
    "sums": {"width": 16, "length": 8, "batch_size": 8},
    "brackets": {"width": 16, "batch_size": 8}}
NOISY = {"name": "mlp", "dataset": "digits", "standardize": True, "width": 32,
         "depth": 2, "pixel_noise": 0.7, "batch_size": 16}


def get_config(what: str = "all") -> ml_collections.ConfigDict:
  """Return a config of 12 small tasks that need no files.

  Args:
    what: "all" or "heads", see above.
  """
  config = quickstart.get_config().unlock()
  suite = suites.get("prior_train")
  sections = {name: {**suite[name], **changed}
              for name, changed in SMALLER.items()} | {"noisy": NOISY}
  # Episodes have lengths of their own.
  config.tasks = {name: {**{k: v for k, v in section.items()
                            if k != "num_steps"}, "normalizer": "log"}
                  for name, section in sections.items()}
  config.optimizer = {"name": "mulo2", "hidden": 8}
  config.parametrization = "natural"
  config.num_steps = 300
  config.copies = 5
  config.average = 0.3
  config.estimator = {
      "name": "full_es", "std": 0.03, "std_mults": {"b2": 5.0},
      "truncation": 25, "shortest": 100, "longest": 1000, "same_length": True,
      "loss": "end", "loss_split": "train", "relative": True,
      "drop_nonfinite": True}
  if what == "heads":
    config.optimizer.hidden = 0
  elif what != "all":
    raise ValueError(f"Unknown choice {what!r}; available: all, heads.")
  config.theta_opt.update(
      learning_rate=1e-2, final_learning_rate=1e-3, warmup=10)
  config.devices = 1
  config.log_every = 2
  config.checkpoint_every = 2
  return config.lock()
