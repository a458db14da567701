"""Lets the tests of the engine import `toy_training`, which also runs as a script."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Bits are compared between processes that have one thread each."""
