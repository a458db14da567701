"""What a process does with the machine it is on."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from automoe.machine import one_core_environment, worker_processes

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


def nothing() -> None:
    pass


def test_workers_have_one_core_each_and_the_environment_is_as_it_was() -> None:
    before = dict(os.environ)
    with worker_processes(1, nothing) as pool:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() is not None
    assert dict(os.environ) == before


def test_whoever_is_interrupted_ends_his_workers_in_the_middle_of_what_they_do() -> None:
    futures = []

    def interrupted() -> None:
        with worker_processes(2, nothing) as pool:
            assert pool.submit(abs, -3).result() == 3
            futures.extend(pool.submit(time.sleep, 300.0) for _ in range(6))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(future.cancelled() or future.exception() for future in futures), "nobody came to an end"
    assert not multiprocessing.active_children()


def test_a_worker_that_is_ended_from_outside_is_told_of() -> None:
    with pytest.raises(BrokenProcessPool), worker_processes(1, nothing) as pool:
        pool.submit(os._exit, 1).result()
