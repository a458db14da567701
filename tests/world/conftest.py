"""A small town that several test files share."""

from __future__ import annotations

import pytest

from automoe.world.furnish import stage_town
from automoe.world.town import TownStyle, build_town

SMALL = TownStyle(columns=3, rows=2, spacing=90.0, merged_blocks=0, avenues=1.0, curved=0.5, tram=True, fleet="tests/0")


@pytest.fixture(scope="session")
def small_town():
    return build_town("tests-01", SMALL)


@pytest.fixture(scope="session")
def small_stage(small_town):
    return stage_town(small_town)
