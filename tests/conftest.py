"""What all tests share: the way to real fixtures, which not everybody has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = Path(os.environ.get("AUTOMOE_FIXTURES") or ROOT.parent / "shared" / "fixtures")


LONGEST = ("test_real_frames.py", "test_train_carla.py", "test_carla_writer.py")
"""Files of few tests that take minutes: begun last, one of them would run while all other processes wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; all else keeps its order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def fixtures() -> Callable[[str], Path]:
    """`fixtures("scalabel_official")` is that folder; where it is absent the test skips, or fails on demand."""

    def find(name: str) -> Path:
        path = FIXTURES / name
        if path.exists():
            return path
        message = f"fixture {name} not found under {FIXTURES} (set AUTOMOE_FIXTURES to where it is)"
        if os.environ.get("AUTOMOE_REQUIRE_FIXTURES") == "1":
            pytest.fail(message)
        pytest.skip(message)

    return find


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads; and many small networks are quickest with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
