"""Pictures for people: boxes and masks drawn on frames, legends, and sheets of many frames with captions.

All pictures are uint8 [H,W,3] RGB arrays; nothing is read or written here but `save_png`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from automoe.taxonomy import IGNORE_INDEX

Color = tuple[int, int, int]

_PAPER: Color = (250, 250, 250)
_INK: Color = (30, 30, 30)
_CROWD = 12  # with more boxes than this, the small ones are told by their colour alone


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None = None,
    *,
    classes: Sequence[str],
    colors: Sequence[Color],
    dashed: np.ndarray | None = None,
    font_size: int | None = None,
) -> np.ndarray:
    """Draws boxes in their class colour, with the class name (and score in percent) where there is room.

    Args:
        image: uint8 [H,W,3] RGB, left as it is.
        boxes: [N,4] pixel xyxy; labels: [N] index into `classes` and `colors`; scores: [N] in 0..1.
        dashed: bool [N], boxes drawn with broken lines (ignore regions, say).
        font_size: in pixels; by default it follows the image height.

    A name is put beside its box, at the first place where it covers neither another name nor another box. Where
    there is none, and for small boxes in a crowd, the colour alone tells the class.
    """
    height, width = image.shape[:2]
    font = font_of(font_size or max(11, round(height / 42)))
    thickness = max(1, round(height / 360))
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    order = range(len(boxes)) if scores is None else np.argsort(scores)
    for i in order:
        _outline(draw, boxes[i], colors[int(labels[i])], thickness, broken=dashed is not None and bool(dashed[i]))
    taken: list[tuple[float, ...]] = []
    # The largest and surest boxes choose first where their names go.
    weight = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) if len(boxes) else np.zeros(0)
    for i in np.argsort(-weight):
        name = classes[int(labels[i])] + (f" {100 * scores[i]:.0f}" if scores is not None else "")
        left, top, right, bottom = draw.textbbox((0, 0), name, font=font)
        text_size = right - left + 4, bottom - top + 4
        if len(boxes) > _CROWD and max(boxes[i, 2:] - boxes[i, :2]) < 0.6 * text_size[0]:
            continue
        others = np.delete(np.asarray(boxes, float), i, axis=0)
        place = _place(boxes[i], text_size, (width, height), taken, others, thickness)
        if place is None:
            continue
        x, y = place
        taken.append((x, y, x + text_size[0], y + text_size[1]))
        color = colors[int(labels[i])]
        draw.rectangle((x, y, x + text_size[0] - 1, y + text_size[1] - 1), fill=color)
        draw.text((x + 2 - left, y + 2 - top), name, fill=_readable_on(color), font=font)
    return np.asarray(picture)


def overlay_mask(
    image: np.ndarray,
    mask: np.ndarray,
    colors: Sequence[Color],
    alpha: float = 0.5,
    transparent: Sequence[int] = (),
) -> np.ndarray:
    """Tints each class of a mask uint8 [H,W]; ids in `transparent` and 255 stay as they are."""
    table = np.zeros((256, 3), np.float32)
    weight = np.zeros(256, np.float32)
    table[: len(colors)] = colors
    weight[: len(colors)] = alpha
    weight[[*transparent, IGNORE_INDEX]] = 0
    amount = weight[mask][..., None]
    return (image * (1 - amount) + table[mask] * amount).round().astype(np.uint8)


def legend(classes: Sequence[str], colors: Sequence[Color], width: int, font_size: int = 14) -> np.ndarray:
    """A strip `width` pixels wide with a coloured square and a name for each class, in as many lines as needed."""
    font = font_of(font_size)
    step = round(font_size * 1.7)
    x, y, places = step // 2, step // 4, []
    for name in classes:
        length = font.getlength(name) + font_size * 2.2
        if x + length > width and x > step // 2:
            x, y = step // 2, y + step
        places.append((x, y))
        x += length
    picture = Image.new("RGB", (width, y + step + step // 4), _PAPER)
    draw = ImageDraw.Draw(picture)
    for name, color, (left, top) in zip(classes, colors, places):
        middle = top + step / 2
        square = (left, middle - font_size / 2, left + font_size, middle + font_size / 2)
        draw.rectangle(square, fill=color, outline=_INK)
        draw.text((left + font_size * 1.4, middle), name, fill=_INK, font=font, anchor="lm")
    return np.asarray(picture)


def contact_sheet(
    images: Sequence[np.ndarray],
    columns: int = 4,
    captions: Sequence[str] = (),
    *,
    cell_width: int = 480,
    title: str = "",
) -> np.ndarray:
    """Lays pictures out in rows, each scaled to `cell_width`, with a caption below and a title above.

    Draw boxes on pictures that are already `cell_width` wide (`fit_width`): lines and names then stay sharp.
    """
    gap, font = 8, font_of(14)
    cells = [fit_width(image, cell_width) for image in images]
    columns = max(1, min(columns, len(cells)))
    caption_height = 24 if captions else 0
    head = 40 if title else 0
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.shape[0] for cell in row) + caption_height for row in rows]
    size = (columns * (cell_width + gap) + gap, head + sum(heights) + gap * (len(rows) + 1))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((gap, head / 2 + 4), title, fill=_INK, font=font_of(20), anchor="lm")
    y = head + gap
    for number, (row, row_height) in enumerate(zip(rows, heights)):
        for column, cell in enumerate(row):
            x = gap + column * (cell_width + gap)
            sheet.paste(Image.fromarray(cell), (x, y))
            index = number * columns + column
            if index < len(captions):
                text = shorten(captions[index], cell_width, font)
                draw.text((x + 2, y + cell.shape[0] + caption_height / 2), text, fill=_INK, font=font, anchor="lm")
        y += row_height + gap
    return np.asarray(sheet)


def stack_rows(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Puts pictures below one another, left-aligned on paper white."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=_PAPER[0]) for p in pictures]
    return np.concatenate(padded)


def name_picture(image: np.ndarray, name: str) -> np.ndarray:
    """A picture with its name in the upper left corner."""
    picture = Image.fromarray(image)
    font = font_of(max(11, round(image.shape[0] / 16)))
    ImageDraw.Draw(picture).text((6, 4), name, (255, 255, 255), font=font, stroke_width=2, stroke_fill=(0, 0, 0))
    return np.asarray(picture)


def fit_width(image: np.ndarray, width: int) -> np.ndarray:
    """Scales a picture to a width, keeping its aspect ratio."""
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    if image.shape[:2] == (height, width):
        return image
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def save_png(path: Path, image: np.ndarray) -> Path:
    """Writes a picture, making its folder; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def _outline(draw: ImageDraw.ImageDraw, box: np.ndarray, color: Color, thickness: int, broken: bool) -> None:
    x1, y1, x2, y2 = (float(v) for v in box)
    if not broken:
        draw.rectangle((x1, y1, x2, y2), outline=color, width=thickness)
        return
    dash = 4 * thickness + 2
    for (ax, ay), (bx, by) in [((x1, y1), (x2, y1)), ((x1, y2), (x2, y2)), ((x1, y1), (x1, y2)), ((x2, y1), (x2, y2))]:
        length = max(bx - ax, by - ay)
        for start in range(0, math.ceil(length), 2 * dash):
            end = min(start + dash, length)
            sx, sy = (1, 0) if by == ay else (0, 1)
            line = (ax + sx * start, ay + sy * start, ax + sx * end, ay + sy * end)
            draw.line(line, fill=color, width=thickness)


def _place(
    box: np.ndarray,
    text: tuple[float, float],
    picture: tuple[int, int],
    taken: list[tuple[float, ...]],
    others: np.ndarray,
    thickness: int,
) -> tuple[float, float] | None:
    """Where a name goes: above, below, or inside a box that is much larger; None if everything is occupied."""
    x1, y1, x2, y2 = (float(v) for v in box)
    width, height = text
    candidates = [(x1, y1 - height), (x2 - width, y1 - height), (x1, y2 + 1), (x2 - width, y2 + 1)]
    if x2 - x1 > 1.5 * width and y2 - y1 > 4 * height:
        candidates += [(x1 + thickness, y1 + thickness), (x1 + thickness, y2 - height - thickness)]
    for allowed in (0.0, 0.25):  # a name may touch another box a little before it is given up
        for x, y in candidates:
            spot = (x, y, x + width, y + height)
            if x < 0 or y < 0 or spot[2] > picture[0] or spot[3] > picture[1]:
                continue
            if any(_overlap(spot, other) > 0 for other in taken):
                continue
            if _crossed(spot, others) <= allowed * width * height:
                return x, y
    return None


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _crossed(spot: tuple[float, ...], boxes: np.ndarray) -> float:
    """The area of other boxes that a spot hides; one far larger than the spot loses nothing by it."""
    spot_area = (spot[2] - spot[0]) * (spot[3] - spot[1])
    hidden = 0.0
    for box in boxes:
        if (box[2] - box[0]) * (box[3] - box[1]) < 12 * spot_area:
            hidden += _overlap(spot, tuple(box))
    return hidden


def _readable_on(color: Color) -> Color:
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def shorten(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """A text that is no wider than so many pixels, with an ellipsis where it was cut."""
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip(" …") + "…"
    return text


@lru_cache(maxsize=16)
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The font of all pictures at a size in pixels."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow was built without FreeType
        raise RuntimeError("Pillow has no FreeType support; install the ordinary Pillow wheel")
    return font
