#!/usr/bin/env bash
# Train the three BDD100K experts, one after the other: detection, drivable area, semantic segmentation.
#
#   bash training/train_bdd100k_experts_ddp.sh                       # datasets/bdd100k, profile base
#   NUM_GPUS=4 DATA_ROOT=/data/bdd100k bash training/train_bdd100k_experts_ddp.sh
#   PROFILE=tiny DEVICE=cpu bash training/train_bdd100k_experts_ddp.sh
#
# Best weights: models/checkpoints/bdd100k_<task>_expert/<run name>/best.pth; logs: logs/.
# Stopped? Give the same line again: finished tasks are kept, the stopped one goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# --- Tunables: set them here or in the environment. What is empty comes from the profile. ---------------------------
PROFILE=${PROFILE:-base}              # tiny, small or base: models/configs/bdd100k_<task>_expert/<profile>/config.json
DATA_ROOT=${DATA_ROOT:-datasets/bdd100k}
RUN_NAME=${RUN_NAME:-$PROFILE}        # later stages look for the profile's name
NUM_GPUS=${NUM_GPUS:-1}               # processes on this machine; on a CPU they are CPU processes
DEVICE=${DEVICE:-auto}                # auto, cpu or cuda
EPOCHS=${EPOCHS:-}
BATCH_SIZE=${BATCH_SIZE:-}            # per process
LEARNING_RATE=${LEARNING_RATE:-}      # not scaled with the number of processes
WEIGHT_DECAY=${WEIGHT_DECAY:-}
NUM_WORKERS=${NUM_WORKERS:-}          # loader processes per training process
SEED=${SEED:-}
MAX_STEPS=${MAX_STEPS:-}              # for quick looks
LIMIT=${LIMIT:-}                      # images, for quick looks
RESUME=${RESUME:-auto}                # auto or never
OUTPUT_ROOT=${OUTPUT_ROOT:-.}         # models/checkpoints, models/runs and logs go below it
EXTRA_ARGS=${EXTRA_ARGS:-}            # more flags for train_bdd100k_ddp.py

SKIP_DETECTION=${SKIP_DETECTION:-0}   # 1 skips the task
SKIP_DRIVABLE=${SKIP_DRIVABLE:-0}
SKIP_SEGMENTATION=${SKIP_SEGMENTATION:-0}

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
# ---------------------------------------------------------------------------------------------------------------------

# shellcheck source=training/lib/train.sh
source training/lib/train.sh
only_help "$@"

for flag in "$SKIP_DETECTION" "$SKIP_DRIVABLE" "$SKIP_SEGMENTATION"; do is_on "$flag" || true; done
check_tunables

flags=(--profile "$PROFILE" --data_root "$DATA_ROOT" --run_name "$RUN_NAME" --device "$DEVICE"
       --resume "$RESUME" --output_root "$OUTPUT_ROOT")
add --epochs "$EPOCHS"
add --batch_size "$BATCH_SIZE"
add --learning_rate "$LEARNING_RATE"
add --weight_decay "$WEIGHT_DECAY"
add --num_workers "$NUM_WORKERS"
add --seed "$SEED"
add --max_steps "$MAX_STEPS"
add --limit "$LIMIT"
# shellcheck disable=SC2206  # words on purpose
flags+=($EXTRA_ARGS)

set_resume_line EXTRA_ARGS OUTPUT_ROOT LIMIT MAX_STEPS SEED NUM_WORKERS WEIGHT_DECAY LEARNING_RATE BATCH_SIZE EPOCHS \
                SKIP_SEGMENTATION SKIP_DRIVABLE SKIP_DETECTION DEVICE NUM_GPUS RUN_NAME DATA_ROOT PROFILE

train_task() {
  local log="$OUTPUT_ROOT/logs/bdd100k_${1}_expert_${RUN_NAME}.log"
  train "$1 expert" "$log" training/train_bdd100k_ddp.py --task "$1" "${flags[@]}"
}

if is_on "$SKIP_DETECTION"; then echo "== detection skipped"; else train_task detection; fi
if is_on "$SKIP_DRIVABLE"; then echo "== drivable skipped"; else train_task drivable; fi
if is_on "$SKIP_SEGMENTATION"; then echo "== segmentation skipped"; else train_task segmentation; fi
echo "Done. Checkpoints: $OUTPUT_ROOT/models/checkpoints/bdd100k_{detection,drivable,segmentation}_expert/$RUN_NAME/best.pth"
