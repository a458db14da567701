"""Worker processes of an export: each renders with its own OpenGL context and says when a piece is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from automoe.errors import WorldError, WriteError
from automoe.files import write_bytes

DONE = "done"


def run_workers(entry: str, jobs: Sequence[dict[str, Any]], on_piece: Callable[[], None], out: Path) -> None:
    """Run `entry` ("package.module:function") in a process of its own for each job, and listen to them.

    The function gets its job, as JSON has it, and a callable to call after each finished piece. Raises WorldError with
    the last words of the first that fails; the others are stopped then.
    """
    environment = dict(os.environ)
    for variable in ("OMP_NUM_THREADS", "LP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment.setdefault(variable, "1")
    # glibc would give every picture-sized array back to the system and fetch it again: a third of the time.
    environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 28))
    environment.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 29))
    processes, listeners, lock = [], [], threading.Lock()
    failures: list[str] = []
    module, function = entry.split(":")
    program = f"from automoe.world.workers import serve; from {module} import {function}; serve({function})"

    def listen(process: subprocess.Popen, job: dict[str, Any]) -> None:
        said = []
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.close()
        except BrokenPipeError:
            pass  # it died before it could read; its last words and its exit status follow
        for line in process.stdout:
            if line.strip() == DONE:
                with lock:
                    on_piece()
            else:
                said.append(line)
        if process.wait() != 0:
            failures.append("".join(said[-30:]).strip() or f"exit status {process.returncode}")

    for job in jobs:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        processes.append(process)
        listeners.append(threading.Thread(target=listen, args=(process, job), daemon=True))
        listeners[-1].start()
    try:
        for listener in listeners:
            while listener.is_alive():
                listener.join(0.2)
                if failures:
                    break
    finally:
        for process in processes:
            if process.poll() is None and (failures or sys.exc_info()[0] is not None):
                process.terminate()
    if failures:
        raise WorldError(
            f"a worker of the export to {out} stopped: {failures[0].splitlines()[-1]}; what is finished is kept, the "
            "same command goes on from there"
        )


def serve(work: Callable[[dict[str, Any], Callable[[], None]], None]) -> None:
    """What a worker process does: read the job from standard input, work, and say so after each piece."""
    import cv2

    cv2.setNumThreads(1)
    work(json.loads(sys.stdin.readline()), lambda: print(DONE, flush=True))


def write_piece(path: Path, content: bytes) -> None:
    """Write a file of an export, whole or not at all. Raises WorldError that says what is kept."""
    try:
        write_bytes(path, content, sync=False)
    except WriteError as error:
        raise WorldError(f"{error} Finished pieces are kept: the same command goes on from there.") from error
