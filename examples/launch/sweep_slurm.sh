#!/bin/bash
# A study divided among the jobs of an array under Slurm.
#
#   sbatch examples/launch/sweep_slurm.sh
#
# All jobs run the same command on one workdir and divide its cells. The last
# one to end writes the table. A job that is killed or requeued loses the cell
# that it was computing. With the package submitit the same is one flag:
#
#   python -m experiments.studies.transfer ... --executor=submitit:8 \
#     --executor_settings=timeout_min=240,slurm_partition=gpu
#SBATCH --job-name=mulo-sweep
#SBATCH --array=0-7
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=mulo-sweep-%A-%a.txt

export MULO_DATA_DIR="${MULO_DATA_DIR:-$HOME/data}"

python -m experiments.studies.transfer --workdir=runs/heldout \
  --suite=heldout --optimizers=mulo-s,adamw
