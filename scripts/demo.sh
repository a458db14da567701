#!/usr/bin/env bash
# What `make demo` does once the environment is there: render two data sets, train four experts on them, report.
# Every step goes on where it was stopped.
set -euo pipefail
bin=$1 data=$2 train=$3 val=$4 nuscenes=$5 scenes=$6 val_scenes=$7 output=$8 report=$9
cd "$(dirname "${BASH_SOURCE[0]}")/.."
started=$SECONDS

step() { printf '\n[%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$1"; }

train() {  # script, data root
  PROFILE=tiny RUN_NAME=tiny DATA_ROOT="$2" OUTPUT_ROOT="$output" DEVICE="${DEVICE:-auto}" PYTHON="$bin/python" \
    bash "training/$1"
}

step "1/5  Rendering $train training and $val validation frames of the embedded world in BDD100K's format"
"$bin/automoe" world export bdd100k --out "$data" --train "$train" --val "$val" --seed 0

step "2/5  Training the three BDD100K experts (profile tiny)"
train train_bdd100k_experts_ddp.sh "$data"

step "3/5  Driving $scenes training and $val_scenes validation scenes of it, recorded in nuScenes' format"
"$bin/automoe" world export nuscenes --out "$nuscenes" --scenes "$scenes" --val_scenes "$val_scenes" --seconds 10 --seed 0

step "4/5  Training the nuScenes expert, cameras and LiDAR (profile tiny)"
# One camera a sample: the LiDAR finds most in a run so short, and steps are what it needs.
EXTRA_ARGS="--train_cameras 1 ${EXTRA_ARGS:-}" train train_nuscenes_expert_ddp.sh "$nuscenes"

step "5/5  Comparing with untrained models and with trivial predictors; writing the report"
"$bin/automoe" report --run_name tiny --data_root "$data" --nuscenes_root "$nuscenes" --output_root "$output" \
  --out "$report"

step "Done. Open $report"
