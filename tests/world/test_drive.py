"""A driven ego in the world: routes, contacts, and traffic that minds it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import shapely

from automoe.errors import WorldError
from automoe.world import motion, polyline
from automoe.world.autopilot import FREE, Autopilot, LateStarts
from automoe.world.contacts import Obstacles, contacts, ego_body, rectangle
from automoe.world.drive import STEP, Drive
from automoe.world.motion import Traffic
from automoe.world.route import draw_route, plan_route
from automoe.world.scene import Conditions, EgoState
from automoe.world.traffic import Density, sample_scene
from automoe.world.vehicle import AHEAD, LENGTH, WIDTH, CarState, Control

EMPTY = Density(vehicles=0.01, parked=0.0, pedestrians=0.0, crossing=0.0, at_kerb=0.0)
PARKED = replace(EMPTY, parked=0.3)


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
    own, onward = route.next_targets(route.length - 5.0, 2)
    np.testing.assert_allclose(own, route.line[-1])
    np.testing.assert_allclose(route.next_targets(route.length, 2)[0], onward)
    way, end = onward - own, route.line[-1] - route.line[-3]
    assert np.hypot(*way) == pytest.approx(50.0)
    assert way @ end == pytest.approx(50.0 * np.hypot(*end), rel=1e-3)  # straight on


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


def test_the_target_speed_is_where_the_advice_is_neutral(
    small_stage, obstacles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the speed that the car has there. Where a junction is free that it isn't granted yet, it is above; and
    it is of a stop farther before lines than others make."""
    neutral = asked = earlier = 0
    for seed in range(4):
        route = draw_route(small_stage.town, np.random.default_rng(seed), 200.0)
        drive, pilot = Drive(small_stage, route, seed, obstacles=obstacles), Autopilot()
        for step in range(500):
            drive.step(pilot.control(drive))
            if step % 10:
                continue
            traffic, ego = drive.traffic, drive.scene.ego
            traffic.place_ego(ego)
            taught = traffic.target_speed()
            with monkeypatch.context() as patch:
                patch.setattr(motion, "SPARE", 0.0)
                wanted = traffic.target_speed()
            assert taught <= wanted
            earlier += taught < wanted - 0.1
            for speed in (0.0, 10.0, wanted):
                traffic.place_ego(replace(ego, speed=speed))
                assert traffic.target_speed() == pytest.approx(taught, abs=0.05)
            advice = traffic.advice()
            assert advice < 0.1
            neutral += advice > -0.1
            asked += 1
            traffic.place_ego(ego)
    assert neutral > 0.5 * asked > 50
    assert earlier > 5


def test_a_learner_is_taught_to_stop_at_yellow_and_to_stay_across_a_red_lights_line(
    small_stage, obstacles, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = 0
    for seed in range(4):
        route = draw_route(small_stage.town, np.random.default_rng(seed), 200.0)
        drive, pilot = Drive(small_stage, route, seed, obstacles=obstacles), Autopilot()
        for _ in range(500):
            drive.step(pilot.control(drive))
            traffic, ego = drive.traffic, drive.scene.ego
            found = traffic.light_ahead()
            if found is None or not 0.0 < found[1] < 6.0 or found[0].state(drive.scene.time) != "red":
                continue

            def wanted(beyond: float, state: str, traffic=traffic, ego=ego, signal=found[0], metres=found[1]) -> float:
                """The target speed so far beyond the line."""
                forward = (metres + beyond) * np.array([np.cos(ego.yaw), np.sin(ego.yaw)])
                traffic.place_ego(replace(ego, x=ego.x + float(forward[0]), y=ego.y + float(forward[1])))
                with monkeypatch.context() as patch:
                    patch.setattr(type(signal), "state", lambda *_: state)
                    return traffic.target_speed()

            for state in ("red", "yellow"):
                assert wanted(-found[1], state) < max(found[1] - motion.SPARE, 0.1)
                assert wanted(-1.0, state) == 0.0
            assert [wanted(metres, "red") for metres in (0.5, 1.6, 2.0, 2.9)] == [0.0] * 4
            assert wanted(motion.ACROSS + 1.0, "red") > 1.0
            checked += 1
            break
    assert checked > 1


def test_who_goes_at_the_target_speed_arrives(small_stage, obstacles) -> None:
    route = draw_route(small_stage.town, np.random.default_rng(3), 150.0)
    drive, pilot, wanted = Drive(small_stage, route, 3, obstacles=obstacles), Autopilot(), []
    for _ in range(round(150 / STEP)):
        wanted.append(drive.traffic.target_speed())
        drive.step(pilot.follow(drive, 1.3 * (wanted[-1] - drive.car.speed)))
        assert not drive.contacts
        if drive.station > route.length - 2.0:
            break
    assert drive.station > route.length - 2.0
    assert min(wanted) < 0.5
    assert max(wanted) > 7.0


def test_who_starts_late_stands_where_nothing_holds_him_and_no_longer_than_said(small_stage, obstacles) -> None:
    def longest_stands(late: bool) -> list[float]:
        """Seconds of each stand in which the target speed was that of a free road."""
        stands = []
        for seed in range(3):
            route = draw_route(small_stage.town, np.random.default_rng(seed), 200.0)
            drive, stood = Drive(small_stage, route, seed, obstacles=obstacles), 0.0
            pilot = LateStarts(Autopilot(), np.random.default_rng(0), 4.0) if late else Autopilot()
            for _ in range(round(60 / STEP)):
                free = drive.car.speed < 0.3 and drive.traffic.target_speed() >= FREE
                stands += [stood] if stood > 0.0 and not free else []
                stood = stood + STEP if free else 0.0
                drive.step(pilot.control(drive))
                if drive.station > route.length - 2.0:
                    break
        return stands

    on_time, late = longest_stands(late=False), longest_stands(late=True)
    assert max(on_time) < 1.0
    assert 2.0 < max(late) < 4.0 + 1.0
    assert sum(late) > 3 * sum(on_time)


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


def put(drive: Drive, x: float, y: float, yaw: float, speed: float = 0.0) -> None:
    """Bring the ego somewhere, the middle of its body first, without driving."""
    x, y = x - AHEAD * math.cos(yaw), y - AHEAD * math.sin(yaw)
    drive.car = CarState(x, y, yaw, speed)
    drive.scene = replace(drive.scene, ego=replace(drive.scene.ego, x=x, y=y, yaw=yaw, speed=speed))
    drive.contacts = contacts(drive.scene, drive.obstacles)


def shapes_of(drive: Drive, what: str) -> list[shapely.Polygon]:
    """The outlines of all trees, all walls or all parked cars."""
    if what == "car":
        parked = [actor for actor in drive.scene.actors if actor.parked and actor.category == "car"]
        return [rectangle(one.x, one.y, one.yaw, one.size[0], one.size[1]) for one in parked]
    named = zip(drive.obstacles.names, drive.obstacles.shapes, strict=True)
    return [shape for name, shape in named if name.startswith(what)]


def approach(drive: Drive, what: str) -> shapely.Polygon:
    """Put the ego 6 m before something with nothing else in between, heading for its middle."""
    solid = [*drive.obstacles.shapes, *shapes_of(drive, "car")]
    tree = shapely.STRtree(solid)
    for shape in shapes_of(drive, what):
        middle = shapely.get_coordinates(shape.centroid)[0]
        for yaw in np.arange(0.0, 2 * math.pi, math.pi / 8).tolist():
            forward = np.array([math.cos(yaw), math.sin(yaw)])
            x, y = middle - (3.0 + LENGTH / 2) * forward
            way = rectangle(float(x), float(y), yaw, 6.0 + LENGTH, WIDTH + 0.5)
            if all(solid[index].equals(shape) for index in tree.query(way, "intersects")):
                x, y = middle - (6.0 + LENGTH / 2) * forward
                put(drive, float(x), float(y), yaw)
                return shape
    raise AssertionError(f"no {what} with a way to it")


def park(drive: Drive, ahead: float, aside: float, turned: float, size: tuple[float, float, float]) -> shapely.Polygon:
    """Have a standing car so many metres before the ego's middle and to its left, turned so far to the left of it, and
    no other one."""
    (x, y), yaw = drive.car.middle, drive.car.yaw
    cos, sin = math.cos(yaw), math.sin(yaw)
    car = next(actor for actor in drive.scene.actors if actor.parked and actor.category == "car")
    car = replace(car, x=x + ahead * cos - aside * sin, y=y + ahead * sin + aside * cos, yaw=yaw + turned, size=size)
    drive.traffic.scene = drive.scene = replace(drive.scene, actors=(car,))
    put(drive, x, y, yaw)
    return rectangle(car.x, car.y, car.yaw, size[0], size[1])


def inside(drive: Drive, shape: shapely.Polygon) -> float:
    """Square metres of the ego that lie in something."""
    return ego_body(drive.scene.ego).intersection(shape).area


@pytest.fixture
def parked(small_stage, obstacles) -> Drive:
    """A drive that begins, with nobody about but standing cars."""
    route = draw_route(small_stage.town, np.random.default_rng(1), 150.0)
    return Drive(small_stage, route, 1, density=PARKED, obstacles=obstacles)


@pytest.mark.parametrize("what", ["tree", "wall", "car"])
def test_nobody_drives_through_what_is_solid(parked: Drive, what: str) -> None:
    """Full throttle for ten seconds ends before a tree, a wall, a standing car, and not behind or inside it."""
    shape, impacts = approach(parked, what), []
    for _ in range(round(10 / STEP)):
        parked.step(Control(throttle=1.0))
        assert inside(parked, shape) < 1e-6
        impacts.append(parked.impact)
    assert ego_body(parked.scene.ego).distance(shape) < 0.05
    assert parked.car.speed < 0.1
    assert max(impacts) > 4.0


def test_who_turns_away_leaves(parked: Drive) -> None:
    """From a car across his way that he came to at an angle. The wheels turn where he stands."""
    shape = park(parked, 12.0, 0.0, math.radians(20.0), (12.0, 2.0, 1.5))
    for _ in range(round(6 / STEP)):
        parked.step(Control(throttle=1.0))
    stood = parked.car
    assert ego_body(parked.scene.ego).distance(shape) < 0.05
    for _ in range(round(4 / STEP)):
        parked.step(Control(throttle=0.5, steer=-1.0))
        assert inside(parked, shape) < 1e-6
    assert math.hypot(parked.car.x - stood.x, parked.car.y - stood.y) > 2.0
    assert ego_body(parked.scene.ego).distance(shape) > 0.5


@pytest.mark.parametrize(
    ("ahead", "aside", "turned", "leaves"),
    [
        (-LENGTH + 0.3, 0.2, 0.0, True),
        (-0.5, (LENGTH + WIDTH) / 2 - 0.3, math.pi / 2, True),
        (LENGTH - 0.3, 0.0, 0.0, False),
    ],
    ids=["from behind", "from the side", "from ahead"],
)
def test_who_was_driven_into_is_not_moved_and_may_leave(
    parked: Drive, ahead: float, aside: float, turned: float, leaves: bool
) -> None:
    """A car has come 0.3 m into the ego: behind and beside it, it is left; ahead of it, it is in the way."""
    shape = park(parked, ahead, aside, turned, (LENGTH, WIDTH, 1.5))
    began, stood = inside(parked, shape), parked.car
    assert began > 0.5
    for _ in range(round(1 / STEP)):
        parked.step(Control(brake=1.0))
        assert [contact.kind for contact in parked.contacts] == ["vehicle"]
        assert (parked.car.x, parked.car.y, parked.car.speed) == (stood.x, stood.y, 0.0)
    for _ in range(round(4 / STEP)):
        parked.step(Control(throttle=0.5))
        assert inside(parked, shape) < began + 1e-6
    moved = math.hypot(parked.car.x - stood.x, parked.car.y - stood.y)
    assert (moved > 6.0) == leaves == (inside(parked, shape) == 0.0)


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
