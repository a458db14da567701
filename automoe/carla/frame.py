"""CARLA's axes and ours: the one place where one becomes the other.

CARLA is left-handed (x forward, y right, z up) with angles in degrees: yaw turns right, pitch lifts the nose, roll
leans right. Ours is right-handed (x forward, y left, z up) in radians. So y negates, of places, velocities and LiDAR
points alike; yaw and pitch negate; roll keeps its sign. Steering stays as it is, positive to the right, and a positive
one gives a negative yaw rate here. The conversion is its own inverse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from automoe.poses import rotation_x, rotation_y, rotation_z


def flip(vectors: np.ndarray) -> np.ndarray:
    """Places, velocities or accelerations [..., 2 or more] (x, y, ...) in the other frame; more columns stay."""
    flipped = np.array(vectors, copy=True)
    flipped[..., 1] = 0.0 - flipped[..., 1]  # nobody wants to read -0.0
    return flipped


def vector(said: Mapping[str, float]) -> np.ndarray:
    """CARLA's {x, y, z} as float64 [3] of ours."""
    return np.array([said["x"], 0.0 - said["y"], said["z"]], np.float64)


def say_vector(ours: np.ndarray) -> dict[str, float]:
    """A vector [2] or [3] of ours as CARLA's {x, y, z}."""
    z = float(ours[2]) if len(ours) > 2 else 0.0
    return {"x": float(ours[0]), "y": 0.0 - float(ours[1]), "z": z}


def pose(location: Mapping[str, float], rotation: Mapping[str, float]) -> np.ndarray:
    """Where CARLA says something is, as T_world_thing [4, 4] of ours."""
    yaw, pitch, roll = (np.radians(rotation[key]) for key in ("yaw", "pitch", "roll"))
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_z(-yaw) @ rotation_y(-pitch) @ rotation_x(roll)
    matrix[:3, 3] = vector(location)
    return matrix


def say_pose(T_world_thing: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    """A pose [4, 4] of ours as CARLA's location and rotation."""
    r = T_world_thing[:3, :3]
    yaw = np.arctan2(r[1, 0], r[0, 0])
    pitch = np.arcsin(np.clip(-r[2, 0], -1.0, 1.0))
    roll = np.arctan2(r[2, 1], r[2, 2])
    degrees = {"pitch": 0.0 - pitch, "yaw": 0.0 - yaw, "roll": roll}
    rotation = {key: float(np.degrees(value)) for key, value in degrees.items()}
    return say_vector(T_world_thing[:3, 3]), rotation


def say_yaw(ours: float) -> float:
    """An angle in radians to the left, or such an angle a second, as CARLA's degrees to the right."""
    return 0.0 - float(np.degrees(ours))


def yaw(said: float) -> float:
    """CARLA's degrees to the right, or such degrees a second, as radians to the left."""
    return 0.0 - float(np.radians(said))


def location_of(value: Any) -> dict[str, float]:
    """A carla.Location or carla.Vector3D as a mapping."""
    return {"x": value.x, "y": value.y, "z": value.z}


def rotation_of(value: Any) -> dict[str, float]:
    """A carla.Rotation as a mapping."""
    return {"pitch": value.pitch, "yaw": value.yaw, "roll": value.roll}
