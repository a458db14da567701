"""`train_bdd100k_experts_ddp.sh`: every variable of the contract acts, and a stopped task stops the pipeline."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "training" / "train_bdd100k_experts_ddp.sh"

RECORDER = """#!/usr/bin/env bash
# Stands for the Python interpreter: writes down how it was called.
printf '%s\\n' "WORLD_SIZE=${WORLD_SIZE-unset} $*" >> "$CALLS"
"""


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(RECORDER)
    path.chmod(0o755)
    return path


def environment(tmp_path: Path, python: Path, **variables: str) -> dict[str, str]:
    keep = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    fixed = {"PYTHON": str(python), "OUTPUT_ROOT": str(tmp_path / "out"), "CALLS": str(tmp_path / "calls")}
    return keep | fixed | variables


def run(tmp_path: Path, python: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    done = subprocess.run(
        ["bash", str(SCRIPT)],
        env=environment(tmp_path, python, **variables),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    calls = tmp_path / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_the_bare_line_trains_all_three_tasks_with_the_defaults(tmp_path: Path, recorder: Path) -> None:
    done, calls = run(tmp_path, recorder)
    assert done.returncode == 0, done.stderr
    assert [call.split("--task ")[1].split()[0] for call in calls] == ["detection", "drivable", "segmentation"]
    for call in calls:
        assert "training/train_bdd100k_ddp.py" in call
        assert "torch.distributed.run" not in call
        assert "--data_root datasets/bdd100k" in call
        assert "--profile base" in call
        assert "--run_name base" in call
        assert "--device auto" in call
        assert "--epochs" not in call


@pytest.mark.parametrize(
    ("variable", "value", "flag"),
    [
        ("LEARNING_RATE", "0.003", "--learning_rate 0.003"),
        ("WEIGHT_DECAY", "0.07", "--weight_decay 0.07"),
        ("NUM_WORKERS", "5", "--num_workers 5"),
        ("DEVICE", "cpu", "--device cpu"),
        ("EPOCHS", "7", "--epochs 7"),
        ("BATCH_SIZE", "3", "--batch_size 3"),
        ("DATA_ROOT", "/data/bdd", "--data_root /data/bdd"),
        ("PROFILE", "tiny", "--profile tiny"),
        ("RUN_NAME", "mine", "--run_name mine"),
        ("SEED", "4", "--seed 4"),
        ("MAX_STEPS", "9", "--max_steps 9"),
        ("LIMIT", "11", "--limit 11"),
        ("RESUME", "never", "--resume never"),
        ("EXTRA_ARGS", "--amp off --save_steps 5", "--amp off --save_steps 5"),
    ],
)
def test_every_variable_reaches_the_trainer(
    tmp_path: Path, recorder: Path, variable: str, value: str, flag: str
) -> None:
    done, calls = run(tmp_path, recorder, **{variable: value})
    assert done.returncode == 0, done.stderr
    assert len(calls) == 3
    assert all(f"{flag} " in f"{call} " for call in calls)


@pytest.mark.parametrize("task", ["detection", "drivable", "segmentation"])
def test_skip_flags_skip_their_task_and_no_other(tmp_path: Path, recorder: Path, task: str) -> None:
    done, calls = run(tmp_path, recorder, **{f"SKIP_{task.upper()}": "1"})
    assert done.returncode == 0
    assert len(calls) == 2
    assert not any(f"--task {task}" in call for call in calls)
    assert f"{task} skipped" in done.stdout


def test_num_gpus_starts_torchrun_and_world_size_is_the_users_own(tmp_path: Path, recorder: Path) -> None:
    _, calls = run(tmp_path, recorder, NUM_GPUS="2", WORLD_SIZE="8", SKIP_DRIVABLE="true", SKIP_SEGMENTATION="yes")
    assert len(calls) == 1
    assert "-m torch.distributed.run --standalone --nproc_per_node=2 training/train_bdd100k_ddp.py" in calls[0]
    assert calls[0].startswith("WORLD_SIZE=unset")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NUM_GPUS", "two"),
        ("NUM_GPUS", "0"),
        ("SKIP_DETECTION", "maybe"),
        ("SKIP_DRIVABLE", "perhaps"),
        ("SKIP_SEGMENTATION", "2"),
        ("EXTRA_ARGS", "--amp off --resume"),
    ],
)
def test_a_wrong_value_is_named_before_anything_starts(
    tmp_path: Path, recorder: Path, variable: str, value: str
) -> None:
    done, calls = run(tmp_path, recorder, **{variable: value})
    assert done.returncode == 2
    assert value.split()[-1] in done.stderr
    assert calls == []


def test_a_failing_task_stops_the_pipeline_and_names_log_and_resume_command(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\necho "$*" >> "$CALLS"\n[[ "$*" == *drivable* ]] && exit 143 || exit 0\n')
    python.chmod(0o755)
    done, calls = run(tmp_path, python, PROFILE="tiny", EPOCHS="2")
    assert done.returncode == 143
    assert len(calls) == 2  # segmentation never started
    assert "bdd100k_drivable_expert_tiny.log" in done.stderr
    resume = done.stderr.split("Go on with: ")[1].strip()
    assert resume.startswith("PROFILE=tiny DATA_ROOT=datasets/bdd100k RUN_NAME=tiny EPOCHS=2 ")
    assert resume.endswith("bash training/train_bdd100k_experts_ddp.sh")


def test_a_signal_to_the_script_reaches_the_trainer_and_is_waited_for(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/usr/bin/env bash\ntrap "sleep 0.5; echo saved >> $CALLS; exit 143" TERM\n'
        'echo started >> "$CALLS"\nfor i in $(seq 100); do sleep 0.1; done\n'
    )
    python.chmod(0o755)
    process = subprocess.Popen(["bash", str(SCRIPT)], env=environment(tmp_path, python), stderr=subprocess.PIPE)
    calls = tmp_path / "calls"
    until = time.monotonic() + 20
    while not calls.exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    assert calls.read_text().split() == ["started", "saved"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_ends_the_pipeline_with_the_last_words_heard(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """As a terminal's Ctrl-C and batch systems do it: the log's pipe must outlive it, and no next task may start."""
    python = tmp_path / "python"
    python.write_text(
        '#!/usr/bin/env bash\ntrap "sleep 0.3; echo last words; exit 0" INT TERM\n'
        'echo started >> "$CALLS"\nfor i in $(seq 100); do sleep 0.1; done\n'
    )
    python.chmod(0o755)
    process = subprocess.Popen(
        ["bash", str(SCRIPT)],
        env=environment(tmp_path, python),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    calls = tmp_path / "calls"
    until = time.monotonic() + 20
    while not calls.exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)  # the log's reader starts beside the trainer
    os.killpg(process.pid, number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert calls.read_text().split() == ["started"]
    assert "last words" in printed
    assert "last words" in (tmp_path / "out/logs/bdd100k_detection_expert_base.log").read_text()
    assert "Go on with: " in errors
