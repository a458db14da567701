"""The scene: what stands where at one moment, seen by which sensors. Writers, sensors and driving all meet here.

Frames, all right-handed, metres and radians:
- world: x east, y north, z up; the road surface is z = 0.
- ego and every actor: x forward, y left, z up; the origin is on the ground. The ego's is under its rear axle, an
  actor's under the middle of its box.
- camera: x right, y down, z forward; pixel (u, v) = (fx x / z + cx, fy y / z + cy), the centre of the first pixel
  is (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from automoe.world.parts import Asset
from automoe.world.town import Town


@dataclass(frozen=True)
class Placement:
    """An asset that stands still for good: a building, a tree, a sign. `instance` > 0 names things that have a box."""

    asset: str
    x: float
    y: float
    z: float
    yaw: float
    instance: int = 0
    signal: str | None = None
    """For signal heads: the TrafficSignal whose state they show."""


@dataclass(frozen=True)
class LampPost:
    """Where a street lamp hangs, for the light that it throws at night."""

    x: float
    y: float
    z: float


@dataclass(frozen=True)
class StagedTown:
    """A town with everything that stands still in it, and the assets that may move through it.

    `ground` parts lie in world coordinates. `assets` maps keys to assets; `fleet` lists, by BDD category (and by
    furnish.POSTURES), the keys that traffic may use, each at most `copies[key]` times in a scene.
    """

    town: Town
    ground: tuple = field(repr=False)
    placements: tuple[Placement, ...] = field(repr=False)
    lamps: tuple[LampPost, ...] = field(repr=False)
    assets: dict[str, Asset] = field(repr=False)
    fleet: dict[str, tuple[str, ...]] = field(repr=False)
    copies: dict[str, int] = field(repr=False)
    closed: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict, repr=False)
    """For lanes with roadworks on them the stretches (from, to) that nobody parks on."""

    @property
    def first_actor_id(self) -> int:
        """Instance ids below this one belong to placements."""
        return 1 + max((p.instance for p in self.placements), default=0)


@dataclass(frozen=True)
class Actor:
    """A road user; a two-wheeler's rider is one too. `id` is its instance id, unique in the scene."""

    id: int
    category: str
    asset: str
    x: float
    y: float
    z: float
    yaw: float
    size: tuple[float, float, float]
    """Length, width, height of the 3D box, centred over (x, y), standing on z."""
    speed: float = 0.0
    lane: str | None = None
    parked: bool = False
    braking: bool = False
    lights: bool = False
    mount: int | None = None
    """For riders: the id of the two-wheeler that they sit on."""

    @property
    def centre(self) -> np.ndarray:
        """Middle of the 3D box, world [3]."""
        return np.array([self.x, self.y, self.z + self.size[2] / 2])

    @property
    def velocity(self) -> np.ndarray:
        """World velocity [2], metres a second."""
        return self.speed * np.array([np.cos(self.yaw), np.sin(self.yaw)])

    def corners(self) -> np.ndarray:
        """The eight corners of the 3D box, world [8, 3]."""
        half = np.array(self.size) / 2
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        local = signs * half
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        turned = np.stack(
            [local[:, 0] * cos - local[:, 1] * sin, local[:, 0] * sin + local[:, 1] * cos, local[:, 2]], 1
        )
        return turned + self.centre


@dataclass(frozen=True)
class Conditions:
    """Weather and time of day in BDD100K's words, and what follows from them for the light."""

    weather: str = "clear"
    time_of_day: str = "daytime"
    sun_azimuth: float = 0.8
    """World direction towards the sun, radians from east."""
    sun_elevation: float = 0.8

    @property
    def dark(self) -> bool:
        """Whether lamps and headlights are on."""
        return self.time_of_day != "daytime"


@dataclass(frozen=True)
class Camera:
    """A pinhole camera fixed to the ego. `T_ego_cam` [4, 4] maps camera points to the ego frame."""

    name: str
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    T_ego_cam: np.ndarray

    @property
    def intrinsics(self) -> np.ndarray:
        """The 3 x 3 matrix K."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])


@dataclass(frozen=True)
class Lidar:
    """A spinning LiDAR fixed to the ego; rays leave its origin, x of its frame is the start of the sweep."""

    name: str
    elevations: tuple[float, ...]
    """Of the rings, radians, lowest first."""
    columns: int
    max_range: float
    T_ego_lidar: np.ndarray


@dataclass(frozen=True)
class EgoState:
    """The ego on its lane. `route` names the lanes from the one under it onward, junctions included."""

    x: float
    y: float
    yaw: float
    speed: float
    route: tuple[str, ...]
    station: float
    """Metres along the first lane of the route; a little below 0 where the ego's nose is on a lane before its axle."""

    @property
    def T_world_ego(self) -> np.ndarray:  # noqa: N802 - the usual name of a transform
        """Maps ego points to the world."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[cos, -sin, 0, self.x], [sin, cos, 0, self.y], [0, 0, 1, 0], [0, 0, 0, 1.0]])


@dataclass(frozen=True)
class Scene:
    """One moment in a town."""

    stage: StagedTown = field(repr=False)
    time: float
    conditions: Conditions
    ego: EgoState
    actors: tuple[Actor, ...] = field(repr=False)
    scene_type: str = "city street"
    """In BDD100K's words."""

    def signal_states(self) -> dict[str, str]:
        """Signal id -> `green`, `yellow` or `red`."""
        return {signal.id: signal.state(self.time) for signal in self.stage.town.signals}

    def T_world_cam(self, camera: Camera) -> np.ndarray:  # noqa: N802
        """Maps points of a camera's frame to the world."""
        return self.ego.T_world_ego @ camera.T_ego_cam


def world_to_camera(T_world_cam: np.ndarray, points: np.ndarray) -> np.ndarray:
    """World points [N, 3] in the camera's frame."""
    return (points - T_world_cam[:3, 3]) @ T_world_cam[:3, :3]


def project(camera: Camera, points_cam: np.ndarray) -> np.ndarray:
    """Pixels [N, 2] of camera-frame points [N, 3] in front of the camera."""
    return points_cam[:, :2] / points_cam[:, 2:] * [camera.fx, camera.fy] + [camera.cx, camera.cy]
