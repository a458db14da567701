"""A spinning LiDAR: rays cast with embreex against a staged town and its road users.

The town's triangles are put into one Embree scene once; road users, few triangles, into a second one for each scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh

from automoe.taxonomy import SEMANTIC
from automoe.world.parts import Part
from automoe.world.scene import Lidar, Scene, StagedTown


@dataclass(frozen=True)
class Sweep:
    """One turn of the LiDAR, rays that hit nothing left out.

    points: float32 [N, 3] in the LiDAR's frame. ring: uint8 [N], 0 lowest. distance: float32 [N], metres.
    semantic: uint8 [N] trainIds. instance: int32 [N], 0 for things without a box.
    """

    points: np.ndarray
    ring: np.ndarray
    distance: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray


class _Triangles:
    """An Embree scene that knows the class and instance of each triangle."""

    def __init__(self, pieces: list[tuple[Part, np.ndarray, int]]) -> None:
        """pieces: (part, its vertices in the world [V, 3], instance)."""
        offset, vertices, faces = 0, [], []
        for part, placed, _ in pieces:
            vertices.append(placed)
            faces.append(part.faces + offset)
            offset += len(placed)
        self.scene: Any = None
        counts = [len(part.faces) for part, _, _ in pieces]
        self.semantic = np.repeat([SEMANTIC.index(part.label) for part, _, _ in pieces], counts).astype(np.uint8)
        self.instance = np.repeat([instance for _, _, instance in pieces], counts).astype(np.int32)
        if pieces:
            self.scene = rtcore_scene.EmbreeScene()  # pyright: ignore[reportAttributeAccessIssue]
            TriangleMesh(
                self.scene, np.concatenate(vertices).astype(np.float32), np.concatenate(faces).astype(np.int32)
            )

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance (inf for none) and triangle of the first hit of each ray."""
        if self.scene is None:
            return np.full(len(origins), np.inf, np.float32), np.full(len(origins), -1)
        hit = self.scene.run(origins, directions, output=True)
        triangle = hit["primID"].astype(np.int64)
        return np.where(triangle >= 0, hit["tfar"], np.inf).astype(np.float32), triangle


class LidarCaster:
    """Casts sweeps in scenes of one staged town."""

    def __init__(self, stage: StagedTown) -> None:
        self.stage = stage
        pieces = [(part, part.vertices, 0) for part in stage.ground]
        for placement in stage.placements:
            asset = stage.assets[placement.asset]
            for part in asset.parts:
                placed = _placed(part.vertices, placement.x, placement.y, placement.z, placement.yaw)
                pieces.append((part, placed, placement.instance if asset.boxed(part) else 0))
        self._town = _Triangles(pieces)

    def sweep(self, scene: Scene, lidar: Lidar) -> Sweep:
        """One turn at the scene's moment, without motion during the turn."""
        pieces = []
        for actor in scene.actors:
            asset = self.stage.assets[actor.asset]
            asset = asset.rider if actor.mount is not None and asset.rider is not None else asset
            for part in asset.parts:
                pieces.append((part, _placed(part.vertices, actor.x, actor.y, actor.z, actor.yaw), actor.id))
        moving = _Triangles(pieces)
        directions, ring = ray_directions(lidar)
        T_world_lidar = scene.ego.T_world_ego @ lidar.T_ego_lidar
        world = (directions @ T_world_lidar[:3, :3].T).astype(np.float32)
        origins = np.broadcast_to(T_world_lidar[:3, 3].astype(np.float32), world.shape).copy()
        far, standing = self._town.cast(origins, world)
        near, mover = moving.cast(origins, world)
        first = near < far
        distance = np.where(first, near, far)
        keep = np.flatnonzero(distance < lidar.max_range)
        semantic, instance = np.zeros(len(keep), np.uint8), np.zeros(len(keep), np.int32)
        for hits, triangles, chosen in ((self._town, standing, ~first[keep]), (moving, mover, first[keep])):
            semantic[chosen] = hits.semantic[triangles[keep][chosen]]
            instance[chosen] = hits.instance[triangles[keep][chosen]]
        points = (directions[keep] * distance[keep, None]).astype(np.float32)
        return Sweep(points, ring[keep], distance[keep].astype(np.float32), semantic, instance)


def ray_directions(lidar: Lidar) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions [rings * columns, 3] in the LiDAR's frame and the ring [rings * columns] of each."""
    elevation = np.asarray(lidar.elevations)[:, None]
    azimuth = np.linspace(0, 2 * np.pi, lidar.columns, endpoint=False)[None]
    x, y = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)
    z = np.broadcast_to(np.sin(elevation), x.shape)
    ring = np.repeat(np.arange(len(elevation)), lidar.columns).astype(np.uint8)
    return np.stack([x, y, z], -1).reshape(-1, 3), ring


def _placed(vertices: np.ndarray, x: float, y: float, z: float, yaw: float) -> np.ndarray:
    cos, sin = np.cos(yaw), np.sin(yaw)
    turned = np.stack([vertices[:, 0] * cos - vertices[:, 1] * sin, vertices[:, 0] * sin + vertices[:, 1] * cos], 1)
    return np.column_stack([turned[:, 0] + x, turned[:, 1] + y, vertices[:, 2] + z]).astype(np.float32)
