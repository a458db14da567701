"""Running `training/*.py`, inside the test's process and in processes of their own."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from unittest import mock


def run_script(words: list[str]) -> int:
    """Run a script, the first word, as its command line would; its exit code."""
    with mock.patch.object(sys, "argv", words):
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def start(words: list[str]) -> subprocess.Popen[str]:
    """A real process, with WORLD_SIZE set as a user's shell might have it."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK")}
    return subprocess.Popen(
        [sys.executable, *words],
        env=clean | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
