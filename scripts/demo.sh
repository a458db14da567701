#!/usr/bin/env bash
# What `make demo` does once the environment is there: render a data set, train three experts on it, report.
# Every step goes on where it was stopped.
set -euo pipefail
bin=$1 data=$2 train=$3 val=$4 output=$5 report=$6
cd "$(dirname "${BASH_SOURCE[0]}")/.."
started=$SECONDS

step() { printf '\n[%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$1"; }

step "1/3  Rendering $train training and $val validation frames of the embedded world in BDD100K's format"
"$bin/automoe" world export bdd100k --out "$data" --train "$train" --val "$val" --seed 0

step "2/3  Training the three BDD100K experts (profile tiny)"
PROFILE=tiny RUN_NAME=tiny DATA_ROOT="$data" OUTPUT_ROOT="$output" DEVICE="${DEVICE:-auto}" PYTHON="$bin/python" \
  bash training/train_bdd100k_experts_ddp.sh

step "3/3  Comparing with an untrained model and with trivial predictors; writing the report"
"$bin/automoe" report --run_name tiny --data_root "$data" --output_root "$output" --out "$report"

step "Done. Open $report"
