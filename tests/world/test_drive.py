"""A driven ego in the world: routes, contacts, and traffic that minds it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from automoe.errors import WorldError
from automoe.world import polyline
from automoe.world.autopilot import Autopilot
from automoe.world.contacts import Obstacles, contacts, rectangle
from automoe.world.drive import STEP, Drive
from automoe.world.motion import Traffic
from automoe.world.route import draw_route, plan_route
from automoe.world.scene import Conditions, EgoState
from automoe.world.traffic import Density, sample_scene
from automoe.world.vehicle import AHEAD, Control

EMPTY = Density(vehicles=0.01, parked=0.0, pedestrians=0.0, crossing=0.0, at_kerb=0.0)


@pytest.fixture(scope="module")
def obstacles(small_stage) -> Obstacles:
    return Obstacles(small_stage)


@pytest.mark.parametrize("seed", range(8))
def test_routes_are_as_long_as_asked_for_and_never_twice_on_a_lane(small_town, seed: int) -> None:
    route = draw_route(small_town, np.random.default_rng(seed), 150.0)
    assert route.length == pytest.approx(150.0, abs=20.0)
    assert len(set(route.lanes)) == len(route.lanes)
    assert len(route.turns) == len(route.line)
    assert np.hypot(*np.diff(route.line, axis=0).T).max() < 2.5
    assert small_town.lanes[route.lanes[-1]].junction is None
    np.testing.assert_allclose(route.targets[-1], route.line[-1])
    ahead = route.next_targets(route.length, 2)
    np.testing.assert_allclose(ahead, [route.line[-1]] * 2)


def test_a_route_tells_of_a_turn_before_it_comes(small_town) -> None:
    for seed in range(30):
        route = draw_route(small_town, np.random.default_rng(seed), 200.0)
        first = next((index for index, turn in enumerate(route.turns) if turn in ("left", "right")), None)
        if first is None or route.along[first] < 60.0:
            continue
        at = float(route.along[first])
        assert route.command(at - 40.0) == "follow"
        assert route.command(at - 20.0) == route.turns[first] == route.command(at + 1.0)
        inside = [index for index, turn in enumerate(route.turns) if turn == route.turns[first]]
        _, headings = polyline.sample(route.line, route.along[[inside[0] - 2, inside[-1] + 2]])
        turned = float(polyline.wrap_angle(headings[1] - headings[0]))
        assert (turned > 0.5) if route.turns[first] == "left" else (turned < -0.5)
        return
    pytest.fail("no route with a turn")


def test_a_route_needs_lanes_that_follow_each_other(small_town) -> None:
    one, other = small_town.driving_lanes()[:2]
    with pytest.raises(WorldError, match="does not follow"):
        plan_route(small_town, (one.id, other.id), 0.0, 10.0)
    with pytest.raises(WorldError, match="m long"):
        plan_route(small_town, (one.id,), 0.0, 1e4)


def test_the_teacher_stays_on_its_lane_and_arrives(small_stage, obstacles) -> None:
    route = draw_route(small_stage.town, np.random.default_rng(3), 150.0)
    drive, pilot, aside = Drive(small_stage, route, 3, density=EMPTY, obstacles=obstacles), Autopilot(), []
    for _ in range(round(120 / STEP)):
        drive.step(pilot.control(drive))
        if drive.station > 5.0:
            aside.append(polyline.project(route.line, np.array([drive.car.x, drive.car.y]))[1])
        assert not drive.contacts
        if drive.station > route.length - 2.0:
            break
    assert drive.station > route.length - 2.0
    assert np.abs(aside).max() < 0.5


def test_the_same_drive_twice(small_stage, obstacles) -> None:
    ends = []
    for _ in range(2):
        route = draw_route(small_stage.town, np.random.default_rng(1), 120.0)
        drive, pilot = Drive(small_stage, route, 5, obstacles=obstacles), Autopilot()
        for _ in range(100):
            drive.step(pilot.control(drive))
        ends.append((drive.car, drive.scene.actors))
    assert ends[0] == ends[1]


def test_who_drives_into_somebody_stands_and_touches_him(small_stage, obstacles) -> None:
    """Full throttle, straight on, ends at the first thing that is solid."""
    for seed in range(6):
        route = draw_route(small_stage.town, np.random.default_rng(seed), 150.0)
        drive = Drive(small_stage, route, seed, obstacles=obstacles)
        for _ in range(600):
            before = drive.car
            drive.step(Control(throttle=1.0, steer=0.2))
            if any(contact.solid for contact in drive.contacts):
                break
        solid = [contact for contact in drive.contacts if contact.solid]
        assert solid
        assert drive.car.speed == 0.0
        assert (drive.car.x, drive.car.y) == (before.x, before.y)


def test_contacts_name_what_is_touched(small_stage, obstacles) -> None:
    scene = sample_scene(small_stage, np.random.default_rng(2), Conditions())
    car = next(actor for actor in scene.actors if actor.category == "car")
    beside = EgoState(car.x, car.y, car.yaw, 0.0, scene.ego.route, scene.ego.station)
    found = contacts(replace(scene, ego=beside), obstacles)
    assert ("vehicle", car.id, "car") in [(one.kind, one.id, one.what) for one in found]
    person = next(actor for actor in scene.actors if actor.category == "pedestrian")
    on = EgoState(person.x, person.y, 0.0, 0.0, scene.ego.route, scene.ego.station)
    found = contacts(replace(scene, ego=on), obstacles)
    kinds = {one.id: (one.kind, one.solid) for one in found}
    assert kinds[person.id] == ("pedestrian", False)
    tree = next(place for place in small_stage.placements if place.asset.startswith("tree"))
    static = [one for one in obstacles.touched(rectangle(tree.x, tree.y, 0.0, 1.0, 1.0)) if one.kind == "static"]
    assert any(one.what.startswith("tree") for one in static)


def test_heads_on_masts_are_passed_below(small_stage, obstacles) -> None:
    """The ego drives under signal heads and lamps that reach over the road."""
    heads = [place for place in small_stage.placements if place.asset == "head" and place.z > 3.0]
    assert heads
    for head in heads:
        touched = obstacles.touched(rectangle(head.x, head.y, head.yaw, 0.5, 0.5))
        assert not [one for one in touched if one.what == "traffic light"]


def test_traffic_stops_behind_somebody_elses_ego(small_stage) -> None:
    """Whoever comes to a car that stands across its lane waits, whatever lane that car's route is on."""
    rng = np.random.default_rng(4)
    scene = sample_scene(small_stage, rng, Conditions(), Density(vehicles=2.5, parked=0.0, pedestrians=0.0))
    lanes = small_stage.town.lanes
    moving = [
        actor for actor in scene.actors
        if actor.lane and actor.category == "car" and actor.speed > 3.0 and lanes[actor.lane].junction is None
    ]  # fmt: skip
    tested = 0
    for actor in moving:
        lane = lanes[str(actor.lane)]
        station, _ = polyline.project(lane.centre, np.array([actor.x, actor.y]))
        if station + 35.0 > lane.length - 8.0:
            continue
        point, heading = lane.at(station + 30.0)
        across = float(heading) + math.pi / 2
        x, y = point - AHEAD * np.array([math.cos(across), math.sin(across)])
        ego = EgoState(float(x), float(y), across, 0.0, (lane.id,), station + 30.0)
        traffic = Traffic(replace(scene, ego=ego), 4)
        for _ in range(round(15 / STEP)):
            after = traffic.step(STEP, ego)
        here = next(one for one in after.actors if one.id == actor.id)
        gone, _ = polyline.project(lane.centre, np.array([here.x, here.y]))
        assert here.speed < 0.5
        assert gone + here.size[0] / 2 < station + 30.0
        tested += 1
        if tested == 3:
            break
    assert tested


def test_an_ego_off_its_route_is_found_on_the_lane_that_it_took(small_stage) -> None:
    scene = sample_scene(small_stage, np.random.default_rng(6), Conditions(), EMPTY)
    traffic = Traffic(scene, 6)
    other = next(
        lane for lane in small_stage.town.driving_lanes() if lane.id not in scene.ego.route and lane.length > 40.0
    )
    point, heading = other.at(20.0)
    ego = EgoState(float(point[0]), float(point[1]), float(heading), 4.0, scene.ego.route, 0.0)
    after = traffic.step(STEP, ego)
    assert after.ego.route[0] == other.id
    assert after.ego.station == pytest.approx(20.0 + AHEAD, abs=1.5)
    assert math.isfinite(traffic.advice())
