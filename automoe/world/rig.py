"""Where cameras and LiDARs sit on the ego, per data set.

All rigs here are calibrations of the embedded world's own ego; real data sets bring theirs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from automoe.carla import run
from automoe.carla.frame import flip
from automoe.poses import LOOKING_FORWARD, rotation_x, rotation_y, rotation_z
from automoe.world.scene import Camera, Lidar
from automoe.world.vehicle import AHEAD


def mounted_camera(
    name: str, width: int, height: int, hfov: float, position: tuple[float, float, float],
    yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0,
) -> Camera:  # fmt: skip
    """A camera at an ego position (metres) with angles in radians: yaw left, pitch down, roll clockwise."""
    focal = width / 2 / np.tan(hfov / 2)
    turn = rotation_z(yaw) @ rotation_y(pitch) @ rotation_x(roll)
    transform = np.eye(4)
    transform[:3, :3] = turn @ LOOKING_FORWARD
    transform[:3, 3] = position
    return Camera(name, width, height, focal, focal, width / 2, height / 2, transform)


def dash_camera(width: int, height: int, rng: np.random.Generator) -> Camera:
    """A dash camera as in BDD100K: behind the windscreen of somebody's car, roughly level, never quite the same."""
    return mounted_camera(
        "front", width, height, float(np.radians(rng.uniform(62, 70))),
        (float(rng.uniform(1.3, 1.7)), float(rng.normal(0, 0.12)), float(rng.uniform(1.25, 1.6))),
        yaw=float(np.radians(rng.normal(0, 1.0))), pitch=float(np.radians(rng.normal(1.0, 1.2))),
        roll=float(np.radians(rng.normal(0, 0.5))),
    )  # fmt: skip


NUSCENES_MOUNTS: dict[str, tuple[tuple[float, float, float], float, float]] = {
    "CAM_FRONT": ((1.70, 0.02, 1.51), 0.0, 64.6),
    "CAM_FRONT_RIGHT": ((1.55, -0.49, 1.50), -55.0, 64.6),
    "CAM_BACK_RIGHT": ((1.01, -0.48, 1.56), -110.0, 64.6),
    "CAM_BACK": ((0.03, 0.00, 1.58), 180.0, 89.3),
    "CAM_BACK_LEFT": ((1.03, 0.48, 1.59), 110.0, 64.6),
    "CAM_FRONT_LEFT": ((1.52, 0.49, 1.51), 55.0, 64.6),
}
"""Position on the ego, yaw and horizontal field of view (degrees) of the six cameras, about as on nuScenes' cars."""


def nuscenes_cameras(width: int, height: int) -> tuple[Camera, ...]:
    """The six cameras of a nuScenes car, level, at a picture size (1600 x 900 officially)."""
    return tuple(
        mounted_camera(name, width, height, float(np.radians(field)), position, yaw=float(np.radians(yaw)))
        for name, (position, yaw, field) in NUSCENES_MOUNTS.items()
    )


def nuscenes_lidar(columns: int = 1084) -> Lidar:
    """The 32-beam roof LiDAR of a nuScenes car; x of its frame points to the right, y ahead."""
    lidar = roof_lidar(32, columns)
    transform = lidar.T_ego_lidar.copy()
    transform[:3, :3] = rotation_z(-np.pi / 2)
    return replace(lidar, name="LIDAR_TOP", T_ego_lidar=transform)


def carla_cameras(width: int, height: int) -> tuple[Camera, ...]:
    """The four cameras of a CARLA recording (`carla.run.MOUNTS`)."""
    found = []
    for name, mount in run.MOUNTS.items():
        x, y, z = flip(np.array([mount.x, mount.y, mount.z]))
        yaw = float(np.radians(-mount.yaw))
        field = float(np.radians(run.FIELD_OF_VIEW))
        found.append(mounted_camera(name, width, height, field, (x + AHEAD, y, z), yaw=yaw))
    return tuple(found)


def shifted_camera(camera: Camera, aside: float, turn: float) -> Camera:
    """What a camera would be if the ego stood `aside` metres to the left and turned `turn` radians to the left round
    the middle of its box: `carla.run.SHIFTED`."""
    there, back, away = np.eye(4), np.eye(4), np.eye(4)
    there[0, 3], back[0, 3] = AHEAD, -AHEAD
    away[:3, :3], away[1, 3] = rotation_z(turn), aside
    return replace(camera, name=run.SHIFTED, T_ego_cam=there @ away @ back @ camera.T_ego_cam)


def carla_lidar() -> Lidar:
    """The LiDAR of a CARLA recording; its axes are the ego's."""
    low, high = np.radians(run.LIDAR_ELEVATION)
    transform = np.eye(4)
    transform[:3, 3] = (AHEAD, 0.0, run.LIDAR_HEIGHT)
    columns = round(run.LIDAR_RATE * run.TICK / run.LIDAR_CHANNELS)
    rings = tuple(np.linspace(low, high, run.LIDAR_CHANNELS))
    return Lidar("lidar", rings, columns, run.LIDAR_RANGE, transform)


def roof_lidar(rings: int = 32, columns: int = 1084, max_range: float = 100.0) -> Lidar:
    """A 32-beam roof LiDAR as on the nuScenes cars."""
    transform = np.eye(4)
    transform[:3, 3] = (0.94, 0.0, 1.84)
    return Lidar("top", tuple(np.radians(np.linspace(-30.67, 10.67, rings))), columns, max_range, transform)
