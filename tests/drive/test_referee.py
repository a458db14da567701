"""The referee sees what it should: every infraction once, and none where nothing happened."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from automoe.data.sequences import Observation
from automoe.drive.closed_loop import drive_route
from automoe.drive.embedded import EmbeddedSimulator, Teacher
from automoe.drive.referee import BLOCKED_SECONDS, Referee
from automoe.world import polyline
from automoe.world.autopilot import Autopilot
from automoe.world.contacts import Contact, Obstacles
from automoe.world.drive import STEP, Drive
from automoe.world.furnish import stage_town
from automoe.world.route import Route, draw_route, plan_route
from automoe.world.scene import StagedTown
from automoe.world.town import TownStyle, build_town
from automoe.world.traffic import Density
from automoe.world.vehicle import AHEAD, CarState, Control

EMPTY = Density(vehicles=0.01, parked=0.0, pedestrians=0.0, crossing=0.0, at_kerb=0.0)
STYLE = TownStyle(columns=4, rows=3, spacing=90.0, merged_blocks=1, avenues=0.0, curved=0.0, fleet="tests/0")


@pytest.fixture(scope="module")
def stage() -> StagedTown:
    """A town of narrow streets, with lights at five junctions and stop lines at two."""
    return stage_town(build_town("referee-03", STYLE))


@pytest.fixture(scope="module")
def obstacles(stage) -> Obstacles:
    return Obstacles(stage)


def across(stage: StagedTown, lit: bool) -> tuple[Route, float]:
    """A route over a line with lights or without, and how far along it that is."""
    town = stage.town
    signals = {(signal.node, signal.street) for signal in town.signals}
    for line in town.stop_lines:
        entry = town.lanes[line.lanes[0]]
        if ((line.node, line.street) in signals) != lit or entry.length < 40.0:
            continue
        inner = town.lanes[entry.successors[0]]
        lanes = (entry.id, inner.id, inner.successors[0])
        start = entry.length - 35.0
        station, _ = polyline.project(entry.centre, line.points.mean(axis=0))
        return plan_route(town, lanes, start, 35.0 + inner.length + 20.0), station - start
    raise AssertionError("no such line")


def put(drive: Drive, station: float, speed: float, seconds: float = STEP, aside: float = 0.0) -> None:
    """Bring the ego somewhere beside its route, middle first, without driving."""
    point, heading = polyline.sample(drive.route.line, station)
    left = np.array([-math.sin(heading), math.cos(heading)])
    x, y = point + aside * left - AHEAD * np.array([math.cos(heading), math.sin(heading)])
    drive.car = CarState(float(x), float(y), float(heading), speed)
    drive.scene = replace(
        drive.scene, time=drive.scene.time + seconds, ego=replace(drive.scene.ego, x=x, y=y, yaw=heading, speed=speed)
    )
    drive.contacts, drive.impact = (), 0.0
    drive._progress()


def said(referee: Referee) -> dict[str, int]:
    return {kind: len(words) for kind, words in referee.record().infractions.items() if words}


def test_a_good_drive_is_perfect(stage, obstacles) -> None:
    route = draw_route(stage.town, np.random.default_rng(0), 150.0)
    simulator = EmbeddedSimulator(Drive(stage, route, 0, density=EMPTY, obstacles=obstacles), "r", ticks=1)
    record = drive_route(simulator, Teacher(simulator), "r")
    assert record.status == "Perfect"
    assert record.driving_score == 100.0
    assert record.succeeded


def over_the_line(stage, obstacles, state: str, stop_for: float = 0.0, lit: bool = True) -> dict[str, int]:
    route, line = across(stage, lit)
    drive = Drive(stage, route, 1, density=EMPTY, obstacles=obstacles)
    if lit:
        signal = next(s for s in stage.town.signals if route.lanes[0] in s.lanes)
        while signal.state(drive.scene.time) != state or signal.state(drive.scene.time + 4.0) != state:
            drive.scene = replace(drive.scene, time=drive.scene.time + 0.5)
    referee = Referee(drive, "r")
    for station in np.arange(line - 12.0, line + 10.0, 0.4):
        put(drive, float(station), 8.0)
        referee.observe()
        if stop_for and abs(station - (line - 3.0)) < 0.2:
            put(drive, float(station), 0.0, stop_for)
            referee.observe()
    return said(referee)


def test_a_red_light_is_seen_once_and_a_green_one_is_none(stage, obstacles) -> None:
    assert over_the_line(stage, obstacles, "red") == {"red_light": 1}
    assert over_the_line(stage, obstacles, "green") == {}


def test_a_stop_line_wants_a_stop(stage, obstacles) -> None:
    assert over_the_line(stage, obstacles, "", lit=False) == {"stop_infraction": 1}
    assert over_the_line(stage, obstacles, "", stop_for=0.2, lit=False) == {}


@pytest.fixture
def watched(stage, obstacles) -> tuple[Drive, Referee]:
    route = draw_route(stage.town, np.random.default_rng(2), 150.0)
    drive = Drive(stage, route, 2, density=EMPTY, obstacles=obstacles)
    return drive, Referee(drive, "r")


@pytest.mark.parametrize(
    ("contact", "kind"),
    [
        (Contact("pedestrian", 7, "pedestrian"), "collisions_pedestrian"),
        (Contact("vehicle", 8, "bus"), "collisions_vehicle"),
        (Contact("static", -3, "tree1"), "collisions_layout"),
    ],
)
def test_a_collision_counts_once_and_again_later_elsewhere(watched, contact: Contact, kind: str) -> None:
    drive, referee = watched
    for station in (20.0, 20.4, 20.8):
        put(drive, station, 5.0)
        drive.contacts = (contact,)
        referee.observe()
    assert said(referee) == {kind: 1}
    put(drive, 21.2, 5.0)
    referee.observe()
    put(drive, 21.6, 5.0)
    drive.contacts = (contact,)  # again, half a metre on: still the same one
    referee.observe()
    assert said(referee) == {kind: 1}
    put(drive, 28.0, 5.0, seconds=6.0)
    referee.observe()
    put(drive, 28.4, 5.0)
    drive.contacts = (contact,)
    referee.observe()
    assert said(referee) == {kind: 2}


def test_within_five_seconds_the_same_thing_counts_once_and_another_one_five_metres_on_again(watched) -> None:
    drive, referee = watched
    for station, key in ((20.0, 7), (26.0, 7), (26.4, 8), (32.0, 7)):
        put(drive, station, 5.0)
        drive.contacts = (Contact("pedestrian", key, "pedestrian"),)
        referee.observe()
    # The second is the first one still; the last one is neither the one before it nor where that was.
    assert said(referee) == {"collisions_pedestrian": 3}


@pytest.mark.parametrize(("what", "count"), [("wall0", 2), ("traffic sign", 1)])
def test_what_has_no_id_in_carla_is_told_apart_by_place_alone(watched, what: str, count: int) -> None:
    drive, referee = watched
    for station in (20.0, 26.0):
        put(drive, station, 5.0)
        drive.contacts = (Contact("static", -4, what),)
        referee.observe()
    assert said(referee) == {"collisions_layout": count}


@pytest.mark.parametrize("contact", [Contact("pedestrian", 7, "pedestrian"), Contact("vehicle", 8, "car")])
def test_who_stands_is_not_to_blame_until_he_drives_on(watched, contact: Contact) -> None:
    """Somebody comes to the standing ego and stays there; then it drives over him, or into him."""
    drive, referee = watched
    for _ in range(40):
        put(drive, 20.0, 0.0)
        drive.contacts = (contact,)
        referee.observe()
    assert said(referee) == {}
    for number in range(1, 20):
        put(drive, 20.0 + 0.005 * number**2, 0.2 * number)
        drive.contacts = (contact,)
        referee.observe()
    assert said(referee) == {f"collisions_{contact.kind}": 1}


def test_who_keeps_pushing_has_had_one_collision(watched) -> None:
    """Its speed is the one at which it came to what stopped it: it has none when it is looked at."""
    drive, referee = watched
    impacts = []
    for _ in range(round(15 / STEP)):
        drive.step(Control(throttle=1.0, steer=0.2))
        referee.observe()
        impacts.append(drive.impact)
    assert said(referee)["collisions_layout"] == 1
    assert max(impacts) > 3.0
    assert np.count_nonzero(impacts) > 100
    assert drive.car.speed < 0.1


def test_a_driver_that_raises_loses_its_route_and_no_other(stage, obstacles, capsys) -> None:
    class Faulty(Teacher):
        left = 60

        def act(self, observation: Observation) -> Control:
            self.left -= 1
            if self.left < 0:
                raise ValueError("no image came")
            return super().act(observation)

    records = []
    for name, kind in (("r0", Faulty), ("r1", Teacher)):
        route = draw_route(stage.town, np.random.default_rng(0), 150.0)
        simulator = EmbeddedSimulator(Drive(stage, route, 0, density=EMPTY, obstacles=obstacles), name, ticks=1)
        records.append(drive_route(simulator, kind(simulator), name))
    crashed, driven = records
    assert crashed.status == "Failed - Agent crashed"
    assert crashed.reason == "ValueError: no image came"
    assert crashed.driving_score == 0.0
    assert crashed.completion > 1.0
    assert crashed.seconds == pytest.approx(60 * STEP)
    assert driven.status == "Perfect"
    told = capsys.readouterr().err
    assert "r0: Agent crashed in frame 60" in told
    assert "no image came" in told
    assert "Traceback" in told


def test_a_world_that_raises_is_no_fault_of_the_agent(watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no way out of a lane")

    monkeypatch.setattr(Drive, "step", broken)
    simulator = EmbeddedSimulator(watched[0], "r", ticks=1)
    record = drive_route(simulator, Teacher(simulator), "r")
    assert record.status == "Failed - Simulation crashed"
    assert record.driving_score == 0.0


def test_beside_the_road_and_on_the_wrong_lane(watched) -> None:
    drive, referee = watched
    for station in np.arange(5.0, 45.0, 0.5):
        # Twenty metres on the lane of those who come, of forty.
        put(drive, float(station), 5.0, aside=3.4 if 15.0 < station < 35.0 else 0.0)
        referee.observe()
    record = referee.record()
    assert record.outside_metres == pytest.approx(20.0, abs=2.5)
    assert record.outside == pytest.approx(20.0 / 45.0, abs=0.06)
    assert set(said(referee)) == {"outside_route_lanes"}


def test_blocked_lost_and_timed_out_end_a_route(watched, stage, obstacles) -> None:
    drive, referee = watched
    put(drive, 10.0, 0.0)
    referee.observe()
    put(drive, 10.0, 0.0, seconds=BLOCKED_SECONDS + 1.0)
    referee.observe()
    assert referee.ended == "vehicle_blocked"
    assert referee.record().status == "Failed - Agent got blocked"

    drive = Drive(stage, drive.route, 2, density=EMPTY, obstacles=obstacles)
    referee = Referee(drive, "r")
    put(drive, 10.0, 5.0, aside=35.0)
    referee.observe()
    assert referee.ended == "route_dev"

    drive = Drive(stage, drive.route, 2, density=EMPTY, obstacles=obstacles)
    referee = Referee(drive, "r")
    put(drive, 10.0, 5.0, seconds=referee.timeout + 60.0)
    referee.observe()
    assert referee.ended == "route_timeout"


def test_who_minds_nothing_but_the_way_is_caught(stage, obstacles) -> None:
    class Reckless:
        def control(self, drive: Drive) -> Control:
            steer = Autopilot().control(drive).steer
            return Control(throttle=0.6 if drive.car.speed < 10.0 else 0.0, steer=steer)

    caught = 0
    for seed in range(3):
        route = draw_route(stage.town, np.random.default_rng(seed), 200.0)
        busy = Density(vehicles=4.0, pedestrians=3.0, crossing=2.0)
        drive, driver = Drive(stage, route, seed, density=busy, obstacles=obstacles), Reckless()
        referee = Referee(drive, "r")
        for _ in range(round(40 / STEP)):
            drive.step(driver.control(drive))
            referee.observe()
            if referee.ended or said(referee):
                break
        caught += referee.record().penalty < 1.0
    assert caught >= 2
