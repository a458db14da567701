"""Motorcycles and bicycles with their riders."""

# ruff: noqa: RUF005 (vectors are added here, not lists joined)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from automoe.world.meshes.bodywork import (
    BRAKELIGHT,
    CHROME,
    HEADLIGHT,
    INDICATOR,
    TAILLIGHT,
    TRIM,
    bar,
    paint,
    plate,
)
from automoe.world.meshes.people import build_figure, cloth, draw_look, seated_pose
from automoe.world.meshes.primitives import Builder, Soup, assemble, box, cylinder, ellipsoid, loft, quads, tube
from automoe.world.parts import Asset, Material

TYRE = Material("tyre", (0.045, 0.045, 0.05, 1.0), specular=0.05, shininess=0.1)
LEATHER = Material("saddle", (0.06, 0.055, 0.05, 1.0), specular=0.2, shininess=0.3)


def make_two_wheeler(kind: str, rng: np.random.Generator) -> Asset:
    """A "motorcycle" or "bicycle" with a `rider` (category "rider") in the same frame.

    The rider's size is that of the smallest box that is centred over the origin, from the ground up.
    Raises KeyError for another kind.
    """
    vehicle, rider = {"bicycle": _bicycle, "motorcycle": _motorcycle}[kind](rng)
    asset = assemble(vehicle.label, vehicle.parts(), vehicle.label, attributes={"variant": kind})
    return replace(asset, rider=assemble("rider", rider.parts(), "rider", centred=False))


def _ring(radius: float, thickness: float, width: float, sides: int) -> Soup:
    """A tyre without a disc, standing on the ground in the plane y = 0; square in section."""
    angle = -2 * np.pi * np.arange(sides + 1) / sides
    circle = np.stack([np.cos(angle), np.zeros(sides + 1), np.sin(angle)], axis=-1)
    inner, side = radius - thickness, np.array([0.0, width / 2, 0.0])
    corners = [circle * radius + 0.6 * side, circle * inner + side, circle * inner - side, circle * radius - 0.6 * side]
    rings = np.stack(corners, axis=1)
    soup = loft(rings, False, False)
    outwards = soup.corners[0].mean(axis=0)
    normal = np.cross(soup.corners[0, 1] - soup.corners[0, 0], soup.corners[0, 2] - soup.corners[0, 0])
    soup = soup if normal[1] * outwards[1] > 0 else soup.flipped()
    return soup.moved((0.0, 0.0, radius))


def _spokes(radius: float, count: int) -> Soup:
    """Thin blades through the hub, seen from both sides."""
    blades = []
    for angle in np.arange(count) * np.pi / count:
        along = np.array([np.cos(angle), 0.0, np.sin(angle)])
        across = 0.006 * np.array([-np.sin(angle), 0.0, np.cos(angle)])
        corners = np.array(
            [along * radius + across, -along * radius + across, -along * radius - across, along * radius - across]
        )
        blades += [corners, corners[::-1]]
    return quads(np.array(blades)).moved((0.0, 0.0, radius))


def _bicycle(rng: np.random.Generator) -> tuple[Builder, Builder]:
    builder = Builder("bicycle")
    names = ("black", "red", "blue", "white", "silver", "green", "yellow", "orange")
    colour = paint(rng, "car_paint", names)
    frame = Material(colour.name.replace("car_paint", "frame"), colour.rgba, specular=0.5, shininess=0.5)
    radius, base, sport = 0.345, 1.04, bool(rng.random() < 0.5)
    rear, front = np.array([-base / 2, 0, radius]), np.array([base / 2, 0, radius])
    for hub in (rear, front):
        builder.add(TYRE, _ring(radius, 0.045, 0.045, 14).moved((hub[0], 0, 0)), crease=60)
        builder.add(CHROME, _spokes(radius - 0.03, 4).moved((hub[0], 0, 0.03)))
    crank, seat = np.array([-0.09, 0, 0.29]), np.array([-0.27, 0, 0.86])
    head, fork = np.array([0.34, 0, 0.84]), np.array([0.38, 0, 0.70])
    for a, b, thick in ((crank, seat, 0.019), (crank, fork, 0.023), (seat - [-0.02, 0, 0.08], head, 0.020),
                        (head + [0, 0, 0.08], fork, 0.022)):  # fmt: skip
        builder.add(frame, bar(a, b, thick, 4))
    for side in (1, -1):
        shift = np.array([0, 0.035 * side, 0])
        builder.add(
            frame, bar(rear + shift, crank + shift, 0.012, 3), bar(rear + shift, seat - [-0.02, 0, 0.1], 0.011, 3)
        )
        builder.add(frame, bar(fork + 0.6 * shift, front + shift, 0.014, 3))
    grip_z = 0.96 if sport else 1.04
    grips = (np.array([0.40, 0.25, grip_z]), np.array([0.40, -0.25, grip_z]))
    stem = np.array([0.36 if not sport else 0.40, 0, grip_z - 0.01])
    builder.add(TRIM, bar(head + [0, 0, 0.06], stem, 0.015, 3), bar(grips[0], grips[1], 0.014, 4))
    builder.add(LEATHER, box(seat + [-0.01, 0, 0.07], (0.26, 0.14, 0.06), (1.0, 0.7)))
    builder.add(TRIM, cylinder(crank - [0, 0.01, 0], crank + [0, 0.01, 0], 0.09, 7))
    builder.add(TAILLIGHT, box(seat + [-0.08, 0, -0.08], (0.03, 0.05, 0.05)))
    builder.add(HEADLIGHT, box(head + [0.06, 0, 0.06], (0.05, 0.05, 0.05)))
    phase = float(rng.uniform(0, 2 * np.pi))
    pedals = []
    for side, angle in ((1, phase), (-1, phase + np.pi)):
        pedal = crank + 0.165 * np.array([np.cos(angle), 0, np.sin(angle)]) + [0, 0.10 * side, 0]
        builder.add(CHROME, bar(crank + [0, 0.04 * side, 0], pedal - [0, 0.04 * side, 0], 0.012, 3))
        builder.add(TRIM, box(pedal, (0.09, 0.09, 0.025)))
        pedals.append(pedal + [-0.03, 0, 0.075])
    lean = 0.66 if sport else 0.42
    return builder, _rider(rng, seat + [-0.01, 0, 0.17], pedals, grips, lean, 0.75)


def _motorcycle(rng: np.random.Generator) -> tuple[Builder, Builder]:
    builder = Builder("motorcycle")
    colour = paint(rng, "car_paint", ("black", "red", "blue", "white", "green", "silver", "orange"))
    tank = Material(colour.name.replace("car_paint", "tank"), colour.rgba, specular=0.8, shininess=0.7)
    radius, base, scooter = 0.31, 1.42, bool(rng.random() < 0.35)
    if scooter:
        radius, base = 0.25, 1.28
    rear, front = -base / 2 - 0.02, base / 2 - 0.02
    for x, width in ((rear, 0.15), (front, 0.11)):
        builder.add(TYRE, _ring(radius, 0.10, width, 12).moved((x, 0, 0)), crease=60)
        builder.add(CHROME, cylinder((x, -0.03, radius), (x, 0.03, radius), radius - 0.10, 9))
        guard = [
            (x + (radius + 0.04) * np.cos(a), 0.0, radius + (radius + 0.04) * np.sin(a)) for a in (2.3, 1.57, 0.85)
        ]
        builder.add(tank, tube(guard, [(width / 2 + 0.01, 0.012)] * 3, 4))
    (_scooter_body if scooter else _roadster_body)(builder, tank, rear, front, radius)
    grip = np.array([front - (0.28 if scooter else 0.38), 0.33, 1.03])
    grips = (grip, grip * [1, -1, 1])
    builder.add(TRIM, bar(grips[0], grips[1], 0.018, 5))
    for side in (1, -1):
        builder.add(TRIM, box(grip * [1, side, 1] + [0.05, -0.06 * side, 0.16], (0.02, 0.13, 0.08)))
        builder.add(INDICATOR, box((rear - 0.16, 0.16 * side, 0.72), (0.05, 0.06, 0.05)))
        builder.add(INDICATOR, box((front - 0.16, 0.18 * side, 0.86), (0.05, 0.06, 0.05)))
    builder.add(HEADLIGHT, cylinder((front - 0.22, 0, 0.88), (front - 0.10, 0, 0.88), 0.095, 8))
    builder.add(BRAKELIGHT, box((rear - 0.20, 0, 0.74), (0.05, 0.16, 0.07)))
    builder.add(TAILLIGHT, box((rear - 0.20, 0, 0.68), (0.05, 0.16, 0.05)))
    plate(builder, rear - 0.24, 0.52, 0.20, 0.16)
    if scooter:
        feet = [np.array([0.10, 0.14 * s, 0.40]) for s in (1, -1)]
        return builder, _rider(rng, np.array([-0.30, 0, 0.88]), feet, grips, 0.05, 0.95)
    feet = [np.array([-0.14, 0.20 * s, 0.40]) for s in (1, -1)]
    return builder, _rider(rng, np.array([-0.34, 0, 0.90]), feet, grips, 0.34, 0.97)


def _roadster_body(builder: Builder, tank: Material, rear: float, front: float, radius: float) -> None:
    """Engine, tank, saddle, fork and exhaust."""
    for side in (1, -1):
        builder.add(CHROME, bar((front, 0.09 * side, radius), (front - 0.34, 0.09 * side, 1.0), 0.025, 5))
        builder.add(TRIM, bar((rear, 0.11 * side, radius), (-0.12, 0.09 * side, 0.42), 0.03, 4))
    builder.add(CHROME, box((0.06, 0, 0.44), (0.46, 0.34, 0.34), (0.8, 0.7)))
    builder.add(TRIM, box((0.08, 0, 0.66), (0.34, 0.24, 0.16)))
    builder.add(tank, ellipsoid((0.14, 0, 0.84), (0.31, 0.155, 0.155), 4, 8), crease=80)
    path = [(-0.08, 0, 0.78), (-0.36, 0, 0.76), (-0.62, 0, 0.82), (rear - 0.18, 0, 0.88)]
    builder.add(LEATHER, tube(path, [(0.10, 0.06), (0.14, 0.06), (0.12, 0.055), (0.07, 0.035)], 6), crease=60)
    builder.add(tank, box((rear + 0.02, 0, 0.74), (0.42, 0.2, 0.12), (0.8, 0.8)))
    builder.add(CHROME, cylinder((0.0, -0.19, 0.30), (rear - 0.05, -0.19, 0.38), 0.055, 6))


def _scooter_body(builder: Builder, tank: Material, rear: float, front: float, radius: float) -> None:
    """Leg shield, footboard, and a rounded tail under the saddle."""
    builder.add(CHROME, bar((front, 0.0, radius), (front - 0.24, 0, 1.0), 0.035, 5))
    shield = [(front - 0.16, 0, 0.36), (front - 0.20, 0, 0.62), (front - 0.24, 0, 0.95)]
    builder.add(tank, tube(shield, [(0.15, 0.04), (0.23, 0.05), (0.13, 0.05)], 7), crease=60)
    builder.add(TRIM, box((0.13, 0, 0.30), (0.62, 0.36, 0.08)))
    path = [(-0.12, 0, 0.44), (-0.32, 0, 0.56), (rear - 0.02, 0, 0.60), (rear - 0.20, 0, 0.70)]
    builder.add(tank, tube(path, [(0.13, 0.12), (0.19, 0.19), (0.18, 0.16), (0.08, 0.06)], 8), crease=70)
    seat = [(-0.14, 0, 0.76), (-0.40, 0, 0.76), (rear - 0.10, 0, 0.80)]
    builder.add(LEATHER, tube(seat, [(0.11, 0.05), (0.15, 0.055), (0.11, 0.04)], 6), crease=60)


def _rider(rng: np.random.Generator, hip: np.ndarray, feet: Sequence[np.ndarray], grips: Sequence[np.ndarray],
           lean: float, helmet_chance: float) -> Builder:  # fmt: skip
    """A grown-up who fits the machine: joints are in metres here."""
    look = draw_look(rng)
    look = replace(look, height=float(np.clip(look.height, 1.62, 1.88)), garment="trousers", long_hair=False,
                   bag="backpack" if look.bag == "backpack" else "none")  # fmt: skip
    shade = str(rng.choice(["white", "black", "red", "yellow", "grey", "blue"]))
    helmet = cloth(shade)
    helmet = (
        replace(helmet, name=f"helmet_{shade}", specular=0.6, shininess=0.6) if rng.random() < helmet_chance else None
    )
    h = look.height
    pose = seated_pose(hip / h, (feet[0] / h, feet[1] / h), (grips[0] / h, grips[1] / h), lean)
    builder = Builder("rider")
    build_figure(builder, look, pose, helmet)
    return builder
