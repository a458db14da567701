"""Roadworks and what is towed: excavators, wheel loaders, barriers, cones, trailers. nuScenes has classes for them.

Cityscapes has none; each part takes the nearest of its nineteen (machines and trailers are trucks, barriers walls).
"""

from __future__ import annotations

import numpy as np

from automoe.world.meshes.bodywork import (
    BRAKELIGHT,
    CHROME,
    GLASS,
    INDICATOR,
    TAILLIGHT,
    TRIM,
    UNDERBODY,
    paint,
    plate,
    wheel,
    wheel_material,
)
from automoe.world.meshes.primitives import Builder, Soup, assemble, box, cylinder, extrude, tube
from automoe.world.meshes.street import WHITE_PAINT
from automoe.world.parts import Asset, Material

MACHINE_YELLOW = Material("machine_yellow", (0.90, 0.62, 0.06, 1.0), specular=0.3, shininess=0.3)
MACHINE_ORANGE = Material("machine_orange", (0.85, 0.36, 0.05, 1.0), specular=0.3, shininess=0.3)
STEEL_WORN = Material("steel_worn", (0.36, 0.34, 0.32, 1.0), specular=0.3, shininess=0.2)
TRACK = Material("track", (0.10, 0.10, 0.10, 1.0), specular=0.05)
CONCRETE = Material("concrete_barrier", (0.66, 0.65, 0.62, 1.0), specular=0.05)
PLASTIC_RED = Material("barrier_red", (0.78, 0.10, 0.07, 1.0), specular=0.3)
PLASTIC_ORANGE = Material("barrier_orange", (0.92, 0.38, 0.06, 1.0), specular=0.3)


def make_construction_vehicle(rng: np.random.Generator) -> Asset:
    """An excavator or a wheel loader (category "construction_vehicle")."""
    return _excavator(rng) if rng.random() < 0.55 else _loader(rng)


def _excavator(rng: np.random.Generator) -> Asset:
    """On tracks, its boom folded low to the front, as it stands when nobody digs."""
    builder = Builder("truck")
    body = MACHINE_YELLOW if rng.random() < 0.6 else MACHINE_ORANGE
    for side in (1, -1):
        y = side * 1.05
        outline = [
            (-1.9, 0.25),
            (-1.6, 0.0),
            (1.6, 0.0),
            (1.9, 0.25),
            (1.9, 0.6),
            (1.6, 0.85),
            (-1.6, 0.85),
            (-1.9, 0.6),
        ]
        builder.add(TRACK, extrude(outline, 0.5).moved((0, y, 0)))
        builder.add(STEEL_WORN, box((0, y, 0.43), (2.6, 0.54, 0.3)))
    builder.add(UNDERBODY, box((0, 0, 0.65), (2.4, 1.7, 0.4)), cylinder((0, 0, 0.8), (0, 0, 1.05), 0.8, 12))
    builder.add(body, box((-0.75, 0, 1.55), (2.3, 2.4, 1.0), (0.95, 0.96)))
    builder.add(TRIM, box((-1.75, 0, 1.5), (0.5, 2.3, 0.9)))
    builder.add(body, box((0.75, 0.72, 1.15), (1.3, 0.95, 0.2)), box((0.72, 0.72, 2.93), (1.4, 1.0, 0.1)))
    builder.add(GLASS, box((0.72, 0.72, 2.05), (1.3, 0.92, 1.65), (0.92, 0.94)))
    for x in (0.12, 1.3):
        for y in (0.28, 1.16):
            builder.add(TRIM, box((x, y, 2.05), (0.09, 0.09, 1.7)))
    reach, height = float(rng.uniform(3.6, 4.4)), float(rng.uniform(2.9, 3.5))
    boom = [(0.7, -0.25, 1.4), (0.55 * reach, -0.25, height), (reach, -0.25, 0.72 * height)]
    stick = [(reach, -0.25, 0.72 * height), (reach + 0.5, -0.25, 0.55)]
    builder.add(body, tube(boom, [(0.24, 0.3), (0.24, 0.34), (0.2, 0.2)], 4))
    builder.add(body, tube(stick, [(0.18, 0.22), (0.14, 0.16)], 4))
    builder.add(STEEL_WORN, tube([(1.0, -0.25, 1.2), (0.45 * reach, -0.25, 0.8 * height)], [0.09, 0.09], 6))
    bucket = [(-0.45, 0.1), (0.35, 0.0), (0.5, 0.3), (0.35, 0.75), (-0.3, 0.8)]
    builder.add(STEEL_WORN, extrude(bucket, 1.0).moved((reach + 0.3, -0.25, 0.02)))
    return assemble("excavator", builder.parts(), "construction_vehicle", attributes={"variant": "excavator"})


def _loader(rng: np.random.Generator) -> Asset:
    """On four large wheels, its shovel lowered before it."""
    builder = Builder("truck")
    body = MACHINE_YELLOW if rng.random() < 0.75 else MACHINE_ORANGE
    rims = wheel_material(rng, ("wheel_steel",))
    length = float(rng.uniform(5.6, 6.6))
    front, rear = 0.17 * length, -0.30 * length
    for x in (front, rear):
        for side in (1, -1):
            wheel(builder, rims, x, side * 0.98, 0.68, 0.5, side, sides=14)
        builder.add(UNDERBODY, cylinder((x, -0.9, 0.68), (x, 0.9, 0.68), 0.2, 8))
    builder.add(body, box((rear - 0.25, 0, 1.45), (0.36 * length, 1.5, 1.1), (0.94, 0.9)))
    builder.add(TRIM, box((rear - 0.20 * length, 0, 1.4), (0.12, 1.3, 0.9)))
    builder.add(UNDERBODY, box((0, 0, 0.95), (0.5 * length, 0.8, 0.5)))
    builder.add(GLASS, box((-0.35, 0, 2.35), (1.35, 1.4, 1.3), (0.9, 0.92)))
    builder.add(body, box((-0.35, 0, 3.05), (1.5, 1.55, 0.12)), box((-0.35, 0, 1.62), (1.45, 1.45, 0.2)))
    for x in (-1.0, 0.3):
        for y in (-0.66, 0.66):
            builder.add(TRIM, box((x, y, 2.35), (0.1, 0.1, 1.35)))
    arm = [(0.35, 0, 1.75), (front + 0.7, 0, 1.25), (front + 1.25, 0, 0.55)]
    for y in (-0.45, 0.45):
        builder.add(body, tube([(x, y, z) for x, _, z in arm], [(0.1, 0.2)] * 3, 4))
    shovel = [(0.0, 0.0), (0.95, 0.0), (1.0, 0.12), (0.35, 0.3), (0.3, 1.05), (0.0, 1.0)]
    builder.add(STEEL_WORN, extrude(shovel, 2.5).moved((front + 1.1, 0, 0.03)))
    for side in (1, -1):
        builder.add(INDICATOR, box((rear - 0.2 * length - 0.05, side * 0.6, 1.75), (0.05, 0.2, 0.14)))
    return assemble("wheel_loader", builder.parts(), "construction_vehicle", attributes={"variant": "loader"})


def make_trailer(rng: np.random.Generator) -> Asset:
    """A semi-trailer that stands on its legs or is pulled: closed, tarpaulin, or a container on a frame."""
    builder = Builder("truck")
    length, width, height = float(rng.uniform(8.5, 12.5)), 2.5, float(rng.uniform(3.5, 3.95))
    nose, tail = length / 2, -length / 2
    floor = 1.15
    name = str(rng.choice(["box_parcel", "box_fresh", "box_movers", "panels", "panels"]))
    colours = ("white", "silver", "blue", "red", "green", "orange")
    load = (
        paint(rng, "panels", colours)
        if name == "panels"
        else Material(f"load_{name}", (0.93, 0.93, 0.92, 1.0), name, specular=0.3, shininess=0.4)
    )
    body = box((0, 0, (floor + height) / 2), (length, width, height - floor))
    builder.add(load, _wrapped(body, length, floor, height))
    for side in (1, -1):
        for x in (nose - 0.04, tail + 0.04):
            builder.add(CHROME, box((x, side * width / 2, (floor + height) / 2), (0.09, 0.04, height - floor)))
        builder.add(TRIM, box((-0.05 * length, side * (width / 2 - 0.1), 0.85), (0.45 * length, 0.06, 0.4)))
    builder.add(UNDERBODY, box((0, 0, floor - 0.12), (length - 0.2, 1.0, 0.24)))
    rims = wheel_material(rng, ("wheel_steel",))
    for x in (tail + 1.4, tail + 2.6, *((tail + 3.8,) if length > 10.5 else ())):
        for side in (1, -1):
            wheel(builder, rims, x, side * (width / 2 - 0.2), 0.5, 0.38, side, sides=12)
    for side in (1, -1):
        builder.add(STEEL_WORN, box((nose - 2.4, side * 0.75, 0.55), (0.14, 0.14, 1.1)))
        builder.add(BRAKELIGHT, box((tail - 0.01, side * 0.95, 0.95), (0.05, 0.25, 0.14)))
        builder.add(TAILLIGHT, box((tail - 0.01, side * 0.65, 0.95), (0.05, 0.2, 0.14)))
    builder.add(TRIM, box((tail + 0.05, 0, 0.6), (0.1, width - 0.1, 0.14)))
    plate(builder, tail - 0.015, 0.8)
    return assemble("semi_trailer", builder.parts(), "trailer", attributes={"variant": name})


def _wrapped(body: Soup, length: float, low: float, high: float) -> Soup:
    """The box of a trailer with its picture on both sides."""

    def project(corners: np.ndarray) -> np.ndarray:
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        side = np.sign(normal[:, 1])[:, None]
        u = np.where(side != 0, 0.5 - side * corners[..., 0] / length, 0.02)
        v = np.where(np.abs(normal[:, 2:]) > 1e-9, 0.03, (high - corners[..., 2]) / (high - low))
        return np.stack([u, v], axis=-1)

    return body.with_uv(project)


def make_barrier(rng: np.random.Generator) -> Asset:
    """One element of a barrier across or along the road: concrete, plastic, or boards on feet (category "barrier").

    Its length lies along y: a barrier faces along x.
    """
    builder = Builder("wall")
    kind = str(rng.choice(["concrete", "plastic", "boards"], p=[0.3, 0.4, 0.3]))
    if kind == "concrete":
        outline = [(-0.30, 0.0), (0.30, 0.0), (0.28, 0.1), (0.12, 0.35), (0.08, 0.84), (-0.08, 0.84), (-0.12, 0.35),
                   (-0.28, 0.1)]  # fmt: skip
        builder.add(CONCRETE, extrude(outline, 1.9))
    elif kind == "plastic":
        for number, y in enumerate((-0.5, 0.5)):
            colour = PLASTIC_RED if number == 0 else WHITE_PAINT
            builder.add(colour, box((0, y, 0.5), (0.42, 0.98, 1.0), (0.5, 1.0)))
    else:
        colour = PLASTIC_RED if rng.random() < 0.5 else PLASTIC_ORANGE
        for number in range(6):
            material = colour if number % 2 else WHITE_PAINT
            y = (number - 2.5) * 0.32
            builder.add(material, box((0, y, 0.9), (0.05, 0.32, 0.2)), box((0, y, 0.45), (0.05, 0.32, 0.16)))
        for y in (-0.8, 0.8):
            builder.add(STEEL_WORN, box((0, y, 0.5), (0.06, 0.06, 1.0)), box((0, y, 0.03), (0.7, 0.2, 0.06)))
    return assemble(f"barrier_{kind}", builder.parts(), "barrier", attributes={"variant": kind})
