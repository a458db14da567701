"""The agent for the official leaderboard, beside a stand-in for the leaderboard's package and with the real client's
types."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from enum import Enum
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from driving_models import model

from automoe.carla import frame
from automoe.data.sequences import Observation
from automoe.drive import leaderboard_agent as module
from automoe.drive.controllers import CARLA_CAR, Controller
from automoe.drive.leaderboard_agent import GNSS, IMU, SPEED, Localiser, get_entry_point
from automoe.engine import checkpoint
from automoe.errors import CheckpointError, DataError
from automoe.moe.checkpoint import TrainedDriver, load_driving_model
from automoe.taxonomy import CARLA_COMMANDS
from automoe.world.vehicle import Control

carla: Any = pytest.importorskip("carla", reason="the real client comes with `pip install automoe[carla]`")

RIG = {
    "cameras": {
        "front": {
            "size": [48, 80],
            "field_of_view": 90.0,
            "T_ego_mount": [[1, 0, 0, 1.5], [0, 1, 0, 0.3], [0, 0, 1, 2.4], [0, 0, 0, 1]],
        }
    }
}
LATITUDE, LONGITUDE = 42.0, 2.0
"""Of the map's origin: what the leaderboard takes where a map tells none."""


class RoadOption(Enum):
    LEFT, RIGHT, STRAIGHT, LANEFOLLOW = 1, 2, 3, 4


class Track(Enum):
    SENSORS = "SENSORS"


class AutonomousAgent:
    def __init__(self, carla_host: str, carla_port: int, debug: bool = False) -> None:
        self.track = None

    def set_global_plan(self, gps: Any, world: Any) -> None:
        self.given = (gps, world)


@pytest.fixture
def leaderboard(monkeypatch) -> None:
    """The package as far as agents need it."""
    names = ("leaderboard", "leaderboard.autoagents", "leaderboard.autoagents.autonomous_agent")
    found = {name: ModuleType(name) for name in names}
    vars(found[names[2]]).update(AutonomousAgent=AutonomousAgent, Track=Track)
    for name, one in found.items():
        monkeypatch.setitem(sys.modules, name, one)
    monkeypatch.delitem(vars(module), module.ENTRY_POINT, raising=False)


@pytest.fixture(scope="module")
def best(tmp_path_factory) -> Path:
    torn = model("detection", top_k=1).eval()
    path = tmp_path_factory.mktemp("driver") / "best.pth"
    said = {"component": "gating_network", "model": torn.state_dict(), "model_config": torn.config.plain(), "rig": RIG}
    checkpoint.save(path, said)
    return path


def to_gps(x: float, y: float) -> dict[str, float]:
    """A place in CARLA's axes as the leaderboard's GPS plan has it."""
    scale = math.cos(math.radians(LATITUDE)) * 6378137.0
    north = scale * math.log(math.tan(math.radians(90.0 + LATITUDE) / 2)) - y
    longitude = LONGITUDE + math.degrees(x / scale)
    return {"lat": 2 * math.degrees(math.atan(math.exp(north / scale))) - 90.0, "lon": longitude, "z": 0.0}


def corner() -> list[tuple[Any, RoadOption]]:
    """40 m along CARLA's x, a bend to the right of radius 8 m, and 30 m along CARLA's y."""
    plan = [(float(x), 0.0, 0.0, RoadOption.LANEFOLLOW) for x in range(40)]
    for angle in np.linspace(0.0, 90.0, 13):
        a = math.radians(angle)
        plan.append((40.0 + 8.0 * math.sin(a), 8.0 - 8.0 * math.cos(a), angle, RoadOption.RIGHT))
    plan += [(48.0, 8.0 + y, 90.0, RoadOption.LANEFOLLOW) for y in range(1, 31)]
    return [
        (carla.Transform(carla.Location(100.0 + x, -50.0 + y, 0.0), carla.Rotation(yaw=yaw)), option)
        for x, y, yaw, option in plan
    ]


def plans(world: list[tuple[Any, RoadOption]]) -> tuple[list[Any], list[Any]]:
    return [(to_gps(one.location.x, one.location.y), option) for one, option in world], world


class Car:
    """The leaderboard's car and its sensors, in CARLA's axes."""

    def __init__(self, transform: Any, seed: int = 0) -> None:
        self.x, self.y, self.yaw = transform.location.x, transform.location.y, math.radians(transform.rotation.yaw)
        self.speed = self.yaw_rate = 0.0
        self.rng = np.random.default_rng(seed)

    def move(self, control: Any) -> None:
        assert isinstance(control, carla.VehicleControl)
        self.speed = max(self.speed + 0.05 * (4.0 * control.throttle - 8.0 * control.brake - 0.3), 0.0)
        self.yaw_rate = self.speed * math.tan(control.steer * CARLA_CAR.most_wheel) / CARLA_CAR.wheelbase
        self.yaw += 0.05 * self.yaw_rate
        self.x += 0.05 * self.speed * math.cos(self.yaw)
        self.y += 0.05 * self.speed * math.sin(self.yaw)

    def sensors(self, tick: int) -> dict[str, tuple[int, Any]]:
        place = to_gps(self.x, self.y)
        gps = np.array([place["lat"], place["lon"], 0.0]) + self.rng.normal(0.0, 5e-6, 3)
        imu = np.array([0.0, 0.0, 9.8, 0.0, 0.0, self.yaw_rate, (self.yaw + math.pi / 2) % (2 * math.pi)])
        picture = np.zeros((48, 80, 4), np.uint8)
        picture[..., 2], picture[..., 3] = 200, 255  # red, in BGRA
        return {
            "front": (tick, picture), IMU: (tick, imu), GNSS: (tick, gps), SPEED: (tick, {"speed": self.speed}),
        }  # fmt: skip


class Follower:
    """Drives towards the next points that it is told."""

    looks = True

    def __init__(self) -> None:
        self.controller, self.trouble = Controller(CARLA_CAR), {}
        self.seen: list[Observation] = []

    def act(self, observation: Observation) -> Control:
        self.seen.append(observation)
        return self.controller.control(observation.route.astype(np.float64), 5.0, observation.speed)


@pytest.fixture(scope="module")
def trained(best) -> TrainedDriver:
    return load_driving_model(best)


@pytest.fixture
def agent(leaderboard, best, trained, monkeypatch) -> Iterator[Any]:
    monkeypatch.setattr("automoe.moe.checkpoint.load_driving_model", lambda path: trained)
    made = getattr(module, get_entry_point())("localhost", 2000)
    made.set_global_plan(*plans(corner()))  # before setup, as in leaderboard 2.0
    made.setup(str(best))
    yield made
    made.destroy()


def test_the_sensors_are_the_rigs(agent) -> None:
    sensors = {one["id"]: one for one in agent.sensors()}
    assert agent.track == Track.SENSORS
    camera = sensors.pop("front")
    assert (camera["type"], camera["width"], camera["height"], camera["fov"]) == ("sensor.camera.rgb", 80, 48, 90.0)
    assert (camera["x"], camera["y"], camera["z"]) == (1.5, -0.3, 2.4)  # 0.3 m to the left
    assert {one["type"] for one in sensors.values()} == {
        "sensor.other.imu", "sensor.other.gnss", "sensor.speedometer",
    }  # fmt: skip
    for one in [camera, sensors[IMU], sensors[GNSS]]:
        assert math.hypot(one["x"], one["y"], one["z"]) < 3.0  # the leaderboard's limit


def test_turning_right_steers_right_from_end_to_end(agent) -> None:
    """With sensors as noisy as the leaderboard's."""
    follower = agent._driver.agent = Follower()
    world = corner()
    car, steers, astray = Car(world[0][0]), [], 0.0
    for tick in range(700):
        control = agent.run_step(car.sensors(tick), 0.05 * tick)
        steers.append(control.steer)
        car.move(control)
        astray = max(astray, min(math.hypot(car.x - one.location.x, car.y - one.location.y) for one, _ in world))
        if math.hypot(car.x - 148.0, car.y + 12.0) < 5.0:
            break
    else:
        pytest.fail("it never came to the end")
    assert astray < 3.0  # it knows where the bend begins and ends, and cuts it
    turning = steers[int(np.argmax([abs(steer) for steer in steers]))]
    assert turning > 0.15
    assert math.degrees(car.yaw) == pytest.approx(90.0, abs=12.0)
    assert len(follower.seen) == pytest.approx(len(steers) / 2, abs=1)  # a look every two ticks
    commands = [CARLA_COMMANDS[one.command] for one in follower.seen]
    assert [command for command, _ in groupby(commands)] == ["follow", "right", "follow"]
    at = commands.index("right")
    assert follower.seen[at].route[0, 0] == pytest.approx(25.0, abs=2.5)  # told 25 m before
    rates = np.array([one.motion[-1, 1] for one in follower.seen])
    assert rates.min() < -0.3
    assert rates.max() < 0.3
    assert follower.seen[0].image[0, 0].tolist() == [200, 0, 0]
    assert np.isnan(follower.seen[0].ambient).all()


def test_a_missing_picture_brings_the_car_to_a_controlled_stop(agent, capsys) -> None:
    car = Car(corner()[0][0])
    car.speed = 6.0
    for tick in range(100):
        said = car.sensors(tick)
        if tick >= 10:
            del said["front"]
        control = agent.run_step(said, 0.05 * tick)
        if tick >= 12:
            assert control.throttle == 0.0
            assert 0.0 < control.brake <= 1.0
        car.move(control)
    assert car.speed == 0.0
    agent.destroy()
    assert "dead camera at 45 of 50 looks" in capsys.readouterr().out


def test_what_says_nothing_is_as_it_was(agent) -> None:
    follower = agent._driver.agent = Follower()
    car = Car(corner()[0][0])
    car.speed = 3.0
    agent.run_step(car.sensors(0), 0.0)
    said = car.sensors(2)
    said[SPEED], said[IMU][1][6] = (2, {"speed": None}), math.nan
    agent.run_step(said, 0.1)
    agent.run_step({"front": said["front"]}, 0.15)
    agent.run_step({"front": said["front"]}, 0.2)
    assert [one.speed for one in follower.seen] == [3.0, 3.0]
    agent.run_step({"front": said["front"]}, 0.2)
    assert np.isnan(follower.seen[-1].motion[-1, 1])
    assert agent._driver.localiser.place[0] == pytest.approx(100.6, abs=0.5)  # 3 m/s for 0.2 s


@pytest.mark.parametrize("straight", [True, False])
def test_the_satellites_are_understood(straight: bool) -> None:
    """Also where the plan leads along one axis alone."""
    gps, world = plans(corner()[:40] if straight else corner())
    places = np.array([frame.vector(frame.location_of(one.location))[:2] for one, _ in world])
    localiser = Localiser(np.array([[one["lat"], one["lon"]] for one, _ in gps]), places)
    said = to_gps(300.0, 80.0)
    np.testing.assert_allclose(localiser.world(np.array([said["lat"], said["lon"]])), [300.0, -80.0], atol=0.02)
    errors = []
    rng = np.random.default_rng(0)
    for tick in range(200):
        here = to_gps(100.0 + 0.25 * tick, -50.0)
        noisy = np.array([here["lat"], here["lon"]]) + rng.normal(0.0, 5e-6, 2)
        place = localiser.update(0.05 * tick, 5.0, 0.0, noisy)
        errors.append(float(np.hypot(*(place - [100.0 + 0.25 * tick, 50.0]))))
    assert np.mean(errors) < 0.25  # the satellites alone are off by 0.6 m
    np.testing.assert_allclose(localiser.update(10.0, 5.0, 0.0, None), [place[0] + 0.25, place[1]])


def test_bench2drive_names_a_folder_behind_the_checkpoint(leaderboard, best) -> None:
    made = getattr(module, get_entry_point())("localhost", 2000)
    made.setup(f"{best}+RouteScenario_1")
    assert made.sensors()
    with pytest.raises(DataError, match="given no route"):
        made.run_step({}, 0.0)
    made.set_global_plan(*plans(corner()))
    assert made.given[1][0][0].location.x == pytest.approx(100.0)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*nowhere.pth"):
        made.setup("nowhere.pth")


def test_without_the_leaderboard_there_is_a_sentence(monkeypatch) -> None:
    for name in ("leaderboard", "leaderboard.autoagents", "leaderboard.autoagents.autonomous_agent"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(vars(module), module.ENTRY_POINT, raising=False)
    with pytest.raises(DataError, match="put leaderboard, scenario_runner and CARLA's client on PYTHONPATH"):
        getattr(module, get_entry_point())
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        module.Other  # noqa: B018


def test_it_is_found_as_the_leaderboard_finds_it(leaderboard, monkeypatch) -> None:
    """By its folder in front of the path, where leaderboard.py must not hide the leaderboard's package."""
    folder = str(Path(module.__file__).parent)
    monkeypatch.setattr(sys, "path", [folder, *sys.path])
    monkeypatch.delitem(sys.modules, "leaderboard_agent", raising=False)
    alone = importlib.import_module("leaderboard_agent")
    assert issubclass(getattr(alone, alone.get_entry_point()), AutonomousAgent)
    assert folder not in sys.path
    sys.modules.pop("leaderboard_agent")
