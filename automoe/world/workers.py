"""What all exports share: whose folder it is, and worker processes that render."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from automoe.errors import WorldError, WriteError
from automoe.files import write_bytes
from automoe.machine import available_cores, one_core_environment

DONE = "done"
COUNTS = ("train", "val")
"""Of a plan, what a later export into the same folder may have more of; everything else has to be the same."""


def settings_of(plan: Any) -> dict[str, Any]:
    """A plan's settings (a dataclass) as JSON has them, without its counts."""
    return {key: value for key, value in json.loads(json.dumps(asdict(plan))).items() if key not in COUNTS}


def check_settings(out: Path, plan: Any, folder: str, holds: str) -> None:
    """Raise WorldError where `out` is an export with other settings, or no export but has a `folder` that `holds`
    something."""
    path = out / "world.json"
    if path.is_file():
        try:
            earlier = json.loads(path.read_text())["settings"]
        except (json.JSONDecodeError, KeyError) as problem:
            raise WorldError(f"{path} is damaged; remove {out} and export again") from problem
        # What an older program's export doesn't tell is as it then was, which is the default.
        usual = {one.name: one.default for one in fields(plan) if one.default is not MISSING}
        for key, value in settings_of(plan).items():
            if earlier.get(key, usual.get(key)) != value:
                raise WorldError(
                    f"{out} holds an export with {key} {earlier.get(key)!r}, not {value!r}; choose another "
                    "directory or remove that one"
                )
    elif (out / folder).exists():
        raise WorldError(f"{out} holds {holds} but no world.json, so it is no export of this world; choose another one")


def begin(out: Path, plan: Any) -> None:
    """Write world.json of an export that is not complete yet."""
    write_piece(out / "world.json", json.dumps({"settings": settings_of(plan), "complete": False}, indent=1).encode())


def make_pieces(
    write: Callable[[Path, Any, Sequence[tuple[str, int]], Callable[[], None]], None],
    entry: str,
    out: Path,
    plan: Any,
    waiting: Sequence[tuple[str, int]],
    *,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Make the waiting pieces: by `write` here, or by `entry` (see `run_workers`) in as many processes as there are
    cores or `workers` says. progress: called with (pieces done, pieces in all), those made earlier included."""
    total = plan.train + plan.val
    done = total - len(waiting)

    def one_more() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    if progress:
        progress(done, total)
    count = max(1, min(workers or available_cores(), len(waiting)))
    if count == 1:
        write(out, plan, waiting, one_more)
        return
    shares = [[waiting[i] for i in share] for share in np.array_split(np.arange(len(waiting)), count)]
    jobs = [{"out": str(out), "plan": asdict(plan), "pieces": share} for share in shares]
    run_workers(entry, jobs, one_more, out)


def run_workers(entry: str, jobs: Sequence[dict[str, Any]], on_piece: Callable[[], None], out: Path) -> None:
    """Run `entry` ("package.module:function") in a process of its own for each job, and listen to them.

    The function gets its job, as JSON has it, and a callable to call after each finished piece. Raises WorldError with
    the last words of the first that fails; the others are stopped then.
    """
    environment = {**os.environ, **one_core_environment()}
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
