#!/bin/bash
# Meta-training on two nodes under Slurm, which goes on after a time limit.
#
#   sbatch examples/launch/train_slurm.sh
#
# All nodes see the checkout, the data and the workdir. Slurm sends SIGTERM two
# minutes before the end: the run saves a checkpoint and ends with status 143,
# and the job goes back into the queue.
#SBATCH --job-name=mulo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mulo-%j.txt

export MULO_DATA_DIR="${MULO_DATA_DIR:-$HOME/data}"

# --kill-on-bad-exit: when one host dies, the others end soon.
srun --kill-on-bad-exit=1 python -m meta_train.train \
  --config=meta_train/configs/mulo_s.py --workdir=runs/mulo_s \
  --cluster --config.devices=8
status=$?
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
