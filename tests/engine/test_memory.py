"""Freed memory stays with the process on Linux."""

from __future__ import annotations

import subprocess
import sys

import pytest

TWICE = """
import resource
import torch
from automoe.engine.memory import keep_freed_memory
assert keep_freed_memory()
for _ in range(30):
    torch.ones(4_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(4_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is meant")
def test_a_tensor_that_was_freed_is_not_paged_in_again() -> None:
    """Sixteen megabytes are 4,000 pages: twenty such tensors would fault 80,000 times if each came from the system."""
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4000
