"""What drives, and what is driven in: the two sides of a closed loop, whatever the world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from automoe.data.sequences import ROUTE_POINTS, Observation
from automoe.drive.leaderboard import RouteRecord
from automoe.errors import CheckpointError
from automoe.poses import into_frame
from automoe.taxonomy import CARLA_COMMANDS
from automoe.world.route import RouteGuide
from automoe.world.vehicle import Control


class Simulator(Protocol):
    """One drive along one route. It is over when `ended` says why.

    frame_seconds: of the world's time from observation to observation.
    """

    frame_seconds: float

    @property
    def ended(self) -> str | None: ...

    def observe(self) -> Observation:
        """What the car's sensors and its navigation say now."""
        ...

    def step(self, control: Control) -> None:
        """Go on by a frame under a control."""
        ...

    def record(self, seconds_taken: float, failure: str | None, reason: str | None) -> RouteRecord:
        """What became of the drive. failure, reason: a RouteRecord's, where it broke off."""
        ...


class Agent(Protocol):
    """Whoever drives by what a car can know. `trouble` counts, by name, what went wrong without ending the drive."""

    trouble: dict[str, int]

    def act(self, observation: Observation) -> Control: ...

    def shown(self) -> dict[str, Any]:
        """What it thought at its last action, for pictures: nothing, or path, target_speed, weights and so on."""
        ...


def camera_in(rig: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What a checkpoint's rig (`TrainedDriver.rig`) tells of a camera. Raises CheckpointError where it doesn't."""
    cameras = rig.get("cameras", {})
    if name not in cameras:
        raise CheckpointError(
            f"the checkpoint's rig has no {name} camera (it has {', '.join(cameras) or 'none'}); train it on a "
            "prepared set that has one."
        )
    return cameras[name]


def observation_of(
    time: float, image: np.ndarray, T_world_ego: np.ndarray, speed: float, yaw_rate: float, route: RouteGuide,
    station: float, ambient: np.ndarray,
) -> Observation:  # fmt: skip
    """What a driver knows who is somewhere on a route: T_world_ego [4, 4] of ours; speed: m/s; yaw_rate: radians a
    second, to the left; station: metres along the route; ambient: float32 [2]."""
    targets = route.next_targets(station, ROUTE_POINTS)
    return Observation(
        time,
        image,
        np.array([[speed, yaw_rate]], np.float32),
        CARLA_COMMANDS.index(route.command(station)),
        into_frame(T_world_ego, targets).astype(np.float32),
        ambient,
    )
