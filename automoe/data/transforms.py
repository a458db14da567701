"""From a raw frame to the network's input: one affine moves the image, its boxes and its mask together.

Coordinates are continuous pixel edges: pixel i covers [i, i + 1), a box (0, 0, w, h) is the whole image, and
the matrix [2,3] maps raw (x, y, 1) to network (x, y). It is axis-aligned: scale, shift, mirror. Only where
OpenCV wants pixel centres is the half pixel added, in `warp_image`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from automoe.errors import ConfigError
from automoe.taxonomy import IGNORE_INDEX

PADDING_GREY = 114
"""Value of pixels beyond the raw image's edge, near the mean of a road scene."""

_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB_OF_YIQ = np.linalg.inv(_YIQ)


@dataclass(frozen=True)
class ColorConfig:
    """How far the colours of training pictures are varied.

    Attributes:
        brightness, contrast, saturation, gamma: greatest relative change; hue: greatest turn in degrees.
        blur: probability of a slight blur.
    """

    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.3
    hue: float = 8.0
    gamma: float = 0.2
    blur: float = 0.1

    def __post_init__(self) -> None:
        self._check_shares("brightness contrast saturation gamma blur")

    def _check_shares(self, names: str) -> None:
        for name in names.split():
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} must lie between 0 and 1, not {getattr(self, name)}")

    def recolor(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A picture, uint8 [H, W, 3] RGB, in other colours."""
        brightness, contrast, saturation, gamma = (
            1 + rng.uniform(-1, 1) * strength
            for strength in (self.brightness, self.contrast, self.saturation, self.gamma)
        )
        turn = math.radians(rng.uniform(-1, 1) * self.hue)
        blurred, sigma = rng.uniform() < self.blur, rng.uniform(0.4, 1.2)
        # One 3x4 matrix for saturation, hue, contrast and brightness, then one table for gamma: two cheap
        # passes.
        colors = np.empty((3, 4))
        colors[:, :3] = brightness * contrast * _color_matrix(saturation, turn)
        colors[:, 3] = brightness * (1 - contrast) * 128
        image = cv2.transform(image, colors)
        table = 255 * (np.arange(256) / 255) ** gamma
        image = cv2.LUT(image, table.round().astype(np.uint8))
        return cv2.GaussianBlur(image, (5, 5), sigma) if blurred else image


@dataclass(frozen=True)
class AugmentConfig(ColorConfig):
    """How far training pictures are varied: their colours, and what follows.

    Attributes:
        scale: range of the zoom, 1 = the whole image just fits the network's input; log-uniform.
        stretch: greatest relative change of the aspect ratio.
        flip: probability of a mirror image.
        min_visible: a box of which the crop leaves a smaller share of its area becomes ignored.
        min_pixels: a box smaller than this (root of its area, network pixels) becomes ignored.
    """

    scale: tuple[float, float] = (0.8, 1.6)
    stretch: float = 0.1
    flip: float = 0.5
    min_visible: float = 0.25
    min_pixels: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.scale
        if not 0 < low <= high:
            raise ConfigError(f"augment.scale must be two rising positive numbers, not {self.scale}")
        self._check_shares("stretch flip min_visible")


class Transform(Protocol):
    """What a data set asks of a transform."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network input."""
        ...

    @property
    def min_visible(self) -> float:
        """A box of which a smaller share of its area is left becomes ignored."""
        ...

    @property
    def min_pixels(self) -> float:
        """A box smaller than this (root of its area, network pixels) becomes ignored."""
        ...

    def matrix(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """Affine [2,3] float64, raw to network pixels, for a raw image of that size."""
        ...

    def recolor(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Changes the colours of the network image, uint8 [H,W,3] RGB."""
        ...


@dataclass(frozen=True)
class EvalTransform:
    """The whole image at network size, centred on grey where the aspect ratio differs. No box is ignored."""

    size: tuple[int, int]
    min_visible: float = field(default=0.0, init=False)
    min_pixels: float = field(default=0.0, init=False)

    def matrix(self, height: int, width: int, rng: np.random.Generator | None = None) -> np.ndarray:
        scale = fit_scale(height, width, self.size)
        # Whole pixels of padding, so that an image of exactly twice the size falls on the network's grid.
        shift_x, shift_y = (self.size[1] - scale * width) // 2, (self.size[0] - scale * height) // 2
        return np.array([[scale, 0, shift_x], [0, scale, shift_y]])

    def recolor(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        return image


@dataclass(frozen=True)
class TrainTransform:
    """Random zoom, crop, mirror and colours, all drawn from the generator given.

    size: height and width of what comes out. full: the size that zoom 1 fits the whole image into; `size` if not
    given. A `size` smaller than `full` cuts out a piece at the scale that the network will see in use.
    """

    size: tuple[int, int]
    augment: AugmentConfig = AugmentConfig()
    full: tuple[int, int] | None = None

    @property
    def min_visible(self) -> float:
        return self.augment.min_visible

    @property
    def min_pixels(self) -> float:
        return self.augment.min_pixels

    def matrix(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        config = self.augment
        zoom = math.exp(rng.uniform(*np.log(config.scale)))
        stretch = math.exp(rng.uniform(-1, 1) * math.log1p(config.stretch) / 2)
        scale = zoom * fit_scale(height, width, self.full or self.size)
        scale_x, scale_y = scale * stretch, scale / stretch
        # The free space is negative where the picture is larger than the network input: then it is cropped.
        shift_x = rng.uniform() * (self.size[1] - scale_x * width)
        shift_y = rng.uniform() * (self.size[0] - scale_y * height)
        matrix = np.array([[scale_x, 0, shift_x], [0, scale_y, shift_y]])
        return mirror(matrix, self.size[1]) if rng.uniform() < config.flip else matrix

    def recolor(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.augment.recolor(image, rng)


class MovedBoxes(NamedTuple):
    """Boxes in the network input. `kept` bool [N] says which of the given ones are left; the rest has K rows.

    Attributes:
        boxes: float32 [K,4], normalised cxcywh, clipped to the network input.
        too_little: bool [K], to be ignored: less than `min_visible` of it is left, or it is under
            `min_pixels`.
    """

    boxes: np.ndarray
    too_little: np.ndarray
    kept: np.ndarray


def fit_scale(height: int, width: int, size: tuple[int, int]) -> float:
    """The scale at which a raw image just fits into the network's (height, width)."""
    return min(size[0] / height, size[1] / width)


def mirror(matrix: np.ndarray, width: int) -> np.ndarray:
    """The affine followed by a left-right mirror of a picture `width` pixels wide."""
    flipped = matrix.copy()
    flipped[0] = -matrix[0]
    flipped[0, 2] += width
    return flipped


def warp_image(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Moves uint8 [h,w,3] by the affine into [H,W,3], bilinear; grey beyond the raw image."""
    centres = matrix.copy()
    centres[:, 2] += matrix[:, :2].sum(axis=1) * 0.5 - 0.5
    moved = cv2.warpAffine(image, centres, (size[1], size[0]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    rows, columns = _sources(matrix, size)
    moved[(rows < 0) | (rows >= image.shape[0])] = PADDING_GREY
    moved[:, (columns < 0) | (columns >= image.shape[1])] = PADDING_GREY
    return moved


def warp_mask(mask: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Moves class ids uint8 [h,w] into [H,W]: the id under each pixel's centre, 255 beyond the image."""
    rows, columns = _sources(matrix, size)
    outside_y, outside_x = (rows < 0) | (rows >= mask.shape[0]), (columns < 0) | (columns >= mask.shape[1])
    moved = mask.take(np.where(outside_y, 0, rows), axis=0).take(np.where(outside_x, 0, columns), axis=1)
    moved[outside_y] = IGNORE_INDEX
    moved[:, outside_x] = IGNORE_INDEX
    return moved


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Moves pixel xyxy boxes [N,4] by the affine; not clipped."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def move_boxes(boxes: np.ndarray, matrix: np.ndarray, transform: Transform) -> MovedBoxes:
    """Moves raw pixel xyxy boxes [N,4] into the network input and says which are left and which to ignore.

    A box wholly outside vanishes. One that the crop leaves less than `transform.min_visible` of, or that is
    smaller than `transform.min_pixels`, stays as a region to be ignored: it is neither an object to learn nor
    background.
    """
    height, width = transform.size
    moved = warp_boxes(boxes, matrix)
    clipped = moved.clip(0, [width, height, width, height])
    sides, clipped_sides = moved[:, 2:] - moved[:, :2], clipped[:, 2:] - clipped[:, :2]
    # A box without width inside the picture is all there; one that touches the edge from outside isn't.
    inside: np.ndarray = np.logical_and(moved[:, :2] < (width, height), moved[:, 2:] > 0)
    visible = np.where(sides > 0, clipped_sides / np.where(sides > 0, sides, 1), inside).prod(axis=1)
    kept: np.ndarray = np.all(inside, axis=1)
    too_little = (visible < transform.min_visible) | (np.sqrt(clipped_sides.prod(axis=1)) < transform.min_pixels)
    normalised = np.concatenate([(clipped[:, :2] + clipped[:, 2:]) / 2, clipped_sides], axis=1)
    normalised /= (width, height, width, height)
    return MovedBoxes(normalised[kept].astype(np.float32), too_little[kept], kept)


def _sources(matrix: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """For each network row and column the raw one under its centre (may lie outside the raw image)."""
    columns = (np.arange(size[1]) + 0.5 - matrix[0, 2]) / matrix[0, 0]
    rows = (np.arange(size[0]) + 0.5 - matrix[1, 2]) / matrix[1, 1]
    return np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)


def _color_matrix(saturation: float, turn: float) -> np.ndarray:
    """RGB to RGB [3,3]: scales the chroma and turns the hue by `turn` radians, keeping the luma."""
    cosine, sine = saturation * math.cos(turn), saturation * math.sin(turn)
    chroma = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    return _RGB_OF_YIQ @ chroma @ _YIQ
