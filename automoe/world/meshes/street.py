"""Street furniture."""

from __future__ import annotations

import numpy as np

from automoe.world.meshes.primitives import Builder, assemble, box
from automoe.world.parts import Asset, Material


def make_signal_head(rng: np.random.Generator, kind: str = "vehicle") -> Asset:
    """A signal head; the lenses look along +x, the origin is under its housing."""
    builder = Builder("traffic light")
    builder.add(Material("signal_housing", (0.05, 0.05, 0.05, 1)), box((0, 0, 0.45), (0.2, 0.35, 0.9)))
    for i, lens in enumerate(("lens_green", "lens_yellow", "lens_red")):
        builder.add(Material(lens, (0.2, 0.2, 0.2, 1)), box((0.1, 0, 0.15 + 0.3 * i), (0.04, 0.2, 0.2)))
    return assemble("signal_head", builder.parts(), "traffic light", centred=False)


def make_traffic_sign(rng: np.random.Generator, kind: str) -> Asset:
    """A traffic sign on its pole, looking along +x."""
    builder = Builder("traffic sign")
    builder.add(Material("sign_white", (0.9, 0.9, 0.9, 1)), box((0.04, 0, 2.4), (0.02, 0.7, 0.7)))
    builder.add(Material("steel", (0.5, 0.5, 0.5, 1)), box((0, 0, 1.3), (0.06, 0.06, 2.6)), label="pole")
    return assemble(f"sign_{kind}", builder.parts(), "traffic sign", centred=False)


def make_signal_mast(rng: np.random.Generator, arm_length: float, height: float) -> Asset:
    """A mast at the origin with an arm along +y at `height`."""
    builder = Builder("pole")
    steel = Material("steel", (0.5, 0.5, 0.5, 1))
    builder.add(steel, box((0, 0, height / 2), (0.2, 0.2, height)))
    builder.add(steel, box((0, arm_length / 2, height), (0.12, arm_length, 0.12)))
    return assemble("signal_mast", builder.parts(), centred=False)


def make_street_lamp(rng: np.random.Generator, arm: float = 1.5) -> Asset:
    """A lamp post at the origin with its arm along +y; the luminaire's material is `lamp`."""
    builder = Builder("pole")
    steel = Material("steel", (0.5, 0.5, 0.5, 1))
    builder.add(steel, box((0, 0, 4), (0.16, 0.16, 8)), box((0, arm / 2, 8), (0.1, arm, 0.1)))
    builder.add(Material("lamp", (0.9, 0.9, 0.8, 1)), box((0, arm, 7.9), (0.3, 0.6, 0.1)))
    return assemble("street_lamp", builder.parts(), centred=False)


def make_pole(rng: np.random.Generator, height: float) -> Asset:
    """A plain pole."""
    builder = Builder("pole")
    builder.add(Material("steel", (0.5, 0.5, 0.5, 1)), box((0, 0, height / 2), (0.2, 0.2, height)))
    return assemble("pole", builder.parts(), centred=False)


def make_fence(rng: np.random.Generator, length: float) -> Asset:
    """A fence along x."""
    builder = Builder("fence")
    builder.add(Material("steel", (0.5, 0.5, 0.5, 1)), box((0, 0, 0.6), (length, 0.06, 1.2)))
    return assemble("fence", builder.parts())


def make_wall(rng: np.random.Generator, length: float) -> Asset:
    """A wall along x."""
    builder = Builder("wall")
    builder.add(Material("concrete", (0.6, 0.6, 0.6, 1)), box((0, 0, 0.9), (length, 0.3, 1.8)))
    return assemble("wall", builder.parts())


def make_bus_stop(rng: np.random.Generator) -> Asset:
    """A bus shelter, open towards +x."""
    builder = Builder("building")
    builder.add(Material("steel", (0.5, 0.5, 0.5, 1)), box((0, 0, 1.2), (1.5, 4, 2.4)))
    return assemble("bus_stop", builder.parts())
