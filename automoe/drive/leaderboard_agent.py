"""A trained model for the official CARLA leaderboard 2.0 and Bench2Drive: give this file as TEAM_AGENT, and a best.pth
as TEAM_CONFIG.

    export TEAM_AGENT=automoe/drive/leaderboard_agent.py TEAM_CONFIG=models/checkpoints/gating_network/tiny/best.pth

The agent is of the track SENSORS: it has the cameras of the checkpoint's rig, a speedometer, an IMU and GNSS, and the
route that the leaderboard gives it. The leaderboard's package is not needed to import this module: the class
`AutoMoEAgent` is made when it is first asked for.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from automoe.carla import frame, run
from automoe.carla.route import route_of_plan
from automoe.data.sequences import NOTHING_SEEN
from automoe.drive.carla_simulator import rig_sensor
from automoe.drive.simulator import observation_of
from automoe.errors import CheckpointError, DataError
from automoe.poses import upright

if TYPE_CHECKING:
    from automoe.drive.agent import ModelAgent
    from automoe.world.route import RouteGuide

ENTRY_POINT = "AutoMoEAgent"
IMU, GNSS, SPEED = "imu", "gnss", "speed"

TICKS = 2
"""Of the leaderboard's twenty a second, from one look to the next; the control stays as it is between them."""

EARTH = 6378137.0
"""Metres of the earth's radius, as the leaderboard's maps have it."""

TRUST = 0.1
"""Share of what the GNSS says that is believed at once; it is off by half a metre, each time by another one."""

LOST = 10.0
"""Metres between what is believed and what the GNSS says from which on it is believed at once."""

UNKNOWN_AMBIENT = np.full(2, np.nan, np.float32)
"""Nobody tells the agent of rain and darkness."""


def get_entry_point() -> str:
    """The name of the agent's class, for the leaderboard."""
    return ENTRY_POINT


def __getattr__(name: str) -> Any:
    if name == ENTRY_POINT:
        globals()[ENTRY_POINT] = _agent_class()
        return globals()[ENTRY_POINT]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- where the car is ---


class Localiser:
    """Where the car is on the ground, from its speed, its compass and its GNSS: dead reckoning that is drawn towards
    what the satellites say.

    places: what the leaderboard's plan tells of both worlds, latitude and longitude (degrees) [N, 2] and ours [N, 2],
    metres; the projection of the map is found from them.
    """

    def __init__(self, degrees: np.ndarray, places: np.ndarray) -> None:
        east_north = _mercator(degrees)
        self._origin, self._middle = east_north.mean(axis=0), places.mean(axis=0)
        known, wanted = east_north - self._origin, places - self._middle
        self._scale = float((known * wanted).sum() / max(float((known**2).sum()), 1e-12))
        self.place = np.array(places[0], np.float64)
        self._time: float | None = None

    def world(self, degrees: np.ndarray) -> np.ndarray:
        """Latitude and longitude [2], degrees, as a place [2] of our frame, metres."""
        return (_mercator(degrees[None])[0] - self._origin) * self._scale + self._middle

    def update(self, time: float, speed: float, yaw: float, degrees: np.ndarray | None) -> np.ndarray:
        """The place [2] at a time (seconds). speed: m/s since the time before; yaw: radians; degrees: what the GNSS
        says, None where it says nothing."""
        passed = 0.0 if self._time is None else max(time - self._time, 0.0)
        self._time = time
        self.place = self.place + speed * passed * np.array([math.cos(yaw), math.sin(yaw)])
        if degrees is not None and np.isfinite(degrees).all():
            gap = self.world(degrees) - self.place
            self.place = self.place + gap * (1.0 if np.hypot(*gap) > LOST else TRUST)
        return self.place


def _mercator(degrees: np.ndarray) -> np.ndarray:
    """Latitude and longitude [N, 2] to metres east and north [N, 2] at the equator's scale (leaderboard/utils/
    route_manipulation.py). A map's east is our x, its north our y."""
    latitude, longitude = np.radians(np.asarray(degrees, np.float64)).T
    return EARTH * np.stack([longitude, np.log(np.tan(np.pi / 4 + latitude / 2))], axis=1)


# --- what the leaderboard calls ---


class LeaderboardDriver:
    """All that the agent does, apart from the leaderboard's own class.

    conf_file: the best.pth; what Bench2Drive writes behind a `+` is not looked at. Raises CheckpointError where it
    drives nothing.
    """

    def __init__(self, conf_file: str) -> None:
        from automoe.drive.agent import ModelAgent
        from automoe.drive.controllers import CARLA_CAR, Controller
        from automoe.moe.checkpoint import load_driving_model

        path = Path(conf_file) if Path(conf_file).is_file() else Path(conf_file.split("+")[0])
        if not path.is_file():
            raise CheckpointError(f"there is no checkpoint {path}; give a best.pth as TEAM_CONFIG.")
        self.driver = load_driving_model(path)
        self.agent: ModelAgent = ModelAgent(self.driver, Controller(CARLA_CAR))
        self.route: RouteGuide | None = None
        self.localiser: Localiser | None = None
        self.station = self.speed = self.yaw = 0.0
        self.count = self.looks = 0
        self._control: Any = None

    def sensors(self) -> list[dict[str, Any]]:
        """As the leaderboard specifies them."""
        middle = dict.fromkeys(("x", "y", "z", "roll", "pitch", "yaw"), 0.0)
        return [
            *([rig_sensor(self.driver.rig)] if self.agent.looks else []),
            {"type": "sensor.other.imu", "id": IMU, **middle},
            {"type": "sensor.other.gnss", "id": GNSS, **middle},
            {"type": "sensor.speedometer", "id": SPEED, "reading_frequency": 1 / run.TICK},
        ]

    def set_plan(self, gps: Sequence[tuple[Mapping[str, float], Any]], world: Sequence[tuple[Any, Any]]) -> None:
        """The route: both of the leaderboard's plans, dense, of the same places."""
        if len(gps) != len(world):
            raise DataError(f"the leaderboard's plans differ: {len(gps)} places by GNSS, {len(world)} in the world")
        self.route = route_of_plan(world)
        degrees = np.array([[place["lat"], place["lon"]] for place, _ in gps])
        places = np.array([frame.vector(frame.location_of(transform.location))[:2] for transform, _ in world])
        self.localiser = Localiser(degrees, places)
        self.yaw = math.atan2(*self.route.start[1::-1, 0])
        self.station, self.count, self.looks, self._control = 0.0, 0, 0, None

    def act(self, said: Mapping[str, tuple[int, Any]], time: float, carla: Any) -> Any:
        """A carla.VehicleControl. said: by sensor the tick and what it measured; whatever is missing is as it was, but
        for the picture: without one the car is brought to a controlled stop."""
        T_world_ego, yaw_rate = self._locate(said, time)
        if self._control is None or self.count % TICKS == 0:
            assert self.route is not None
            observation = observation_of(
                time, _picture(said.get(run.LABELLED)), T_world_ego, self.speed, yaw_rate, self.route, self.station,
                UNKNOWN_AMBIENT,
            )  # fmt: skip
            self._control = self.agent.act(observation)
            self.looks += 1
        self.count += 1
        control = self._control
        return carla.VehicleControl(throttle=control.throttle, steer=control.steer, brake=control.brake)

    def _locate(self, said: Mapping[str, tuple[int, Any]], time: float) -> tuple[np.ndarray, float]:
        """T_world_ego [4, 4], on the ground, and the yaw rate, radians a second, NaN where nobody tells."""
        if self.route is None or self.localiser is None:
            raise DataError("the leaderboard has given no route; call set_global_plan before the first step")
        yaw_rate = math.nan
        if IMU in said:
            gyroscope, compass = float(said[IMU][1][5]), float(said[IMU][1][6])
            yaw_rate = frame.yaw(math.degrees(gyroscope))
            # The compass turns right from north, which is -y in CARLA's axes; in the first ticks it says nothing.
            self.yaw = frame.yaw(math.degrees(compass) - 90.0) if math.isfinite(compass) else self.yaw
        speed = said[SPEED][1].get("speed") if SPEED in said else None
        self.speed = self.speed if speed is None else float(speed)
        degrees = np.array(said[GNSS][1][:2], np.float64) if GNSS in said else None
        place = self.localiser.update(time, self.speed, self.yaw, degrees)
        self.station = self.route.advance(place, self.station)
        return upright(float(place[0]), float(place[1]), 0.0, self.yaw), yaw_rate


def _picture(said: tuple[int, Any] | None) -> np.ndarray:
    """A camera's BGRA [H, W, 4] as uint8 [H, W, 3] RGB."""
    return NOTHING_SEEN if said is None else np.ascontiguousarray(said[1][..., 2::-1])


def _agent_class() -> type:
    """The class that the leaderboard makes, of its own base."""
    # It puts this folder before all others, and would find leaderboard.py there in place of its own package.
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [place for place in sys.path if str(Path(place).resolve()) != here]
    try:
        base: Any = importlib.import_module("leaderboard.autoagents.autonomous_agent")
        carla: Any = importlib.import_module("carla")
    except ImportError as error:
        raise DataError(
            f"{ENTRY_POINT} is for the CARLA leaderboard, and its packages are not to be found ({error}); put "
            "leaderboard, scenario_runner and CARLA's client on PYTHONPATH"
        ) from error

    class AutoMoEAgent(base.AutonomousAgent):
        """The agent of the leaderboard: it hands everything to a `LeaderboardDriver`."""

        _driver: LeaderboardDriver | None = None
        _plans: tuple[Any, Any] | None = None

        def setup(self, path_to_conf_file: str) -> None:
            """Load the model. The plan may have been given before, as in leaderboard 2.0, or come later."""
            self.track = base.Track.SENSORS
            self._driver = LeaderboardDriver(str(path_to_conf_file))
            if self._plans is not None:
                self._driver.set_plan(*self._plans)

        def set_global_plan(self, global_plan_gps: Any, global_plan_world_coord: Any) -> None:
            """Keep the route as dense as it comes."""
            super().set_global_plan(global_plan_gps, global_plan_world_coord)
            self._plans = (global_plan_gps, global_plan_world_coord)
            if self._driver is not None:
                self._driver.set_plan(*self._plans)

        def sensors(self) -> list[dict[str, Any]]:
            return self._set_up().sensors()

        def run_step(self, input_data: Mapping[str, tuple[int, Any]], timestamp: float) -> Any:
            return self._set_up().act(input_data, timestamp, carla)

        def destroy(self) -> None:
            """Let the model go, and say what went wrong on the way."""
            driver, self._driver = self._driver, None
            for why, count in (driver.agent.trouble if driver else {}).items():
                print(f"{why} at {count} of {driver.looks if driver else 0} looks; the car was brought to a stop")

        def _set_up(self) -> LeaderboardDriver:
            if self._driver is None:
                raise DataError("the agent has no model yet; call setup first")
            return self._driver

    return AutoMoEAgent
