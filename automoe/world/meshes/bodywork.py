"""What all vehicles share: shells lofted along the vehicle, wheels, plates, and the materials of lamps and glass.

A shell is described by functions of x rather than by a list of sections, so that wheel arches, pillars and roof
edges each put in the sections that they need. Half a section is a list of points from the sill on the left up to
the middle of the roof; the right half mirrors it. The strip between points i and i + 1 is called strip i.
"""

# ruff: noqa: RUF005 (vectors are added here, not lists joined)
from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from automoe.world.meshes.primitives import Builder, Soup, Vector, box, fan, grid_cells, join, quads, tube
from automoe.world.parts import Material

GLASS = Material("glass", (1.0, 1.0, 1.0, 1.0), "car_glass", specular=0.7, shininess=0.7)
TRIM = Material("trim", (0.07, 0.07, 0.075, 1.0), specular=0.2, shininess=0.3)
UNDERBODY = Material("underbody", (0.03, 0.03, 0.03, 1.0), specular=0.0, shininess=0.0)
CHROME = Material("chrome", (0.62, 0.63, 0.65, 1.0), specular=0.9, shininess=0.7)
HEADLIGHT = Material("headlight", (0.92, 0.94, 0.96, 1.0), specular=0.9, shininess=0.9, emission=0.2)
TAILLIGHT = Material("taillight", (0.50, 0.03, 0.03, 1.0), specular=0.6, shininess=0.8)
BRAKELIGHT = Material("brakelight", (0.62, 0.05, 0.04, 1.0), specular=0.6, shininess=0.8)
INDICATOR = Material("indicator", (0.80, 0.40, 0.05, 1.0), specular=0.6, shininess=0.8)
PLATE = Material("license_plate", (1.0, 1.0, 1.0, 1.0), "license_plate", specular=0.1)
DESTINATION = Material("destination", (1.0, 1.0, 1.0, 1.0), "destination", emission=0.6)

PAINTS: dict[str, tuple[tuple[float, float, float], float]] = {
    "white": ((0.92, 0.92, 0.91), 0.20),
    "black": ((0.06, 0.06, 0.07), 0.17),
    "grey": ((0.34, 0.35, 0.37), 0.15),
    "silver": ((0.66, 0.68, 0.70), 0.14),
    "blue": ((0.10, 0.22, 0.50), 0.09),
    "navy": ((0.07, 0.11, 0.22), 0.04),
    "red": ((0.60, 0.06, 0.07), 0.09),
    "maroon": ((0.32, 0.05, 0.08), 0.03),
    "green": ((0.10, 0.28, 0.18), 0.03),
    "beige": ((0.72, 0.65, 0.52), 0.03),
    "orange": ((0.84, 0.36, 0.06), 0.02),
    "yellow": ((0.90, 0.72, 0.10), 0.01),
}
"""Name -> colour and its share on the road."""

RIMS = ("wheel_alloy", "wheel_sport", "wheel_steel")


def paint(rng: np.random.Generator, texture: str = "car_paint", names: Sequence[str] | None = None) -> Material:
    """A car paint, drawn by its share of the road or evenly among `names`."""
    if names is None:
        shares = np.array([share for _, share in PAINTS.values()])
        name = str(rng.choice(list(PAINTS), p=shares / shares.sum()))
    else:
        name = str(rng.choice(list(names)))
    return Material(f"{texture}_{name}", (*PAINTS[name][0], 1.0), texture, specular=0.55, shininess=0.6)


def wheel_material(rng: np.random.Generator, names: Sequence[str] = RIMS) -> Material:
    """One look of wheels."""
    name = str(rng.choice(list(names)))
    return Material(name, (1.0, 1.0, 1.0, 1.0), name, specular=0.3, shininess=0.4)


def wheel(builder: Builder, material: Material, x: float, y: float, radius: float, width: float, side: int,
          sides: int = 10) -> None:  # fmt: skip
    """A wheel that stands on the ground at (x, y); its textured face looks to `side` (1 left, -1 right)."""
    angle = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    circle = np.stack([-np.cos(angle), np.zeros(sides), np.sin(angle)], axis=-1) * radius
    outer, inner = circle + [0, width / 2, 0], circle - [0, width / 2, 0]
    nxt = np.roll(np.arange(sides), -1)
    tread = quads(np.stack([outer, inner, inner[nxt], outer[nxt]], axis=1), np.full((sides, 4, 2), 0.02))
    # The inner face is left out: the body hides it.
    body = join([fan(outer), tread])
    builder.add(material, (body if side > 0 else body.mirrored_y()).moved((x, y, radius)))


def plate(builder: Builder, x: float, z: float, width: float = 0.46, height: float = 0.13) -> None:
    """A number plate on the nose (x > 0) or the tail."""
    facing = 1.0 if x > 0 else -1.0
    w, h = width / 2 * facing, height / 2
    builder.add(PLATE, quads(np.array([[[x, -w, z - h], [x, w, z - h], [x, w, z + h], [x, -w, z + h]]])))


def mirrors(
    builder: Builder, material: Material, x: float, y: float, z: float, size: tuple[float, float, float]
) -> None:
    """A pair of wing mirrors."""
    for side in (1, -1):
        builder.add(material, box((x, side * y, z), size, (0.8, 0.9)))


class Shell:
    """A body lofted along x.

    section(x) -> half section: points (y, z), or (dx, y, z) where a face leans, sill first, roof middle last.
    material(x, strip) -> what the strip is made of there; strip -1 is the underside. `axles` (rear and front, for
    the side texture) and `height` place textures; `glass` is the range of z over which glass mirrors street to sky.
    """

    def __init__(self, builder: Builder, section: Callable[[float], Sequence[tuple[float, ...]]],
                 material: Callable[[float, int], Material], axles: tuple[float, float], height: float,
                 glass: tuple[float, float]) -> None:  # fmt: skip
        self.builder, self.section, self.material = builder, section, material
        self.axles, self.height, self.glass = axles, height, glass

    def ring(self, x: float) -> np.ndarray:
        """The whole section [2K - 1, 3] from the left sill over the roof to the right sill."""
        half = np.array([(p if len(p) == 3 else (0.0, *p)) for p in self.section(x)]) + [x, 0.0, 0.0]
        return np.concatenate([half, half[-2::-1] * [1.0, -1.0, 1.0]])

    def skin(self, stations: Sequence[float], closer: float = 0.05) -> None:
        """Span the body over `stations` (any order); stations closer together than `closer` are merged."""
        xs = [min(stations)]
        for x in sorted(stations)[1:]:
            if x - xs[-1] >= closer:
                xs.append(x)
        xs[-1] = max(stations)
        rings = np.array([self.ring(x) for x in xs])
        k = rings.shape[1]
        strips = [min(i, k - 2 - i) for i in range(k - 1)] + [-1]
        closed = np.concatenate([rings, rings[:, :1]], axis=1)
        cells = grid_cells(closed).reshape(len(xs) - 1, k, 4, 3)
        found = [
            (self.material((a + b) / 2, strip), cells[span, i], k // 2 - 2 <= strip)
            for span, (a, b) in enumerate(pairwise(xs))
            for i, strip in enumerate(strips)
        ]
        self._add(found, end=False)

    def cap(self, x: float, columns: Sequence[float], material: Callable[[int, int], Material]) -> None:
        """Close the body at x (the nose if x > 0). material(strip, column): columns run from right to left.

        `columns` are the edges between them as fractions of the half width.
        """
        ring = self.ring(x)
        k = len(ring) // 2
        left = ring[: k + 1]
        found = []
        for strip in range(k):
            low, high = left[strip], left[strip + 1]
            plain = len({material(strip, column).name for column in range(len(columns) - 1)}) == 1
            edges = (-1, 1) if plain else columns
            for column, (a, b) in enumerate(pairwise(edges)):
                cell = np.array([low * [1, a, 1], low * [1, b, 1], high * [1, b, 1], high * [1, a, 1]])
                found.append((material(strip, column), cell if x > 0 else cell[[1, 0, 3, 2]], False))
        self._add(found, end=True)

    def _add(self, found: Sequence[tuple[Material, np.ndarray, bool]], end: bool) -> None:
        """Add cells (material, corners [4, 3], whether on top) of the skin or of an end, material by material."""
        for name in dict.fromkeys(material.name for material, _, _ in found):
            chosen = [item for item in found if item[0].name == name]
            cells = np.stack([cell for _, cell, _ in chosen])
            on_top = np.array([[top] for _, _, top in chosen])
            self.builder.add(chosen[0][0], quads(cells, self._uv(chosen[0][0], cells, on_top, end)))

    def _uv(self, material: Material, cells: np.ndarray, on_top: np.ndarray, end: bool) -> np.ndarray:
        """Texture coordinates [Q, 4, 2] of cells [Q, 4, 3]."""
        x, y, z = cells[..., 0], cells[..., 1], cells[..., 2]
        if material.texture == "car_glass":
            low, high = self.glass
            return np.stack([0.23 * x + 0.31 * y, np.clip((high - z) / (high - low), 0.03, 0.97)], axis=-1)
        if material.texture == "destination":
            return np.stack([(y - y.min()) / np.ptp(y), 0.36 + 0.28 * (z.max() - z) / max(np.ptp(z), 1e-6)], axis=-1)
        if material.texture == "panels":
            u, v = 0.25 * x, np.clip(1 - z / self.height, 0.02, 0.98)
            return np.stack([np.full_like(u, 0.3) if end else u, np.where(on_top, 0.1, v)], axis=-1)
        rear, front = self.axles
        u, v = 0.2 + 0.6 * (x - rear) / (front - rear), np.clip(0.5 - 0.5 * z / self.height, 0.01, 0.48)
        return np.stack([np.full_like(u, 0.99) if end else u, np.where(on_top, 0.75, v)], axis=-1)


def arch_stations(axle_x: float, radius: float) -> list[float]:
    """Where a shell needs sections to go around a wheel of the opening's `radius`."""
    return [axle_x + radius * f for f in (-1.0, -0.62, 0.62, 1.0)]


def arch_height(x: float, axles: Sequence[float], radius: float, wheel_radius: float, sill: float) -> float:
    """The height of the body's lower edge at x: the sill, or the opening above a wheel."""
    rise = wheel_radius + 0.86 * radius
    return max(
        float(np.interp(abs(x - axle), [0.62 * radius, radius], [rise, sill])) if abs(x - axle) < radius else sill
        for axle in axles
    )


def bar(start: Vector, end: Vector, radius: float, sides: int = 5) -> Soup:
    """A round bar without ends."""
    along = np.subtract(end, start)
    across = (0.0, 1.0, 0.0) if abs(along[1]) < 0.9 * np.linalg.norm(along) else (0.0, 0.0, 1.0)
    return tube([start, end], [radius, radius], sides, across, (False, False))
