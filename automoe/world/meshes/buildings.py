"""Buildings: textured facades around a box or two, with roofs, shop fronts and what stands on roofs.

A building's front looks along +x; its width lies along y, its depth along x. Facade materials have textures whose
night twins (suffix "_lit", see `facades.py`) a renderer may swap in.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from automoe.world.meshes.facades import BAYS, SHOPS, STOREYS
from automoe.world.meshes.primitives import Builder, Soup, assemble, box, quads, tube
from automoe.world.parts import Asset, Material

BAY_WIDTH, STOREY_HEIGHT = 3.2, 3.1
ROOF_FELT = Material("gravel_roof", (1.0, 1.0, 1.0, 1.0), "gravel_roof", specular=0.0)
CORNICE = Material("cornice", (0.70, 0.68, 0.64, 1.0), specular=0.05)
DARK_METAL = Material("roof_metal", (0.20, 0.21, 0.23, 1.0), specular=0.2)
PALE_METAL = Material("roof_unit", (0.62, 0.63, 0.64, 1.0), specular=0.2)
TANK_WOOD = Material("wood", (1.0, 1.0, 1.0, 1.0), "wood", specular=0.05)
AWNINGS = {
    "red": (0.55, 0.10, 0.10),
    "green": (0.10, 0.32, 0.20),
    "navy": (0.10, 0.15, 0.32),
    "sand": (0.74, 0.64, 0.46),
}


def _surface(texture: str) -> Material:
    """The material of a texture: glass shines, walls are dull."""
    specular = 0.4 if "glass" in texture else 0.1 if texture.startswith("shop_") else 0.03
    return Material(texture, (1.0, 1.0, 1.0, 1.0), texture, specular=specular, shininess=0.3)


@dataclass(frozen=True)
class _Kind:
    """What may be built at some height: styles of facade, what the ground floor is, how the roof looks."""

    styles: tuple[str, ...]
    ground: str
    roof: str


KINDS: dict[str, _Kind] = {
    "house": _Kind(("siding_blue", "siding_cream", "brick_red", "plaster_white", "plaster_ochre"), "homes", "pitched"),
    "townhouse": _Kind(("brick_red", "brick_yellow", "plaster_rose", "plaster_ochre", "plaster_white"), "homes", "any"),
    "shops": _Kind(("brick_red", "brick_brown", "plaster_ochre", "plaster_rose", "plaster_white", "brick_yellow"),
                   "shops", "any"),
    "flats": _Kind(("brick_brown", "plaster_grey", "brick_red", "concrete", "plaster_white"), "homes", "flat"),
    "office": _Kind(("glass_blue", "glass_dark", "office_tan", "concrete", "plaster_grey"), "lobby", "flat"),
    "store": _Kind(("brick_brown", "plaster_grey", "brick_yellow"), "shops", "flat"),
}  # fmt: skip

WALL_OF = {"brick_red": "brick_red", "brick_brown": "brick_brown", "brick_yellow": "brick_yellow",
           "plaster_ochre": "plaster_ochre"}  # fmt: skip
"""Plain wall texture for gables, by style; plaster_white for the others."""


def _choose_kind(rng: np.random.Generator, height: float) -> str:
    if height < 5.0:
        return "store"
    if height < 9.5:
        return str(rng.choice(["house", "townhouse", "shops"], p=[0.5, 0.25, 0.25]))
    if height < 24.0:
        return str(rng.choice(["shops", "flats", "townhouse", "office"], p=[0.42, 0.26, 0.12, 0.2]))
    return str(rng.choice(["office", "flats"], p=[0.7, 0.3]))


def make_building(rng: np.random.Generator, width: float, depth: float, height: float) -> Asset:
    """A building on a footprint of `depth` (along x) by `width` (along y), walls up to about `height` metres.

    Its kind (`attributes["variant"]`: house, townhouse, shops, flats, office, store) is drawn to suit the height;
    eaves, awnings and cornices reach up to half a metre beyond the footprint, pitched roofs and roof plant above
    the height. The front, with the doors and shops, looks along +x.
    """
    kind_name = _choose_kind(rng, height)
    kind = KINDS[kind_name]
    style = str(rng.choice(list(kind.styles)))
    builder = Builder("building")
    ground = min(height, 3.9 if kind.ground != "homes" else 3.1)
    _ground_floor(rng, builder, kind, style, width, depth, ground)
    tower = height > 26 and min(width, depth) > 14 and rng.random() < 0.55
    shoulder = round(height * 0.35 / STOREY_HEIGHT) * STOREY_HEIGHT + ground if tower else height
    if shoulder > ground:
        _storeys(builder, style, width, depth, ground, shoulder)
    pitched = kind.roof == "pitched" or (kind.roof == "any" and height < 14 and rng.random() < 0.5)
    if pitched and min(width, depth) < 18:
        _pitched_roof(rng, builder, style, width, depth, shoulder)
    else:
        _flat_roof(builder, width, depth, shoulder, parapet=not tower)
        if tower:
            width, depth = 0.72 * width, 0.72 * depth
            _storeys(builder, style, width, depth, shoulder, height)
            _flat_roof(builder, width, depth, height)
        _roof_plant(rng, builder, width, depth, height, tank=not tower)
    parts = builder.parts()
    return assemble(kind_name, parts, centred=False, attributes={"variant": kind_name, "style": style})


def _walls(width: float, depth: float) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Front, left, back and right wall: lower left and lower right corner (x, y) seen from outside, and length."""
    x, y = depth / 2, width / 2
    corners = np.array([(x, -y), (x, y), (-x, y), (-x, -y)])
    nxt = np.roll(corners, -1, axis=0)
    return [(a, b, float(np.linalg.norm(b - a))) for a, b in zip(corners, nxt)]


def _wall(start: np.ndarray, end: np.ndarray, low: float, high: float, u: tuple[float, float], v: float) -> Soup:
    """An upright rectangle; texture columns `u` from left to right, `v` repeats from bottom to top."""
    corners = np.array([[*start, low], [*end, low], [*end, high], [*start, high]])
    return quads(corners, np.array([[u[0], 0.0], [u[1], 0.0], [u[1], -v], [u[0], -v]]))


def _storeys(builder: Builder, style: str, width: float, depth: float, low: float, high: float) -> None:
    """Four walls of whole windows; each wall starts at another column of the texture."""
    floors = max(1, round((high - low) / STOREY_HEIGHT))
    material = _surface(f"facade_{style}")
    for i, (start, end, length) in enumerate(_walls(width, depth)):
        bays = max(1, round(length / BAY_WIDTH))
        first = i / BAYS
        builder.add(material, _wall(start, end, low, high, (first, first + bays / BAYS), floors / STOREYS))


def _ground_floor(rng: np.random.Generator, builder: Builder, kind: _Kind, style: str, width: float, depth: float,
                  high: float) -> None:  # fmt: skip
    """Doors or shop fronts along the front, plain windows around the other sides."""
    walls = _walls(width, depth)
    home = _surface(f"ground_{style}")
    upper = _surface(f"facade_{style}")
    for i, (start, end, length) in enumerate(walls):
        if i == 0 and kind.ground == "shops":
            _shop_row(rng, builder, start, end, length, high)
        elif i == 0 or kind.ground == "lobby":
            tiles = max(1, round(length / 5.5))
            builder.add(home, _wall(start, end, 0.0, high, (0.0, tiles), 1.0))
        else:
            bays = max(1, round(length / BAY_WIDTH))
            builder.add(upper, _wall(start, end, 0.0, high, (i / BAYS, (i + bays) / BAYS), 1 / STOREYS))
    if kind.ground == "lobby":
        builder.add(DARK_METAL, box((depth / 2 + 0.6, 0, high - 0.75), (1.2, min(5.0, 0.5 * width), 0.18)))
    elif kind.ground == "homes":
        tiles = max(1, round(width / 5.5))
        step = width / tiles
        for i in range(min(tiles, 3)):
            # The doors are a quarter into each tile.
            y = -width / 2 + step * (i + 0.246)
            builder.add(CORNICE, box((depth / 2 + 0.3, y, 0.09), (0.6, 1.5, 0.18)))


def _shop_row(rng: np.random.Generator, builder: Builder, start: np.ndarray, end: np.ndarray, length: float,
              high: float) -> None:  # fmt: skip
    """Shops side by side along the front, some under awnings."""
    count = int(np.clip(round(length / 6.0), 1, 5))
    names = rng.permutation(list(SHOPS))
    edges = np.linspace(0.0, 1.0, count + 1)
    awnings = 3
    for i, (a, b) in enumerate(pairwise(edges)):
        left, right = start + (end - start) * a, start + (end - start) * b
        builder.add(_surface(str(names[i % len(names)])), _wall(left, right, 0.0, high, (0.0, 1.0), 1.0))
        if rng.random() < 0.45 and awnings > 0:
            awnings -= 1
            _awning(rng, builder, float(left[0]), float(left[1]) + 0.3, float(right[1]) - 0.3, 0.74 * high)


def _awning(rng: np.random.Generator, builder: Builder, x: float, y0: float, y1: float, z: float) -> None:
    """A sloping cloth above a shop window, below its sign."""
    shade = str(rng.choice(list(AWNINGS)))
    material = Material(f"awning_{shade}", (*AWNINGS[shade], 1.0), specular=0.0)
    out, drop, hem = x + 1.1, z - 0.42, z - 0.62
    top = [[out, y0, drop], [out, y1, drop], [x, y1, z], [x, y0, z]]
    under = [[x, y0, z - 0.03], [x, y1, z - 0.03], [out, y1, drop - 0.03], [out, y0, drop - 0.03]]
    front = [[out, y0, hem], [out, y1, hem], [out, y1, drop], [out, y0, drop]]
    sides = [[[x, y, z], [x, y, hem], [out, y, hem], [out, y, drop]] for y in (y0, y1)]
    sides[1] = sides[1][::-1]
    builder.add(material, quads(np.array([top, under, front, *sides])))


def _flat_roof(builder: Builder, width: float, depth: float, height: float, parapet: bool = True) -> None:
    """A cornice around the top, gravel within, and a parapet around that."""
    out, rise, thick = 0.22, 0.55, 0.3
    rings = [(depth / 2, width / 2, height - 0.45), (depth / 2 + out, width / 2 + out, height - 0.3),
             (depth / 2 + out, width / 2 + out, height), (depth / 2, width / 2, height + 0.02),
             (depth / 2, width / 2, height + rise), (depth / 2 - thick, width / 2 - thick, height + rise),
             (depth / 2 - thick, width / 2 - thick, height + 0.05)]  # fmt: skip
    rings = rings if parapet else rings[:4]
    square = np.array([(1, -1), (1, 1), (-1, 1), (-1, -1), (1, -1)])
    grid = np.array([[(sx * x, sy * y, z) for sx, sy in square] for x, y, z in rings])
    cells = np.stack([grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]], axis=2)
    builder.add(CORNICE, quads(cells.reshape(-1, 4, 3)))
    roof = grid[-1, :4]
    builder.add(ROOF_FELT, quads(roof, roof[:, :2] / 6.0))


def _pitched_roof(rng: np.random.Generator, builder: Builder, style: str, width: float, depth: float,
                  height: float) -> None:  # fmt: skip
    """A gabled or hipped roof, its ridge along the longer side, with eaves and a chimney."""
    along_y = width >= depth
    length, span = (width, depth) if along_y else (depth, width)
    rise = 0.5 * span * float(rng.uniform(0.55, 0.9))
    hip = float(rng.choice([0.0, 0.45])) * span
    eave = 0.45
    tiles = _surface(str(rng.choice(["roof_red", "roof_brown", "roof_slate"], p=[0.4, 0.3, 0.3])))
    place = (lambda a, b, z: (b, a, z)) if along_y else (lambda a, b, z: (a, b, z))
    half, low = length / 2 + eave, height - rise * eave / (span / 2)
    ridge_half = max(half - hip - (eave if hip else 0), 0.3)
    slope = float(np.hypot(rise, span / 2))
    for side in (1, -1):
        b = side * (span / 2 + eave)
        points = [place(-half, b, low), place(half, b, low), place(ridge_half, 0, height + rise),
                  place(-ridge_half, 0, height + rise)]  # fmt: skip
        uv = [(p / 4, q) for p, q in ((-half, 0), (half, 0), (ridge_half, -slope / 3.4), (-ridge_half, -slope / 3.4))]
        _both_sides(builder, tiles, points, uv)
    gable = _surface(WALL_OF.get(style, "plaster_white"))
    for end in (1, -1):
        if hip:
            points = [place(end * half, -span / 2 - eave, low), place(end * half, span / 2 + eave, low),
                      place(end * ridge_half, 0, height + rise)]  # fmt: skip
            _both_sides(builder, tiles, [*points, points[-1]],
                        [(-span / 8, 0), (span / 8, 0), (0, -slope / 3.4), (0, -slope / 3.4)])  # fmt: skip
        else:
            points = [place(end * length / 2, -span / 2, height), place(end * length / 2, span / 2, height),
                      place(end * length / 2, 0, height + rise)]  # fmt: skip
            _both_sides(builder, gable, [*points, points[-1]],
                        [(0, 0), (span / 2, 0), (span / 4, -rise / 2), (span / 4, -rise / 2)])  # fmt: skip
    at = place(float(rng.uniform(-0.3, 0.3)) * length, 0.18 * span, height + 0.75 * rise)
    stack = box((at[0], at[1], at[2] + 0.3), (0.7, 0.7, 0.5 * rise + 1.6))
    builder.add(_surface("brick_red"), stack)
    builder.add(CORNICE, box((at[0], at[1], at[2] + 1.15 + 0.25 * rise), (0.86, 0.86, 0.14)))


def _both_sides(builder: Builder, material: Material, points: list, uv: list) -> None:
    """A sheet that is seen from above and from below."""
    sheet = quads(np.array(points), np.array(uv))
    builder.add(material, sheet, sheet.flipped())


def _roof_plant(rng: np.random.Generator, builder: Builder, width: float, depth: float, height: float,
                tank: bool) -> None:  # fmt: skip
    """Stair house, ventilation units, and on some roofs a water tank or a mast."""
    if min(width, depth) < 6:
        return
    reach = np.array([depth, width]) / 2 - 1.8
    spots = rng.uniform(-0.7, 0.7, (4, 2)) * reach
    builder.add(CORNICE, box((spots[0][0], spots[0][1], height + 1.3), (2.6, 3.2, 2.6)))
    for x, y in spots[1:3]:
        builder.add(PALE_METAL, box((x, y, height + 0.6), (1.5, 1.1, 1.1), (0.95, 0.95)))
    x, y = spots[3]
    draw = rng.random()
    if draw < 0.3 and tank:
        builder.add(TANK_WOOD, tube([(x, y, height + 1.6), (x, y, height + 4.2)], [1.15, 1.1], 7, caps=(True, False)))
        builder.add(DARK_METAL, tube([(x, y, height + 4.2), (x, y, height + 5.0)], [1.2, 0.05], 7, caps=(False, False)))
        for dx, dy in ((0.7, 0.7), (-0.7, 0.7), (-0.7, -0.7), (0.7, -0.7)):
            leg = [(x + dx, y + dy, height), (x + dx, y + dy, height + 1.6)]
            builder.add(DARK_METAL, tube(leg, [0.08, 0.08], 3, caps=(False, False)))
    elif draw < 0.55 and height > 15:
        builder.add(DARK_METAL, tube([(x, y, height), (x, y, height + 6.5)], [0.1, 0.04], 4))
