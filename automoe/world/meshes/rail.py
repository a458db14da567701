"""Trams."""

from __future__ import annotations

import numpy as np

from automoe.world.meshes.bodywork import (
    DESTINATION,
    GLASS,
    HEADLIGHT,
    TAILLIGHT,
    TRIM,
    UNDERBODY,
    Shell,
    paint,
)
from automoe.world.meshes.primitives import Builder, assemble, box, quads
from automoe.world.parts import Asset, Material

SKIRT, SIDE, LOW, WINDOW, EAVES, TOP = range(6)
HEIGHT, HALF_WIDTH = 3.5, 1.3


def make_train(rng: np.random.Generator) -> Asset:
    """A tram of two cars joined by bellows, about 25 m long (category "train")."""
    builder = Builder("train")
    body = paint(rng, "panels", ("red", "yellow", "green", "blue", "white", "orange"))
    accent = (
        paint(rng, "panels", ("white", "grey", "black"))
        if "white" not in body.name
        else paint(rng, "panels", ("red", "blue"))
    )
    length = float(rng.uniform(23.5, 26.5))
    for facing in (1, -1):
        _car(builder, facing, length / 2, body, accent)
    builder.add(TRIM, box((0, 0, 1.9), (0.9, 2.2, 2.7)))
    builder.add(UNDERBODY, box((0, 0, 3.62), (2.0, 1.0, 0.25)))
    builder.add(TRIM, *_pantograph(3.7))
    return assemble("tram", builder.parts(), "train", attributes={"variant": "tram"})


def _pantograph(z: float) -> list:
    """Two crossing arms and a contact bar."""
    return [box((0.45, 0, z + 0.35), (0.9, 0.06, 0.06)), box((0.1, 0, z + 0.2), (0.06, 0.6, 0.5)),
            box((0.9, 0, z + 0.55), (0.1, 1.4, 0.06))]  # fmt: skip


def _car(builder: Builder, facing: int, length: float, body: Material, accent: Material) -> None:
    """One half of the tram, its cab at x = facing * length."""
    near, nose = 0.4, length
    doors = np.array([0.28, 0.66]) * length

    def section(x: float) -> list[tuple[float, ...]]:
        along = abs(x)
        front = float(np.interp(along, [nose - 1.1, nose], [0.0, 1.0]))
        w = HALF_WIDTH * (1 - 0.22 * front**2)
        points = [
            (0.96 * w, 0.28),
            (w, 0.36),
            (w, 0.85),
            (w, 1.25),
            (0.97 * w, 2.6),
            (0.86 * w, 3.25),
            (0, HEIGHT - 0.1),
        ]
        lean = [-0.05, 0.0, 0.02, -0.05, -0.55, -0.95, -1.05]
        return [(facing * dx * front, y, z) for dx, (y, z) in zip(lean, points)]

    def material(x: float, strip: int) -> Material:
        along = abs(x)
        if strip in (-1, SKIRT):
            return UNDERBODY
        if strip == WINDOW and along > near + 0.3:
            return GLASS
        if np.abs(doors - along).min() < 0.65 and strip in (SIDE, LOW):
            return GLASS
        return accent if strip in (LOW, EAVES) else body

    def cap(strip: int, column: int) -> Material:
        lamps = HEADLIGHT if facing > 0 else TAILLIGHT
        if strip == WINDOW:
            return GLASS
        if strip == EAVES:
            return DESTINATION if column == 2 else TRIM
        if strip == SIDE:
            return lamps if column in (1, 3) else body
        return UNDERBODY if strip == SKIRT else accent if strip == LOW else body

    edges = [near, near + 0.3, nose - 1.1, nose - 0.5, nose, *(doors - 0.65), *(doors + 0.65)]
    shell = Shell(builder, section, material, (-length * 0.6, length * 0.6), HEIGHT, (1.25, 2.6))
    shell.skin([facing * x for x in edges], closer=0.1)
    shell.cap(facing * nose, (-1, -0.9, -0.62, 0.62, 0.9, 1), cap)
    ring = shell.ring(facing * near)
    middle = np.broadcast_to(ring.mean(axis=0), ring.shape)
    end = quads(np.stack([middle, np.roll(ring, -1, axis=0), ring, middle], axis=1), np.full((len(ring), 4, 2), 0.3))
    builder.add(body, end if facing > 0 else end.flipped())
    for x in (0.3, 0.8):
        builder.add(UNDERBODY, box((facing * x * length, 0, 0.24), (2.4, 1.9, 0.48)))
    for side in (1, -1):
        for x in np.concatenate([doors - 0.65, doors, doors + 0.65]):
            y = side * (HALF_WIDTH + 0.005)
            builder.add(TRIM, box((facing * x, y, 1.5), (0.06, 0.03, 2.2)))
