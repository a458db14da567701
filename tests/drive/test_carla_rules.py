"""What is an infraction in CARLA, from plain facts: no server, no map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from automoe.carla.route import CarlaRoute
from automoe.drive.carla_rules import CarlaReferee, Facts, LaneFact, Light, LightLine, StopSign, hit_of
from automoe.drive.referee import BLOCKED_SECONDS, TIMEOUT_SECONDS

LINE = np.stack([np.arange(0.0, 101.0), np.full(101, 3.0)], axis=1)
ROUTE = CarlaRoute(LINE, ("follow",) * 101, np.eye(4))
LANE = LaneFact(0.0, 3.5, 0.0, False)
MY_LANE = (7, -1)
LIGHT = Light(
    5, np.array([62.0, -4.0, 0.0]), np.array([58.0, 3.0, 0.0]),
    (LightLine(MY_LANE, np.array([[60.0, 5.1], [60.0, 0.9]]), 0.0),),
)  # fmt: skip
SIGN = StopSign(9, np.array([42.0, -2.0, 0.0]), np.array([40.0, 3.0, 0.0]), np.array([1.5, 2.0]))


def at(x: float, time: float, **more) -> Facts:
    ahead = np.stack([x + 0.5 * np.arange(9), np.full(9, 3.0), np.zeros(9)], axis=1)
    return replace(Facts(time, np.array([x, 3.0]), 0.0, 8.0, 8.0, 8.33, LANE, MY_LANE, ahead), **more)


def drive(referee: CarlaReferee, first: float = 0.0, last: float = 100.0, **more) -> CarlaReferee:
    for count, x in enumerate(np.arange(first, last, 0.4)):
        if referee.ended is None:
            referee.observe(at(float(x), referee.began + 0.05 * count, **more))
    return referee


def said(referee: CarlaReferee) -> dict[str, int]:
    return {kind: len(words) for kind, words in referee.record().infractions.items() if words}


def test_a_good_drive_is_perfect() -> None:
    record = drive(CarlaReferee(ROUTE, "r", lights=[LIGHT])).record(1.5)
    assert record.status == "Perfect"
    assert (record.driving_score, record.length, record.seconds_taken) == (100.0, 100.0, 1.5)
    assert record.seconds == pytest.approx(100 / 8, abs=0.1)


@pytest.mark.parametrize(
    ("more", "count"),
    [({"red": frozenset({5})}, 1), ({"red": frozenset({6})}, 0), ({"red": frozenset({5}), "tail_lane": (7, -2)}, 0),
     ({"red": frozenset({5}), "yaw": 3.0}, 0)],
)  # fmt: skip
def test_a_red_light_holds_its_own_lane_in_its_own_direction(more, count: int) -> None:
    referee = drive(CarlaReferee(ROUTE, "r", lights=[LIGHT]), last=80.0, **more)
    assert said(referee).get("red_light", 0) == count
    if count:
        # In CARLA's axes, where y grows to the right.
        assert referee.record().infractions["red_light"] == ["Agent ran a red light 5 at (x=62.000, y=4.000, z=0.000)"]


def test_a_stop_sign_wants_a_stop_and_is_run_once() -> None:
    assert said(drive(CarlaReferee(ROUTE, "r", stops=[SIGN]))) == {"stop_infraction": 1}
    assert said(drive(CarlaReferee(ROUTE, "r", stops=[SIGN]), forward=-1.0)) == {}
    assert said(drive(CarlaReferee(ROUTE, "r", stops=[replace(SIGN, middle=np.array([40.0, 7.0, 0.0]))]))) == {}
    referee = drive(CarlaReferee(ROUTE, "r", stops=[SIGN]), last=38.0)
    referee.observe(at(38.0, 5.0, speed=0.0))
    drive(referee, 38.0)
    assert said(referee) == {}


@pytest.mark.parametrize(
    ("type_id", "id", "kind"),
    [("vehicle.audi.tt", 3, "collisions_vehicle"), ("walker.pedestrian.0001", 4, "collisions_pedestrian"),
     ("static.pole", 0, "collisions_layout"), ("traffic.traffic_light", 6, "collisions_layout"),
     ("static.sidewalk", 0, None), ("unknown", 1, None)],
)  # fmt: skip
def test_collisions_are_sorted_by_what_was_hit(type_id: str, id: int, kind: str | None) -> None:
    assert hit_of(type_id, id).kind == kind
    referee = CarlaReferee(ROUTE, "r")
    for count in range(5):
        referee.observe(at(20.0 + 0.4 * count, 0.05 * count, hits=((type_id, id),)))
    assert said(referee) == ({} if kind is None else {kind: 1})
    # Within five seconds, six metres on: the same thing again, unless it has no id.
    referee.observe(at(28.0, 1.0))
    referee.observe(at(28.1, 1.05, hits=((type_id, id),)))
    assert sum(said(referee).values()) == (0 if kind is None else 2 if id == 0 else 1)


def test_who_stands_is_not_to_blame() -> None:
    referee = CarlaReferee(ROUTE, "r")
    referee.observe(at(20.0, 0.05, speed=0.0, hits=(("vehicle.audi.tt", 3),)))
    assert said(referee) == {}


@pytest.mark.parametrize(
    ("lane", "outside"),
    [(LaneFact(2.2, 3.5, 0.0, False), False), (LaneFact(2.3, 3.5, 0.0, False), True),
     (LaneFact(0.1, 3.5, np.pi, False), True), (LaneFact(0.1, 3.5, np.pi, True), False)],
)  # fmt: skip
def test_beside_the_road_and_on_the_wrong_lane(lane: LaneFact, outside: bool) -> None:
    referee = CarlaReferee(ROUTE, "r")
    drive(referee, 0.0, 30.2)
    drive(referee, 30.0, 50.2, lane=lane)
    record = referee.record()
    assert record.outside_metres == pytest.approx(20.0 if outside else 0.0, abs=0.5)
    assert record.outside == pytest.approx(0.4 if outside else 0.0, abs=0.01)


def test_blocked_lost_and_timed_out_end_a_route() -> None:
    referee = CarlaReferee(ROUTE, "r")
    referee.observe(at(10.0, 1.0, speed=0.0))
    referee.observe(at(10.0, BLOCKED_SECONDS + 1.0, speed=0.0))
    assert referee.ended == "vehicle_blocked"
    assert referee.record().status == "Failed - Agent got blocked"

    referee = CarlaReferee(ROUTE, "r")
    referee.observe(at(10.0, 1.0, place=np.array([10.0, 34.0])))
    assert referee.ended == "route_dev"
    assert referee.record().infractions["route_dev"] == [
        "Agent deviated from the route at (x=10.000, y=-34.000, z=0.000)"
    ]

    referee = CarlaReferee(ROUTE, "r")
    referee.observe(at(10.0, 1.0, speed_limit=0.0))  # a server that knows of no limit
    referee.observe(at(10.0, TIMEOUT_SECONDS + 101.0))
    assert referee.ended == "route_timeout"


def test_a_short_cut_completes_nothing() -> None:
    referee = CarlaReferee(ROUTE, "r")
    referee.observe(at(2.0, 0.05))
    referee.observe(at(99.0, 0.1))
    assert referee.completion < 20.0
