"""Ways on CARLA's own maps, along the leaderboard's own routes."""

from __future__ import annotations

import gzip
from enum import IntEnum
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from automoe.carla import frame
from automoe.carla.observe import pose_of
from automoe.carla.route import CarlaRoute, plan_on_map, route_of_plan
from automoe.drive.routes import RouteFile, read_routes
from automoe.errors import DataError
from automoe.world import polyline
from automoe.world.route import TARGET_METRES

carla: Any = pytest.importorskip("carla", reason="the real client comes with `pip install automoe[carla]`")

MAPS = "carla_maps/src/py123d/parser/opendrive/carla_maps"
LONGEST6 = "carla_routes/carla_garage/leaderboard/data/longest6.xml"
BENCH2DRIVE = "carla_routes/bench2drive/leaderboard/data/bench2drive220.xml"


@pytest.fixture(scope="module")
def maps(fixtures):
    known: dict[str, Any] = {}

    def named(town: str) -> Any:
        if town not in known:
            text = gzip.decompress((fixtures(MAPS) / f"{town}.xodr.gz").read_bytes()).decode()
            known[town] = carla.Map(town, text)
        return known[town]

    return named


@pytest.fixture(scope="module")
def of_file(fixtures):
    def found(name: str, *ids: str) -> list[RouteFile]:
        return [route for route in read_routes(fixtures(name)) if route.id in ids]

    return found


def stretches(route: CarlaRoute) -> list[tuple[str, int, int]]:
    """The turns of a route in order, each with the rows where it begins and ends."""
    rows = [0, *(i for i in range(1, len(route.turns)) if route.turns[i] != route.turns[i - 1]), len(route.turns)]
    return [(route.turns[a], a, b - 1) for a, b in pairwise(rows) if route.turns[a] != "follow"]


@pytest.mark.parametrize(
    ("name", "id"),
    [(LONGEST6, "0"), (LONGEST6, "6"), (LONGEST6, "12"), (LONGEST6, "13"), (LONGEST6, "22"), (LONGEST6, "31"),
     (BENCH2DRIVE, "25968"), (BENCH2DRIVE, "26408")],
)  # fmt: skip
def test_the_leaderboards_routes_are_planned_without_detours(maps, of_file, name: str, id: str) -> None:
    """On roundabouts, over changes of lane and lanes of a hand's breadth."""
    (file,) = of_file(name, id)
    carla_map = maps(file.town)
    route = plan_on_map(carla, carla_map, file.points)
    crow = np.hypot(*np.diff(file.points[:, :2], axis=0).T).sum()
    assert crow - 1.0 < route.length < 1.15 * crow + 5.0
    assert max(abs(polyline.project(route.line, point[:2])[1]) for point in file.points) < 3.0
    gaps = np.diff(route.line, axis=0)
    assert np.hypot(*gaps.T).max() < 1.5
    bends = polyline.wrap_angle(np.diff(np.arctan2(gaps[:, 1], gaps[:, 0])))
    assert np.degrees(np.abs(bends)).max() < 50.0
    np.testing.assert_allclose(route.line[0], route.start[:2, 3])
    begins = np.arctan2(*gaps[0, ::-1])
    assert abs(polyline.wrap_angle(np.arctan2(route.start[1, 0], route.start[0, 0]) - begins)) < 0.2
    wrong = 0
    for turn, first, last in stretches(route):
        before, after = (
            polyline.sample(route.line, route.along[row] + more)[1] for row, more in ((first, -1), (last, 1))
        )
        turned = float(polyline.wrap_angle(after - before))
        wrong += turn != ("straight" if abs(turned) < np.radians(35.0) else "left" if turned > 0 else "right")
    assert wrong <= len(stretches(route)) // 10  # where a lane is changed in a junction


def test_turns_are_told_in_junctions_and_nowhere_else(maps, of_file) -> None:
    (file,) = of_file(LONGEST6, "0")
    carla_map = maps(file.town)
    route = plan_on_map(carla, carla_map, file.points)
    assert {turn for turn, _, _ in stretches(route)} == {"left", "right", "straight"}
    assert np.hypot(*np.diff(route.targets, axis=0).T).max() < TARGET_METRES + 2.0
    inside = [
        carla_map.get_waypoint(carla.Location(**frame.say_vector(np.array([*point, 0.0])))).is_junction
        for point in route.line
    ]
    told = np.array(route.turns) != "follow"
    assert (np.array(inside) == told).mean() > 0.97


def test_a_right_turn_in_carla_is_one_here(maps) -> None:
    """CARLA's yaw grows to the right: a lane through a junction whose yaw grows by a quarter leads to the right."""
    carla_map = maps("Town02")
    for first, last in carla_map.get_topology():
        turned = (last.transform.rotation.yaw - first.transform.rotation.yaw + 180.0) % 360.0 - 180.0
        if first.is_junction and abs(turned - 90.0) < 10.0:
            break
    else:
        pytest.fail("no such lane")
    before, after = first.previous(20.0)[0], last.next(20.0)[0]
    route = plan_on_map(carla, carla_map, np.array([pose_of(one.transform)[:3, 3] for one in (before, first, after)]))
    (only,) = stretches(route)
    assert only[0] == "right"
    ahead = (np.array([[*route.targets[-1], 0.0, 1.0]]) @ np.linalg.inv(route.start).T)[0]
    assert ahead[0] > 10.0
    assert ahead[1] < -10.0  # to the right of where it begins
    line = only[1]
    assert route.command(float(route.along[line]) - 20.0) == "right"
    assert route.command(float(route.along[only[2]]) + 5.0) == "follow"


def test_lanes_are_changed_where_it_has_to_be(maps) -> None:
    carla_map = maps("Town06")
    waypoint = next(
        first for first, _ in carla_map.get_topology()
        if not first.is_junction and first.lane_change == carla.LaneChange.Right and len(first.next(120.0)) == 1
        and first.next(120.0)[0].road_id == first.road_id
    )  # fmt: skip
    beside = waypoint.next(100.0)[0].get_right_lane()
    points = np.array([pose_of(one.transform)[:3, 3] for one in (waypoint, beside)])
    route = plan_on_map(carla, carla_map, points)
    assert route.length == pytest.approx(100.0, abs=3.0)
    assert set(route.turns) == {"follow"}
    np.testing.assert_allclose(route.line[[0, -1]], points[:, :2], atol=0.1)


def test_what_is_no_route_is_named(maps, of_file) -> None:
    carla_map = maps("Town02")
    (file,) = of_file(LONGEST6, "6")
    astray = np.concatenate([file.points[:1], file.points[:1] + 4000.0])
    with pytest.raises(DataError, match=r"waypoint 2 of 2 at \(.*\) is more than 3 m from every driving lane"):
        plan_on_map(carla, carla_map, astray)
    with pytest.raises(DataError, match="two waypoints or more, not 1"):
        plan_on_map(carla, carla_map, file.points[:1])
    with pytest.raises(DataError, match="within 1 m of way"):
        plan_on_map(carla, carla_map, file.points[[0, 0]])


def test_the_leaderboards_plan_is_taken_as_it_is() -> None:
    option = IntEnum("RoadOption", {"VOID": -1, "LEFT": 1, "RIGHT": 2, "LANEFOLLOW": 4, "CHANGELANELEFT": 5})
    options = [option.LANEFOLLOW, option.LANEFOLLOW, option.RIGHT, option.LEFT, option.CHANGELANELEFT, option.VOID]
    at = [0.0, 0.02, 1.0, 2.0, 3.0, 4.0]
    plan = [
        (carla.Transform(carla.Location(5.0, x, 0.2), carla.Rotation(yaw=90.0)), SimpleNamespace(value=one.value))
        for x, one in zip(at, options, strict=True)
    ]
    route = route_of_plan(plan)
    np.testing.assert_allclose(route.line, [[5.0, -x] for x in (0.0, 1.0, 2.0, 3.0, 4.0)], atol=1e-6)
    assert route.turns == ("follow", "right", "left", "follow", "follow")
    with pytest.raises(DataError, match="a route needs two"):
        route_of_plan(plan[:2])
    # Where the way to the next of a route's points begins, it may go back by up to a metre.
    again = route_of_plan([*plan[:4], plan[2], *plan[3:]])
    np.testing.assert_allclose(again.line, route.line, atol=1e-6)
