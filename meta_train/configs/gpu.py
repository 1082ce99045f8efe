"""The recipe for one GPU: mulo2 with thousands of copies of six tiny tasks.

python -m experiments.gpu_day --minutes=9 --workdir=runs/gpu_day
or
python -m meta_train.train --config=meta_train/configs/gpu.py \
    --workdir=runs/gpu [--config.max_minutes=5]

A GPU takes about as long for a step of a thousand tiny networks as for a step
of one, so copies are many and outer steps few. All tasks are in one program,
which is compiled in each run; six of the tasks of mulo_s2 keep that to a part
of a run of ten minutes.

The recipe has never run on a GPU. The number of copies is a first choice:
`gpu_day` measures the speed from 64 copies on, and metrics.jsonl has the signal
and noise of each estimate, by which to choose it.
"""

import ml_collections

from meta_train.configs import mulo_s2

TASKS = ("diabetes", "heavy_tails", "waves", "mlp", "rows", "sums")


def get_config() -> ml_collections.ConfigDict:
  """Return a config of six small tasks that need no files."""
  config = mulo_s2.get_config().unlock()
  sections = config.tasks.to_dict()
  del config["tasks"]
  config.tasks = {name: sections[name] for name in TASKS}
  config.num_steps = 100
  config.copies = 1024
  config.theta_opt.warmup = 5
  config.log_every = 1
  config.checkpoint_every = 5
  return config.lock()
