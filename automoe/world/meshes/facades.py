"""Facade textures: walls with windows, ground floors with doors and shop fronts, by day and lit by night.

An upper-floor texture holds `BAYS` x `STOREYS` windows, a ground-floor texture `GROUND_BAYS` bays of one storey;
both tile. Every name has a night twin with the suffix `_lit`: walls dim, some windows bright.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from automoe.world.meshes.patterns import brickwork, cloud, grain, to_uint8

BAYS, STOREYS = 4, 4
GROUND_BAYS = 2
LIT_WALL = 0.16
"""How bright walls stay in a night twin, which the renderer shows with emission."""

Colour = tuple[float, ...]
"""Red, green, blue, 0..255."""


@dataclass(frozen=True)
class Style:
    """How a facade looks: its wall, and its windows as fractions of a bay and a storey."""

    wall: str
    colour: Colour
    window: tuple[float, float, float, float] = (0.26, 0.20, 0.74, 0.78)
    """left, top, right, bottom"""
    frame: Colour = (222, 220, 214)
    bars: tuple[int, int] = (2, 2)
    """Panes across and up."""
    sill: Colour | None = (186, 182, 172)
    band: Colour | None = None
    """Colour of a string course between storeys."""


STYLES: dict[str, Style] = {
    "brick_red": Style("brick", (142, 72, 56), sill=(196, 190, 178)),
    "brick_brown": Style("brick", (112, 80, 62), (0.2, 0.2, 0.8, 0.76), (70, 62, 56), (3, 1), band=(156, 146, 130)),
    "brick_yellow": Style("brick", (186, 160, 116), (0.3, 0.16, 0.7, 0.8), (236, 234, 226), (2, 3)),
    "plaster_white": Style("plaster", (214, 210, 200), (0.3, 0.18, 0.7, 0.8), (120, 92, 66), (2, 2)),
    "plaster_ochre": Style("plaster", (206, 172, 118), (0.31, 0.16, 0.69, 0.82), band=(226, 214, 186)),
    "plaster_rose": Style("plaster", (196, 146, 128), (0.28, 0.2, 0.72, 0.78), band=(222, 206, 194)),
    "plaster_grey": Style("plaster", (150, 154, 158), (0.18, 0.22, 0.82, 0.78), (52, 54, 58), (3, 1), sill=None),
    "siding_blue": Style("siding", (142, 164, 182), (0.3, 0.2, 0.7, 0.76), (240, 240, 236), (2, 2)),
    "siding_cream": Style("siding", (218, 206, 176), (0.3, 0.2, 0.7, 0.76), (240, 240, 236), (2, 2)),
    "concrete": Style("concrete", (158, 156, 150), (0.0, 0.28, 1.0, 0.76), (84, 86, 88), (2, 1), sill=None),
    "office_tan": Style("concrete", (186, 170, 146), (0.12, 0.16, 0.88, 0.84), (72, 66, 60), (2, 1), sill=None),
    "glass_blue": Style("glass", (94, 130, 158), (0.0, 0.0, 1.0, 1.0), (70, 82, 92), (2, 1), sill=None),
    "glass_dark": Style("glass", (62, 76, 84), (0.0, 0.0, 1.0, 1.0), (40, 44, 48), (1, 1), sill=None),
}


class _Picture:
    """A facade being drawn: the day's picture and, beside it, the light that shines out of its windows."""

    def __init__(self, rng: np.random.Generator, style: Style, size: int, bays: int, storeys: int) -> None:
        self.rng, self.style, self.size = rng, style, size
        self.image = _wall(rng, style, size, bays, storeys)
        self.glow = np.zeros_like(self.image)

    def fill(self, rectangle: tuple[float, float, float, float], colour: Colour) -> None:
        left, top, right, bottom = (round(v) for v in rectangle)
        self.image[max(top, 0) : bottom, max(left, 0) : right] = colour

    def shade(self, rectangle: tuple[float, float, float, float], factor: float) -> None:
        left, top, right, bottom = (round(v) for v in rectangle)
        self.image[max(top, 0) : bottom, max(left, 0) : right] *= factor

    def light(self, rectangle: tuple[float, float, float, float], colour: Colour, chance: float) -> None:
        """Let the window shine at night, with probability `chance`, brighter towards its top."""
        left, top, right, bottom = (round(v) for v in rectangle)
        strength = self.rng.uniform(0.55, 1.0)
        if self.rng.random() < chance:
            falloff = np.linspace(1.0, 0.72, max(bottom - top, 1))[:, None, None] * strength
            self.glow[top:bottom, left:right] = falloff * np.array(colour)

    def finished(self, lit: bool) -> np.ndarray:
        if not lit:
            return to_uint8(self.image)
        # Mullions and curtains stay visible in front of the light.
        detail = self.image.mean(axis=-1, keepdims=True)
        dim = self.image * LIT_WALL * np.array([0.9, 0.95, 1.1])
        return to_uint8(np.where(self.glow > 0, self.glow * (0.8 + 0.2 * np.minimum(detail / 120, 1)), dim))


def _wall(rng: np.random.Generator, style: Style, size: int, bays: int, storeys: int) -> np.ndarray:
    """The bare wall [size, size, 3]."""
    stains = 1 + 0.03 * cloud(rng, size, 1.6)[..., None]
    if style.wall == "brick":
        return stains * brickwork(rng, size, 11 * bays, 38 * storeys, style.colour, 0.55 * sum(style.colour))
    image = stains * (1 + grain(rng, size, 0.018))[..., None] * np.array(style.colour)
    row = np.arange(size)
    if style.wall == "siding":
        board = size // (16 * storeys)
        image *= (1.04 - 0.16 * (row % board == board - 1) - 0.05 * (row % board) / board)[:, None, None]
    elif style.wall == "concrete":
        image[row % (size // storeys) < 2] *= 0.8
        image[:, row % (size // bays) < 2] *= 0.84
    return image


def _pane(picture: _Picture, at: tuple[float, float, float, float], curtains: float) -> None:
    """Glass that mirrors a pale sky at its top and a darker street at its bottom, some with blinds or curtains."""
    rng = picture.rng
    left, top, right, bottom = (round(v) for v in at)
    height = max(bottom - top, 1)
    tone = rng.uniform(0.75, 1.2)
    fade = np.linspace(1.25, 0.65, height)[:, None, None]
    picture.image[top:bottom, left:right] = tone * fade * np.array([66.0, 82.0, 98.0])
    slope = (np.arange(right - left)[None] + 0.6 * np.arange(height)[:, None]) / max(right - left, 1)
    streak = ((slope + rng.random()) % 1.6) < 0.25
    picture.image[top:bottom, left:right][streak] *= 1.25
    draw = rng.random()
    if draw < curtains:
        drop = top + round(height * rng.uniform(0.25, 0.9))
        blind = np.array([196.0, 190.0, 176.0]) * rng.uniform(0.6, 0.95)
        picture.image[top:drop, left:right] = blind * (0.92 + 0.08 * (np.arange(drop - top) % 3 > 0))[:, None, None]
    elif draw < 1.6 * curtains:
        side = round((right - left) * 0.22)
        cloth = np.array([188.0, 176.0, 160.0]) * rng.uniform(0.6, 1.0)
        picture.image[top:bottom, left : left + side] = cloth
        picture.image[top:bottom, right - side : right] = cloth * 0.92


def _window(
    picture: _Picture, at: tuple[float, float, float, float], bars: tuple[int, int], chance: float = 0.45
) -> None:
    """A framed window set back into the wall."""
    left, top, right, bottom = at
    style = picture.style
    thick = max(2.0, picture.size / 200)
    if style.sill is not None:
        picture.fill((left - 2 * thick, bottom, right + 2 * thick, bottom + 2 * thick), style.sill)
        picture.shade((left - thick, bottom + 2 * thick, right + thick, bottom + 3.5 * thick), 0.72)
        picture.fill((left - thick, top - 3 * thick, right + thick, top), tuple(0.92 * c for c in style.sill))
    picture.fill((left, top, right, bottom), style.frame)
    glass = (left + thick, top + thick, right - thick, bottom - thick)
    _pane(picture, glass, 0.3)
    # The reveal's shadow falls from the upper left.
    picture.shade((left, top, right, top + 1.8 * thick), 0.5)
    picture.shade((left, top, left + 1.4 * thick, bottom), 0.6)
    picture.light(glass, WARM if picture.rng.random() < 0.8 else COOL, chance)
    for i in range(1, bars[0]):
        x = left + (right - left) * i / bars[0]
        picture.fill((x - thick / 2, top, x + thick / 2, bottom), style.frame)
    for i in range(1, bars[1]):
        y = top + (bottom - top) * i / bars[1]
        picture.fill((left, y - thick / 2, right, y + thick / 2), style.frame)


WARM: Colour = (255, 206, 132)
COOL: Colour = (222, 232, 244)


def facade(rng: np.random.Generator, style: Style, lit: bool = False) -> np.ndarray:
    """Upper floors: `BAYS` x `STOREYS` windows, uint8 [512, 512, 3]."""
    if style.wall == "glass":
        return _curtain_wall(rng, style, lit)
    picture = _Picture(rng, style, 512, BAYS, STOREYS)
    cell = 512 / BAYS
    for storey in range(STOREYS):
        for bay in range(BAYS):
            left, top, right, bottom = (cell * v for v in style.window)
            x, y = bay * cell, storey * cell
            _window(picture, (x + left, y + top, x + right, y + bottom), style.bars)
        if style.band is not None:
            y = (storey + 1) * cell
            picture.fill((0, y - 7, 512, y - 1), style.band)
            picture.shade((0, y - 1, 512, y), 0.6)
    return picture.finished(lit)


def _curtain_wall(rng: np.random.Generator, style: Style, lit: bool) -> np.ndarray:
    """Storey-high glass between mullions, with a darker spandrel at each floor."""
    picture = _Picture(rng, style, 512, BAYS, STOREYS)
    panes = BAYS * style.bars[0]
    width, height = 512 / panes, 512 / STOREYS
    sky = 1 + 0.12 * cloud(rng, 512, 1.9)[..., None]
    for storey in range(STOREYS):
        y = storey * height
        open_plan = rng.random() < 0.4
        for pane in range(panes):
            at = (pane * width, y, (pane + 1) * width, y + 0.8 * height)
            picture.fill(at, tuple(c * rng.uniform(0.92, 1.08) for c in style.colour))
            picture.light(at, COOL if open_plan else WARM, 0.75 if open_plan else 0.25)
        picture.fill((0, y + 0.8 * height, 512, y + height), tuple(0.55 * c for c in style.colour))
    picture.image *= sky
    for storey in range(STOREYS):
        for edge in (0.0, 0.8):
            y = (storey + edge) * height
            picture.fill((0, y, 512, y + 3), style.frame)
    for pane in range(panes):
        picture.fill((pane * width, 0, pane * width + 3, 512), style.frame)
    return picture.finished(lit)


def ground_floor(rng: np.random.Generator, style: Style, lit: bool = False) -> np.ndarray:
    """A residential ground floor: a front door beside a window, uint8 [256, 256, 3]."""
    picture = _Picture(rng, style, 256, 1, 1)
    plinth = tuple(0.66 * c for c in style.colour)
    picture.fill((0, 232, 256, 256), plinth)
    if style.wall in ("glass", "concrete"):
        return _lobby(picture, lit)
    _window(picture, (142, 62, 226, 186), style.bars, 0.5)
    door = tuple(np.array([(96, 52, 40), (50, 70, 62), (60, 66, 84), (120, 92, 60)][rng.integers(4)], dtype=float))
    picture.fill((30, 44, 96, 256), style.frame)
    picture.fill((36, 78, 90, 256), door)
    picture.fill((36, 50, 90, 74), (70, 84, 98))
    picture.light((36, 50, 90, 74), WARM, 0.9)
    for panel in ((42, 90, 60, 150), (66, 90, 84, 150), (42, 162, 60, 232), (66, 162, 84, 232)):
        picture.shade(panel, 0.8)
    picture.fill((82, 160, 87, 166), (204, 186, 120))
    picture.fill((20, 30, 106, 42), tuple(0.8 * c for c in style.frame))
    picture.shade((24, 42, 102, 50), 0.55)
    picture.fill((26, 246, 100, 256), (150, 148, 144))
    return picture.finished(lit)


def _lobby(picture: _Picture, lit: bool) -> np.ndarray:
    """An office's glazed entrance hall."""
    for i in range(4):
        at = (i * 64 + 4, 40, i * 64 + 60, 250)
        picture.fill((i * 64, 36, i * 64 + 64, 254), picture.style.frame)
        _pane(picture, at, 0.0)
        picture.light(at, COOL, 0.95)
    for x in (64, 128):
        picture.fill((x + 28, 96, x + 36, 250), picture.style.frame)
        picture.fill((x + 4, 92, x + 60, 97), picture.style.frame)
    picture.shade((0, 36, 256, 48), 0.5)
    picture.fill((0, 14, 256, 36), tuple(0.8 * c for c in picture.style.colour))
    return picture.finished(lit)


SHOPS: dict[str, tuple[Colour, Colour, str]] = {
    "shop_green": ((34, 82, 58), (238, 232, 208), "MARKET"),
    "shop_red": ((148, 34, 34), (250, 238, 220), "PIZZA"),
    "shop_blue": ((30, 62, 116), (240, 240, 244), "BOOKS"),
    "shop_black": ((36, 34, 36), (222, 190, 110), "CAFE BAR"),
    "shop_yellow": ((214, 168, 44), (40, 36, 30), "BAKERY"),
    "shop_white": ((226, 224, 216), (60, 90, 130), "PHARMACY"),
}
"""Name -> colour of the sign band, of its letters, and what it says."""


def shop(rng: np.random.Generator, band: Colour, letters: Colour, text: str, lit: bool = False) -> np.ndarray:
    """A shop front: sign band, two display windows and a glazed door, uint8 [256, 256, 3]."""
    picture = _Picture(rng, Style("plaster", (148, 142, 134), frame=tuple(0.8 * c for c in band)), 256, 1, 1)
    picture.fill((0, 236, 256, 256), (96, 92, 90))
    picture.fill((0, 18, 256, 66), band)
    picture.shade((0, 66, 256, 76), 0.5)
    _write(picture, text, (128, 43), 24.0, letters)
    for left, right in ((8, 96), (160, 248)):
        picture.fill((left - 4, 76, right + 4, 236), picture.style.frame)
        at = (left, 80, right, 226)
        _pane(picture, at, 0.0)
        _goods(picture, left, right)
        picture.light(at, WARM, 1.0)
    picture.fill((102, 76, 154, 252), picture.style.frame)
    _pane(picture, (108, 84, 148, 240), 0.0)
    picture.light((108, 84, 148, 240), WARM, 1.0)
    picture.fill((142, 150, 146, 184), (200, 200, 196))
    picture.shade((0, 76, 256, 90), 0.55)
    return picture.finished(lit)


def _goods(picture: _Picture, left: int, right: int) -> None:
    """Things on show behind the glass."""
    for x in range(left + 4, right - 10, 14):
        colour = picture.rng.uniform(60, 190, 3)
        picture.fill((x, picture.rng.uniform(160, 195), x + 11, 222), tuple(colour))


def _write(picture: _Picture, text: str, centre: tuple[int, int], height: float, colour: Colour) -> None:
    """Letters around `centre`; they glow at night."""
    ink = np.zeros(picture.image.shape[:2], dtype=np.uint8)
    scale = height / 22
    (width, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, 2)
    at = (centre[0] - width // 2, centre[1] + tall // 2)
    cv2.putText(ink, text, at, cv2.FONT_HERSHEY_DUPLEX, scale, 255, 2, cv2.LINE_AA)
    picture.image += (ink[..., None] / 255.0) * (np.array(colour) - picture.image)
    picture.glow = np.where(ink[..., None] > 100, np.maximum(np.array(colour), 90.0), picture.glow)


def _registry() -> dict[str, Callable[[np.random.Generator], np.ndarray]]:
    """All facade textures by name, each with its night twin."""
    day: dict[str, partial] = {}
    for name, style in STYLES.items():
        day[f"facade_{name}"] = partial(facade, style=style)
        day[f"ground_{name}"] = partial(ground_floor, style=style)
    for name, (band, letters, text) in SHOPS.items():
        day[name] = partial(shop, band=band, letters=letters, text=text)
    return {**day, **{f"{name}_lit": partial(draw, lit=True) for name, draw in day.items()}}


FACADES: dict[str, Callable[[np.random.Generator], np.ndarray]] = _registry()
