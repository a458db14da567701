"""Pedestrians, and the riders of two-wheelers."""

from __future__ import annotations

import numpy as np

from automoe.world.meshes.primitives import Builder, assemble, box
from automoe.world.parts import Asset, Material


def make_person(rng: np.random.Generator, pose_phase: float = 0.0) -> Asset:
    """A pedestrian."""
    builder = Builder("person")
    builder.add(Material("cloth_navy", (0.1, 0.1, 0.3, 1)), box((0, 0, 0.85), (0.4, 0.5, 1.7)))
    return assemble("person", builder.parts(), "pedestrian")
