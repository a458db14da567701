"""Motorcycles and bicycles with their riders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from automoe.world.meshes.primitives import Builder, assemble, box
from automoe.world.parts import Asset, Material


def make_two_wheeler(kind: str, rng: np.random.Generator) -> Asset:
    """A motorcycle or bicycle with its rider."""
    builder = Builder(kind)
    builder.add(Material("trim", (0.1, 0.1, 0.1, 1)), box((0, 0, 0.5), (1.8, 0.3, 1.0)))
    rider = Builder("rider")
    rider.add(Material("cloth_navy", (0.1, 0.1, 0.3, 1)), box((0, 0, 1.2), (0.6, 0.45, 1.0)))
    asset = assemble(kind, builder.parts(), kind)
    return replace(asset, rider=assemble("rider", rider.parts(), "rider", centred=False))
