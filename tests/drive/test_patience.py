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
        if patience.creeps(begin + frame / 10, 0.0, True, go, held, clear):
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
    assert patience.creeps(began + 0.1, 0.5, True, 0.2, 0.0, clear=True)
    assert not patience.creeps(began + 0.2, 0.8, True, 0.2, 0.0, clear=False)
    # And what was seen a moment ago is still there: doubt begins anew.
    assert not patience.creeps(began + 0.3, 0.8, True, 0.2, 0.0, clear=True)
    assert stands(patience, 60.0, 0.2, clear=True, begin=began + 0.4) == pytest.approx(began + 2.8, abs=0.11)


def test_who_is_seen_now_and_then_is_not_crept_into() -> None:
    patience = Patience(CONFIG)
    for frame in range(1800):
        assert not patience.creeps(frame / 10, 0.0, True, 0.02, 0.0, clear=frame % 100 != 0)


def test_it_creeps_for_some_seconds_and_waits_again() -> None:
    patience = Patience(CONFIG)
    crept = [patience.creeps(frame / 10, 0.0, True, 0.1, 0.0, None) for frame in range(200)]
    assert sum(crept[:100]) == 30
    assert sum(crept) == 60


def test_a_red_light_holds_it_and_stops_its_creeping() -> None:
    patience = Patience(CONFIG)
    assert stands(patience, 40.0, 0.2, held=0.9) is None
    began = stands(patience, 60.0, 0.2, begin=40.0)
    assert began is not None
    assert patience.creeps(began + 0.1, 0.5, True, 0.2, 0.0, None)
    assert not patience.creeps(began + 0.2, 0.8, True, 0.2, 0.9, None)
    for frame in range(2, 40):
        assert not patience.creeps(began + frame / 10, 0.0, True, 0.2, 0.9, None)
    assert not patience.creeps(began + 4.0, 0.0, True, 0.2, 0.0, None)


def test_no_light_is_red_for_ever() -> None:
    """One of another street is, to who believes that it holds him."""
    patience = Patience(CONFIG)
    began = stands(patience, 180.0, 0.0, held=0.9, clear=True)
    assert began == pytest.approx(60.0 + 20.0, abs=0.2)
    crept = [patience.creeps(began + frame / 10, 2.0, True, 0.0, 0.9, True) for frame in range(1, 60)]
    assert sum(crept) == 29, "it goes on until it has crept, and then believes again"
    assert stands(Patience(CONFIG), 180.0, 0.0, held=0.9) is None, "nor is anything known where nobody tells"


def test_who_drives_doubts_nothing() -> None:
    patience = Patience(CONFIG)
    assert stands(patience, 4.0, 0.1) is None
    assert not patience.creeps(4.0, 5.0, True, 0.1, 0.0, None)
    assert patience.doubt == 0.0


def test_a_plan_that_goes_is_not_in_doubt() -> None:
    patience = Patience(CONFIG)
    for frame in range(100):
        assert not patience.creeps(frame / 10, 0.9, False, 0.3, 0.0, None)
    assert not patience.creeps(10.0, 0.9, True, 0.3, 0.0, None)


def test_once_the_plan_has_taken_over_it_creeps_no_more() -> None:
    for speed, creeps in ((2.0, True), (8.0, False)):
        patience = Patience(CONFIG)
        began = stands(patience, 60.0, 0.2)
        assert began is not None
        patience.creeps(began + 0.5, speed, False, 0.9, 0.0, None)
        assert patience.creeps(began + 1.0, speed, True, 0.0, 0.0, None) == creeps


def test_after_a_gap_of_time_it_begins_anew() -> None:
    patience = Patience(CONFIG)
    assert stands(patience, 4.9, 0.1) is None
    assert stands(patience, 4.0, 0.1, begin=60.0) is None
