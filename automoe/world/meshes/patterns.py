"""Tileable noise and masonry, the raw material of the procedural textures."""

from __future__ import annotations

import numpy as np


def cloud(rng: np.random.Generator, size: int, slope: float) -> np.ndarray:
    """Noise [size, size] with mean 0, deviation 1 and amplitude falling as 1 / frequency**slope; it tiles."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]) * size
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.normal(size=(size, size))) / frequency**slope
    noise = np.fft.ifft2(spectrum).real
    return noise / noise.std()


def grain(rng: np.random.Generator, size: int, deviation: float) -> np.ndarray:
    """White noise [size, size]."""
    return rng.normal(0.0, deviation, (size, size))


def colourise(shade: np.ndarray, tint: tuple[float, float, float]) -> np.ndarray:
    """A grey picture [S, S] as RGB [S, S, 3], each channel scaled by `tint`."""
    return shade[..., None] * np.asarray(tint)


def brickwork(rng: np.random.Generator, size: int, across: int, courses: int, colour: tuple[float, ...],
              mortar: float) -> np.ndarray:  # fmt: skip
    """A float picture [size, size, 3] of bricks with their own tones."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float64) / size
    row = np.floor(y * courses).astype(np.int64)
    along = x * across + 0.5 * (row % 2)
    tone = rng.normal(1.0, 0.09, (courses, across))[row % courses, np.floor(along).astype(np.int64) % across]
    joint = ((along % 1.0) < 0.06) | (((y * courses) % 1.0) < 0.13)
    shade = tone * (1 + 0.03 * cloud(rng, size, 1.2)) + grain(rng, size, 0.03)
    image = shade[..., None] * np.array(colour)
    image[joint] = mortar
    return image


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round a float picture into uint8."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
