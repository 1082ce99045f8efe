"""Meta-training on the hosts of a TPU slice, by Ray Train's JaxTrainer.

python examples/launch/ray_jax_trainer.py --workers=4 --topology=4x4 \
    --accelerator=TPU-V6E --workdir=/shared/runs/mulo_s

Ray calls `jax.distributed.initialize` on each worker, so no flag says how many
hosts there are. All workers see the workdir. After a failure Ray
starts all workers again, and they continue from the last checkpoint.
"""

import argparse
import sys

import ray
from ray.train import FailureConfig
from ray.train import RunConfig
from ray.train import ScalingConfig
from ray.train.v2.jax import JaxTrainer


def train(config: dict) -> None:
  """Meta-train, on one of the workers."""
  from meta_train import train as train_lib
  train_lib.main(config["argv"])


def main() -> None:
  """Start the workers and wait for the end."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--config", default="meta_train/configs/mulo_s.py")
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--workers", type=int, default=4)
  parser.add_argument("--topology", default="4x4")
  parser.add_argument("--accelerator", default="TPU-V6E")
  args, more = parser.parse_known_args()
  ray.init()
  JaxTrainer(
      train_loop_per_worker=train,
      train_loop_config={"argv": [
          sys.argv[0], f"--config={args.config}", f"--workdir={args.workdir}",
          *more]},
      scaling_config=ScalingConfig(
          num_workers=args.workers, use_tpu=True, topology=args.topology,
          accelerator_type=args.accelerator),
      run_config=RunConfig(
          failure_config=FailureConfig(max_failures=20))).fit()


if __name__ == "__main__":
  main()
