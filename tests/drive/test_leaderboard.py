"""The leaderboard's arithmetic: factors, shares, means, and the form of a results file."""

from __future__ import annotations

import json

import pytest

from automoe.drive.leaderboard import KINDS, OUTSIDE, PENALTIES, RouteRecord, results_file, summarise


def record(completion: float = 100.0, outside: float = 0.0, crashed: str | None = None, **counts: int) -> RouteRecord:
    said = {kind: [f"{kind} {number}" for number in range(counts.get(kind, 0))] for kind in KINDS}
    return RouteRecord("RouteScenario_1_rep0", completion, said, 300.0, 60.0, 10.0, outside, 300.0 * outside, crashed)


@pytest.mark.parametrize(("kind", "factor"), PENALTIES.items())
def test_every_infraction_multiplies(kind: str, factor: float) -> None:
    assert record(**{kind: 1}).driving_score == pytest.approx(100 * factor)
    assert record(50.0, **{kind: 2}).driving_score == pytest.approx(50 * factor**2)
    assert not record(**{kind: 1}).succeeded


def test_what_the_official_table_says() -> None:
    assert {kind: PENALTIES[kind] for kind in ("collisions_pedestrian", "collisions_vehicle", "red_light")} == {
        "collisions_pedestrian": 0.5, "collisions_vehicle": 0.6, "red_light": 0.7,
    }  # fmt: skip
    both = record(collisions_vehicle=1, stop_infraction=1)
    assert both.penalty == pytest.approx(0.6 * 0.8)


def test_driving_outside_costs_its_share_and_slowness_nothing() -> None:
    assert record(outside=0.25).driving_score == pytest.approx(75.0)
    slow = record(min_speed_infractions=2)
    assert slow.driving_score == 100.0
    assert slow.succeeded
    assert slow.status == "Completed"
    assert record().status == "Perfect"


def test_a_crash_and_a_missing_route_count_as_nothing() -> None:
    crashed = record(80.0, crashed="the agent raised ValueError")
    assert crashed.driving_score == 0.0
    assert crashed.status == "Failed - Simulation crashed"
    scores = summarise([record(), crashed], routes=4)
    assert scores.driving_score == pytest.approx(25.0)
    assert scores.success_rate == pytest.approx(0.25)


def test_infractions_per_kilometre_are_those_of_the_driven_way() -> None:
    scores = summarise([record(50.0, red_light=3), record(100.0)])
    assert scores.kilometres == pytest.approx(0.45)
    assert scores.per_km["red_light"] == pytest.approx(3 / 0.45)
    assert summarise([record(outside=0.1)]).per_km[OUTSIDE] == pytest.approx(0.03)


def test_the_file_has_the_leaderboards_form(fixtures) -> None:
    import gzip

    path = fixtures("carla_results_bench2drivezoo") / "analysis" / "UniAD-Tiny.json.gz"
    official = json.loads(gzip.decompress(path.read_bytes()))
    ours = json.loads(json.dumps(results_file([record(vehicle_blocked=1, completion=40.0), record()], 2)))
    theirs = official["_checkpoint"]["records"][0]
    mine = ours["_checkpoint"]["records"][0]
    assert set(mine["scores"]) == set(theirs["scores"])
    assert set(mine["meta"]) == set(theirs["meta"])
    assert set(theirs["infractions"]) <= set(mine["infractions"])
    assert mine["status"] == "Failed - Agent got blocked"
    assert ours["_checkpoint"]["global_record"]["scores_mean"]["score_composed"] == pytest.approx(70.0)
    assert len(ours["labels"]) == len(ours["values"])
