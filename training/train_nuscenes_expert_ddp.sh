#!/usr/bin/env bash
# Train the nuScenes expert: 3D boxes from cameras and LiDAR.
#
#   bash training/train_nuscenes_expert_ddp.sh                       # datasets/nuscenes, profile base
#   NUM_GPUS=4 DATA_ROOT=/data/nuscenes bash training/train_nuscenes_expert_ddp.sh
#   PROFILE=tiny DEVICE=cpu bash training/train_nuscenes_expert_ddp.sh
#
# Best weights: models/checkpoints/nuscenes_expert/<run name>/best.pth, with their submission.json for the validation
# split; logs: logs/. Stopped? Give the same line again: the run goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# --- Tunables: set them here or in the environment. What is empty comes from the profile. ---------------------------
PROFILE=${PROFILE:-base}              # tiny, small or base: models/configs/nuscenes_expert/<profile>/config.json
DATA_ROOT=${DATA_ROOT:-datasets/nuscenes}
VERSION=${VERSION:-}                  # v1.0-mini, v1.0-trainval, ...; the only one under DATA_ROOT if empty
RUN_NAME=${RUN_NAME:-$PROFILE}        # later stages look for the profile's name
NUM_GPUS=${NUM_GPUS:-1}               # processes on this machine; on a CPU they are CPU processes
DEVICE=${DEVICE:-auto}                # auto, cpu or cuda
EPOCHS=${EPOCHS:-}
BATCH_SIZE=${BATCH_SIZE:-}            # per process
LR=${LR:-}                            # learning rate, not scaled with the number of processes
WD=${WD:-}                            # weight decay
NUM_WORKERS=${NUM_WORKERS:-}          # loader processes per training process
NUM_QUERIES=${NUM_QUERIES:-}          # boxes that the 3D decoder may say in a sample
COST_CLASS=${COST_CLASS:-}            # in matching: weight of the class,
COST_BBOX=${COST_BBOX:-}              # of the boxes' L1 distance,
COST_GIOU=${COST_GIOU:-}              # of the boxes' overlap, seen from above
BBOX_LOSS_W=${BBOX_LOSS_W:-}          # in the loss: weight of the boxes' L1 distance
SEED=${SEED:-}
MAX_STEPS=${MAX_STEPS:-}              # for quick looks
LIMIT=${LIMIT:-}                      # samples, for quick looks
RESUME=${RESUME:-auto}                # auto or never
OUTPUT_ROOT=${OUTPUT_ROOT:-.}         # models/checkpoints, models/runs and logs go below it
EXTRA_ARGS=${EXTRA_ARGS:-}            # more flags for train_nuscenes_expert_ddp.py

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
# ---------------------------------------------------------------------------------------------------------------------

# shellcheck source=training/lib/train.sh
source training/lib/train.sh
only_help "$@"
check_tunables

flags=(--profile "$PROFILE" --data_root "$DATA_ROOT" --run_name "$RUN_NAME" --device "$DEVICE"
       --resume "$RESUME" --output_root "$OUTPUT_ROOT")
add --version "$VERSION"
add --epochs "$EPOCHS"
add --batch_size "$BATCH_SIZE"
add --learning_rate "$LR"
add --weight_decay "$WD"
add --num_workers "$NUM_WORKERS"
add --num_queries "$NUM_QUERIES"
add --cost_class "$COST_CLASS"
add --cost_bbox "$COST_BBOX"
add --cost_giou "$COST_GIOU"
add --bbox_loss_weight "$BBOX_LOSS_W"
add --seed "$SEED"
add --max_steps "$MAX_STEPS"
add --limit "$LIMIT"
# shellcheck disable=SC2206  # words on purpose
flags+=($EXTRA_ARGS)

set_resume_line EXTRA_ARGS OUTPUT_ROOT LIMIT MAX_STEPS SEED BBOX_LOSS_W COST_GIOU COST_BBOX COST_CLASS NUM_QUERIES \
                NUM_WORKERS WD LR BATCH_SIZE EPOCHS DEVICE NUM_GPUS RUN_NAME VERSION DATA_ROOT PROFILE

train "nuScenes expert" "$OUTPUT_ROOT/logs/nuscenes_expert_${RUN_NAME}.log" training/train_nuscenes_expert_ddp.py "${flags[@]}"
echo "Done. Checkpoint: $OUTPUT_ROOT/models/checkpoints/nuscenes_expert/$RUN_NAME/best.pth"
