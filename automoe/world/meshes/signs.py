"""Traffic signs and signal heads."""

# ruff: noqa: RUF005 (vectors are added here, not lists joined)
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from automoe.world.meshes.primitives import Builder, Soup, assemble, box, fan, quads, tube
from automoe.world.parts import Asset, Material

STEEL = Material("steel", (0.46, 0.48, 0.50, 1.0), specular=0.3, shininess=0.4)
SIGN_BACK = Material("sign_back", (0.42, 0.44, 0.45, 1.0), specular=0.3, shininess=0.3)
SIGNAL_BLACK = Material("signal_black", (0.035, 0.035, 0.04, 1.0), specular=0.1)
SIGNAL_YELLOW = Material("signal_yellow", (0.80, 0.56, 0.06, 1.0), specular=0.2)
SIGNAL_GREEN = Material("signal_green", (0.06, 0.16, 0.11, 1.0), specular=0.2)
SIGNAL_EDGE = Material("signal_edge", (0.86, 0.80, 0.30, 1.0), specular=0.1)
BOARD_MARGIN = 0.12
"""How far a signal's backboard reaches beyond its housing, metres."""
LENS_RED = Material("lens_red", (0.24, 0.035, 0.03, 1.0), specular=0.4, shininess=0.6)
LENS_YELLOW = Material("lens_yellow", (0.24, 0.17, 0.03, 1.0), specular=0.4, shininess=0.6)
LENS_GREEN = Material("lens_green", (0.03, 0.19, 0.13, 1.0), specular=0.4, shininess=0.6)


@dataclass(frozen=True)
class SignKind:
    """A kind of sign: the outline of its plate, its size (width, height) in metres, and the faces it may show."""

    outline: str
    size: tuple[float, float]
    textures: tuple[str, ...]
    height: float = 2.2
    """Of the plate's lower edge above the ground."""


SIGNS: dict[str, SignKind] = {
    "stop": SignKind("octagon", (0.76, 0.76), ("sign_stop",)),
    "yield": SignKind("triangle_down", (0.90, 0.80), ("sign_yield",)),
    "speed_limit": SignKind("rectangle", (0.61, 0.76), tuple(f"sign_speed_us_{n}" for n in (25, 35, 45, 55))),
    "speed_limit_round": SignKind("disc", (0.66, 0.66), tuple(f"sign_speed_round_{n}" for n in (30, 50, 70, 90))),
    "warning": SignKind("diamond", (0.95, 0.95), tuple(f"sign_warning_{s}" for s in ("curve", "crossing", "junction"))),
    "parking": SignKind("rectangle", (0.55, 0.55), ("sign_parking",)),
    "crossing": SignKind("rectangle", (0.62, 0.62), ("sign_crossing",)),
    "no_entry": SignKind("disc", (0.70, 0.70), ("sign_no_entry",)),
    "one_way": SignKind("rectangle", (0.92, 0.34), ("sign_one_way",), 2.3),
    "direction": SignKind("rectangle", (2.2, 1.15), ("sign_direction_green", "sign_direction_blue"), 2.5),
}
"""Every kind that `make_traffic_sign` knows."""


def _outline(name: str) -> np.ndarray:
    """The plate's corners [K, 2] in the unit square (u to the right, v up), counter-clockwise seen from its face."""
    if name == "rectangle":
        return np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=np.float64)
    if name == "triangle_down":
        return np.array([(0.5, 0), (1, 1), (0, 1)], dtype=np.float64)
    if name == "diamond":
        return np.array([(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)])
    corners, start = {"octagon": (8, np.pi / 8), "disc": (14, 0.0)}[name]
    angle = start + 2 * np.pi * np.arange(corners) / corners
    radius = 0.5 / np.cos(np.pi / 8) if name == "octagon" else 0.5
    return 0.5 + radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def make_traffic_sign(rng: np.random.Generator, kind: str) -> Asset:
    """A sign of a kind in `SIGNS` on its pole, its face looking along +x, the pole's foot at the origin.

    The plate is of class "traffic sign", the pole of class "pole". Raises KeyError for an unknown kind.
    """
    sign = SIGNS[kind]
    texture = str(rng.choice(list(sign.textures)))
    builder = Builder("traffic sign")
    posts = (-0.6, 0.6) if sign.size[0] > 1.5 else (0.0,)
    for y in posts:
        post = tube([(0, y, 0), (0, y, sign.height + sign.size[1] - 0.04)], [0.035, 0.035], 6, caps=(False, True))
        builder.add(STEEL, post, label="pole")
    _add_plate(builder, sign, texture, sign.height)
    return assemble(f"sign_{kind}", builder.parts(), "traffic sign", centred=False, attributes={"variant": texture})


def _add_plate(builder: Builder, sign: SignKind, texture: str, bottom: float) -> None:
    """The face, which looks along +x, and the grey back."""
    flat = _outline(sign.outline)
    # Seen by someone who looks along -x, right is +y.
    y, z = (flat[:, 0] - 0.5) * sign.size[0], bottom + flat[:, 1] * sign.size[1]
    front = np.stack([np.full_like(y, 0.055), y, z], axis=-1)
    back = front - [0.012, 0.0, 0.0]
    uv = np.stack([flat[:, 0], 1 - flat[:, 1]], axis=-1)
    nxt = np.roll(np.arange(len(flat)), -1)
    face = fan(front)
    face_uv = np.stack([np.broadcast_to(uv.mean(axis=0), uv.shape), uv, uv[nxt]], axis=1)
    material = Material(texture, (1.0, 1.0, 1.0, 1.0), texture, specular=0.15)
    builder.add(material, Soup(face.corners, face_uv))
    edge = quads(np.stack([back, back[nxt], front[nxt], front], axis=1))
    builder.add(SIGN_BACK, fan(back[::-1]), edge)


SIGN_KINDS = tuple(SIGNS)


def make_signal_head(rng: np.random.Generator, kind: str = "vehicle") -> Asset:
    """A signal head (category "traffic light") whose lenses look along +x; the origin is under its middle.

    Lenses are parts of their own with materials "lens_red", "lens_yellow" and "lens_green", dark until the renderer
    lights one. kind: "vehicle" (three lenses) or "pedestrian" (red above green). Raises KeyError for another kind.
    """
    lenses, pitch, radius = {
        "vehicle": ((LENS_GREEN, LENS_YELLOW, LENS_RED), 0.31, 0.115),
        "pedestrian": ((LENS_GREEN, LENS_RED), 0.27, 0.10),
    }[kind]
    housing = [SIGNAL_BLACK, SIGNAL_YELLOW, SIGNAL_GREEN][int(rng.choice(3, p=[0.5, 0.3, 0.2]))]
    builder = Builder("traffic light")
    height, width = pitch * len(lenses) + 0.04, 2 * radius + 0.11
    backed = kind == "vehicle" and bool(rng.random() < 0.6)
    base = BOARD_MARGIN if backed else 0.0
    y, low, high = width / 2 - 0.02, base + 0.02, base + height - 0.02
    builder.add(housing, box((-0.04, 0, base + height / 2), (0.20, width, height)))
    builder.add(SIGNAL_BLACK, _upright(0.065, y, low, high))
    if backed:
        _backplate(builder, width + 2 * BOARD_MARGIN, height + 2 * BOARD_MARGIN)
    for i, lens in enumerate(lenses):
        z = low + pitch * (i + 0.5)
        builder.add(lens, _disc(radius, z, 0.075))
        builder.add(SIGNAL_BLACK, _visor(radius + 0.012, z))
    return assemble(f"signal_{kind}", builder.parts(), "traffic light", centred=False, attributes={"variant": kind})


def _upright(x: float, half: float, low: float, high: float) -> Soup:
    """A rectangle that looks along +x."""
    return quads(np.array([[[x, -half, low], [x, half, low], [x, half, high], [x, -half, high]]]))


def _disc(radius: float, z: float, x: float, sides: int = 10) -> Soup:
    """A lens: a disc that looks along +x."""
    angle = 2 * np.pi * np.arange(sides) / sides
    return fan(np.stack([np.full(sides, x), radius * np.cos(angle), z + radius * np.sin(angle)], axis=-1))


def _visor(radius: float, z: float, length: float = 0.17) -> Soup:
    """A hood over the upper half of a lens, seen from inside and outside."""
    angle = np.linspace(-0.2, np.pi + 0.2, 5)
    rim = np.stack([np.zeros(5), radius * np.cos(angle), z + radius * np.sin(angle)], axis=-1)
    near, far = rim + [0.06, 0, 0], rim + [0.06 + length, 0, 0]
    sheet = quads(np.stack([near[:-1], far[:-1], far[1:], near[1:]], axis=1))
    return Soup(np.concatenate([sheet.corners, sheet.flipped().corners]), np.concatenate([sheet.uv] * 2))


def _backplate(builder: Builder, width: float, height: float) -> None:
    """A black board behind the head, with the bright edge that makes it show at night."""
    builder.add(SIGNAL_EDGE, box((-0.075, 0, height / 2), (0.012, width, height)))
    builder.add(SIGNAL_BLACK, _upright(-0.067, width / 2 - 0.035, 0.035, height - 0.035))
