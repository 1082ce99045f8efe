#!/bin/bash
# Meta-training on all hosts of a Cloud TPU slice.
#
#   NAME=mulo ZONE=us-central2-b TYPE=v4-32 bash examples/launch/tpu_vm.sh
#
# BUCKET is mounted on every host, for data and the workdir. Run it again after
# a preemption: it continues from the last checkpoint.
set -euo pipefail
: "${NAME:=mulo}" "${ZONE:=us-central2-b}" "${TYPE:=v4-32}" "${BUCKET:=BUCKET}"
: "${VERSION:=tpu-ubuntu2204-base}"

on_all() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all \
    --command="$1"
}

gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" > /dev/null 2>&1 ||
  gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --version="$VERSION"

tar --create --gzip --exclude=.git --exclude=.venv --exclude=runs . |
  gcloud storage cp - "gs://$BUCKET/mulo.tar.gz"

on_all "mkdir -p mulo shared
  mountpoint -q shared || gcsfuse --implicit-dirs $BUCKET shared
  tar --extract --gzip --directory=mulo --file=shared/mulo.tar.gz
  cd mulo
  python3 -m venv .venv
  .venv/bin/pip install --quiet 'jax[tpu]' --editable '.[train]'"

on_all "cd mulo
  MULO_DATA_DIR=../shared/data .venv/bin/python -m meta_train.train \
    --config=meta_train/configs/mulo_s.py --workdir=../shared/runs/mulo_s \
    --cluster --config.devices=0"
