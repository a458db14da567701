"""Data tests start from a tiny raw tree."""

from __future__ import annotations

from pathlib import Path

import pytest
from bdd100k_tree import write_bdd100k_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A BDD100K tree of four training and two validation frames, 64x36, in the official layout."""
    return write_bdd100k_tree(tmp_path / "bdd100k")
