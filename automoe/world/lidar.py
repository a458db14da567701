"""A spinning LiDAR: rays cast with embreex against a staged town and its road users.

What stands still, parked vehicles included, is one Embree scene. Whoever moves is cast in his asset's own frame, by
the few rays that could meet him, so that nothing is built anew from turn to turn.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh

from automoe.taxonomy import SEMANTIC
from automoe.world.parts import Asset, Part
from automoe.world.scene import Actor, Lidar, Scene, StagedTown


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


LONGEST_EDGE = 60.0
"""Metres. Longer triangles, terrain up to the horizon, have boxes that every ray enters: they are cut."""

Piece = tuple[Part, np.ndarray, int]
"""A part, its vertices in the frame of the cast [V, 3], and its instance."""


class _Triangles:
    """An Embree scene that knows the class, the instance and the plane of each triangle."""

    def __init__(self, *groups: _Mesh) -> None:
        vertices = np.concatenate([group.vertices for group in groups])
        offsets = np.cumsum([0] + [len(group.vertices) for group in groups[:-1]])
        faces = np.concatenate([group.faces + offset for group, offset in zip(groups, offsets, strict=True)])
        self.semantic = np.concatenate([group.semantic for group in groups])
        self.instance = np.concatenate([group.instance for group in groups])
        self._plane = np.concatenate([group.planes for group in groups])
        # Robust mode, a quarter slower, makes no difference to which triangles are hit but where two coincide.
        self.scene: Any = rtcore_scene.EmbreeScene(robust=False)  # pyright: ignore[reportAttributeAccessIssue]
        TriangleMesh(self.scene, vertices, faces.astype(np.int32))

    def cast(self, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances [N] (inf for none) and triangles [N] of the first hits of rays [N, 3] from one point [3].

        Distances are those to the triangles' planes: to ask Embree for more than the triangle takes half as long again.
        """
        origins = np.empty((len(directions), 3), np.float32)
        origins[:] = origin
        triangle = self.scene.run(origins, directions)
        plane = self._plane.take(triangle, axis=0, mode="clip")
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (plane[:, 3] - plane[:, :3] @ origin) / np.einsum("ij,ij->i", plane[:, :3], directions)
        distance[(triangle < 0) | ~(distance > 0)] = np.inf  # nothing, or a ray along the plane of its triangle
        return distance, triangle


@dataclass(frozen=True)
class _Mesh:
    """vertices: float32 [V, 3]. faces: int [F, 3]. semantic: uint8 [F]. instance: int32 [F]."""

    vertices: np.ndarray
    faces: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray

    @cached_property
    def planes(self) -> np.ndarray:
        """Normals of any length, and what points of the plane give times them: float64 [F, 4]."""
        first, second, third = (self.vertices[self.faces[:, corner]].astype(np.float64) for corner in range(3))
        normal = np.cross(second - first, third - first)
        return np.column_stack([normal, (normal * first).sum(axis=1)])

    @classmethod
    def of(cls, pieces: list[Piece]) -> _Mesh:
        offsets = np.cumsum([0] + [len(placed) for _, placed, _ in pieces[:-1]])
        counts = [len(part.faces) for part, _, _ in pieces]
        return cls(
            np.concatenate([placed for _, placed, _ in pieces]).astype(np.float32),
            np.concatenate([part.faces + offset for (part, _, _), offset in zip(pieces, offsets, strict=True)]),
            np.repeat([SEMANTIC.index(part.label) for part, _, _ in pieces], counts).astype(np.uint8),
            np.repeat([instance for _, _, instance in pieces], counts).astype(np.int32),
        )

    def split(self, longest: float) -> _Mesh:
        """The same surface without edges over `longest` metres, each triangle with corners of its own."""
        open_ = self.vertices[self.faces].astype(np.float64)
        source = np.arange(len(open_))
        triangles, sources = [], []
        while len(open_):
            edges = np.linalg.norm(open_ - np.roll(open_, -1, axis=1), axis=2)
            cut = np.flatnonzero(edges.max(axis=1) > longest)
            whole = edges.max(axis=1) <= longest
            triangles.append(open_[whole])
            sources.append(source[whole])
            at = edges[cut].argmax(axis=1)
            a, b, c = (open_[cut, (at + corner) % 3] for corner in range(3))
            middle = (a + b) / 2
            open_ = np.concatenate([np.stack([a, middle, c], axis=1), np.stack([middle, b, c], axis=1)])
            source = np.tile(source[cut], 2)
        kept = np.concatenate(sources)
        return _Mesh(
            np.concatenate(triangles).reshape(-1, 3).astype(np.float32),
            np.arange(3 * len(kept)).reshape(-1, 3),
            self.semantic[kept],
            self.instance[kept],
        )


@dataclass(frozen=True)
class _Mover:
    """A road user's triangles in its own frame, and how far they reach: sideways, and from bottom to top (metres)."""

    triangles: _Triangles
    radius: float
    bottom: float
    top: float

    @classmethod
    def of(cls, asset: Asset) -> _Mover:
        mesh = _Mesh.of([(part, part.vertices, 0) for part in asset.parts])
        x, y, z = mesh.vertices.T
        return cls(_Triangles(mesh), float(np.hypot(x, y).max()), float(z.min()), float(z.max()))


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
        self._town = _Mesh.of(pieces).split(LONGEST_EDGE)
        self._parked: tuple[Actor, ...] | None = None
        self._last: tuple[_Triangles, np.ndarray, bytes, np.ndarray, np.ndarray] | None = None
        self._movers: dict[tuple[str, bool], _Mover] = {}

    def sweep(self, scene: Scene, lidar: Lidar) -> Sweep:
        """One turn at the scene's moment, without motion during the turn."""
        standing = self._standing(tuple(actor for actor in scene.actors if actor.parked))
        directions, ring = ray_directions(lidar)
        T_world_lidar = scene.ego.T_world_ego @ lidar.T_ego_lidar
        origin = T_world_lidar[:3, 3]
        pose = T_world_lidar.tobytes()
        last = self._last
        if last is None or last[0] is not standing or last[1] is not directions or last[2] != pose:
            hits = standing.cast(origin, (directions @ T_world_lidar[:3, :3].T).astype(np.float32))
            self._last = last = (standing, directions, pose, *hits)
        distance, triangle = last[3].copy(), last[4]  # the same while the ego stands still
        semantic, instance = standing.semantic.take(triangle), standing.instance.take(triangle)
        for actor in scene.actors:
            # Nobody reaches 20 m beyond his middle.
            if not actor.parked and math.hypot(actor.x - origin[0], actor.y - origin[1]) < lidar.max_range + 20.0:
                self._cast_mover(actor, lidar, T_world_lidar, distance, semantic, instance)
        keep = np.flatnonzero(distance < lidar.max_range)
        points = directions[keep] * distance[keep, None]
        return Sweep(
            points.astype(np.float32), ring[keep], distance[keep].astype(np.float32), semantic[keep], instance[keep]
        )

    def _standing(self, parked: tuple[Actor, ...]) -> _Triangles:
        """The town with its parked vehicles; built once for all turns of a scene."""
        if parked != self._parked:
            pieces = [
                (part, _placed(part.vertices, actor.x, actor.y, actor.z, actor.yaw), actor.id)
                for actor in parked for part in self._asset(actor).parts
            ]  # fmt: skip
            self._triangles = _Triangles(self._town, _Mesh.of(pieces)) if pieces else _Triangles(self._town)
            self._parked = parked
        return self._triangles

    def _asset(self, actor: Actor) -> Asset:
        asset = self.stage.assets[actor.asset]
        return asset.rider if actor.mount is not None and asset.rider is not None else asset

    def _cast_mover(
        self, actor: Actor, lidar: Lidar, T_world_lidar: np.ndarray, distance: np.ndarray, semantic: np.ndarray,
        instance: np.ndarray,
    ) -> None:  # fmt: skip
        """Take somebody's hits into a turn where they are nearer than what it has."""
        key = (actor.asset, actor.mount is not None)
        if key not in self._movers:
            self._movers[key] = _Mover.of(self._asset(actor))
        mover = self._movers[key]
        x, y, z = (np.array([actor.x, actor.y, actor.z]) - T_world_lidar[:3, 3]) @ T_world_lidar[:3, :3]
        far = math.hypot(x, y)
        if far - mover.radius > lidar.max_range:
            return
        rays = _rays_towards(lidar, x, y, z, mover)
        if not len(rays) or distance[rays].max() < far - mover.radius:
            return  # between two rings, or behind a wall
        cos, sin = math.cos(actor.yaw), math.sin(actor.yaw)
        R_actor_lidar = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) @ T_world_lidar[:3, :3]
        directions = ray_directions(lidar)[0].take(rays, axis=0)
        origin = -R_actor_lidar @ np.array([x, y, z])
        near, triangle = mover.triangles.cast(origin, (directions @ R_actor_lidar.T).astype(np.float32))
        first = near < distance[rays]
        distance[rays[first]] = near[first]
        semantic[rays[first]] = mover.triangles.semantic[triangle[first]]
        instance[rays[first]] = actor.id


def _rays_towards(lidar: Lidar, x: float, y: float, z: float, mover: _Mover) -> np.ndarray:
    """Numbers of the rays that may meet an upright cylinder that stands at a point of the LiDAR's frame."""
    far = math.hypot(x, y)
    if far <= mover.radius + 0.1:
        return np.arange(len(lidar.elevations) * lidar.columns)
    near = far - mover.radius
    below, above = z + mover.bottom, z + mover.top
    low = math.atan2(below, near if below < 0 else far + mover.radius)
    high = math.atan2(above, near if above > 0 else far + mover.radius)
    first, last = bisect_left(lidar.elevations, low - 1e-4), bisect_left(lidar.elevations, high + 1e-4)
    step = 2 * math.pi / lidar.columns
    middle, half = math.atan2(y, x), math.asin(mover.radius / far)
    columns = np.arange(math.floor((middle - half) / step), math.ceil((middle + half) / step) + 1) % lidar.columns
    return (np.arange(first, last)[:, None] * lidar.columns + columns).ravel()


def ray_directions(lidar: Lidar) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions [rings * columns, 3] in the LiDAR's frame and the ring [rings * columns] of each.

    Rays go ring by ring, lowest first, and in a ring by azimuth from 0 on. The arrays are shared: don't write to them.
    """
    return _ray_directions(lidar.elevations, lidar.columns)


@cache
def _ray_directions(elevations: tuple[float, ...], columns: int) -> tuple[np.ndarray, np.ndarray]:
    elevation = np.asarray(elevations)[:, None]
    azimuth = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    x, y = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)
    z = np.broadcast_to(np.sin(elevation), x.shape)
    ring = np.repeat(np.arange(len(elevation)), columns).astype(np.uint8)
    return np.stack([x, y, z], -1).reshape(-1, 3), ring


def _placed(vertices: np.ndarray, x: float, y: float, z: float, yaw: float) -> np.ndarray:
    cos, sin = np.cos(yaw), np.sin(yaw)
    turned = np.stack([vertices[:, 0] * cos - vertices[:, 1] * sin, vertices[:, 0] * sin + vertices[:, 1] * cos], 1)
    return np.column_stack([turned[:, 0] + x, turned[:, 1] + y, vertices[:, 2] + z]).astype(np.float32)
