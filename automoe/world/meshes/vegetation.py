"""Trees, bushes and hedges."""

from __future__ import annotations

import numpy as np

from automoe.world.meshes.primitives import Builder, assemble, box
from automoe.world.parts import Asset, Material


def make_tree(rng: np.random.Generator) -> Asset:
    """A tree."""
    builder = Builder("vegetation")
    builder.add(Material("vegetation_plain", (0.4, 0.45, 0.4, 1)), box((0, 0, 6 / 2), (3, 3) + (6,)))
    return assemble("tree", builder.parts())


def make_bush(rng: np.random.Generator) -> Asset:
    """A bush."""
    builder = Builder("vegetation")
    builder.add(Material("vegetation_plain", (0.4, 0.45, 0.4, 1)), box((0, 0, 1 / 2), (1.2, 1.2) + (1,)))
    return assemble("bush", builder.parts())


def make_hedge(rng: np.random.Generator, length: float) -> Asset:
    """A hedge along x."""
    builder = Builder("vegetation")
    builder.add(Material("vegetation_plain", (0.2, 0.4, 0.2, 1)), box((0, 0, 0.6), (length, 0.8, 1.2)))
    return assemble("hedge", builder.parts())
