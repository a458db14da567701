"""Real processes: killed, terminated, and two at a time under torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_fit import assert_same_run, weights
from toy_training import train

from automoe.engine import checkpoint
from automoe.engine.runlog import read_metrics

SCRIPT = Path(__file__).with_name("toy_training.py")


def environment() -> dict[str, str]:
    free = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return {**free, "OMP_NUM_THREADS": "1"}


def start(run_dir: Path, *flags: str, processes: int = 0) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes else []
    command = [sys.executable, *launcher, str(SCRIPT), str(run_dir), *flags]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = run_dir / "last.pth"
        if path.exists() and checkpoint.load(path)["progress"]["step"] >= step:
            return
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"step {step} was not reached: {process.communicate()}")


def test_killed_mid_epoch_then_terminated_then_finished_has_the_same_bits(tmp_path):
    train(tmp_path / "whole")
    parts = tmp_path / "parts"
    flags = ("--sample_seconds", "0.03", "--num_workers", "1", "--save_steps", "2")

    process = start(parts, *flags)
    wait_for_step(parts, 8, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed_at = checkpoint.load(parts / "last.pth")["progress"]["step"]
    assert 8 <= killed_at < 14

    process = start(parts, *flags, "--resume_command", "bash train.sh")
    wait_for_step(parts, killed_at + 2, process)
    # As Ctrl-C and batch systems do: to the whole group, the loader's workers included.
    os.killpg(process.pid, signal.SIGTERM)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Go on with: bash train.sh" in printed
    assert checkpoint.load(parts / "last.pth")["progress"]["step"] < 18

    train(parts)
    assert_same_run(tmp_path / "whole", parts)


def test_two_processes_train_and_evaluate_as_one(tmp_path):
    plain = ("--dropout", "0", "--batch_norm", "0")
    process = start(tmp_path / "two", "--batch_size", "2", *plain, processes=2)
    train(tmp_path / "one", batch_size=4, dropout=0.0, batch_norm=False)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert printed.count("Global batch size 4: 2 a process x 2 processes x 1 accumulated") == 1

    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-4, atol=1e-6)
    results = [line for line in printed.splitlines() if line.startswith("result ")]
    assert len(results) == 2
    # A thread of gloo's that were alive while the interpreter shuts down could abort a process that is done.
    threads = [line for line in printed.splitlines() if line.startswith("threads ")]
    assert len(threads) == 2
    assert not any("gloo" in line for line in threads), threads
    # Both ranks hold the same metrics: they evaluated the same weights and gathered the same errors.
    assert len({line.split("metrics=")[1].split("steps=")[0] for line in results}) == 1
    two, one = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert [line["step"] for line in two] == [6, 12, 18]
    for of_two, of_one in zip(two, one, strict=True):
        assert of_two["metrics"]["score"] == pytest.approx(of_one["metrics"]["score"], rel=1e-3)
