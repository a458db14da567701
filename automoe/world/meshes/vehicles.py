"""Cars, trucks, buses, two-wheelers and trams."""

from __future__ import annotations

import numpy as np

from automoe.world.meshes.primitives import Builder, assemble, box
from automoe.world.parts import Asset, Material

_SIZES = {"car": (4.6, 1.8, 1.5), "truck": (8.0, 2.5, 3.2), "bus": (12.0, 2.55, 3.1)}


def make_vehicle(kind: str, rng: np.random.Generator) -> Asset:
    """A car, truck or bus."""
    length, width, height = _SIZES[kind]
    builder = Builder(kind)
    builder.add(Material("paint_red", (0.6, 0.1, 0.1, 1)), box((0, 0, height / 2), (length, width, height)))
    for name, x in (("headlight", 1), ("taillight", -1), ("brakelight", -1), ("indicator", -1)):
        builder.add(
            Material(name, (0.8, 0.3, 0.2, 1)), box((x * length / 2, 0, 0.7), (0.05, width * 0.8, 0.2))
        )
    return assemble(f"{kind}", builder.parts(), kind)


def make_two_wheeler(kind: str, rng: np.random.Generator) -> Asset:
    """A motorcycle or bicycle with its rider."""
    from dataclasses import replace

    builder = Builder(kind)
    builder.add(Material("trim", (0.1, 0.1, 0.1, 1)), box((0, 0, 0.5), (1.8, 0.3, 1.0)))
    rider = Builder("rider")
    rider.add(Material("cloth_navy", (0.1, 0.1, 0.3, 1)), box((0, 0, 1.2), (0.6, 0.45, 1.0)))
    asset = assemble(kind, builder.parts(), kind)
    return replace(asset, rider=assemble("rider", rider.parts(), "rider", centred=False))


def make_train(rng: np.random.Generator) -> Asset:
    """A tram."""
    builder = Builder("train")
    builder.add(Material("paint_red", (0.6, 0.1, 0.1, 1)), box((0, 0, 1.75), (25, 2.6, 3.5)))
    return assemble("train", builder.parts(), "train")
