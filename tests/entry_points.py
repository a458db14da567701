"""Running `training/*.py` inside the test's process."""

from __future__ import annotations

import runpy
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
