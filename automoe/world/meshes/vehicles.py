"""Road vehicles by their BDD100K category, and the big ones: lorries and buses.

Lamp materials have fixed names, so that a renderer can make them glow: "headlight", "taillight", "brakelight",
"indicator".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from automoe.world.meshes.bodywork import (
    BRAKELIGHT,
    CHROME,
    DESTINATION,
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
from automoe.world.meshes.cars import make_car, make_pickup
from automoe.world.meshes.primitives import Builder, assemble, box, quads, tube
from automoe.world.parts import Asset, Material

SKIRT, SIDE, LOW, WINDOW, EAVES, TOP = range(6)
"""The strips of a big vehicle's side, from the skirt to the middle of the roof."""

FLEET_PAINTS = {
    "city": ("white", "red", "blue", "green", "orange"),
    "coach": ("white", "silver", "navy", "maroon", "black"),
    "cab": ("white", "white", "red", "blue", "yellow", "green", "silver"),
}
SCHOOL = Material("panels_school", (0.93, 0.62, 0.06, 1.0), "panels", specular=0.4, shininess=0.5)


def make_vehicle(kind: str, rng: np.random.Generator) -> Asset:
    """A road vehicle of a BDD100K category: "car", "truck" or "bus"; the variant, size and colours are drawn.

    `attributes["variant"]` says what it became: sedan, hatchback, suv, van; box, tanker, flatbed, pickup; city,
    school, coach. Raises KeyError for another kind.
    """
    return _MAKERS[kind](rng)


def _truck(rng: np.random.Generator) -> Asset:
    return _draw(rng, {make_pickup: 0.3, make_box_truck: 0.4, make_tanker: 0.12, make_flatbed: 0.18})


def _bus(rng: np.random.Generator) -> Asset:
    return _draw(rng, {partial(make_bus, variant=v): p for v, p in (("city", 0.55), ("school", 0.2), ("coach", 0.25))})


def _draw(rng: np.random.Generator, makers: dict[Callable[[np.random.Generator], Asset], float]) -> Asset:
    choice = int(rng.choice(len(makers), p=list(makers.values())))
    return list(makers)[choice](rng)


_MAKERS: dict[str, Callable[[np.random.Generator], Asset]] = {"car": make_car, "truck": _truck, "bus": _bus}


def _axle(builder: Builder, rims: Material, x: float, half_width: float, radius: float, width: float = 0.3) -> None:
    for side in (1, -1):
        wheel(builder, rims, x, side * (half_width - width / 2), radius, width, side, sides=9)


# --- buses ---------------------------------------------------------------------------------------------------------


def make_bus(rng: np.random.Generator, variant: str) -> Asset:
    """A "city", "school" or "coach" bus."""
    length = {"city": 12.0, "school": 10.4, "coach": 13.2}[variant] * rng.uniform(0.94, 1.04)
    height = {"city": 3.05, "school": 3.0, "coach": 3.55}[variant]
    body = SCHOOL if variant == "school" else paint(rng, "panels", FLEET_PAINTS[variant])
    builder = Builder("bus")
    _Bus(builder, variant, length, 2.55, height, body).build()
    rims = wheel_material(rng, ("wheel_steel",))
    _axle(builder, rims, length / 2 - 2.7, 1.25, 0.49)
    _axle(builder, rims, -length / 2 + 3.2, 1.25, 0.49)
    return assemble(f"bus_{variant}", builder.parts(), "bus", attributes={"variant": variant})


class _Bus:
    """The body of one bus; the doors are on its right side."""

    def __init__(
        self, builder: Builder, variant: str, length: float, width: float, height: float, body: Material
    ) -> None:
        self.builder, self.variant, self.body = builder, variant, body
        self.nose, self.tail, self.half, self.height = length / 2, -length / 2, width / 2, height
        self.axles = (self.tail + 3.2, self.nose - 2.7)
        self.window = {"city": (1.15, 2.45), "school": (1.55, 2.35), "coach": (1.75, 2.95)}[variant]
        self.arch = 0.60
        first, last = self.tail + 0.35, self.nose - 0.75
        count = {"city": 6, "school": 5, "coach": 7}[variant]
        self.pillars = np.linspace(first, last, count + 1)

    def build(self) -> None:
        low, high = self.window
        shell = Shell(self.builder, self.section, self.material, self.axles, self.height, (low, high))
        edges = [x + d for x in self.pillars for d in ((-0.10, 0.10) if self.variant == "school" else (0.0,))]
        arches = [x for axle in self.axles for x in arch_stations(axle, self.arch)]
        shell.skin([self.tail, self.nose, self.nose - 0.3, *edges, *arches], closer=0.2)
        shell.cap(self.nose, (-1, -0.72, -0.6, 0.6, 0.72, 1), self.nose_material)
        shell.cap(self.tail, (-1, -0.8, -0.66, 0.66, 0.8, 1), self.tail_material)
        plate(self.builder, self.nose + 0.015, 0.55)
        plate(self.builder, self.tail - 0.015, 0.75)
        mirrors(self.builder, TRIM, self.nose - 0.1, self.half + 0.14, 2.05, (0.16, 0.2, 0.42))
        self.doors()

    def doors(self) -> None:
        """Glazed double doors, a little proud of the right side."""
        y = -self.half - 0.015
        for x in (
            (self.nose - 1.35,) if self.variant != "city" else (self.nose - 1.35, (self.axles[0] + self.axles[1]) / 2)
        ):
            for left, right in ((-0.58, -0.03), (0.03, 0.58)):
                a, b, low, high = x + left, x + right, 0.36, min(self.window[1] - 0.05, 2.5)
                corners = np.array([[[a, y, low], [b, y, low], [b, y, high], [a, y, high]]])
                self.builder.add(
                    GLASS, quads(corners, np.array([[[a / 4, 0.95], [b / 4, 0.95], [b / 4, 0.3], [a / 4, 0.3]]]))
                )
            frame = np.array([[[x - 0.64, y + 0.01, 0.33], [x + 0.64, y + 0.01, 0.33], [x + 0.64, y + 0.01, 2.5],
                               [x - 0.64, y + 0.01, 2.5]]])  # fmt: skip
            self.builder.add(TRIM, quads(frame))

    def section(self, x: float) -> list[tuple[float, ...]]:
        squeeze = float(np.interp(x, [self.tail, self.tail + 0.3, self.nose - 0.3, self.nose], [0.965, 1, 1, 0.95]))
        w, h = squeeze * self.half, self.height
        sill = arch_height(x, self.axles, self.arch, 0.49, 0.32)
        low, high = self.window
        skirt = max(0.42, sill + 0.02)
        side = max(0.80, skirt + 0.02)
        slope = float(np.interp(x, [self.nose - 0.3, self.nose], [0.0, 1.0]))
        crest = h - 0.12 * slope - float(np.interp(x, [self.tail, self.tail + 0.3], [0.08, 0.0]))
        lean = [-0.02, 0.0, 0.0, -0.03, -0.10, -0.24, -0.28] if self.variant != "school" else [0.0] * 7
        points = [
            (0.97 * w, sill),
            (w, skirt),
            (w, side),
            (w, low),
            (0.985 * w, high),
            (0.9 * w, crest - 0.1),
            (0, crest),
        ]
        return [(dx * slope, y, z) for dx, (y, z) in zip(lean, points)]

    def material(self, x: float, strip: int) -> Material:
        if strip == -1:
            return UNDERBODY
        if strip == WINDOW and self.pillars[0] < x < self.nose - 0.02:
            gap = np.abs(self.pillars - x).min() < 0.11
            return self.body if self.variant == "school" and gap else GLASS
        if strip == SKIRT:
            return TRIM
        return self.body

    def nose_material(self, strip: int, column: int) -> Material:
        if strip == WINDOW:
            return GLASS
        if strip == EAVES:
            return DESTINATION if column == 2 and self.variant != "school" else TRIM
        if strip == SIDE:
            return {0: HEADLIGHT, 1: INDICATOR, 3: INDICATOR, 4: HEADLIGHT}.get(column, self.body)
        return TRIM if strip == SKIRT else self.body

    def tail_material(self, strip: int, column: int) -> Material:
        if strip == WINDOW:
            return GLASS if column in (1, 2, 3) else self.body
        if strip == LOW:
            return {0: TAILLIGHT, 4: TAILLIGHT}.get(column, self.body)
        if strip == SIDE:
            return {0: BRAKELIGHT, 1: INDICATOR, 3: INDICATOR, 4: BRAKELIGHT}.get(column, self.body)
        return TRIM if strip == SKIRT else self.body


# --- lorries -------------------------------------------------------------------------------------------------------

CAB_LENGTH, CAB_HEIGHT = 2.0, 2.75


def _lorry(rng: np.random.Generator, length: float, width: float) -> tuple[Builder, float]:
    """A cab-over lorry without its load: cab, frame, wheels, lamps. Returns it and the x where the load starts."""
    builder = Builder("truck")
    nose, tail, half = length / 2, -length / 2, width / 2
    body = paint(rng, "panels", FLEET_PAINTS["cab"])
    axles = (tail + 0.22 * length, nose - 1.15)
    _cab(builder, nose, half, axles, body)
    builder.add(UNDERBODY, box(((nose - 0.5 + tail) / 2, 0, 0.78), (length - 0.5, 0.9, 0.3)))
    rims = wheel_material(rng, ("wheel_steel",))
    _axle(builder, rims, axles[1], half - 0.03, 0.48)
    rears = (axles[0], axles[0] + 1.1) if length > 8.5 else (axles[0],)
    for x in rears:
        _axle(builder, rims, x, half - 0.03, 0.48, 0.45)
    builder.add(TRIM, box((tail + 0.06, 0, 0.62), (0.12, 2 * half - 0.1, 0.22)))
    for side in (1, -1):
        builder.add(BRAKELIGHT, box((tail - 0.01, side * (half - 0.28), 0.63), (0.06, 0.22, 0.15)))
        builder.add(TAILLIGHT, box((tail - 0.01, side * (half - 0.50), 0.63), (0.06, 0.18, 0.15)))
        builder.add(INDICATOR, box((tail - 0.01, side * (half - 0.12), 0.63), (0.06, 0.09, 0.15)))
    if rng.random() < 0.5:
        builder.add(CHROME, tube([(nose - 2.15, 0.8, 0.9), (nose - 2.15, 0.8, 2.9)], [0.07, 0.07], 4))
    plate(builder, nose + 0.015, 0.5)
    plate(builder, tail - 0.015, 0.72)
    return builder, nose - CAB_LENGTH - 0.25


def _cab(builder: Builder, nose: float, half: float, axles: tuple[float, float], body: Material) -> None:
    """A forward-control cab: raked windscreen, side windows, grille, lamps in the bumper."""
    back, arch = nose - CAB_LENGTH, 0.62

    def section(x: float) -> list[tuple[float, ...]]:
        front = float(np.interp(x, [nose - 0.25, nose], [0.0, 1.0]))
        w = (1 - 0.05 * front) * (half - 0.05)
        sill = arch_height(x, axles[1:], arch, 0.48, 0.42)
        skirt, side = max(0.52, sill + 0.02), max(0.86, sill + 0.05)
        points = [(0.97 * w, sill), (w, skirt), (w, side), (w, 1.6), (0.96 * w, 2.35), (0.86 * w, CAB_HEIGHT - 0.06),
                  (0.0, CAB_HEIGHT)]  # fmt: skip
        lean = [-0.02, 0.0, 0.0, -0.04, -0.26, -0.55, -0.62]
        return [(dx * front, y, z) for dx, (y, z) in zip(lean, points)]

    def material(x: float, strip: int) -> Material:
        if strip == -1:
            return UNDERBODY
        if strip == WINDOW and back + 0.7 < x < nose - 0.05:
            return GLASS
        return TRIM if strip == SKIRT else body

    def front(strip: int, column: int) -> Material:
        if strip == WINDOW:
            return GLASS
        if strip == SIDE:
            return {0: HEADLIGHT, 1: INDICATOR, 3: INDICATOR, 4: HEADLIGHT}.get(column, TRIM)
        if strip == LOW:
            return TRIM if column == 2 else body
        return TRIM if strip == SKIRT else body

    shell = Shell(builder, section, material, axles, CAB_HEIGHT, (1.6, 2.35))
    shell.skin([back, back + 0.7, nose - 0.25, nose, *arch_stations(axles[1], arch)], closer=0.12)
    shell.cap(nose, (-1, -0.72, -0.58, 0.58, 0.72, 1), front)
    ring = shell.ring(back)
    middle = np.broadcast_to(ring.mean(axis=0), ring.shape)
    builder.add(body, quads(np.stack([middle, np.roll(ring, -1, axis=0), ring, middle], axis=1),
                            np.full((len(ring), 4, 2), 0.3)))  # fmt: skip
    mirrors(builder, TRIM, nose - 0.25, half + 0.12, 1.95, (0.12, 0.2, 0.5))


def make_box_truck(rng: np.random.Generator) -> Asset:
    """A lorry with a closed box body."""
    length, width = float(rng.uniform(6.8, 10.0)), 2.45
    builder, start = _lorry(rng, length, width)
    tail, height = -length / 2, float(rng.uniform(3.2, 3.7))
    name = str(rng.choice(["box_parcel", "box_fresh", "box_movers", "panels"]))
    skin = Material(f"load_{name}", (0.93, 0.93, 0.92, 1.0), name, specular=0.3, shininess=0.4)
    low, middle = 0.98, (start + tail) / 2
    body = box((middle, 0, (low + height) / 2), (start - tail, width, height - low))

    def project(corners: np.ndarray) -> np.ndarray:
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        side = np.sign(normal[:, 1])[:, None]
        u = np.where(side != 0, 0.5 - side * (corners[..., 0] - middle) / (start - tail), 0.02)
        v = np.where(np.abs(normal[:, 2:]) > 1e-9, 0.03, (height - corners[..., 2]) / (height - low))
        return np.stack([u, v], axis=-1)

    builder.add(skin, body.with_uv(project))
    builder.add(TRIM, box((tail - 0.005, 0, (low + height) / 2), (0.03, 0.04, height - low - 0.1)))
    for side in (1, -1):
        for along in (tail + 0.03, start - 0.03):
            builder.add(CHROME, box((along, side * (width / 2), (low + height) / 2), (0.08, 0.03, height - low)))
        builder.add(CHROME, box((middle, side * width / 2, height), (start - tail, 0.05, 0.07)))
    return assemble("truck_box", builder.parts(), "truck", attributes={"variant": "box"})


def make_tanker(rng: np.random.Generator) -> Asset:
    """A lorry with a tank."""
    length, width = float(rng.uniform(8.8, 10.0)), 2.45
    builder, start = _lorry(rng, length, width)
    tail = -length / 2 + 0.15
    tank = Material("tank_steel", (0.74, 0.76, 0.78, 1.0), specular=0.9, shininess=0.7)
    path = [(x, 0.0, 1.95) for x in (tail, tail + 0.25, start - 0.25, start)]
    big, small = (1.15, 0.92), (0.95, 0.75)
    builder.add(tank, tube(path, [small, big, big, small], 12), crease=50)
    stripe = paint(rng, "panels", ("red", "blue", "orange", "green"))
    for x in np.linspace(tail + 0.3, start - 0.35, 2):
        ring = tube([(x - 0.05, 0, 1.95), (x + 0.05, 0, 1.95)], [(1.17, 0.94)] * 2, 12, caps=(False, False))
        builder.add(stripe, ring, crease=50)
    for x in (tail + 2.0, start - 2.0):
        builder.add(TRIM, box((x, 0, 2.93), (0.5, 0.5, 0.14)))
    return assemble("truck_tanker", builder.parts(), "truck", attributes={"variant": "tanker"})


def make_flatbed(rng: np.random.Generator) -> Asset:
    """A lorry with a drop-side bed and a load of crates or pipes."""
    length, width = float(rng.uniform(7.5, 9.5)), 2.45
    builder, start = _lorry(rng, length, width)
    tail = -length / 2
    wood = Material("bed_wood", (0.8, 0.8, 0.8, 1.0), "wood", specular=0.05)
    boards = paint(rng, "panels", ("grey", "blue", "green", "red", "silver"))
    middle, span = (start + tail) / 2, start - tail
    builder.add(wood, box((middle, 0, 1.0), (span, width, 0.1)))
    for side in (1, -1):
        builder.add(boards, box((middle, side * (width / 2 - 0.03), 1.3), (span, 0.06, 0.5)))
    for x, tall in ((tail + 0.03, 0.5), (start - 0.03, 1.2)):
        builder.add(boards, box((x, 0, 1.05 + tall / 2), (0.06, width, tall)))
    if rng.random() < 0.5:
        for x in _spread(rng, tail + 0.6, start - 0.7, 1.6):
            size = (0.95, float(rng.uniform(1.4, 2.1)), float(rng.uniform(0.7, 1.5)))
            builder.add(wood, box((x, 0, 1.05 + size[2] / 2), size))
    else:
        pipe = Material("pipes", (0.55, 0.52, 0.46, 1.0), specular=0.3)
        for y, z in ((-0.75, 1.3), (-0.25, 1.3), (0.25, 1.3), (0.75, 1.3), (0.0, 1.72)):
            builder.add(pipe, tube([(tail + 0.15, y, z), (start - 0.15, y, z)], [0.24, 0.24], 5))
    return assemble("truck_flatbed", builder.parts(), "truck", attributes={"variant": "flatbed"})


def _spread(rng: np.random.Generator, low: float, high: float, step: float) -> Sequence[float]:
    """Places between `low` and `high`, some of them left out."""
    places = np.arange(low, high, step)
    return [float(x) for x in places if rng.random() < 0.8] or [float(places[0])]
