#!/usr/bin/env bash
# What `make demo` does once the environment is there: record three data sets, train four experts on two of them,
# fine-tune the four on the third, report. Every step goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# --- Sizes that end within minutes on two cores. The validation frames are the benchmark splits, always the same. ----
data=${DEMO_DATA:-datasets/embedded}    # receives bdd100k/, nuscenes/ and carla/
frames=${DEMO_TRAIN:-800}               # BDD100K: frames
val_frames=${DEMO_VAL:-500}
scenes=${DEMO_SCENES:-8}                # nuScenes: scenes of 10 s
val_scenes=${DEMO_VAL_SCENES:-8}
runs=${DEMO_RUNS:-16}                   # CARLA: runs, short ones: many places and weathers teach more than long drives
val_runs=${DEMO_VAL_RUNS:-8}
run_seconds=${DEMO_RUN_SECONDS:-10}
output=${DEMO_OUTPUT:-.}                # models/ and logs/ go below it
report=${DEMO_REPORT:-reports/demo/index.html}
bin=${BIN:-.venv/bin}
# ---------------------------------------------------------------------------------------------------------------------

started=$SECONDS
steps=7

say() { printf '\n[%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$1"; }

step() { say "$1/$steps  $2"; }  # number, what

train() {  # script, data root
  PROFILE=tiny RUN_NAME=tiny DATA_ROOT="$2" OUTPUT_ROOT="$output" DEVICE="${DEVICE:-auto}" PYTHON="$bin/python" \
    bash "training/$1"
}

step 1 "Rendering $frames training and $val_frames validation frames of the embedded world in BDD100K's format"
"$bin/automoe" world export bdd100k --out "$data/bdd100k" --train "$frames" --val "$val_frames" --seed 0

step 2 "Training the three BDD100K experts (profile tiny)"
train train_bdd100k_experts_ddp.sh "$data/bdd100k"

step 3 "Driving $scenes training and $val_scenes validation scenes of it, recorded in nuScenes' format"
"$bin/automoe" world export nuscenes --out "$data/nuscenes" --scenes "$scenes" --val_scenes "$val_scenes" \
  --seconds 10 --seed 0

step 4 "Training the nuScenes expert, cameras and LiDAR (profile tiny)"
# One camera a sample: the LiDAR finds most in a run so short, and steps are what it needs.
EXTRA_ARGS="--train_cameras 1 ${EXTRA_ARGS:-}" train train_nuscenes_expert_ddp.sh "$data/nuscenes"

step 5 "Letting the teacher drive $runs training and $val_runs validation runs, recorded as CARLA's are"
# Two frames a second: frames that follow each other sooner show an expert little that is new. The front camera is the
# one with labels.
"$bin/automoe" world export carla --out "$data/carla/raw" --runs "$runs" --val_runs "$val_runs" \
  --seconds "$run_seconds" --save_every 10 --cameras front --seed 0
"$bin/automoe" prepare carla --data_root "$data/carla/raw" --out "$data/carla/preprocessed"

step 6 "Fine-tuning the four experts on them (profile tiny)"
train finetune_experts_carla.sh "$data/carla/preprocessed"

step 7 "Comparing with untrained models and with trivial predictors; writing the report"
"$bin/automoe" report --run_name tiny --data_root "$data/bdd100k" --nuscenes_root "$data/nuscenes" \
  --carla_root "$data/carla/preprocessed" --output_root "$output" --out "$report"

say "Done. Open $report"
