"""Where on the ground the things in a picture stand: pixels to metres in the ego's frame, and metres to features.

A planner thinks in metres. What experts say has a place in their picture; through the camera's mounting that becomes a
place on a flat road, so that "how far is it" and "is it on my path" need not be learnt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automoe.carla.run import LABELLED
from automoe.errors import ConfigError, DataError
from automoe.poses import LOOKING_FORWARD, pinhole

FARTHEST = 60.0
"""Metres from the camera of all that is farther away, or above the horizon: its direction is what is left of it."""

LEAST_DEPTH = 0.1
"""Metres before the camera from which on a thing has a place in its picture."""

WAVES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Wavelengths, metres, in which a place is told."""

PLACE_FEATURES = 4 * len(WAVES) + 2

Motion = tuple[float, float, float]
"""Where the ego's frame is in the one that it had before: metres forward and to the left, radians to the left."""

STILL: Motion = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class CameraSpec:
    """A pinhole camera on the ego, as rigs tell it (`TrainedDriver.rig`): size of its pictures, height and width, the
    horizontal field_of_view, degrees, and T_ego_mount [4, 4], which looks along its x."""

    size: tuple[int, int]
    field_of_view: float
    T_ego_mount: tuple[tuple[float, ...], ...]

    @classmethod
    def of_rig(cls, rig: Mapping[str, Any]) -> CameraSpec:
        """The front camera of a prepared set's rig. Raises ConfigError where it has none."""
        said = rig["cameras"].get(LABELLED)
        if said is None or not all(said["size"]):
            raise ConfigError(f"the data's rig has no {LABELLED} camera: nobody knows where what is seen stands.")
        height, width = said["size"]
        return cls((height, width), said["field_of_view"], tuple(tuple(row) for row in said["T_ego_mount"]))

    def must_see(self, rig: Mapping[str, Any], where: str) -> None:
        """Raises DataError where the pictures of the data called `where` are another camera's: what is seen in them
        would be looked for in the wrong place."""
        other = CameraSpec.of_rig(rig)
        mounts = np.array(self.T_ego_mount), np.array(other.T_ego_mount)
        same = self.size == other.size and math.isclose(self.field_of_view, other.field_of_view, abs_tol=1e-3)
        if not (same and np.allclose(*mounts, atol=1e-3)):
            raise DataError(
                f"{where}: its front camera ({other}) is not the one that was trained with ({self}); record with that "
                "one, or train on these runs."
            )

    def __str__(self) -> str:
        (height, width), place = self.size, [row[3] for row in self.T_ego_mount[:3]]
        return f"{width}x{height}, {self.field_of_view:g} degrees, at {', '.join(f'{one:.2f}' for one in place)} m"


class Ground(nn.Module):
    """Spots [..., 2] of an input, x and y in [0, 1], to places [..., 2] on the ground, metres in the ego's frame, at
    most FARTHEST from the camera."""

    rays: Tensor
    spots: Tensor

    def __init__(self, camera: CameraSpec, size: tuple[int, int], matrix: np.ndarray | None = None) -> None:
        """size: of the input, height and width. matrix: [2, 3], from the camera's pixels to the input's; without it the
        whole picture is stretched over the input."""
        super().__init__()
        (height, width), mount = camera.size, np.array(camera.T_ego_mount, np.float64)
        fit = np.eye(3)
        fit[:2] = np.diag([size[1] / width, size[0] / height, 1.0])[:2] if matrix is None else matrix
        unproject = np.linalg.inv(pinhole(height, width, camera.field_of_view))
        rays = mount[:3, :3] @ LOOKING_FORWARD @ unproject @ np.linalg.inv(fit) @ np.diag([size[1], size[0], 1.0])
        self.register_buffer("rays", torch.from_numpy(rays).float(), persistent=False)
        self.register_buffer("spots", torch.from_numpy(np.linalg.inv(rays)).float(), persistent=False)
        self.place, self.height = mount[:2, 3].tolist(), float(mount[2, 3])

    def forward(self, spots: Tensor) -> Tensor:
        return self._seen(spots)[..., :2] + self.rays.new_tensor(self.place)

    def _seen(self, spots: Tensor) -> Tensor:
        """The points [..., 3] of spots, metres, from the camera's place on; axes are the ego's."""
        ray = torch.cat([spots.float(), torch.ones_like(spots[..., :1], dtype=torch.float32)], dim=-1) @ self.rays.T
        level, fall = ray[..., :2].norm(dim=-1, keepdim=True).clamp(min=1e-6), -ray[..., 2:]
        reach = (self.height * level / fall.clamp(min=1e-6)).clamp(max=FARTHEST)
        return ray / level * reach

    def after(self, spots: Tensor, motion: Motion) -> Tensor:
        """Where the points of spots [..., 2] are in the picture once the car has moved: [..., 2]. What is behind the
        camera by then stays where it was."""
        forward, left, turn = motion
        place = self.rays.new_tensor([*self.place, 0.0])
        cos, sin = math.cos(turn), math.sin(turn)
        into = self.rays.new_tensor([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        moved = (self._seen(spots) + place - self.rays.new_tensor([forward, left, 0.0])) @ into.T - place
        found = moved @ self.spots.T
        depth = found[..., 2:]
        return torch.where(depth > LEAST_DEPTH, found[..., :2] / depth.clamp(min=LEAST_DEPTH), spots.float())


def moved(motion: Motion, metres: float, turned: float) -> Motion:
    """A motion and, behind it, so many metres of an arc over which the car has turned by so many radians to the
    left."""
    forward, left, turn = motion
    heading = turn + 0.5 * turned
    return forward + metres * math.cos(heading), left + metres * math.sin(heading), turn + turned


def seen_after(points: np.ndarray, motion: Motion) -> np.ndarray:
    """Points [N, 2] of the frame before, metres, in the frame after."""
    forward, left, turn = motion
    cos, sin = math.cos(turn), math.sin(turn)
    return (points - [forward, left]) @ np.array([[cos, -sin], [sin, cos]])


def place_features(places: Tensor) -> Tensor:
    """Places [..., 2], metres, as waves of several lengths: [..., PLACE_FEATURES], 0 where a place is NaN."""
    waves = 2 * math.pi / places.new_tensor(WAVES)
    phase = (places[..., None] * waves).flatten(-2)
    return torch.cat([phase.sin(), phase.cos(), places / FARTHEST], dim=-1).nan_to_num(0.0)


def beside_path(path: Tensor, places: Tensor) -> Tensor:
    """Places [B, S, 2] as a path [B, M, 2] sees them that leaves the origin straight ahead: metres along it and to its
    left, from its nearest point, [B, S, 2]; NaN stays NaN."""
    line = torch.cat([torch.zeros_like(path[:, :1]), path], dim=1)
    steps = line.diff(dim=1)
    lengths = steps.norm(dim=-1, keepdim=True)
    heading = steps / lengths.clamp(min=1e-6)
    straight = heading.new_tensor([1.0, 0.0]).expand_as(heading[:, :1])
    heading = torch.cat([straight, (heading[:, 1:] + heading[:, :-1]) / 2, heading[:, -1:]], dim=1)
    heading = heading / heading.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    along = torch.cat([torch.zeros_like(lengths[:, :1]), lengths.cumsum(dim=1)], dim=1)
    nearest = torch.cdist(places.nan_to_num(0.0), line).argmin(dim=-1, keepdim=True)
    both = nearest.expand(-1, -1, 2)
    gap, ahead = places - line.gather(1, both), heading.gather(1, both)
    forward = along[..., 0].gather(1, nearest[..., 0])[..., None] + (gap * ahead).sum(dim=-1, keepdim=True)
    return torch.cat([forward, ahead[..., :1] * gap[..., 1:] - ahead[..., 1:] * gap[..., :1]], dim=-1)
