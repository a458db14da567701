# shellcheck shell=bash
# What the training scripts share. They source it in the checkout's root, below their tunables; it reads NUM_GPUS,
# OUTPUT_ROOT, EXTRA_ARGS and PYTHON. Not run by itself.

script="training/${0##*/}"
flags=()        # of the trainer; see `add`
resume=""       # see `set_resume_line`
child=""
stopped=0

# --help prints the script's head and its tunables; nothing else may stand on the command line.
only_help() {
  case "${1:-}" in
    -h|--help)
      sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$script"
      sed -n '/^# --- Tunables/,/^# -----/p' "$script"
      exit 0 ;;
    "") ;;
    *) echo "error: $0 takes no arguments but --help; it is set by environment variables (got '$1')." >&2; exit 2 ;;
  esac
}

is_on() { case "${1,,}" in 1|true|yes|on) return 0 ;; ""|0|false|no|off) return 1 ;;
          *) echo "error: a SKIP_ flag is '$1'; set it to 1 or 0." >&2; exit 2 ;; esac; }

check_tunables() {
  case " $EXTRA_ARGS" in *" --resume"*)
    echo "error: EXTRA_ARGS has --resume; set RESUME=auto or RESUME=never instead." >&2; exit 2 ;; esac
  case "$NUM_GPUS" in ''|*[!0-9]*|0)
    echo "error: NUM_GPUS is '$NUM_GPUS'; give a number of at least 1." >&2; exit 2 ;; esac
}

add() { if [ -n "$2" ]; then flags+=("$1" "$2"); fi; }  # a flag, unless its value is empty: then the profile has it

# What the trainers print when they are stopped: this script's line, with those of the named variables that were set.
set_resume_line() {
  local name value
  resume="bash $script"
  for name in "$@"; do
    value=${!name}
    case "$name=$value" in *=|SKIP_*=0|OUTPUT_ROOT=.|NUM_GPUS=1|DEVICE=auto) continue ;; esac
    resume="$name=$(printf %q "$value") $resume"
  done
  export AUTOMOE_RESUME_COMMAND=$resume
}

launch() {  # one process, or torchrun with NUM_GPUS of them, in place of the subshell, so that signals reach it
  # WORLD_SIZE and its kin in the user's shell are none of torchrun's business.
  if [ "$NUM_GPUS" -gt 1 ]; then
    exec env -u WORLD_SIZE -u RANK -u LOCAL_RANK \
      "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$NUM_GPUS" "$@"
  else
    exec "$PYTHON" "$@"
  fi
}

# A signal to this script reaches the trainer, which saves and says how to go on; then the script ends, too. Ctrl-C goes
# on as SIGTERM: a terminal has sent its SIGINT to the trainer as well, and a second one would mean impatience.
on_signal() { stopped=$1; if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null || true; fi; }
trap 'on_signal 143' TERM
trap 'on_signal 130' INT

# train NAME LOG TRAINER [FLAG...]: run a trainer to its end, its words on the screen and in the log.
train() {
  local name=$1 log=$2 status
  shift 2
  if [ "$stopped" -ne 0 ]; then echo "Stopped before $name. Go on with: $resume" >&2; exit "$stopped"; fi
  mkdir -p "$(dirname "$log")"
  echo "== $name (log: $log)"
  # A signal to the whole group must not take away the pipe that the trainer says its last words into.
  launch "$@" > >(trap '' INT TERM; exec tee -a "$log") 2>&1 &
  child=$!
  # A signal that came between these two lines found no child to hand it on to.
  if [ "$stopped" -ne 0 ]; then kill -TERM "$child" 2>/dev/null || true; fi
  status=0
  wait "$child" || status=$?
  # A trapped signal ends `wait` early; the trainer is still saving.
  while kill -0 "$child" 2>/dev/null; do wait "$child" && status=0 || status=$?; done
  child=""
  if [ "$stopped" -ne 0 ]; then status=$stopped; fi
  if [ "$status" -ne 0 ]; then
    echo "error: the $name stopped with exit code $status; its log is $log. What is finished is kept." >&2
    echo "Go on with: $resume" >&2
    exit "$status"
  fi
}
