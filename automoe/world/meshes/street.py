"""Street furniture: poles, masts, lamps, fences, walls, shelters and what stands on a sidewalk.

Things with an arm keep their foot at the origin and stretch the arm along +y. Small furniture takes the closest
Cityscapes class: bollards are poles, bins and benches belong to the building side of the street.
"""

from __future__ import annotations

import numpy as np

from automoe.world.meshes.primitives import Builder, Soup, assemble, box, cylinder, lathe, quads, tube
from automoe.world.meshes.signs import STEEL
from automoe.world.parts import Asset, Material

LAMP = Material("lamp", (0.90, 0.89, 0.84, 1.0), specular=0.5, shininess=0.5)
DARK_STEEL = Material("dark_steel", (0.13, 0.14, 0.15, 1.0), specular=0.3, shininess=0.4)
GREEN_STEEL = Material("green_steel", (0.09, 0.21, 0.15, 1.0), specular=0.3, shininess=0.4)
WOOD = Material("wood", (1.0, 1.0, 1.0, 1.0), "wood", specular=0.05)
CHAIN_LINK = Material("chain_link", (1.0, 1.0, 1.0, 1.0), "chain_link", specular=0.1)
SHELTER_GLASS = Material("glass", (1.0, 1.0, 1.0, 1.0), "car_glass", specular=0.7, shininess=0.7)
WHITE_PAINT = Material("white_paint", (0.86, 0.86, 0.84, 1.0), specular=0.2)
HYDRANT_RED = Material("hydrant_red", (0.66, 0.08, 0.06, 1.0), specular=0.4)
CONE_ORANGE = Material("cone_orange", (0.92, 0.32, 0.05, 1.0), specular=0.2)
ADVERT = Material("box_fresh", (1.0, 1.0, 1.0, 1.0), "box_fresh", emission=0.15)


def make_pole(rng: np.random.Generator, height: float) -> Asset:
    """A pole of `height` metres, of steel or (when tall) sometimes a wooden one with a cross-arm for wires."""
    builder = Builder("pole")
    if height > 6 and rng.random() < 0.5:
        timber = Material("pole_timber", (0.7, 0.68, 0.66, 1.0), "bark", specular=0.0)
        builder.add(timber, tube([(0, 0, 0), (0, 0, height)], [0.15, 0.10], 8))
        builder.add(timber, box((0, 0, height - 0.6), (0.10, 1.8, 0.12)))
        for y in (-0.8, -0.35, 0.35, 0.8):
            builder.add(WHITE_PAINT, box((0, y, height - 0.48), (0.07, 0.07, 0.12)))
    else:
        builder.add(STEEL, tube([(0, 0, 0), (0, 0, height)], [0.065, 0.045], 8))
    return assemble("pole", builder.parts(), centred=False)


def make_signal_mast(rng: np.random.Generator, arm_length: float, height: float) -> Asset:
    """A mast at the origin for signal heads; its arm reaches to (0, arm_length, height). No arm if that is 0."""
    builder = Builder("pole")
    metal = [STEEL, DARK_STEEL, GREEN_STEEL][int(rng.integers(3))]
    builder.add(metal, tube([(0, 0, 0), (0, 0, height + 0.25)], [0.14, 0.09], 8, caps=(False, True)))
    builder.add(metal, cylinder((0, 0, 0), (0, 0, 0.12), 0.24, 8))
    if arm_length > 0:
        across = (1.0, 0.0, 0.0)
        arm = tube([(0, 0, height - 0.15), (0, 0.35 * arm_length, height - 0.02), (0, arm_length, height)],
                   [0.085, 0.065, 0.045], 6, across)  # fmt: skip
        builder.add(metal, arm)
    return assemble("signal_mast", builder.parts(), centred=False)


def make_street_lamp(rng: np.random.Generator, arm: float = 1.8) -> Asset:
    """A street lamp at the origin; its luminaire (material "lamp") hangs at (0, arm, height), light falling down.

    With arm 0 it is a park lamp with a lantern on top.
    """
    builder = Builder("pole")
    metal = [STEEL, DARK_STEEL, GREEN_STEEL][int(rng.integers(3))]
    if arm <= 0:
        height = float(rng.uniform(3.6, 4.4))
        builder.add(metal, tube([(0, 0, 0), (0, 0, 0.5), (0, 0, height)], [0.11, 0.06, 0.045], 7, caps=(False, False)))
        builder.add(LAMP, lathe([(0.09, height), (0.19, height + 0.38), (0.17, height + 0.42)], 7))
        builder.add(metal, lathe([(0.24, height + 0.42), (0.0, height + 0.62)], 7))
    else:
        height = float(rng.uniform(7.2, 8.8))
        builder.add(
            metal, tube([(0, 0, 0), (0, 0, 0.9), (0, 0, height - 0.5)], [0.12, 0.085, 0.06], 8, caps=(False, False))
        )
        bend = [(0, 0, height - 0.5), (0, 0.18 * arm, height - 0.12), (0, arm - 0.3, height + 0.05)]
        builder.add(metal, tube(bend, [0.06, 0.05, 0.04], 6, (1.0, 0.0, 0.0)))
        builder.add(metal, box((0, arm, height + 0.05), (0.28, 0.75, 0.11), (0.6, 0.8)))
        builder.add(LAMP, box((0, arm + 0.04, height - 0.015), (0.22, 0.56, 0.03)))
    return assemble("street_lamp", builder.parts(), centred=False, attributes={"lamp_height": f"{height:.2f}"})


def _panel(length: float, low: float, high: float, y: float, repeat: float) -> Soup:
    """An upright sheet along x, seen from both sides, its texture repeated every `repeat` metres."""
    x = length / 2
    corners = np.array([[-x, y, low], [x, y, low], [x, y, high], [-x, y, high]])
    u, v = length / repeat, (high - low) / repeat
    uv = np.array([[0, v], [u, v], [u, 0], [0, 0]])
    return quads(np.stack([corners, corners[::-1]]), np.stack([uv, uv[::-1]]))


def make_fence(rng: np.random.Generator, length: float) -> Asset:
    """A fence of `length` metres along x: pickets, wire mesh, or the steel rails of a guard rail."""
    builder = Builder("fence")
    kind = str(rng.choice(["picket", "mesh", "rail"]))
    posts = np.linspace(-length / 2 + 0.05, length / 2 - 0.05, max(2, min(8, round(length / 2.2) + 1)))
    if kind == "picket":
        paint = WHITE_PAINT if rng.random() < 0.5 else WOOD
        for x in np.linspace(-length / 2 + 0.06, length / 2 - 0.06, max(3, min(40, round(length / 0.28)))):
            builder.add(paint, _slat(float(x), 0.05, 0.98, 0.045))
        for z in (0.28, 0.76):
            builder.add(paint, box((0, -0.03, z), (length, 0.03, 0.08)))
    elif kind == "mesh":
        builder.add(CHAIN_LINK, _panel(length, 0.05, 1.75, 0.0, 0.85))
        for x in posts:
            builder.add(GREEN_STEEL, box((x, 0, 0.9), (0.06, 0.06, 1.8)))
        builder.add(GREEN_STEEL, box((0, 0, 1.77), (length, 0.05, 0.05)))
    else:
        for x in posts:
            builder.add(STEEL, box((x, 0.06, 0.37), (0.10, 0.08, 0.74)))
        ring = [(-0.05, 0.48), (0.01, 0.52), (-0.05, 0.6), (0.01, 0.7), (-0.05, 0.75)]
        profile = np.array(ring)
        ends = [np.stack([np.full(5, x), profile[:, 0], profile[:, 1]], axis=-1) for x in (-length / 2, length / 2)]
        sheet = quads(np.stack([ends[0][:-1], ends[1][:-1], ends[1][1:], ends[0][1:]], axis=1))
        builder.add(STEEL, sheet, sheet.flipped(), crease=20)
    return assemble(f"fence_{kind}", builder.parts(), attributes={"variant": kind})


def _slat(x: float, low: float, high: float, half: float) -> Soup:
    """A pointed picket, seen from both sides."""
    body = np.array([[x - half, 0, low], [x + half, 0, low], [x + half, 0, high - 0.08], [x - half, 0, high - 0.08]])
    tip = np.array([[x - half, 0, high - 0.08], [x + half, 0, high - 0.08], [x, 0, high], [x, 0, high]])
    faces = np.stack([body, tip])
    return quads(np.concatenate([faces, faces[:, [1, 0, 3, 2]]]))


def make_wall(rng: np.random.Generator, length: float) -> Asset:
    """A garden or retaining wall of `length` metres along x, with a coping."""
    builder = Builder("wall")
    texture = str(rng.choice(["brick_red", "brick_yellow", "brick_brown", "concrete", "plaster_white"]))
    height, thick = float(rng.uniform(1.1, 2.2)), 0.28
    body = box((0, 0, height / 2), (length, thick, height))

    def project(corners: np.ndarray) -> np.ndarray:
        return np.stack([(corners[..., 0] + corners[..., 1]) / 1.9, -corners[..., 2] / 1.4], axis=-1)

    stone = Material(texture, (1.0, 1.0, 1.0, 1.0), texture, specular=0.03, shininess=0.3)
    builder.add(stone, body.with_uv(project))
    coping = Material("coping", (0.56, 0.55, 0.53, 1.0), specular=0.05)
    builder.add(coping, box((0, 0, height + 0.04), (length, thick + 0.1, 0.08)))
    return assemble("wall", builder.parts(), attributes={"variant": texture})


def make_bus_stop(rng: np.random.Generator) -> Asset:
    """A glazed bus shelter, open towards +x, with a bench and a poster (class "building")."""
    builder = Builder("building")
    metal = [DARK_STEEL, STEEL, GREEN_STEEL][int(rng.integers(3))]
    for x in (-0.65, 0.65):
        for y in (-1.9, 1.9):
            builder.add(metal, box((x, y, 1.2), (0.07, 0.07, 2.4)))
    builder.add(metal, box((0.05, 0, 2.46), (1.75, 4.1, 0.12), (0.94, 0.97)))
    for y0, y1, x0, x1 in ((-1.86, 1.86, -0.66, -0.66), (1.9, 1.9, -0.62, 0.45)):
        sheet = np.array([[x0, y0, 0.3], [x1, y1, 0.3], [x1, y1, 2.25], [x0, y0, 2.25]])
        uv = np.array([[0, 0.95], [2, 0.95], [2, 0.1], [0, 0.1]])
        builder.add(SHELTER_GLASS, quads(np.stack([sheet, sheet[::-1]]), np.stack([uv, uv[::-1]])))
    builder.add(ADVERT, box((0, -1.9, 1.25), (1.15, 0.12, 1.8)))
    builder.add(WOOD, box((-0.42, 0.3, 0.48), (0.36, 2.4, 0.06)))
    for y in (-0.7, 1.3):
        builder.add(metal, box((-0.42, y, 0.23), (0.28, 0.06, 0.46)))
    return assemble("bus_stop", builder.parts())


def make_bench(rng: np.random.Generator) -> Asset:
    """A bench that faces +x (class "building", the nearest that Cityscapes has)."""
    builder = Builder("building")
    for x in (-0.16, 0.0, 0.16):
        builder.add(WOOD, box((x, 0, 0.46), (0.13, 1.7, 0.05)))
    for z in (0.62, 0.78):
        builder.add(WOOD, box((-0.26, 0, z), (0.04, 1.7, 0.12)))
    for y in (-0.7, 0.7):
        builder.add(DARK_STEEL, box((0, y, 0.22), (0.44, 0.06, 0.44)), box((-0.24, y, 0.6), (0.04, 0.06, 0.5)))
    return assemble("bench", builder.parts())


def make_bin(rng: np.random.Generator) -> Asset:
    """A litter bin (class "building")."""
    builder = Builder("building")
    metal = [DARK_STEEL, GREEN_STEEL, STEEL][int(rng.integers(3))]
    builder.add(metal, lathe([(0.22, 0), (0.26, 0.1), (0.28, 0.85)], 9))
    builder.add(DARK_STEEL, lathe([(0.30, 0.85), (0.26, 0.98), (0.0, 1.04)], 9))
    return assemble("bin", builder.parts())


def make_hydrant(rng: np.random.Generator) -> Asset:
    """A fire hydrant (class "pole")."""
    builder = Builder("pole")
    body = lathe([(0.17, 0.0), (0.12, 0.07), (0.12, 0.55), (0.15, 0.58), (0.10, 0.70), (0.0, 0.78)], 7)
    builder.add(HYDRANT_RED, body, cylinder((0, -0.22, 0.42), (0, 0.22, 0.42), 0.06, 5))
    builder.add(WHITE_PAINT, cylinder((0.08, 0, 0.42), (0.2, 0, 0.42), 0.075, 5))
    return assemble("hydrant", builder.parts())


def make_bollard(rng: np.random.Generator) -> Asset:
    """A bollard (class "pole")."""
    builder = Builder("pole")
    builder.add(DARK_STEEL, lathe([(0.09, 0.0), (0.08, 0.72), (0.08, 0.86), (0.05, 0.95), (0.0, 0.97)], 8))
    builder.add(WHITE_PAINT, lathe([(0.084, 0.72), (0.084, 0.82)], 8))
    return assemble("bollard", builder.parts())


def make_traffic_cone(rng: np.random.Generator) -> Asset:
    """A traffic cone (class "traffic sign", as Cityscapes has no nearer one; it is no detection object)."""
    builder = Builder("traffic sign")
    builder.add(CONE_ORANGE, box((0, 0, 0.02), (0.36, 0.36, 0.04)))
    builder.add(CONE_ORANGE, lathe([(0.14, 0.04), (0.10, 0.28)], 8), lathe([(0.075, 0.45), (0.03, 0.72)], 8))
    builder.add(WHITE_PAINT, lathe([(0.10, 0.28), (0.075, 0.45)], 8))
    return assemble("traffic_cone", builder.parts())
