"""The embedded world as a simulator: its cameras are those of a model's rig, its referee the leaderboard's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from automoe.carla.run import LABELLED
from automoe.data.sequences import NOTHING_SEEN, Observation, ambient_of
from automoe.drive.leaderboard import RouteRecord
from automoe.drive.referee import Referee
from automoe.drive.simulator import camera_in, observation_of
from automoe.poses import LOOKING_FORWARD, pinhole, upright
from automoe.world.carla_writer import carla_weather
from automoe.world.contacts import Obstacles
from automoe.world.drive import STEP, Drive
from automoe.world.furnish import stage_town
from automoe.world.look import LOOKS, glow_table, scene_light, shade
from automoe.world.route import Route
from automoe.world.scene import Camera, Conditions, StagedTown
from automoe.world.vehicle import AHEAD, Control

if TYPE_CHECKING:
    from automoe.world.renderer import Renderer


def rig_camera(rig: Mapping[str, Any], name: str = LABELLED) -> Camera:
    """A camera of a checkpoint's rig, mounted on the world's ego. Raises CheckpointError as `camera_in` does."""
    said = camera_in(rig, name)
    height, width = said["size"]
    T_ego_mount = np.array(said["T_ego_mount"], np.float64)
    T_ego_cam = T_ego_mount.copy()
    T_ego_cam[:3, :3] = T_ego_mount[:3, :3] @ LOOKING_FORWARD
    T_ego_cam[0, 3] += AHEAD  # rigs are said from the car's middle, the world's ego from its rear axle
    intrinsic = pinhole(height, width, said["field_of_view"])
    (fx, cx), (fy, cy) = intrinsic[0, [0, 2]], intrinsic[1, [1, 2]]
    return Camera(name, int(width), int(height), fx, fy, cx, cy, T_ego_cam)


def begin_drive(route: Route, seed: int, conditions: Conditions | None = None) -> Drive:
    """A drive along a route of a generated town, in traffic and weather drawn with the seed."""
    stage, obstacles = staged(route.town)
    return Drive(stage, route, seed, conditions, obstacles=obstacles)


@lru_cache(maxsize=2)
def staged(town: str) -> tuple[StagedTown, Obstacles]:
    """A town, made once in a process."""
    stage = stage_town(town)
    return stage, Obstacles(stage)


_RENDERER: dict[str, Any] = {}


def renderer_of(stage: StagedTown, width: int, height: int) -> Renderer:
    """The process's renderer of a town; the one before is closed: each holds an OpenGL context."""
    from automoe.world.renderer import Renderer

    key = (stage.town.name, width, height)
    if _RENDERER.get("key") != key:
        if "renderer" in _RENDERER:
            _RENDERER.pop("renderer").close()
        _RENDERER.update(key=key, renderer=Renderer(stage, width, height))
    return _RENDERER["renderer"]


class EmbeddedSimulator:
    """A `Simulator`: one drive in a generated town. Deterministic: the same drive, seed and controls give the same
    observations.

    camera: of the car; without one it is driven blind, and observations have no picture. ticks: of the world's clock
    (`world.drive.STEP`) from frame to frame. dark: seconds from and until which the camera is dead, for tests
    and drills. seed: of the camera's faults.
    """

    def __init__(
        self,
        drive: Drive,
        route_id: str,
        camera: Camera | None = None,
        *,
        ticks: int = 2,
        dark: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.drive, self.route, self.camera, self.ticks = drive, drive.route, camera, ticks
        self.frame_seconds = ticks * STEP
        self.referee = Referee(drive, route_id)
        self.dark = dark
        self.began = drive.scene.time
        self._rng = np.random.default_rng([seed, 99])

    @property
    def ended(self) -> str | None:
        return self.referee.ended

    @property
    def time(self) -> float:
        """Seconds since the drive began."""
        return self.drive.scene.time - self.began

    def observe(self) -> Observation:
        drive, car = self.drive, self.drive.car
        weather = carla_weather(drive.scene.conditions)
        return observation_of(
            self.time,
            self._picture(),
            upright(*car.middle, 0.0, car.yaw),
            float(np.hypot(*car.velocity)),
            car.yaw_rate,
            self.route,
            drive.station,
            ambient_of(weather["precipitation"], weather["sun_altitude_angle"]),
        )

    def _picture(self) -> np.ndarray:
        if self.camera is None or (self.dark is not None and self.dark[0] <= self.time < self.dark[1]):
            return NOTHING_SEEN
        scene = self.drive.scene
        renderer = renderer_of(scene.stage, self.camera.width, self.camera.height)
        frame = renderer.render(scene, self.camera, scene_light(scene.conditions))
        glow = glow_table(renderer, scene)
        return shade(frame, scene, self.camera, renderer, LOOKS["carla"], self._rng, glow)

    def step(self, control: Control) -> None:
        for _ in range(self.ticks):
            if self.referee.ended is None:
                self.drive.step(control)
                self.referee.observe()

    def record(self, seconds_taken: float, failure: str | None = None, reason: str | None = None) -> RouteRecord:
        return self.referee.record(seconds_taken, failure, reason)


class Teacher:
    """The privileged autopilot as an agent: it looks at the simulator's whole scene, and at no observation."""

    def __init__(self, simulator: EmbeddedSimulator) -> None:
        from automoe.world.autopilot import Autopilot

        self.simulator, self.pilot, self.trouble = simulator, Autopilot(), {}

    def act(self, observation: Observation) -> Control:
        return self.pilot.control(self.simulator.drive)

    def shown(self) -> dict[str, Any]:
        return {}
