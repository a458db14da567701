"""Textures that show one thing and do not tile: traffic signs, wheels, number plates, car bodies and glass.

Car bodies are drawn in grey, to be tinted by the material's colour.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from automoe.world.meshes.patterns import cloud, grain, to_uint8

Drawer = Callable[[np.random.Generator], np.ndarray]
Colour = tuple[int, int, int]

RED, WHITE, BLACK = (186, 24, 30), (240, 240, 238), (22, 22, 22)
BLUE, GREEN, YELLOW = (24, 74, 158), (14, 104, 66), (244, 190, 24)
SIGN_SIZE = 128


def _text(image: np.ndarray, text: str, centre: tuple[int, int], scale: float, colour: Colour, thick: int) -> None:
    """Write `text` around `centre`, in place."""
    (width, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, thick)
    at = (centre[0] - width // 2, centre[1] + tall // 2)
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_DUPLEX, scale, colour, thick, cv2.LINE_AA)


def _polygon(image: np.ndarray, points: list[tuple[float, float]], colour: Colour) -> None:
    """Fill a polygon given in fractions of the picture, in place."""
    cv2.fillPoly(image, [np.rint(np.array(points) * len(image)).astype(np.int32)], colour, cv2.LINE_AA)


def _plate(colour: Colour) -> np.ndarray:
    return np.full((SIGN_SIZE, SIGN_SIZE, 3), colour, dtype=np.uint8)


def sign_stop(_: np.random.Generator) -> np.ndarray:
    image = _plate(WHITE)
    octagon = [(0.5 + 0.5 * np.cos(a), 0.5 + 0.5 * np.sin(a)) for a in np.pi / 8 + np.arange(8) * np.pi / 4]
    _polygon(image, octagon, RED)
    _text(image, "STOP", (64, 64), 1.25, WHITE, 3)
    return image


def sign_yield(_: np.random.Generator) -> np.ndarray:
    image = _plate(RED)
    _polygon(image, [(0.22, 0.16), (0.78, 0.16), (0.5, 0.70)], WHITE)
    return image


def sign_speed_limit_us(_: np.random.Generator, limit: int) -> np.ndarray:
    image = _plate(WHITE)
    cv2.rectangle(image, (4, 4), (123, 123), BLACK, 2)
    _text(image, "SPEED", (64, 22), 0.8, BLACK, 2)
    _text(image, "LIMIT", (64, 44), 0.8, BLACK, 2)
    _text(image, str(limit), (64, 88), 1.9, BLACK, 4)
    return image


def sign_speed_limit_round(_: np.random.Generator, limit: int) -> np.ndarray:
    image = _plate(RED)
    cv2.circle(image, (64, 64), 48, WHITE, -1, cv2.LINE_AA)
    _text(image, str(limit), (64, 64), 1.7, BLACK, 4)
    return image


def sign_no_entry(_: np.random.Generator) -> np.ndarray:
    image = _plate(RED)
    cv2.rectangle(image, (20, 52), (108, 76), WHITE, -1)
    return image


def sign_warning(_: np.random.Generator, symbol: str) -> np.ndarray:
    """A yellow diamond (its corners are the middles of the picture's edges)."""
    image = _plate(YELLOW)
    edge = np.array([(64, 5), (123, 64), (64, 123), (5, 64)], dtype=np.int32)
    cv2.polylines(image, [edge], True, BLACK, 3, cv2.LINE_AA)
    if symbol == "curve":
        cv2.ellipse(image, (84, 88), (30, 34), 0, 180, 270, BLACK, 9, cv2.LINE_AA)
        _polygon(image, [(0.64, 0.30), (0.64, 0.54), (0.80, 0.42)], BLACK)
    elif symbol == "crossing":
        _walker(image, BLACK, (64, 64), 0.62)
    else:
        cv2.rectangle(image, (59, 34), (69, 94), BLACK, -1)
        cv2.rectangle(image, (34, 59), (94, 69), BLACK, -1)
    return image


def _walker(image: np.ndarray, colour: Colour, centre: tuple[int, int], scale: float) -> None:
    """A walking figure of about 100 * scale pixels, in place."""
    at = [[(0, -18), (0, 14)], [(0, 14), (-18, 46)], [(0, 14), (16, 30), (20, 48)], [(0, -14), (-20, 8)],
          [(0, -14), (20, 2)]]  # fmt: skip
    for line in at:
        points = np.rint(np.array(line) * scale + centre).astype(np.int32)
        cv2.polylines(image, [points], False, colour, max(3, round(11 * scale)), cv2.LINE_AA)
    cv2.circle(image, (centre[0], round(centre[1] - 36 * scale)), round(12 * scale), colour, -1, cv2.LINE_AA)


def sign_parking(_: np.random.Generator) -> np.ndarray:
    image = _plate(BLUE)
    cv2.rectangle(image, (5, 5), (122, 122), WHITE, 3)
    _text(image, "P", (64, 64), 3.2, WHITE, 9)
    return image


def sign_crossing(_: np.random.Generator) -> np.ndarray:
    image = _plate(BLUE)
    _polygon(image, [(0.5, 0.1), (0.92, 0.86), (0.08, 0.86)], WHITE)
    _walker(image, BLACK, (64, 76), 0.55)
    return image


def sign_one_way(_: np.random.Generator) -> np.ndarray:
    image = _plate(BLACK)
    _polygon(image, [(0.04, 0.28), (0.66, 0.28), (0.66, 0.1), (0.96, 0.5), (0.66, 0.9), (0.66, 0.72), (0.04, 0.72)],
             WHITE)  # fmt: skip
    _text(image, "ONE WAY", (56, 64), 0.68, BLACK, 2)
    return image


def sign_direction(_: np.random.Generator, lines: tuple[str, str], colour: Colour) -> np.ndarray:
    """A guide board; it is shown on a plate about twice as wide as high."""
    image = _plate(colour)
    cv2.rectangle(image, (3, 4), (124, 123), WHITE, 2)
    for text, y in zip(lines, (42, 92)):
        _text(image, text, (54, y), 0.85, WHITE, 2)
    _polygon(image, [(0.90, 0.34), (0.96, 0.34 + 0.14), (0.84, 0.34 + 0.14)], WHITE)
    _polygon(image, [(0.96, 0.72), (0.85, 0.65), (0.85, 0.79)], WHITE)
    return image


def wheel(_: np.random.Generator, rim: Colour, spokes: int, tyre_share: float = 0.36) -> np.ndarray:
    """A wheel from the side: tyre, rim with spokes, hub."""
    image = np.full((128, 128, 3), (30, 30, 32), dtype=np.uint8)
    radius = round(64 * (1 - tyre_share))
    cv2.circle(image, (64, 64), 60, (40, 40, 42), 2, cv2.LINE_AA)
    cv2.circle(image, (64, 64), radius, rim, -1, cv2.LINE_AA)
    cv2.circle(
        image,
        (64, 64),
        radius - 4,
        (34, 35, 38) if spokes else tuple(int(0.8 * c) for c in rim),
        -1,
        cv2.LINE_AA,
    )
    for angle in np.arange(spokes) * 2 * np.pi / max(spokes, 1):
        end = (round(64 + (radius - 2) * np.cos(angle)), round(64 + (radius - 2) * np.sin(angle)))
        cv2.line(image, (64, 64), end, rim, 7, cv2.LINE_AA)
    for angle in np.arange(8) * np.pi / 4 if not spokes else []:
        at = (round(64 + 0.55 * radius * np.cos(angle)), round(64 + 0.55 * radius * np.sin(angle)))
        cv2.circle(image, at, 4, (40, 40, 42), -1, cv2.LINE_AA)
    cv2.circle(image, (64, 64), 9, tuple(int(0.7 * c) for c in rim), -1, cv2.LINE_AA)
    return image


def license_plate(rng: np.random.Generator) -> np.ndarray:
    """Dark characters on white; the plate is about three times as wide as high."""
    image = _plate((232, 232, 226))
    cv2.rectangle(image, (2, 4), (125, 123), (60, 62, 80), 2)
    text = "".join(rng.choice(list("ABCDEFGHKLMNPRSTVXZ"), 3)) + "".join(rng.choice(list("123456789"), 3))
    mask = np.zeros((48, 128), dtype=np.uint8)
    (width, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 0.9, 2)
    cv2.putText(mask, text, (64 - width // 2, 24 + tall // 2), cv2.FONT_HERSHEY_DUPLEX, 0.9, 255, 2, cv2.LINE_AA)
    stretched = cv2.resize(mask, (128, 128))[..., None] / 255.0
    return to_uint8(image * (1 - stretched) + stretched * np.array([30.0, 34.0, 70.0]))


def car_glass(rng: np.random.Generator) -> np.ndarray:
    """Dark glass that mirrors a pale sky at its top (v = 0) and the street below, with slanted streaks."""
    size = 128
    y, x = np.mgrid[0:size, 0:size] / size
    fade = np.interp(y, [0.0, 0.35, 0.55, 1.0], [1.55, 1.1, 0.62, 0.5])
    streak = 1 + 0.28 * (((x + 0.55 * y) % 0.5) < 0.12) * (1 - y)
    shade = fade * streak * (1 + 0.04 * cloud(rng, size, 1.6))
    return to_uint8(shade[..., None] * np.array([58.0, 68.0, 78.0]))


def car_paint(rng: np.random.Generator) -> np.ndarray:
    """Body panels in grey: the upper half is the side (u from tail to nose, v from roof to sill), the lower the top.

    Seams follow `vehicles.side_u`: wheels at u = 0.2 and 0.8, the seam between the doors at 0.47.
    """
    size = 256
    image = np.full((size, size, 3), 232.0)
    half = size // 2
    rows = np.linspace(0, 1, half)
    shade = np.interp(rows, [0.0, 0.3, 0.36, 0.44, 0.62, 0.8, 0.9, 1.0], [235, 235, 250, 236, 214, 184, 140, 96])
    image[:half] = shade[:, None, None]
    seam = 92.0
    cv2.polylines(image, [np.array([(180, 0), (181, 78), (178, 108), (66, 108)])], False, (seam,) * 3, 1)
    cv2.line(image, (120, 0), (121, 108), (seam,) * 3, 1)
    cv2.polylines(image, [np.array([(66, 0), (64, 56), (74, 84), (76, 108)])], False, (seam,) * 3, 1)
    for x in (127, 72):
        cv2.rectangle(image, (x, 55), (x + 11, 58), (118.0,) * 3, -1)
        cv2.line(image, (x, 54), (x + 11, 54), (255.0,) * 3, 1)
    image[half:] = 246
    return to_uint8(image)


def panels(rng: np.random.Generator) -> np.ndarray:
    """Sheet-metal panels in grey for buses, vans and boxes: seams every quarter of u, dirt towards v = 1."""
    size = 256
    rows = np.linspace(0, 1, size)[:, None]
    shade = np.interp(rows, [0.0, 0.06, 0.6, 1.0], [205, 240, 236, 168]) * np.ones((1, size))
    shade *= 1 + 0.02 * cloud(rng, size, 1.5) + grain(rng, size, 0.008)
    for x in range(0, size, size // 4):
        shade[:, x : x + 2] *= 0.80
        shade[:, x + 2] *= 1.05
    return to_uint8(np.repeat(shade[..., None], 3, axis=2))


def advert(_: np.random.Generator, colour: Colour, accent: Colour, text: str) -> np.ndarray:
    """A painted box body or bus side; it is shown much wider than high."""
    image = np.full((256, 256, 3), colour, dtype=np.uint8)
    _polygon(image, [(0.0, 0.72), (1.0, 0.5), (1.0, 0.68), (0.0, 0.9)], accent)
    strip = np.zeros((96, 512), dtype=np.uint8)
    _text_mask(strip, text)
    ink = cv2.resize(strip, (220, 110))[..., None] / 255.0
    area = image[34:144, 18:238]
    image[34:144, 18:238] = to_uint8(area * (1 - ink) + ink * np.array(accent))
    image[-10:] = image[-10:] // 2
    return image


def _text_mask(strip: np.ndarray, text: str) -> None:
    (width, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 2.2, 7)
    at = ((strip.shape[1] - width) // 2, (strip.shape[0] + tall) // 2)
    cv2.putText(strip, text, at, cv2.FONT_HERSHEY_DUPLEX, 2.2, 255, 7, cv2.LINE_AA)


def destination(_: np.random.Generator) -> np.ndarray:
    """A bus's amber route display."""
    image = _plate((16, 16, 16))
    _text(image, "42 CENTER", (64, 64), 0.72, (255, 170, 40), 2)
    return image


DECALS: dict[str, Drawer] = {
    "sign_stop": sign_stop,
    "sign_yield": sign_yield,
    "sign_no_entry": sign_no_entry,
    "sign_parking": sign_parking,
    "sign_crossing": sign_crossing,
    "sign_one_way": sign_one_way,
    "sign_direction_green": partial(sign_direction, lines=("Center", "Harbor"), colour=GREEN),
    "sign_direction_blue": partial(sign_direction, lines=("North", "Airport"), colour=BLUE),
    **{f"sign_speed_us_{n}": partial(sign_speed_limit_us, limit=n) for n in (25, 35, 45, 55)},
    **{f"sign_speed_round_{n}": partial(sign_speed_limit_round, limit=n) for n in (30, 50, 70, 90)},
    **{f"sign_warning_{s}": partial(sign_warning, symbol=s) for s in ("curve", "crossing", "junction")},
    "wheel_alloy": partial(wheel, rim=(178, 180, 184), spokes=5),
    "wheel_sport": partial(wheel, rim=(120, 122, 128), spokes=10),
    "wheel_steel": partial(wheel, rim=(150, 150, 150), spokes=0, tyre_share=0.42),
    "wheel_motorcycle": partial(wheel, rim=(96, 98, 104), spokes=6, tyre_share=0.28),
    "license_plate": license_plate,
    "car_glass": car_glass,
    "car_paint": car_paint,
    "panels": panels,
    "destination": destination,
    "box_parcel": partial(advert, colour=(228, 226, 218), accent=(40, 84, 150), text="PARCEL"),
    "box_fresh": partial(advert, colour=(232, 232, 228), accent=(52, 128, 62), text="FRESH"),
    "box_movers": partial(advert, colour=(222, 176, 52), accent=(44, 42, 46), text="MOVERS"),
}
