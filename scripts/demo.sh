#!/usr/bin/env bash
# What `make demo` does once the environment is there: record three data sets, train four experts on two of them,
# fine-tune the four on the third, train what drives on the four, drive a route, report. Every step goes on where it was
# stopped. DEMO_DRIVE=0 ends with the experts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# --- Sizes that end within minutes on two cores. The validation frames are the benchmark splits, always the same. ----
data=${DEMO_DATA:-datasets/embedded}    # receives bdd100k/, nuscenes/ and carla/
frames=${DEMO_TRAIN:-800}               # BDD100K: frames
val_frames=${DEMO_VAL:-500}
scenes=${DEMO_SCENES:-8}                # nuScenes: scenes of 10 s
val_scenes=${DEMO_VAL_SCENES:-8}
runs=${DEMO_RUNS:-24}                   # CARLA: runs, short ones: many places and weathers teach more than long drives
val_runs=${DEMO_VAL_RUNS:-8}
run_seconds=${DEMO_RUN_SECONDS:-10}
drive=${DEMO_DRIVE:-1}                  # 0 leaves out gate, policy and route
moments=${DEMO_MOMENTS:-900}            # of them, that the frozen experts look at
gate_steps=${DEMO_GATE_STEPS:-500}      # of gate and planner on the frozen experts
policy_steps=${DEMO_POLICY_STEPS:-800}  # of the policies without experts, seeing and blind, which stand beside
routes=${DEMO_ROUTES:-1}                # to drive
route_length=${DEMO_ROUTE_LENGTH:-120}  # metres
output=${DEMO_OUTPUT:-.}                # models/ and logs/ go below it
report=${DEMO_REPORT:-reports/demo/index.html}
drives=${DEMO_DRIVES:-${report%/*}/drive}
gate_report=${DEMO_GATE_REPORT:-${report%/*}/gate.json}
bin=${BIN:-.venv/bin}
# ---------------------------------------------------------------------------------------------------------------------

started=$SECONDS
cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
share=$((cores > 1 ? cores / 2 : 1))    # of the cores, for each of two lanes
other=""                                # the second lane's process group, while there is one

# The front camera is the one with labels. Two frames a second: frames that follow each other sooner show an expert little
# that is new. What drives learns from more of them, from runs that begin in the middle of traffic, and from a camera that
# stands aside, which shows how to come back.
cameras=(front)
recorded=(--cameras front --save_every 10)
steps=3
if [ "$drive" = 1 ]; then
  cameras=(front front_shifted)
  recorded=(--cameras front front_shifted --lead_in 15 --late_starts 4)
  steps=5
fi

say() { printf '\n[%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$1"; }

train() {  # script, data root
  PROFILE=tiny RUN_NAME=tiny DATA_ROOT="$2" OUTPUT_ROOT="$output" DEVICE="${DEVICE:-auto}" PYTHON="$bin/python" \
    OMP_NUM_THREADS="$share" bash "training/$1"
}

# Two lanes, one beside the other, each with half of the cores: two small networks that learn side by side are through
# sooner than one after the other with all cores. Each line says whose it is.
both() {  # name, function, name, function
  set -m  # a process group of its own, so that all of it can be stopped
  ("$4" 2>&1 | name_lines "$3") &
  other=$!
  set +m
  "$2" 2>&1 | name_lines "$1"
  wait "$other" || { other=""; echo "error: $3 stopped, see above; the same line goes on from there." >&2; exit 1; }
  other=""
}
name_lines() { while IFS= read -r line || [ -n "$line" ]; do printf '%-9s| %s\n' "$1" "$line"; done; }
stop_other() { if [ -n "$other" ]; then kill -TERM -- "-$other" 2>/dev/null || true; wait "$other" || true; fi; }
trap stop_other EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- The lanes ---

bdd100k() {
  "$bin/automoe" world export bdd100k --out "$data/bdd100k" --train "$frames" --val "$val_frames" --seed 0 \
    --workers "$share"
  train train_bdd100k_experts_ddp.sh "$data/bdd100k"
}

nuscenes_carla() {
  "$bin/automoe" world export nuscenes --out "$data/nuscenes" --scenes "$scenes" --val_scenes "$val_scenes" \
    --seconds 10 --seed 0 --workers "$share"
  # One camera a sample: the LiDAR finds most in a run so short, and steps are what it needs.
  EXTRA_ARGS="--train_cameras 1 ${EXTRA_ARGS:-}" train train_nuscenes_expert_ddp.sh "$data/nuscenes"
  "$bin/automoe" world export carla --out "$data/carla/raw" --runs "$runs" --val_runs "$val_runs" \
    --seconds "$run_seconds" "${recorded[@]}" --seed 0 --workers "$share"
  "$bin/automoe" prepare carla --data_root "$data/carla/raw" --out "$data/carla/preprocessed" --cameras "${cameras[@]}"
  SKIP_DETECTION=1 SKIP_DRIVABLE=1 SKIP_SEGMENTATION=1 finetune
}

finetune() { train finetune_experts_carla.sh "$data/carla/preprocessed"; }
finetune_detection() { SKIP_DRIVABLE=1 SKIP_SEGMENTATION=1 SKIP_NUSCENES=1 finetune; }
finetune_dense() { SKIP_DETECTION=1 SKIP_NUSCENES=1 finetune; }

mixture() {
  # On a copy: the script writes the run's parameters into its config.
  [ -f "$data/gating_network.json" ] || cp models/configs/gating_network/tiny/config.json "$data/gating_network.json"
  RUN_NAME=tiny CONFIG="$data/gating_network.json" DATA_ROOT="$data/carla/preprocessed" OUTPUT_ROOT="$output" \
    DEVICE="${DEVICE:-auto}" PYTHON="$bin/python" MAX_STEPS="${MAX_STEPS:-$gate_steps}" LIMIT="$moments" \
    OMP_NUM_THREADS="$share" bash training/train_gating_network.sh
}
lonely() {
  policy tiny
  policy tiny_blind --blind
}
policy() {  # run name, more flags
  OMP_NUM_THREADS="$share" "$bin/python" training/train_carla_policy.py --profile tiny --run_name "$@" \
    --data_root "$data/carla/preprocessed" --output_root "$output" --device "${DEVICE:-auto}" \
    --max_steps "${MAX_STEPS:-$policy_steps}"
}

# --- The steps ---

say "1/$steps  Recording three data sets in the embedded world and training four experts (profile tiny):
       $frames + $val_frames frames as BDD100K's, $scenes + $val_scenes scenes as nuScenes', $runs + $val_runs runs as CARLA's"
both bdd100k bdd100k nuscenes nuscenes_carla

say "2/$steps  Fine-tuning the BDD100K experts on the CARLA runs"
both boxes finetune_detection dense finetune_dense

driven=()
if [ "$drive" = 1 ]; then
  say "3/5  Training what drives: gate and planner on the four experts; a policy without them, and one that is blind"
  both mixture mixture policy lonely

  say "4/5  Driving $routes route of $route_length m in a town that nobody was trained in"
  models="$output/models/checkpoints"
  "$bin/automoe" gate --checkpoint "$models/gating_network/tiny/best.pth" --data_root "$data/carla/preprocessed" \
    --beside "no_experts=$models/carla_policy/tiny/best.pth" "blind=$models/carla_policy/tiny_blind/best.pth" \
    --limit 60 --out "$gate_report"
  "$bin/automoe" drive --checkpoint "$models/gating_network/tiny/best.pth" --number "$routes" \
    --length "$route_length" --seeds 1 --out "$drives" \
    --beside teacher constant_velocity "no_experts=$models/carla_policy/tiny/best.pth" \
    "blind=$models/carla_policy/tiny_blind/best.pth"
  driven=(--drives "$drives" --gate "$gate_report")
fi

say "$steps/$steps  Comparing with untrained models and with trivial predictors; writing the report"
"$bin/automoe" report --run_name tiny --data_root "$data/bdd100k" --nuscenes_root "$data/nuscenes" \
  --carla_root "$data/carla/preprocessed" --output_root "$output" ${driven[@]+"${driven[@]}"} --out "$report"

say "Done. Open $report"
