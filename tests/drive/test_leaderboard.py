"""The leaderboard's arithmetic: factors, shares, means, and the form of a results file."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from automoe.drive.leaderboard import (
    KINDS,
    OUTSIDE,
    PENALTIES,
    SIMULATION_CRASHED,
    RouteRecord,
    read_results,
    results_file,
    summarise,
)
from automoe.errors import DataError


def record(completion: float = 100.0, outside: float = 0.0, failure: str | None = None, **counts: int) -> RouteRecord:
    said = {kind: [f"{kind} {number}" for number in range(counts.get(kind, 0))] for kind in KINDS}
    return RouteRecord("RouteScenario_1_rep0", completion, said, 300.0, 60.0, 10.0, outside, 300.0 * outside, failure)


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
    crashed = record(80.0, failure="Agent crashed", red_light=1)
    assert crashed.driving_score == 0.0
    assert crashed.status == "Failed - Agent crashed"
    scores = summarise([record(), crashed], routes=4)
    assert scores.driving_score == pytest.approx(25.0)
    assert scores.success_rate == pytest.approx(0.25)
    assert summarise([], routes=4).driving_score == 0.0
    with pytest.raises(DataError, match="2 records of 1 routes"):
        summarise([record(), crashed], routes=1)


def test_what_ended_a_route_is_said_in_the_leaderboards_words() -> None:
    assert record(40.0).status == "Failed"
    assert record(40.0, route_timeout=1).status == "Failed - Agent timed out"
    assert record(40.0, failure="TickRuntime").status == "Failed - TickRuntime"
    assert record(40.0, failure="TickRuntime").driving_score == 40.0
    assert record(40.0, failure="TickRuntime", vehicle_blocked=1).status == "Failed - Agent got blocked"


def test_only_a_whole_file_is_eligible() -> None:
    one, other = record(), replace(record(), route_id="RouteScenario_2_rep0")
    assert results_file([one, other], 2)["entry_status"] == "Finished"
    assert results_file([one], 2)["entry_status"] == "Invalid"
    # The leaderboard goes on after an agent's crash, and stops at the simulator's.
    assert results_file([one, replace(other, failure="Agent crashed")], 2)["entry_status"] == "Finished"
    assert results_file([one, replace(other, failure=SIMULATION_CRASHED)], 2)["entry_status"] == "Crashed"
    assert not results_file([one, replace(other, failure=SIMULATION_CRASHED)], 2)["eligible"]


def test_infractions_per_kilometre_are_those_of_the_driven_way() -> None:
    scores = summarise([record(50.0, red_light=3), record(100.0)])
    assert scores.kilometres == pytest.approx(0.45)
    assert scores.per_km["red_light"] == pytest.approx(3 / 0.45)
    assert summarise([record(outside=0.1)]).per_km[OUTSIDE] == pytest.approx(0.03)


def test_the_file_has_the_leaderboards_form(fixtures) -> None:
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


@pytest.mark.parametrize(
    ("name", "count", "driving_score", "successes"),
    [("UniAD-Base", 218, 45.81316, 36), ("UniAD-Tiny", 215, 40.72852, 29), ("VAD", 213, 42.35074, 33)],
)
def test_official_records_have_the_scores_that_their_infractions_give(
    fixtures, tmp_path: Path, name: str, count: int, driving_score: float, successes: int
) -> None:
    """Every record of three Bench2Drive evaluations, and the means that were published of them over its 220 routes. The
    share outside the lanes stands in its sentence to two digits of a per cent."""
    path = fixtures("carla_results_bench2drivezoo") / "analysis" / f"{name}.json.gz"
    entries = json.loads(gzip.decompress(path.read_bytes()))["_checkpoint"]["records"]
    plain = tmp_path / "results.json"
    plain.write_text(json.dumps({"_checkpoint": {"records": entries}}))  # none of its own means
    assert read_results(plain) == read_results(path)
    records = read_results(path)
    assert len(records) == count
    for entry, one in zip(entries, records, strict=True):
        scores = entry["scores"]
        factors = [PENALTIES[kind] for kind, said in entry["infractions"].items() for _ in said if kind in PENALTIES]
        shares = [float(words.split("(")[1].split("%")[0]) / 100 for words in entry["infractions"][OUTSIDE]]
        by_hand = entry["scores"]["score_route"]
        for factor in (*factors, *(1.0 - share for share in shares)):
            by_hand *= factor
        assert by_hand == pytest.approx(scores["score_composed"], abs=6e-3 if shares else 1e-4)
        assert one.penalty == pytest.approx(scores["score_penalty"], abs=1e-6)
        assert one.driving_score == pytest.approx(scores["score_composed"], abs=1e-4)
        assert one.outside == pytest.approx(sum(shares), abs=2e-4)
        again = one.to_json(3)
        assert again["status"] == entry["status"]
        assert again["num_infractions"] == entry["num_infractions"]
        assert again["meta"] == entry["meta"]
        assert RouteRecord.from_json(again).to_json(3) == again
    scores = summarise(records, routes=220)
    assert round(scores.driving_score, 5) == driving_score
    assert scores.success_rate == pytest.approx(successes / 220)


def test_our_own_file_reads_back(tmp_path: Path) -> None:
    crashed = replace(record(30.0, failure="Agent crashed"), reason="ValueError: no image came")
    outside = record(90.0, red_light=1, outside=0.25)
    outside.infractions[OUTSIDE][:] = ["Agent went outside its route lanes for about 75.0 meters (25.0% of the route)"]
    records = [replace(one, route_id=f"r{number}") for number, one in enumerate((crashed, outside, record()))]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results_file(records, 3)))
    read = read_results(path)
    assert [one.to_json(0) for one in read] == [one.to_json(0) for one in records]
    assert [one.reason for one in read] == ["ValueError: no image came", None, None]
    assert read[1].outside_metres == 75.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one["scores"].update(score_penalty=0.49), "route r0 has a penalty of 0.49.*give 0.7.*another ver"),
        (lambda one: one["scores"].update(score_composed=99.0), "route r0 has a driving score of 99, not 70"),
        (lambda one: one["infractions"].update(flying=["Agent flew"]), "route r0 tells of flying in unknown words"),
        (lambda one: one["infractions"].update({OUTSIDE: ["far"]}), f"route r0 tells of {OUTSIDE} in unknown words"),
        (lambda one: one.pop("meta"), "route r0 is not one of the leaderboard's .KeyError..meta...; give"),
        (
            lambda one: one["scores"].update(score_route=math.nan),
            "route r0 is not one of the leaderboard's .*no number",
        ),
        (lambda one: one["scores"].update(score_route=170.0), "route r0 is not one of .*a completion of 170 per cent"),
    ],
)
def test_a_record_by_other_rules_is_refused(change: Callable[[dict], object], message: str, tmp_path: Path) -> None:
    content = results_file([replace(record(red_light=1), route_id="r0")], 1)
    change(content["_checkpoint"]["records"][0])
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"results.json: .*{message}"):
        read_results(path)


def test_what_is_no_results_file_is_said_by_name(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(DataError, match=r"results\.json cannot be read: No such file"):
        read_results(path)
    for content in (b"not json", b"[]", b'{"_checkpoint": {}}', b'{"_checkpoint": {"records": [3]}}', b"\x1f\x8bshort"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"results\.json is not a results file"):
            read_results(path)
    twice = results_file([record(), record()], 2)
    path.write_text(json.dumps(twice))
    with pytest.raises(DataError, match="more than one record of RouteScenario_1_rep0"):
        read_results(path)
