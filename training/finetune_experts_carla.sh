#!/usr/bin/env bash
# Fine-tune the four experts on CARLA, one after the other: detection, drivable area and semantic segmentation from
# BDD100K, and the image branch of the nuScenes expert.
#
#   bash training/finetune_experts_carla.sh                          # datasets/carla/preprocessed, profile base
#   NUM_GPUS=4 DATA_ROOT=/data/carla/preprocessed bash training/finetune_experts_carla.sh
#   PROFILE=tiny DEVICE=cpu bash training/finetune_experts_carla.sh
#
# Each starts from the newest checkpoint of its source expert, or from the one that SOURCE_... names.
# Best weights: models/checkpoints/carla_<task>_expert_ddp/<run name>/best.pth and
# models/checkpoints/carla_nuscenes_2d_ddp/<run name>/best.pth; logs: logs/.
# Stopped? Give the same line again: finished tasks are kept, the stopped one goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# --- Tunables: set them here or in the environment. What is empty comes from the profile. ---------------------------
PROFILE=${PROFILE:-base}              # tiny, small or base: models/configs/carla_*/<profile>/config.json
DATA_ROOT=${DATA_ROOT:-datasets/carla/preprocessed}  # what `automoe prepare carla` made, or runs
RUN_NAME=${RUN_NAME:-$PROFILE}        # later stages look for the profile's name
NUM_GPUS=${NUM_GPUS:-1}               # processes on this machine; on a CPU they are CPU processes
DEVICE=${DEVICE:-auto}                # auto, cpu or cuda
BATCH=${BATCH:-}                      # per process
WORKERS=${WORKERS:-}                  # loader processes per training process
EPOCHS_DET=${EPOCHS_DET:-}
EPOCHS_DRV=${EPOCHS_DRV:-}
EPOCHS_SEG=${EPOCHS_SEG:-}
EPOCHS_NUSC=${EPOCHS_NUSC:-}
SOURCE_DET=${SOURCE_DET:-}            # a best.pth or a run's name; the newest run if empty
SOURCE_DRV=${SOURCE_DRV:-}
SOURCE_SEG=${SOURCE_SEG:-}
SOURCE_NUSC=${SOURCE_NUSC:-}
NUM_QUERIES=${NUM_QUERIES:-}          # of the nuScenes expert's image branch
SEED=${SEED:-}
MAX_STEPS=${MAX_STEPS:-}              # for quick looks
LIMIT=${LIMIT:-}                      # frames, for quick looks
RESUME=${RESUME:-auto}                # auto or never
OUTPUT_ROOT=${OUTPUT_ROOT:-.}         # models/checkpoints, models/runs and logs go below it; sources are looked for there
EXTRA_ARGS=${EXTRA_ARGS:-}            # more flags for the trainers

SKIP_DETECTION=${SKIP_DETECTION:-0}   # 1 skips the task
SKIP_DRIVABLE=${SKIP_DRIVABLE:-0}
SKIP_SEGMENTATION=${SKIP_SEGMENTATION:-0}
SKIP_NUSCENES=${SKIP_NUSCENES:-0}

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
# ---------------------------------------------------------------------------------------------------------------------

# shellcheck source=training/lib/train.sh
source training/lib/train.sh
only_help "$@"

for flag in "$SKIP_DETECTION" "$SKIP_DRIVABLE" "$SKIP_SEGMENTATION" "$SKIP_NUSCENES"; do is_on "$flag" || true; done
check_tunables

common=(--profile "$PROFILE" --data_root "$DATA_ROOT" --run_name "$RUN_NAME" --device "$DEVICE"
        --resume "$RESUME" --output_root "$OUTPUT_ROOT")
flags=("${common[@]}")
add --batch_size "$BATCH"
add --num_workers "$WORKERS"
add --seed "$SEED"
add --max_steps "$MAX_STEPS"
add --limit "$LIMIT"
# shellcheck disable=SC2206  # words on purpose
flags+=($EXTRA_ARGS)
common=("${flags[@]}")

set_resume_line EXTRA_ARGS OUTPUT_ROOT LIMIT MAX_STEPS SEED NUM_QUERIES SOURCE_NUSC SOURCE_SEG SOURCE_DRV SOURCE_DET \
                EPOCHS_NUSC EPOCHS_SEG EPOCHS_DRV EPOCHS_DET WORKERS BATCH SKIP_NUSCENES SKIP_SEGMENTATION SKIP_DRIVABLE SKIP_DETECTION DEVICE NUM_GPUS RUN_NAME \
                DATA_ROOT PROFILE

finetune() {  # task, epochs, source
  flags=("${common[@]}")
  add --epochs "$2"
  add --source "$3"
  if [ "$1" = nuscenes_2d ]; then
    add --num_queries "$NUM_QUERIES"
    train "$1 expert" "$OUTPUT_ROOT/logs/carla_nuscenes_2d_${RUN_NAME}.log" \
      training/train_carla_nuscenes_expert_2d_ddp.py "${flags[@]}"
  else
    train "$1 expert" "$OUTPUT_ROOT/logs/carla_${1}_expert_${RUN_NAME}.log" \
      training/train_carla_bdd_experts_ddp.py --task "$1" "${flags[@]}"
  fi
}

if is_on "$SKIP_DETECTION"; then echo "== detection skipped"; else finetune detection "$EPOCHS_DET" "$SOURCE_DET"; fi
if is_on "$SKIP_DRIVABLE"; then echo "== drivable skipped"; else finetune drivable "$EPOCHS_DRV" "$SOURCE_DRV"; fi
if is_on "$SKIP_SEGMENTATION"; then echo "== segmentation skipped"; else finetune segmentation "$EPOCHS_SEG" "$SOURCE_SEG"; fi
if is_on "$SKIP_NUSCENES"; then echo "== nuscenes_2d skipped"; else finetune nuscenes_2d "$EPOCHS_NUSC" "$SOURCE_NUSC"; fi
echo "Done. Checkpoints: $OUTPUT_ROOT/models/checkpoints/carla_{detection,drivable,segmentation}_expert_ddp/$RUN_NAME/best.pth" \
     "and $OUTPUT_ROOT/models/checkpoints/carla_nuscenes_2d_ddp/$RUN_NAME/best.pth"
