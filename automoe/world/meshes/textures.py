"""Procedural ground, wall and plant textures; all tile, except where a docstring says otherwise.

`TEXTURES` is the registry of every texture in the world: this room's own, the facades of `facades.py` and the
signs and vehicle skins of `decals.py`. A drawer takes a generator and returns uint8 [S, S, 3] RGB.
Row 0 is the top of the picture: uv (0, 0) is the first row and column, v grows downwards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from automoe.world.meshes.decals import DECALS
from automoe.world.meshes.facades import FACADES
from automoe.world.meshes.patterns import brickwork, cloud, colourise, grain, to_uint8

Drawer = Callable[[np.random.Generator], np.ndarray]


def asphalt(rng: np.random.Generator, base: float = 74.0, worn: float = 1.0) -> np.ndarray:
    """Stony asphalt with pale worn areas, darker repair patches, tar seams and hair cracks."""
    size = 512
    shade = base + 7 * worn * cloud(rng, size, 1.6) + 3.5 * cloud(rng, size, 0.7) + grain(rng, size, 7.0)
    image = colourise(shade, (1.0, 1.0, 1.02))
    for _ in range(3):
        low = rng.integers(0, size - 170, 2)
        high = low + rng.integers(60, 170, 2)
        image[low[0] : high[0], low[1] : high[1]] *= rng.uniform(0.86, 0.97)
        image[low[0] : high[0], [low[1], high[1] - 1]] *= 0.82
        image[[low[0], high[0] - 1], low[1] : high[1]] *= 0.82
    for _ in range(int(4 * worn)):
        _crack(rng, image, 0.72)
    return to_uint8(image)


def _crack(rng: np.random.Generator, image: np.ndarray, factor: float) -> None:
    """Darken a wandering line, in place, wrapping around the edges."""
    size = len(image)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.18, 180))
    steps = rng.uniform(0, size, 2) + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1) * 1.4, axis=0)
    at = np.unique(steps.astype(np.int64) % size, axis=0)
    image[at[:, 0], at[:, 1]] *= factor


def paving(rng: np.random.Generator, colour: tuple[float, float, float], across: int, joint: float) -> np.ndarray:
    """Square concrete slabs, `across` to a side, each with a tone of its own."""
    size = 256
    slab = size // across
    tones = np.kron(rng.normal(0, 5, (across, across)), np.ones((slab, slab)))
    shade = 1 + (tones + 5 * cloud(rng, size, 1.4) + grain(rng, size, 5.0)) / 160
    image = shade[..., None] * np.array(colour)
    edge = np.arange(size) % slab
    image[edge < 2] *= joint
    image[:, edge < 2] *= joint
    return to_uint8(image)


def bricks(rng: np.random.Generator, colour: tuple[float, float, float], mortar: float) -> np.ndarray:
    """Running bond: eight bricks across, sixteen courses."""
    return to_uint8(brickwork(rng, 256, 8, 16, colour, mortar))


def plaster(rng: np.random.Generator, colour: tuple[float, float, float]) -> np.ndarray:
    """Rendered wall with faint stains."""
    shade = 1 + 0.035 * cloud(rng, 256, 1.5) + grain(rng, 256, 0.02)
    return to_uint8(shade[..., None] * np.array(colour))


def grass(rng: np.random.Generator, colour: tuple[float, float, float] = (96, 126, 56)) -> np.ndarray:
    """Lawn: blades as streaky grain, with dry and lush areas."""
    size = 512
    streaks = _streaks(rng, size)
    lush = cloud(rng, size, 1.5)
    image = (1 + 0.16 * streaks + 0.07 * lush)[..., None] * np.array(colour)
    image += 7 * cloud(rng, size, 1.3)[..., None] * np.array([1.0, 0.4, 0.1])
    return to_uint8(image)


def _streaks(rng: np.random.Generator, size: int) -> np.ndarray:
    """Zero-mean grain that is smeared a few pixels up and down, wrapping around."""
    noise = rng.normal(0, 1, (size, size))
    return np.sum([np.roll(noise, shift, axis=0) for shift in range(4)], axis=0) / 2


def soil(rng: np.random.Generator, colour: tuple[float, float, float] = (122, 100, 74)) -> np.ndarray:
    """Bare earth with pebbles."""
    size = 256
    image = (1 + 0.09 * cloud(rng, size, 1.2) + grain(rng, size, 0.08))[..., None] * np.array(colour)
    for _ in range(120):
        centre = tuple(int(c) for c in rng.integers(0, size, 2))
        cv2.circle(image, centre, int(rng.integers(1, 3)), (np.array(colour) * rng.uniform(0.75, 1.35)).tolist(), -1)
    return to_uint8(image)


def concrete(rng: np.random.Generator, base: float = 158.0) -> np.ndarray:
    """Cast concrete: clouds, pores and a formwork joint at the tile's edge."""
    size = 256
    image = colourise(base * (1 + 0.035 * cloud(rng, size, 1.5) + grain(rng, size, 0.025)), (1.0, 0.99, 0.96))
    at = rng.integers(0, size, (90, 2))
    image[at[:, 0], at[:, 1]] *= 0.75
    image[:2] *= 0.84
    image[:, :2] *= 0.84
    return to_uint8(image)


def roof_tiles(rng: np.random.Generator, colour: tuple[float, float, float]) -> np.ndarray:
    """Overlapping tiles: each row is shaded from its upper edge to its lower."""
    size, rows, across = 256, 12, 14
    y, x = np.mgrid[0:size, 0:size].astype(np.float64) / size
    row = np.floor(y * rows).astype(np.int64)
    along = x * across + 0.5 * (row % 2)
    tone = rng.normal(1.0, 0.07, (rows, across))[row % rows, np.floor(along).astype(np.int64) % across]
    shade = tone * (0.8 + 0.3 * ((y * rows) % 1.0)) * (0.86 + 0.14 * np.sin(np.pi * (along % 1.0)))
    shade += 0.03 * cloud(rng, size, 1.3)
    shade[((y * rows) % 1.0) < 0.12] *= 0.72
    return to_uint8(shade[..., None] * np.array(colour))


def gravel_roof(rng: np.random.Generator) -> np.ndarray:
    """Flat roof: grey gravel over felt."""
    shade = 122 * (1 + 0.05 * cloud(rng, 256, 1.4) + grain(rng, 256, 0.09))
    return to_uint8(colourise(shade, (1.0, 0.98, 0.95)))


def bark(rng: np.random.Generator, colour: tuple[float, float, float]) -> np.ndarray:
    """Furrows along the trunk (v)."""
    size = 128
    furrows = np.repeat(rng.normal(0, 1, (8, size)), size // 8, axis=0)
    furrows = sum(np.roll(furrows, s, axis=0) for s in range(0, 32, 4)) / 5
    return to_uint8((1 + 0.16 * furrows + grain(rng, size, 0.07))[..., None] * np.array(colour))


def birch_bark(rng: np.random.Generator) -> np.ndarray:
    """White bark with dark dashes."""
    image = colourise(205 * (1 + 0.03 * cloud(rng, 128, 1.2)), (1.0, 0.99, 0.95))
    for _ in range(26):
        y, x = rng.integers(0, 122, 2)
        image[y : y + rng.integers(1, 4), x : x + rng.integers(6, 26)] = 45
    return to_uint8(image)


def foliage(rng: np.random.Generator, colour: tuple[float, float, float], leaf: int = 4) -> np.ndarray:
    """Leaves in three depths, the lower ones darker, so that a smooth crown reads as a leafy one."""
    size = 256
    tint = np.array(colour)
    image = np.broadcast_to(tint * 0.38, (size, size, 3)).copy()
    for depth, count in ((0.62, 700), (0.95, 620), (1.30, 430)):
        for x, y in rng.integers(0, size, (count, 2)):
            shade = (
                tint * depth * rng.uniform(0.8, 1.22) * np.array([rng.uniform(0.85, 1.2), 1.0, rng.uniform(0.7, 1.0)])
            )
            axes = (int(leaf * rng.uniform(0.8, 1.6)), max(1, int(leaf * 0.55)))
            angle = float(rng.uniform(0, 180))
            # The copies beyond the edges make the picture tile.
            for dx in (0, -size if x > size // 2 else size):
                for dy in (0, -size if y > size // 2 else size):
                    cv2.ellipse(image, (int(x + dx), int(y + dy)), axes, angle, 0, 360, shade.tolist(), -1)
    return to_uint8(image * (1 + 0.10 * cloud(rng, size, 1.3))[..., None])


def wood(rng: np.random.Generator, colour: tuple[float, float, float] = (142, 108, 72)) -> np.ndarray:
    """Upright boards with grain."""
    size, boards = 128, 4
    tones = np.repeat(rng.normal(1, 0.08, boards), size // boards)
    fibres = np.repeat(rng.normal(0, 0.06, (4, size)), size // 4, axis=0)
    image = (tones + fibres + grain(rng, size, 0.03))[..., None] * np.array(colour)
    image[:, np.arange(size) % (size // boards) < 2] *= 0.5
    return to_uint8(image)


def chain_link(rng: np.random.Generator) -> np.ndarray:
    """Wire mesh before a dim green-grey background (nothing here is see-through)."""
    size = 128
    image = np.full((size, size, 3), (88.0, 98.0, 84.0)) * (1 + 0.1 * cloud(rng, size, 1.0))[..., None]
    y, x = np.mgrid[0:size, 0:size]
    image[((x + y) % 16 < 2) | ((x - y) % 16 < 2)] = 176
    return to_uint8(image)


GROUND: dict[str, Drawer] = {
    "asphalt": asphalt,
    "asphalt_dark": partial(asphalt, base=54.0, worn=0.6),
    "asphalt_pale": partial(asphalt, base=104.0, worn=1.4),
    "sidewalk": partial(paving, colour=(168, 165, 158), across=4, joint=0.72),
    "sidewalk_small": partial(paving, colour=(150, 146, 140), across=8, joint=0.76),
    "sidewalk_warm": partial(paving, colour=(172, 150, 132), across=8, joint=0.78),
    "kerb": partial(concrete, base=172.0),
    "concrete": concrete,
    "grass": grass,
    "grass_dry": partial(grass, colour=(142, 132, 78)),
    "soil": soil,
    "gravel_roof": gravel_roof,
}

SURFACES: dict[str, Drawer] = {
    "brick_red": partial(bricks, colour=(146, 74, 58), mortar=168.0),
    "brick_brown": partial(bricks, colour=(112, 78, 60), mortar=150.0),
    "brick_yellow": partial(bricks, colour=(184, 156, 112), mortar=178.0),
    "plaster_white": partial(plaster, colour=(214, 210, 200)),
    "plaster_ochre": partial(plaster, colour=(206, 176, 124)),
    "roof_red": partial(roof_tiles, colour=(158, 82, 60)),
    "roof_brown": partial(roof_tiles, colour=(108, 80, 66)),
    "roof_slate": partial(roof_tiles, colour=(88, 92, 100)),
    "bark": partial(bark, colour=(104, 84, 66)),
    "bark_dark": partial(bark, colour=(72, 60, 50)),
    "bark_birch": birch_bark,
    "foliage": partial(foliage, colour=(88, 122, 46)),
    "foliage_dark": partial(foliage, colour=(56, 90, 42)),
    "foliage_light": partial(foliage, colour=(122, 148, 58)),
    "foliage_autumn": partial(foliage, colour=(178, 116, 42)),
    "needles": partial(foliage, colour=(48, 82, 52), leaf=3),
    "wood": wood,
    "chain_link": chain_link,
}

TEXTURES: dict[str, Drawer] = {**GROUND, **SURFACES, **FACADES, **DECALS}
"""Every texture by name. A facade `NAME` has a night twin `NAME_lit`, to be used with some emission."""
