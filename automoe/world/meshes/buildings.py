"""Buildings."""

from __future__ import annotations

import numpy as np

from automoe.world.meshes.primitives import Builder, assemble, box
from automoe.world.parts import Asset, Material


def make_building(rng: np.random.Generator, width: float, depth: float, height: float) -> Asset:
    """A building; its front looks along +x, width lies along y, depth along x."""
    builder = Builder("building")
    builder.add(Material("plaster", (0.7, 0.65, 0.6, 1)), box((0, 0, height / 2), (depth, width, height)))
    return assemble("building", builder.parts())
