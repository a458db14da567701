"""What a process does with the machine it is on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from automoe.machine import one_core_environment

CHILD = (
    "import time; from automoe.machine import end_with_parent; end_with_parent(); print(0, flush=True); time.sleep(60)"
)
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process of its parent's end")
def test_a_worker_ends_with_whoever_started_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = Path("/proc") / parent.stdout.readline().strip()
    assert runs(child)
    parent.kill()  # it can tidy up nothing
    parent.wait()
    waited = time.monotonic()
    while runs(child) and time.monotonic() - waited < 20.0:
        time.sleep(0.05)
    assert not runs(child)


def runs(process: Path) -> bool:
    """Whether there is a process that is more than its exit code."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_is_set_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LP_NUM_THREADS", "4")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = one_core_environment()
    assert found["LP_NUM_THREADS"] == "4"
    assert found["OMP_NUM_THREADS"] == "1"
