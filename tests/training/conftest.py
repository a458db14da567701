"""What the tests of the entry points share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from entry_points import run_script


@pytest.fixture
def run_here(capfd: pytest.CaptureFixture[str], one_thread: None) -> Callable[[list[str]], tuple[int, str, str]]:
    """An entry point in this process (importing PyTorch again would take most of the time): exit code and output."""

    def run(words: list[str]) -> tuple[int, str, str]:
        code = run_script(words)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
