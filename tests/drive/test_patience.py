"""A car that stands where its plan doubts that it should goes in the end; before a red light it does not."""

from __future__ import annotations

import pytest

from automoe.drive.patience import Patience, PatienceConfig

CONFIG = PatienceConfig(doubt=0.5, longest=20.0, creep_seconds=3.0)


def stands(
    patience: Patience, seconds: float, go: float, held: float = 0.0, clear: bool | None = None, begin: float = 0.0
) -> float | None:
    """When, at ten moments a second, a car that stands creeps first."""
    for frame in range(round(10 * seconds)):
        if patience.creeps(begin + frame / 10, 0.0, go, held, clear):
            return begin + frame / 10
    return None


@pytest.mark.parametrize(("go", "after"), [(0.1, 5.0), (0.05, 10.0), (0.5, 1.0)])
def test_doubt_adds_up(go: float, after: float) -> None:
    assert stands(Patience(CONFIG), 60.0, go) == pytest.approx(after, abs=0.11)


def test_behind_a_car_that_stands_nothing_is_in_doubt() -> None:
    assert stands(Patience(CONFIG), 180.0, 0.001) is None
    assert stands(Patience(CONFIG), 180.0, 0.3, clear=False) is None


def test_a_plan_that_is_sure_is_in_doubt_in_time_where_the_way_is_clear() -> None:
    assert stands(Patience(CONFIG), 60.0, 0.0, clear=True) == pytest.approx(20.0, abs=0.11)
    assert stands(Patience(CONFIG), 60.0, 0.1, clear=True) == pytest.approx(5.0, abs=0.11)


def test_who_gets_in_the_way_stops_it() -> None:
    patience = Patience(CONFIG)
    began = stands(patience, 60.0, 0.2, clear=True)
    assert began is not None
    assert patience.creeps(began + 0.1, 0.5, 0.2, 0.0, clear=True)
    assert not patience.creeps(began + 0.2, 0.8, 0.2, 0.0, clear=False)
    assert patience.creeps(began + 0.3, 0.8, 0.2, 0.0, clear=True)


def test_it_creeps_for_some_seconds_and_waits_again() -> None:
    patience = Patience(CONFIG)
    crept = [patience.creeps(frame / 10, 0.0, 0.1, 0.0, None) for frame in range(200)]
    assert sum(crept[:100]) == 30
    assert sum(crept) == 60


def test_a_red_light_holds_it_and_stops_its_creeping() -> None:
    patience = Patience(CONFIG)
    assert stands(patience, 60.0, 0.2, held=0.9) is None
    began = stands(patience, 60.0, 0.2, begin=60.0)
    assert began is not None
    assert patience.creeps(began + 0.1, 0.5, 0.2, 0.0, None)
    assert not patience.creeps(began + 0.2, 0.8, 0.2, 0.9, None)
    for frame in range(2, 40):
        assert not patience.creeps(began + frame / 10, 0.0, 0.2, 0.9, None)
    assert not patience.creeps(began + 4.0, 0.0, 0.2, 0.0, None)


def test_who_drives_doubts_nothing() -> None:
    patience = Patience(CONFIG)
    assert stands(patience, 4.0, 0.1) is None
    assert not patience.creeps(4.0, 5.0, 0.1, 0.0, None)
    assert patience.doubt == 0.0


def test_after_a_gap_of_time_it_begins_anew() -> None:
    patience = Patience(CONFIG)
    assert stands(patience, 4.9, 0.1) is None
    assert stands(patience, 4.0, 0.1, begin=60.0) is None
