"""Freed memory stays with the process on Linux."""

from __future__ import annotations

import subprocess
import sys

import pytest

TWICE = """
import resource
import torch
from automoe.engine.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
for _ in range(30):
    torch.ones(9_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(9_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is meant")
def test_a_tensor_that_was_freed_is_not_paged_in_again() -> None:
    """Thirty-six megabytes are 8,800 pages of 4 KiB: twenty such tensors fault 175,800 times if each comes from the
    system. (Where pages are huge there are few faults either way.)"""
    faults = {}
    for keep in (True, False):
        words = [sys.executable, "-c", TWICE.replace("{keep}", str(keep))]
        faults[keep] = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert faults[True] < 100
    assert faults[False] > faults[True]
