"""Passenger cars and pick-ups: one body in many proportions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from automoe.world.meshes.bodywork import (
    BRAKELIGHT,
    GLASS,
    HEADLIGHT,
    INDICATOR,
    TAILLIGHT,
    TRIM,
    UNDERBODY,
    Shell,
    arch_height,
    arch_stations,
    mirrors,
    paint,
    plate,
    wheel,
    wheel_material,
)
from automoe.world.meshes.primitives import Builder, assemble
from automoe.world.parts import Asset, Material


@dataclass(frozen=True)
class CarShape:
    """The proportions of a car, metres; x grows towards the nose."""

    length: float
    width: float
    height: float
    wheelbase: float
    front_overhang: float
    wheel_radius: float
    clearance: float
    nose: float
    """Height of the bonnet's front edge."""
    cowl: tuple[float, float]
    """Foot of the windscreen: x from the front axle, height."""
    roof: tuple[float, float]
    """The roof's front end from the front axle, its rear end from the rear axle (x grows forwards)."""
    deck: tuple[float, float]
    """Foot of the rear window: x from the tail, height."""
    tail: float
    """Height of the tail's upper edge."""
    belt: float
    """Height of the side windows' lower edge."""
    tumblehome: float = 0.24
    """How much narrower than the body the roof is, on each side."""
    cladding: bool = False
    """Black sills and bumpers."""
    bed: bool = False
    """A pick-up's loading bed behind the cabin, under a black cover."""


SHAPES: dict[str, CarShape] = {
    "sedan": CarShape(4.70, 1.82, 1.44, 2.75, 0.92, 0.33, 0.17, 0.77, (-0.30, 0.97), (-1.12, 0.10), (0.48, 1.04),
                      1.00, 0.92),
    "hatchback": CarShape(4.15, 1.77, 1.49, 2.56, 0.85, 0.32, 0.17, 0.80, (-0.22, 1.00), (-0.98, -0.22),
                          (0.10, 0.98), 0.92, 0.93),
    "suv": CarShape(4.62, 1.89, 1.72, 2.68, 0.90, 0.38, 0.24, 1.00, (-0.30, 1.16), (-0.98, -0.52), (0.10, 1.10),
                    1.04, 1.08, 0.20, True),
    "van": CarShape(5.05, 1.95, 1.95, 3.05, 0.90, 0.35, 0.20, 0.99, (0.08, 1.18), (-0.82, -0.78), (0.08, 1.12),
                    1.05, 1.10, 0.17),
    "pickup": CarShape(5.60, 1.98, 1.85, 3.60, 0.98, 0.41, 0.30, 1.10, (-0.40, 1.24), (-1.02, 1.38), (1.98, 1.16),
                       1.14, 1.16, 0.22, True, True),
}  # fmt: skip
CAR_SHARES = {"sedan": 0.36, "hatchback": 0.24, "suv": 0.28, "van": 0.12}

ROCKER, LOWER, UPPER, PANE, RAIL, ROOF = range(6)
"""The strips of a car's side, from the sill to the middle of the roof."""


def make_car(rng: np.random.Generator, variant: str | None = None) -> Asset:
    """A passenger car (category "car"), or the truck that is a "pickup"; without `variant`, drawn by its share."""
    variant = variant or str(rng.choice(list(CAR_SHARES), p=list(CAR_SHARES.values())))
    base = SHAPES[variant]
    stretch, lift, spread = (1 + rng.uniform(-0.03, 0.03, 3)).tolist()
    shape = replace(base, length=base.length * stretch, wheelbase=base.wheelbase * stretch,
                    height=base.height * lift, width=base.width * (0.5 + 0.5 * spread))  # fmt: skip
    category = "truck" if shape.bed else "car"
    builder = Builder(category)
    _Car(builder, shape, paint(rng), bool(rng.random() < 0.25)).build()
    rims = wheel_material(rng)
    front = shape.length / 2 - shape.front_overhang
    for x in (front, front - shape.wheelbase):
        for side in (1, -1):
            wheel(builder, rims, x, side * (shape.width / 2 - 0.125), shape.wheel_radius, 0.21, side)
    return assemble(variant, builder.parts(), category, attributes={"variant": variant})


class _Car:
    """The body of one car: where its edges are, and what each piece of its skin is made of."""

    def __init__(self, builder: Builder, shape: CarShape, colour: Material, closed_grille: bool) -> None:
        self.builder, self.shape, self.colour, self.closed_grille = builder, shape, colour, closed_grille
        self.nose, self.tail = shape.length / 2, -shape.length / 2
        self.front = self.nose - shape.front_overhang
        self.rear = self.front - shape.wheelbase
        self.cowl, self.screen = self.front + shape.cowl[0], self.front + shape.roof[0]
        self.roof_end, self.deck = self.rear + shape.roof[1], self.tail + shape.deck[0]
        self.pillar = self.rear + 0.45 * shape.wheelbase
        self.arch = 1.2 * shape.wheel_radius
        self.lamp = 0.20

    def build(self) -> None:
        c = self.shape
        shell = Shell(self.builder, self.section, self.material, (self.rear, self.front), c.height, (c.belt, c.height))
        ends = [self.tail, self.tail + self.lamp, self.nose - self.lamp, self.nose]
        cabin = [self.deck, self.roof_end, self.pillar - 0.045, self.pillar + 0.045, self.screen, self.cowl]
        arches = arch_stations(self.rear, self.arch) + arch_stations(self.front, self.arch)
        shell.skin([*ends, *cabin, *arches])
        shell.cap(self.nose, (-1, -0.60, -0.50, 0.50, 0.60, 1), self.nose_material)
        shell.cap(self.tail, (-1, -0.66, -0.50, 0.50, 0.66, 1), self.tail_material)
        plate(self.builder, self.nose + 0.012, c.clearance + 0.62 * (c.nose - 0.16 - c.clearance) * 0.6)
        plate(self.builder, self.tail - 0.012, 0.52 * (c.clearance + c.tail) - (0.1 if c.bed else 0.0))
        mirrors(self.builder, TRIM if c.cladding else self.colour, self.cowl - 0.42, c.width / 2 + 0.06, c.belt + 0.09,
                (0.13, 0.20, 0.15))  # fmt: skip

    def section(self, x: float) -> list[tuple[float, float]]:
        """Half a section at x, from the sill to the middle of the roof."""
        c = self.shape
        squeeze = float(np.interp(x, [self.tail, self.tail + self.lamp, self.tail + 0.7, self.nose - 0.8,
                                      self.nose - self.lamp, self.nose], [0.84, 0.965, 1, 1, 0.94, 0.76]))  # fmt: skip
        w = squeeze * c.width / 2
        keys = [
            self.tail,
            self.deck,
            self.roof_end,
            self.screen,
            self.cowl,
            self.front,
            self.nose - self.lamp,
            self.nose,
        ]
        bonnet = 0.38 * c.nose + 0.62 * c.cowl[1] + 0.035
        sag = 0.02 + 0.04 * (c.height - 1.4)
        crest = np.interp(
            x, keys, [c.tail, c.deck[1], c.height - sag, c.height, c.cowl[1], bonnet, c.nose, c.nose - 0.07]
        )
        cabin = np.interp(x, keys, [0, 0, 1, 1, 0, 0, 0, 0])
        belt = min(c.belt, float(crest) - 0.035)
        lift = float(np.interp(x, [self.tail, self.tail + 0.5, self.nose - 0.4, self.nose], [0.12, 0, 0, 0.05]))
        sill = arch_height(x, (self.rear, self.front), self.arch, c.wheel_radius, c.clearance + lift)
        low = max(c.clearance + lift + 0.13, sill + 0.02)
        middle = min(max(c.clearance + 0.58 * (belt - c.clearance), low + 0.04), belt - 0.05)
        roof = c.width / 2 - c.tumblehome
        rail = (roof + 0.05) * cabin + 0.93 * w * (1 - cabin), crest - 0.03 + cabin * -0.07
        edge = (roof - 0.05) * cabin + 0.82 * w * (1 - cabin), crest - 0.008 + cabin * -0.012
        return [(0.94 * w, sill), (0.99 * w, low), (w, middle), (0.965 * w, belt), rail, edge, (0.0, crest + 0.015)]

    def material(self, x: float, strip: int) -> Material:
        c = self.shape
        if strip == -1:
            return UNDERBODY
        if strip == UPPER and x > self.nose - self.lamp:
            return HEADLIGHT
        if strip == UPPER and x < self.tail + self.lamp:
            return TAILLIGHT
        if strip == PANE and self.roof_end < x < self.cowl:
            return TRIM if abs(x - self.pillar) < 0.045 else GLASS
        if strip == ROOF and (self.deck < x < self.roof_end or self.screen < x < self.cowl):
            return GLASS
        if strip in (ROOF, RAIL) and c.bed and self.tail + self.lamp < x < self.deck:
            return TRIM
        if strip == ROCKER and (c.cladding or x > self.nose - self.lamp):
            return TRIM
        return self.colour

    def nose_material(self, strip: int, column: int) -> Material:
        outer, inner = column in (0, 4), column in (1, 3)
        if strip == UPPER:
            return HEADLIGHT if outer else self.colour if self.closed_grille or inner else TRIM
        if strip == LOWER:
            return INDICATOR if inner else self.colour if outer else TRIM
        return TRIM if strip == ROCKER else self.colour

    def tail_material(self, strip: int, column: int) -> Material:
        if strip == UPPER and column in (0, 4):
            return BRAKELIGHT
        if strip == UPPER and column in (1, 3) and not self.shape.bed:
            return INDICATOR
        return TRIM if strip == ROCKER else self.colour


def make_pickup(rng: np.random.Generator) -> Asset:
    """A pick-up, which BDD100K counts among the trucks."""
    return make_car(rng, "pickup")
