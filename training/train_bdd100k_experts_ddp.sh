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

case "${1:-}" in
  -h|--help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; sed -n '/^# --- Tunables/,/^# -----/p' "$0"; exit 0 ;;
  "") ;;
  *) echo "error: $0 takes no arguments but --help; it is set by environment variables (got '$1')." >&2; exit 2 ;;
esac

is_on() { case "${1,,}" in 1|true|yes|on) return 0 ;; ""|0|false|no|off) return 1 ;;
          *) echo "error: a SKIP_ flag is '$1'; set it to 1 or 0." >&2; exit 2 ;; esac; }

for flag in "$SKIP_DETECTION" "$SKIP_DRIVABLE" "$SKIP_SEGMENTATION"; do is_on "$flag" || true; done

case " $EXTRA_ARGS" in *" --resume"*)
  echo "error: EXTRA_ARGS has --resume; set RESUME=auto or RESUME=never instead." >&2; exit 2 ;; esac

case "$NUM_GPUS" in ''|*[!0-9]*|0) echo "error: NUM_GPUS is '$NUM_GPUS'; give a number of at least 1." >&2; exit 2 ;; esac

flags=(--profile "$PROFILE" --data_root "$DATA_ROOT" --run_name "$RUN_NAME" --device "$DEVICE"
       --resume "$RESUME" --output_root "$OUTPUT_ROOT")
add() { if [ -n "$2" ]; then flags+=("$1" "$2"); fi; }
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

# What the trainers print when they are stopped: this line, with what was set.
resume="bash training/train_bdd100k_experts_ddp.sh"
for name in EXTRA_ARGS OUTPUT_ROOT LIMIT MAX_STEPS SEED NUM_WORKERS WEIGHT_DECAY LEARNING_RATE BATCH_SIZE EPOCHS \
            SKIP_SEGMENTATION SKIP_DRIVABLE SKIP_DETECTION DEVICE NUM_GPUS RUN_NAME DATA_ROOT PROFILE; do
  value=${!name}
  case "$name=$value" in *=|SKIP_*=0|OUTPUT_ROOT=.|NUM_GPUS=1|DEVICE=auto) continue ;; esac
  resume="$name=$(printf %q "$value") $resume"
done
export AUTOMOE_RESUME_COMMAND=$resume

launch() {  # one process, or torchrun with NUM_GPUS of them, in place of the subshell, so that signals reach it
  # WORLD_SIZE and its kin in the user's shell are none of torchrun's business.
  if [ "$NUM_GPUS" -gt 1 ]; then
    exec env -u WORLD_SIZE -u RANK -u LOCAL_RANK \
      "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$NUM_GPUS" training/train_bdd100k_ddp.py "$@"
  else
    exec "$PYTHON" training/train_bdd100k_ddp.py "$@"
  fi
}

mkdir -p "$OUTPUT_ROOT/logs"
child=""
stopped=0
# A signal to this script reaches the trainer, which saves and says how to go on; then the script ends, too. Ctrl-C goes
# on as SIGTERM: a terminal has sent its SIGINT to the trainer as well, and a second one would mean impatience.
on_signal() { stopped=$1; if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null || true; fi; }
trap 'on_signal 143' TERM
trap 'on_signal 130' INT

train() {
  local task=$1 log status
  log="$OUTPUT_ROOT/logs/bdd100k_${task}_expert_${RUN_NAME}.log"
  if [ "$stopped" -ne 0 ]; then echo "Stopped before $task. Go on with: $resume" >&2; exit "$stopped"; fi
  echo "== $task (log: $log)"
  # A signal to the whole group must not take away the pipe that the trainer says its last words into.
  launch --task "$task" "${flags[@]}" > >(trap '' INT TERM; exec tee -a "$log") 2>&1 &
  child=$!
  status=0
  wait "$child" || status=$?
  # A trapped signal ends `wait` early; the trainer is still saving.
  while kill -0 "$child" 2>/dev/null; do wait "$child" && status=0 || status=$?; done
  child=""
  if [ "$stopped" -ne 0 ]; then status=$stopped; fi
  if [ "$status" -ne 0 ]; then
    echo "error: the $task expert stopped with exit code $status; its log is $log. Finished tasks are kept." >&2
    echo "Go on with: $resume" >&2
    exit "$status"
  fi
}

if is_on "$SKIP_DETECTION"; then echo "== detection skipped"; else train detection; fi
if is_on "$SKIP_DRIVABLE"; then echo "== drivable skipped"; else train drivable; fi
if is_on "$SKIP_SEGMENTATION"; then echo "== segmentation skipped"; else train segmentation; fi
echo "Done. Checkpoints: $OUTPUT_ROOT/models/checkpoints/bdd100k_{detection,drivable,segmentation}_expert/$RUN_NAME/best.pth"
