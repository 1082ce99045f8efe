"""Four families at once: three kinds of classifiers and a language model.

python -m meta_train.train --config=meta_train/configs/mixture.py \
    --workdir=runs/mixture

Takes ten minutes on two cores. The parameters of the multilayer perceptron are
rescaled at random in every episode. metrics.jsonl has the losses of networks
trained with a frozen theta, from before the first step on.
"""

import ml_collections

from meta_train.configs import quickstart
from tasks import suites

TASKS = ("mlp_w32_d2_shifted", "conv_w8", "vit_w16", "lm_w16")


def get_config() -> ml_collections.ConfigDict:
  """Return the quickstart with one task of each of four families."""
  config = quickstart.get_config().unlock()
  suite = suites.get("train_small")
  config.tasks = {name: suite[name] for name in TASKS}
  config.num_steps = 300
  config.estimator.longest = 300
  config.evaluation.update(every=50, num_steps=200, seeds=4)
  # The same tasks, but not rescaled.
  config.evaluation.tasks = {
      name: {k: v for k, v in section.items() if k != "augment"}
      for name, section in config.tasks.to_dict().items()}
  return config.lock()
