"""The shapes that every asset is put together from, and the welding that turns them into parts.

A shape is a `Soup`: loose triangles, each with its own three corners and texture coordinates, so that shapes are
moved, mixed and coloured without any bookkeeping of indices. `Builder` collects soups by material and class;
`Builder.parts` welds them into indexed meshes, keeping corners apart where an edge is hard, because renderers
average the normals of the faces that share a vertex.

Texture coordinates follow the texture array: u runs along its columns, v down its rows, both wrap around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from automoe.world.parts import Asset, Material, Part

Vector = Sequence[float] | np.ndarray

CREASE_DEGREES = 42.0
"""Faces that meet at a larger angle keep separate vertices, and so a visible edge."""


class Soup(NamedTuple):
    """Loose triangles: corners [T, 3, 3] in metres, counter-clockwise seen from outside, and uv [T, 3, 2]."""

    corners: np.ndarray
    uv: np.ndarray

    def moved(self, offset: Vector) -> Soup:
        """Shift by `offset` (x, y, z)."""
        return Soup(self.corners + np.asarray(offset, dtype=np.float64), self.uv)

    def turned(self, rotation: np.ndarray) -> Soup:
        """Rotate by a 3 x 3 matrix that acts on column vectors."""
        return Soup(self.corners @ np.asarray(rotation).T, self.uv)

    def mirrored_y(self) -> Soup:
        """Reflect left to right, with the winding restored."""
        return Soup((self.corners * [1.0, -1.0, 1.0])[:, ::-1], self.uv[:, ::-1])

    def flipped(self) -> Soup:
        """Turn every triangle inside out."""
        return Soup(self.corners[:, ::-1], self.uv[:, ::-1])

    def with_uv(self, project: Callable[[np.ndarray], np.ndarray]) -> Soup:
        """Replace the texture coordinates by `project(corners [T, 3, 3]) -> [T, 3, 2]`."""
        return Soup(self.corners, project(self.corners))


def join(soups: Sequence[Soup]) -> Soup:
    """Several soups as one."""
    return Soup(np.concatenate([s.corners for s in soups]), np.concatenate([s.uv for s in soups]))


UNIT_UV = np.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
"""The whole texture upright on a quad that starts at its lower left corner and goes counter-clockwise."""


def quads(corners: np.ndarray, uv: np.ndarray | None = None) -> Soup:
    """Quads [Q, 4, 3], counter-clockwise seen from outside, as two triangles each; uv [Q, 4, 2] or the unit square.

    Triangles without area (where two corners of a quad coincide) are dropped.
    """
    corners = np.asarray(corners, dtype=np.float64).reshape(-1, 4, 3)
    texture = np.broadcast_to(UNIT_UV, (len(corners), 4, 2)) if uv is None else np.asarray(uv).reshape(-1, 4, 2)
    order = [0, 1, 2, 0, 2, 3]
    triangles, texture = corners[:, order].reshape(-1, 3, 3), texture[:, order].reshape(-1, 3, 2)
    keep = np.linalg.norm(_area_normals(triangles), axis=1) > 1e-7
    return Soup(triangles[keep], texture[keep])


def box(centre: Vector, size: Vector, taper: tuple[float, float] = (1.0, 1.0)) -> Soup:
    """A box around `centre` with edges `size`; its top is scaled by `taper` in x and y."""
    x, y, z = np.asarray(size, dtype=np.float64) / 2
    bottom = np.array([[-x, -y, -z], [x, -y, -z], [x, y, -z], [-x, y, -z]])
    top = bottom * [taper[0], taper[1], -1.0]
    sides = [[bottom[i], bottom[(i + 1) % 4], top[(i + 1) % 4], top[i]] for i in range(4)]
    return quads(np.array([*sides, top, bottom[::-1]])).moved(centre)


def loft(sections: np.ndarray, cap_start: bool = True, cap_end: bool = True) -> Soup:
    """The skin over closed rings `sections` [S, K, 3], each counter-clockwise seen against the direction of travel.

    uv: u once around the ring, v from 0 at the last section to 1 at the first. Caps are fans around the ring's
    middle, so rings should be star-shaped.
    """
    sections = np.asarray(sections, dtype=np.float64)
    s, k = sections.shape[:2]
    ring = np.concatenate([sections, sections[:, :1]], axis=1)
    u = np.broadcast_to(np.linspace(0, 1, k + 1), (s, k + 1))
    v = np.broadcast_to(np.linspace(1, 0, s)[:, None], (s, k + 1))
    skin = quads(grid_cells(ring), grid_cells(np.stack([u, v], axis=-1)))
    caps = [skin]
    if cap_start:
        caps.append(fan(sections[0][::-1]))
    if cap_end:
        caps.append(fan(sections[-1]))
    return join(caps)


def grid_cells(points: np.ndarray) -> np.ndarray:
    """The cells of a grid of points [S, K, D] as quads [(S-1)(K-1), 4, D], in the order that `loft` needs."""
    cells = [points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]]
    return np.stack(cells, axis=2).reshape(-1, 4, points.shape[-1])


def fan(ring: np.ndarray) -> Soup:
    """A flat, star-shaped polygon [K, 3] as triangles around its middle; uv is the disc inside the unit square."""
    ring = np.asarray(ring, dtype=np.float64)
    k = len(ring)
    middle = np.broadcast_to(ring.mean(axis=0), ring.shape)
    angle = 2 * np.pi * np.arange(k + 1) / k
    rim = np.stack([0.5 + 0.5 * np.cos(angle), 0.5 - 0.5 * np.sin(angle)], axis=-1)
    uv = np.stack([np.full((k, 2), 0.5), rim[:-1], rim[1:]], axis=1)
    return Soup(np.stack([middle, ring, np.roll(ring, -1, axis=0)], axis=1), uv)


def tube(points: Sequence[Vector] | np.ndarray, radii: Sequence[float | tuple[float, float]], sides: int = 6,
         across: Vector = (0.0, 1.0, 0.0), caps: tuple[bool, bool] = (True, True)) -> Soup:  # fmt: skip
    """A limb or pole along `points` [N, 3] with elliptical rings.

    radii: for each point one radius, or (radius along `across`, radius at right angles to it).
    """
    path = np.asarray(points, dtype=np.float64)
    direction = np.gradient(path, axis=0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    second = np.cross(direction, np.asarray(across, dtype=np.float64))
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    first = np.cross(second, direction)
    angle = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    pairs = np.array([(r, r) if np.isscalar(r) else r for r in radii], dtype=np.float64)
    a, b = pairs[:, :1, None], pairs[:, 1:, None]
    rings = path[:, None] - a * np.cos(angle)[:, None] * first[:, None] - b * np.sin(angle)[:, None] * second[:, None]
    return loft(rings, *caps)


def cylinder(start: Vector, end: Vector, radius: float, sides: int = 8) -> Soup:
    """A closed cylinder from `start` to `end`."""
    along = np.subtract(end, start)
    across = (0.0, 1.0, 0.0) if abs(along[1]) < 0.9 * np.linalg.norm(along) else (0.0, 0.0, 1.0)
    return tube([start, end], [radius, radius], sides, across)


def lathe(profile: Sequence[tuple[float, float]], sides: int = 8) -> Soup:
    """A body of revolution about z: `profile` lists (radius, z) from the bottom up; radius 0 closes to a point."""
    angle = 2 * np.pi * np.arange(sides) / sides
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(sides)], axis=-1)
    rings = np.array([circle * r + [0.0, 0.0, z] for r, z in profile])
    return loft(rings, profile[0][0] > 0, profile[-1][0] > 0)


def ellipsoid(centre: Vector, radii: Vector, rings: int = 5, sides: int = 8) -> Soup:
    """An ellipsoid with its poles along z."""
    # Few rings look round when the outer ones sit closer to the poles than even steps would put them.
    reach = np.pi / 2 * (1 - 1.6 / rings)
    latitudes = np.linspace(-reach, reach, rings - 1) if rings > 2 else np.zeros(1)
    profile = [(0.0, -0.96), *((float(np.cos(a)), float(np.sin(a))) for a in latitudes), (0.0, 0.96)]
    unit = lathe(profile, sides)
    return Soup(unit.corners * np.asarray(radii, dtype=np.float64), unit.uv).moved(centre)


def icosphere(subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    """A unit sphere of 20 * 4**subdivisions nearly equal triangles: vertices [V, 3], faces [F, 3]."""
    g = (1 + 5**0.5) / 2
    vertices = np.array([[-1, g, 0], [1, g, 0], [-1, -g, 0], [1, -g, 0], [0, -1, g], [0, 1, g],
                         [0, -1, -g], [0, 1, -g], [g, 0, -1], [g, 0, 1], [-g, 0, -1], [-g, 0, 1]])  # fmt: skip
    faces = np.array([[0, 11, 5], [0, 5, 1], [0, 1, 7], [0, 7, 10], [0, 10, 11], [1, 5, 9], [5, 11, 4],
                      [11, 10, 2], [10, 7, 6], [7, 1, 8], [3, 9, 4], [3, 4, 2], [3, 2, 6], [3, 6, 8],
                      [3, 8, 9], [4, 9, 5], [2, 4, 11], [6, 2, 10], [8, 6, 7], [9, 8, 1]])  # fmt: skip
    for _ in range(subdivisions):
        a, b, c = (vertices[faces[:, i]] for i in range(3))
        soup = [(a, a + b, a + c), (b, b + c, a + b), (c, a + c, b + c), (a + b, b + c, a + c)]
        triangles = np.concatenate([np.stack([p / np.linalg.norm(p, axis=1, keepdims=True) for p in t], axis=1)
                                    for t in soup])  # fmt: skip
        _, first, inverse = np.unique(
            np.round(triangles.reshape(-1, 3), 6), axis=0, return_index=True, return_inverse=True
        )
        vertices, faces = triangles.reshape(-1, 3)[first], inverse.reshape(-1, 3)
    return vertices / np.linalg.norm(vertices, axis=1, keepdims=True), faces


def extrude(outline: Sequence[tuple[float, float]], width: float) -> Soup:
    """A star-shaped outline in (x, z), counter-clockwise seen from the right (-y), as a slab of `width` along y."""
    flat = np.array([(x, 0.0, z) for x, z in outline])
    half = np.array([0.0, width / 2, 0.0])
    # Travelling along +y, a ring that is counter-clockwise seen from -y is clockwise seen from ahead.
    return loft(np.stack([flat + half, flat - half]))


class Builder:
    """Collects soups by material and class."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._soups: dict[tuple[str, str], dict[float, list[Soup]]] = {}
        self._materials: dict[str, Material] = {}

    def add(self, material: Material, *soups: Soup, label: str | None = None, crease: float = CREASE_DEGREES) -> None:
        """Add triangles of one material.

        `label` is for parts of another class than the builder's own; faces that meet at more than `crease` degrees
        keep a visible edge.
        """
        self._materials[material.name] = material
        by_crease = self._soups.setdefault((material.name, label or self.label), {})
        by_crease.setdefault(crease, []).extend(soups)

    def parts(self) -> tuple[Part, ...]:
        """One part for each pair of material and class."""
        parts = []
        for (name, label), by_crease in self._soups.items():
            textured = self._materials[name].texture is not None
            welded = [_weld(join(soups), crease, textured) for crease, soups in by_crease.items()]
            first = np.cumsum([0, *(len(vertices) for vertices, _, _ in welded)])
            faces = np.concatenate([f + offset for (_, f, _), offset in zip(welded, first)])
            uv = np.concatenate([uv for _, _, uv in welded]) if textured else None
            vertices = np.concatenate([vertices for vertices, _, _ in welded])
            parts.append(Part(vertices, faces.astype(np.int32), self._materials[name], label, uv))
        return tuple(parts)


def assemble(name: str, parts: Sequence[Part], category: str | None = None, centred: bool = True,
             attributes: dict[str, str] | None = None) -> Asset:  # fmt: skip
    """An asset from parts: lowest point on the ground and, if `centred`, the middle of its bounds over the origin.

    Without centring (a mast with an arm keeps its foot at the origin) the size is that of the smallest box that is
    centred over the origin and holds everything.
    """
    low, high = bounds(parts)
    shift = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]) if centred else np.zeros(3)
    moved = tuple(Part((p.vertices - shift).astype(np.float32), p.faces, p.material, p.label, p.uv) for p in parts)
    low, high = bounds(moved)
    half = np.maximum(np.abs(low), np.abs(high))
    size = (float(2 * half[0]), float(2 * half[1]), float(high[2] - min(low[2], 0.0)))
    return Asset(name, moved, category, size, None, attributes or {})


def bounds(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest corner [3] over all parts."""
    return (
        np.min([p.vertices.min(axis=0) for p in parts], axis=0),
        np.max([p.vertices.max(axis=0) for p in parts], axis=0),
    )


def _area_normals(triangles: np.ndarray) -> np.ndarray:
    """Face normals [T, 3] of triangles [T, 3, 3], as long as twice the triangle's area."""
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def _weld(soup: Soup, crease: float, textured: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [V, 3], faces [F, 3] and uv [V, 2]: corners with equal place, uv and smooth normal become one."""
    normals = _corner_normals(soup.corners, crease)
    uv = soup.uv if textured else np.zeros_like(soup.uv)
    corners = np.concatenate([soup.corners, uv, normals], axis=-1).reshape(-1, 8)
    rounding = np.array([1e4, 1e4, 1e4, 1e3, 1e3, 20, 20, 20])
    _, first, inverse = np.unique(np.round(corners * rounding), axis=0, return_index=True, return_inverse=True)
    vertices = corners[first].astype(np.float32)
    return vertices[:, :3], inverse.reshape(-1, 3), vertices[:, 3:5]


def _corner_normals(triangles: np.ndarray, crease_degrees: float) -> np.ndarray:
    """For each corner [T, 3] the mean normal [3] of the faces at its place that it blends with smoothly."""
    area = np.repeat(_area_normals(triangles), 3, axis=0)
    unit = area / np.maximum(np.linalg.norm(area, axis=1, keepdims=True), 1e-12)
    place = np.round(triangles.reshape(-1, 3) * 1e4).astype(np.int64)
    _, group = np.unique(place, axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    slot = np.empty(len(group), dtype=np.int64)
    slot[order] = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded_unit = np.zeros((len(counts), counts.max(), 3))
    padded_area = np.zeros_like(padded_unit)
    padded_unit[group, slot], padded_area[group, slot] = unit, area
    smooth = np.einsum("gic,gjc->gij", padded_unit, padded_unit) > np.cos(np.radians(crease_degrees))
    mean = np.einsum("gij,gjc->gic", smooth.astype(np.float64), padded_area)[group, slot]
    return (mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)).reshape(-1, 3, 3)
