"""Routes from files and to files: every dialect is read, nothing is lost on the way, and a way is found again."""

from __future__ import annotations

import gzip
import json
import pickle
from dataclasses import replace
from functools import cache
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from automoe import cli
from automoe.drive import evaluation
from automoe.drive.command import tasks_of
from automoe.drive.evaluation import DriveResult, DriverSpec
from automoe.drive.leaderboard import RouteRecord, read_results
from automoe.drive.routes import (
    RouteFile,
    RouteTask,
    Scenario,
    generated_routes,
    planned_routes,
    read_routes,
    write_routes,
    written_routes,
)
from automoe.errors import ConfigError, DataError, WorldError
from automoe.world.route import draw_route, plan_through
from automoe.world.town import Town, build_town

BENCH2DRIVE = "bench2drive/leaderboard/data/bench2drive220.xml"
LONGEST6 = "carla_garage/leaderboard/data/longest6.xml"
LAV = "carla_garage/leaderboard/data/lav.xml"
DEVTEST = "leaderboard/data/routes_devtest.xml"
VALIDATION = "leaderboard/data/routes_validation.xml"
TOWN = "carla-val-01"

town_named = cache(build_town)


def same(one: RouteFile, other: RouteFile) -> bool:
    """Whether two routes say the same, to the last bit."""

    def told(scenario: Scenario) -> tuple:
        return scenario.name, scenario.type, scenario.point.tolist(), scenario.yaw, scenario.parameters

    return (
        (one.id, one.town, one.weather) == (other.id, other.town, other.weather)
        and np.array_equal(one.points, other.points)
        and list(map(told, one.scenarios)) == list(map(told, other.scenarios))
    )


# --- files ---


@pytest.mark.parametrize(
    ("name", "routes", "points", "scenarios"),
    [
        (BENCH2DRIVE, 220, 9112, 220),
        (LONGEST6, 36, 1466, 0),
        (LAV, 16, 572, 0),
        (DEVTEST, 2, 62, 119),
        (VALIDATION, 20, 602, 1786),
    ],
)
def test_official_files_survive_reading_and_writing(fixtures, tmp_path, name, routes, points, scenarios) -> None:
    read = read_routes(fixtures("carla_routes") / name)
    assert len(read) == routes
    assert sum(len(route.points) for route in read) == points
    assert sum(len(route.scenarios) for route in read) == scenarios
    assert all(route.weather for route in read)
    for again in (tmp_path / "routes.xml", tmp_path / "routes.xml.gz"):
        write_routes(again, read)
        assert all(map(same, read, read_routes(again)))
    assert (tmp_path / "routes.xml.gz").read_bytes()[:2] == b"\x1f\x8b"


def test_old_waypoints_are_read_in_our_frame(fixtures) -> None:
    route = read_routes(fixtures("carla_routes") / LONGEST6)[0]
    assert (route.id, route.town) == ("0", "Town01")
    assert route.points[0].tolist() == [334.7254638671875, -288.90679931640625, 0.0]
    assert route.weather["sun_altitude_angle"] == 5.0
    assert "id" not in route.weather


def test_new_positions_weathers_and_scenarios_are_read_in_our_frame(fixtures) -> None:
    route = read_routes(fixtures("carla_routes") / BENCH2DRIVE)[0]
    assert (route.id, route.town) == ("1711", "Town12")
    assert route.points[0].tolist() == [-497.6, -3672.9, 364.9]
    (scenario,) = route.scenarios
    assert (scenario.name, scenario.type) == ("ParkingCutIn_1", "ParkingCutIn")
    assert scenario.point.tolist() == [-497.7, -3659.9, 364.7]
    assert scenario.yaw == pytest.approx(np.radians(90.2))
    assert scenario.parameters == {"direction": {"value": "left"}}
    towards = route.points[-1] - route.points[0]
    assert np.cos(scenario.yaw - np.arctan2(towards[1], towards[0])) > 0.99, "the ego drives along the route there"


def test_weather_is_that_of_the_beginning(fixtures) -> None:
    route = read_routes(fixtures("carla_routes") / VALIDATION)[0]
    assert (route.weather["precipitation"], route.weather["precipitation_deposits"]) == (0.0, 50.0)
    assert "route_percentage" not in route.weather


def test_gzipped_files_are_read(fixtures, tmp_path) -> None:
    plain = fixtures("carla_routes") / LAV
    (tmp_path / "lav").write_bytes(gzip.compress(plain.read_bytes()))
    assert all(map(same, read_routes(plain), read_routes(tmp_path / "lav")))


def test_what_is_written_is_what_the_leaderboard_reads(tmp_path) -> None:
    place = np.array([1.0, 2.0, 3.0])
    scenario = Scenario("Accident_1", "Accident", place, np.radians(90.0), {"speed": {"value": "9"}})
    points = np.array([[0.0, 0.0, 0.0], [10.0, 5.0, 1.5]])
    routes = [RouteFile("7", "Town01", points, {"cloudiness": 5.0}, (scenario,)), RouteFile("8", "Town01", points)]
    write_routes(tmp_path / "r.xml", routes)
    first, second = ElementTree.parse(tmp_path / "r.xml").getroot().iter("route")
    assert first.attrib == {"id": "7", "town": "Town01"}
    said = [{key: float(value) for key, value in one.attrib.items()} for one in first.findall("waypoints/position")]
    assert said == [{"x": 0.0, "y": 0.0, "z": 0.0}, {"x": 10.0, "y": -5.0, "z": 1.5}]
    assert [one.attrib for one in first.findall("weathers/weather")] == [{"route_percentage": "0", "cloudiness": "5.0"}]
    trigger = first.find("scenarios/scenario/trigger_point")
    assert trigger is not None
    assert trigger.attrib == {"x": "1.0", "y": "-2.0", "z": "3.0", "yaw": "-90.0"}
    assert second.find("weathers") is None, "an empty one would leave the leaderboard without weather"
    assert second.find("scenarios") is not None, "the leaderboard asks for it"


GOOD = '<route id="1" town="T"><waypoint x="0" y="0" z="0"/><waypoint x="9" y="0" z="0"/></route>'
STORMY = GOOD.replace("</route>", '<weather wetness="wet"/></route>')
NOWHERE = GOOD.replace("</route>", '<scenarios><scenario name="A" type="B"/></scenarios></route>')


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x,y\n0,0\n", "no XML"),
        ("<routes><route id=", "no XML"),
        ("<routes/>", "no route"),
        (b"\x1f\x8b\x08 not gzip", "gzip"),
        (f"<routes>{GOOD}{GOOD}</routes>", "more than one route 1"),
        ('<routes><route id="5" town="T"><waypoint x="0" y="0" z="0"/></route></routes>', "route 5: it has 1 points"),
        (f"<routes>{GOOD.replace('9', 'nan')}</routes>", "route 1: point 2 says 'nan' as x"),
        (f"<routes>{GOOD.replace('9', '1e999')}</routes>", "route 1: point 2 says '1e999' as x"),
        (f"<routes>{GOOD.replace('9', 'far')}</routes>", "route 1: point 2 says 'far' as x"),
        (f"<routes>{GOOD.replace(' z=', ' h=')}</routes>", "route 1: point 1 says nothing of z"),
        (f"<routes>{GOOD.replace(' id=', ' number=')}</routes>", "the route in place 1: a route has no id"),
        (f"<routes>{GOOD.replace(' town=', ' map=')}</routes>", "route 1: a route has no town"),
        (f"<routes>{STORMY}</routes>", "route 1: its weather says 'wet' as wetness"),
        (f"<routes>{NOWHERE}</routes>", "route 1: scenario A has no trigger_point"),
    ],
)
def test_bad_files_are_refused_with_file_and_route(tmp_path, content, words) -> None:
    path = tmp_path / "bad.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        read_routes(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="nothing"):
        read_routes(tmp_path / "nothing.xml")


# --- ways ---


@pytest.mark.parametrize("name", ["carla-val-01", "carla-val-02", "carla-train-03"])
def test_drawn_routes_are_found_again_from_their_file(tmp_path, name) -> None:
    town, path = town_named(name), tmp_path / "routes.xml"
    tasks = [RouteTask(number, name, 60.0 + 35.0 * number) for number in range(12)]
    write_routes(path, written_routes(tasks))
    for task, read in zip(tasks, read_routes(path), strict=True):
        drawn = task.route_in(town)
        assert np.hypot(*np.diff(read.points[:, :2], axis=0).T).max() <= 20.0 + 1e-6
        found = plan_through(town, read.points)
        assert found.lanes == drawn.lanes
        assert found.turns == drawn.turns
        assert np.allclose(found.line, drawn.line, rtol=0.0, atol=1e-6)
        rough = read.points + np.random.default_rng(task.number).uniform(-0.5, 0.5, read.points.shape)
        nearly = plan_through(town, rough)
        assert nearly.lanes == drawn.lanes
        assert abs(nearly.length - drawn.length) < 2.0


def test_the_way_between_far_waypoints_is_a_shortest_one() -> None:
    town = town_named(TOWN)
    drawn = draw_route(town, np.random.default_rng(4), 400.0)
    found = plan_through(town, drawn.line[[0, -1]])
    assert np.allclose(found.line[[0, -1]], drawn.line[[0, -1]])
    assert all(after in town.lanes[lane].successors for lane, after in pairwise(found.lanes))
    # By other means: the lengths of all lanes' beginnings, relaxed until nothing changes.
    metres = dict.fromkeys(town.lanes[found.lanes[0]].successors, town.lanes[found.lanes[0]].length - found.start)
    for _ in town.lanes:
        for lane, far in list(metres.items()):
            for after in town.lanes[lane].successors:
                metres[after] = min(metres.get(after, np.inf), far + town.lanes[lane].length)
    last, end = town.lanes[found.lanes[-1]], found.line[-1]
    assert found.length == pytest.approx(metres[last.id] + np.hypot(*(last.centre - end).T).argmin(), abs=1.0)
    assert found.length <= drawn.length + 0.1


def test_who_has_to_go_back_goes_round() -> None:
    town = town_named(TOWN)
    lane = next(lane for lane in town.driving_lanes() if lane.length > 60.0)
    ahead = plan_through(town, lane.at(np.array([10.0, 50.0]))[0])
    assert ahead.lanes == (lane.id,)
    assert ahead.length == pytest.approx(40.0, abs=0.1)
    back = plan_through(town, lane.at(np.array([50.0, 10.0]))[0])
    assert back.lanes[0] == back.lanes[-1] == lane.id
    assert len(back.lanes) > 4
    assert np.allclose(back.line[[0, -1]], lane.at(np.array([50.0, 10.0]))[0])
    rounded = plan_through(town, lane.at(np.array([10.0, 30.4, 30.0, 50.0]))[0])
    assert rounded.lanes == (lane.id,), "waypoints that are rounded to less than a metre send nobody round the block"


def test_a_way_that_cannot_be_gone_names_its_waypoint() -> None:
    town = town_named(TOWN)
    points = draw_route(town, np.random.default_rng(0), 200.0).line[::20].copy()
    with pytest.raises(WorldError, match="two waypoints"):
        plan_through(town, points[:1])
    with pytest.raises(WorldError, match="needs more"):
        plan_through(town, points[[0, 0]])
    shut = closed(town, plan_through(town, points).lanes[-1])
    with pytest.raises(WorldError, match=rf"waypoint \d+ of {len(points)} at .* cannot be reached"):
        plan_through(shut, points)
    points[3] += 500.0
    with pytest.raises(WorldError, match=f"waypoint 4 of {len(points)} at .* more than 3 m from every lane"):
        plan_through(town, points)


def closed(town: Town, name: str) -> Town:
    """A town in which nothing leads into a lane."""
    lanes = {
        lane.id: replace(lane, successors=tuple(after for after in lane.successors if after != name))
        for lane in town.lanes.values()
    }
    return replace(town, lanes=lanes)


# --- tasks ---


def test_tasks_of_a_file_keep_its_ids(tmp_path, capsys) -> None:
    written = written_routes(generated_routes(3, 80.0, [TOWN]))
    named = replace(written[2], id="over the/hill", weather={"wetness": 9.0})
    write_routes(tmp_path / "routes.xml", [written[1], named, written[0]])
    tasks = tasks_of(str(tmp_path / "routes.xml"))
    assert "weather of 1 routes are not followed" in capsys.readouterr().out
    assert [task.name(2) for task in tasks] == [
        "RouteScenario_1_rep2", "RouteScenario_over the/hill_rep2", "RouteScenario_0_rep2"
    ]  # fmt: skip
    assert tasks[0].number == 1, "so that it meets the traffic of the drawn one"
    assert [task.length for task in tasks] == pytest.approx([80.0] * 3, abs=30.0)
    assert pickle.loads(pickle.dumps(tasks)) == tasks
    assert tasks_of(str(tmp_path / "routes.xml"), 2) == tasks[:2]
    assert all(set("/ ").isdisjoint(task.stem(0)) for task in tasks)
    moved = replace(tasks[0], points=tasks[0].points[:-1])
    stems = {task.stem(0) for task in (*tasks, moved, *generated_routes(3, 80.0, [TOWN]))}
    assert len(stems) == 7, "a drive that is kept is of this route and no other"


def test_tasks_that_are_drawn() -> None:
    assert tasks_of() == generated_routes(20)
    assert tasks_of("generated", 3, 100.0) == generated_routes(3, 100.0)
    for said, number, length in (("generated", 0, 300.0), ("generated", None, 20.0), ("20", None, 300.0)):
        with pytest.raises(ConfigError):
            tasks_of(said, number, length)


def test_files_that_cannot_be_driven_here(fixtures, tmp_path) -> None:
    with pytest.raises(DataError, match=r"longest6.xml, route 0: .*'Town01'.* carla-val-04; .* CARLA server"):
        tasks_of(str(fixtures("carla_routes") / LONGEST6))
    (good,) = written_routes(generated_routes(1, 80.0, [TOWN]))
    astray = replace(good, id="9", points=good.points + 400.0)
    with pytest.raises(DataError, match=r"routes.xml, route 9: waypoint 1 of"):
        planned_routes([good, astray], tmp_path / "routes.xml")


def test_routes_are_shared_and_driven_on_the_command_line(tmp_path, monkeypatch) -> None:
    def drive(driver: DriverSpec, task: RouteTask, seed: int, digest: str) -> DriveResult:
        route = task.route_in(town_named(task.town))
        record = RouteRecord(task.name(seed), 100.0, {}, route.length, 10.0)
        return DriveResult(driver.name, task.number, seed, record.to_json(0), 1, 0.0, 0.0, 0, {}, {}, 0.0, digest)

    monkeypatch.setattr(evaluation, "drive_once", drive)
    path, towns = tmp_path / "routes.xml.gz", ("carla-val-02", TOWN)
    cli.app(["routes", "generated", "--out", str(path), "--number", "3", "--length", "60", "--towns", *towns])
    assert [(route.id, route.town) for route in read_routes(path)] == [("0", towns[0]), ("1", TOWN), ("2", towns[0])]
    line = f"drive --out {tmp_path} --beside teacher --workers 1 --seeds 1 --length 60 --number 2 --routes"
    for routes, driven in (("generated", [TOWN, "carla-val-02"]), (str(path), [*towns])):
        cli.app([*line.split(), routes])
        said = json.loads((tmp_path / "summary.json").read_text())["routes"]
        assert (said["from"], said["count"], said["towns"]) == (routes, 2, sorted(driven))
        records = read_results(tmp_path / "teacher" / "results.json")
        assert sorted(record.route_id for record in records) == ["RouteScenario_0_rep0", "RouteScenario_1_rep0"]
        assert said["length"] == pytest.approx(np.mean([record.length for record in records]), abs=20.0)
    assert len(list((tmp_path / "drives" / "teacher").iterdir())) == 4, "the file's routes are not the drawn ones"
    with pytest.raises(ConfigError, match="no town 'Town01'"):
        cli.app(["routes", "generated", "--out", str(path), "--towns", "Town01"])
