#!/usr/bin/env bash
# Train the gating network on four frozen experts: gate, adapters and planner.
#
#   bash training/train_gating_network.sh                            # models/configs/gating_network/base/config.json
#   WORLD_SIZE=4 BATCH_SIZE=64 bash training/train_gating_network.sh
#   PROFILE=tiny DEVICE=cpu bash training/train_gating_network.sh
#
# The run's parameters are written into its config.json, which is what the trainer reads, where they are valid; its other
# keys stay as they are, and what is for quick looks isn't written. Best weights:
# models/checkpoints/gating_network/<run name>/best.pth; TensorBoard: models/runs/; logs: logs/.
# Stopped? Give the same line again: it goes on where it was.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# --- Tunables: set them here or in the environment. What is empty stays as the config has it. -------------------------
PROFILE=${PROFILE:-base}              # tiny, small or base, as elsewhere; here it names the run
RUN_NAME=${RUN_NAME:-$PROFILE}        # the folder of the config and of the checkpoint: a profile, or your own
CONFIG=${CONFIG:-models/configs/gating_network/$RUN_NAME/config.json}
DATA_ROOT=${DATA_ROOT:-}              # what `automoe prepare carla` made, or runs; datasets/carla/preprocessed if nobody says
WORLD_SIZE=${WORLD_SIZE:-1}           # processes on this machine; on a CPU they are CPU processes
BATCH_SIZE=${BATCH_SIZE:-}            # per process
LEARNING_RATE=${LEARNING_RATE:-}      # not scaled with the number of processes
EPOCHS=${EPOCHS:-}                    # whoever says epochs means them: max_steps and eval_every leave the config
NUM_WORKERS=${NUM_WORKERS:-}          # loader processes per training process
DEVICE=${DEVICE:-auto}                # auto, cpu or cuda
SEED=${SEED:-}
MAX_STEPS=${MAX_STEPS:-}              # for quick looks
LIMIT=${LIMIT:-}                      # moments, for quick looks
RESUME=${RESUME:-auto}                # auto or never
OUTPUT_ROOT=${OUTPUT_ROOT:-.}         # models/checkpoints, models/runs and logs go below it; experts are looked for there
EXTRA_ARGS=${EXTRA_ARGS:-}            # more flags for train_gating_network.py

EXPERTS=${EXPERTS:-$RUN_NAME}         # the run whose experts these are
EXPERT_CHECKPOINTS=(                  # in the order in which the config names the experts
  "$OUTPUT_ROOT/models/checkpoints/carla_detection_expert_ddp/$EXPERTS/best.pth"
  "$OUTPUT_ROOT/models/checkpoints/carla_drivable_expert_ddp/$EXPERTS/best.pth"
  "$OUTPUT_ROOT/models/checkpoints/carla_segmentation_expert_ddp/$EXPERTS/best.pth"
  "$OUTPUT_ROOT/models/checkpoints/carla_nuscenes_2d_ddp/$EXPERTS/best.pth"
)

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
# ---------------------------------------------------------------------------------------------------------------------

# shellcheck source=training/lib/train.sh
source training/lib/train.sh
only_help "$@"

NUM_GPUS=$WORLD_SIZE
case "$WORLD_SIZE" in ''|*[!0-9]*|0)
  echo "error: WORLD_SIZE is '$WORLD_SIZE'; give a number of processes, at least 1." >&2; exit 2 ;; esac
check_tunables
missing=()
for checkpoint in "${EXPERT_CHECKPOINTS[@]}"; do
  [ -f "$checkpoint" ] || missing+=("$checkpoint")
done
if [ ${#missing[@]} -gt 0 ]; then
  printf 'error: there is no expert checkpoint %s\n' "${missing[@]}" >&2
  echo "Train the experts first (training/finetune_experts_carla.sh), or correct EXPERT_CHECKPOINTS in $script." >&2
  exit 2
fi

"$PYTHON" training/lib/update_config.py "$CONFIG" \
  "data_root=$DATA_ROOT" "world_size=$WORLD_SIZE" "engine.batch_size=$BATCH_SIZE" \
  "engine.learning_rate=$LEARNING_RATE" "engine.num_workers=$NUM_WORKERS" "engine.seed=$SEED" \
  ${EPOCHS:+"engine.epochs=$EPOCHS" "engine.max_steps" "engine.eval_every"} \
  --experts "${EXPERT_CHECKPOINTS[@]}"

flags=(--config "$CONFIG" --run_name "$RUN_NAME"
       --checkpoint_dir "$OUTPUT_ROOT/models/checkpoints/gating_network/$RUN_NAME" --world_size "$WORLD_SIZE"
       --device "$DEVICE" --resume "$RESUME" --output_root "$OUTPUT_ROOT")
add --data_root "$DATA_ROOT"
add --limit "$LIMIT"
add --max_steps "$MAX_STEPS"
# shellcheck disable=SC2206  # words on purpose
flags+=($EXTRA_ARGS --expert_checkpoints "${EXPERT_CHECKPOINTS[@]}")
set_resume_line EXTRA_ARGS OUTPUT_ROOT LIMIT MAX_STEPS SEED EXPERTS DEVICE NUM_WORKERS EPOCHS LEARNING_RATE BATCH_SIZE \
                DATA_ROOT CONFIG RUN_NAME WORLD_SIZE
train "gating network" "$OUTPUT_ROOT/logs/gating_network_${RUN_NAME}.log" training/train_gating_network.py "${flags[@]}"
echo "Done. Checkpoint: $OUTPUT_ROOT/models/checkpoints/gating_network/$RUN_NAME/best.pth"
