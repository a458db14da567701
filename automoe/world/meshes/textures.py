"""Procedural, tileable textures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def _plain(colour: tuple[int, int, int]) -> Callable[[np.random.Generator], np.ndarray]:
    def draw(rng: np.random.Generator) -> np.ndarray:
        noise = rng.normal(0, 6, (128, 128, 1))
        return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)

    return draw


TEXTURES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "asphalt": _plain((70, 70, 72)),
    "sidewalk": _plain((165, 162, 155)),
    "concrete": _plain((150, 150, 148)),
    "grass": _plain((80, 115, 50)),
    "soil": _plain((110, 90, 65)),
}
