"""What stands along the streets: buildings, trees, lamps, signals, signs, fences; and the assets that traffic uses.

`stage_town` is the only thing that other rooms need. Everything is a function of the town's name.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import shapely
from shapely.geometry import Point, Polygon
from shapely.strtree import STRtree

from automoe.world import meshes, polyline, surface
from automoe.world.parts import Asset
from automoe.world.scene import LampPost, Placement, StagedTown
from automoe.world.town import LANE_WIDTH, SIDEWALK_WIDTH, Arm, Lane, Street, Town, build_town, town_seed

FLEET: dict[str, tuple[int, int]] = {
    "car": (16, 3),
    "truck": (4, 2),
    "bus": (3, 1),
    "motorcycle": (4, 2),
    "bicycle": (5, 2),
    "pedestrian": (16, 2),
    "train": (2, 1),
}
"""By category: how many different assets a town has, and how many copies of each may be in one scene."""
POSTURES = ("standing", "sitting")
"""Parts of a fleet that are pedestrians who stay where they are."""

NUSCENES_FLEET: dict[str, tuple[int, int]] = {
    "trailer": (4, 2),
    "standing": (6, 2),
    "sitting": (4, 2),
    "bus": (3, 2),
    "motorcycle": (4, 4),
    "bicycle": (5, 4),
}
"""What towns with construction sites, those of the nuScenes export, have besides `FLEET` or more of."""
_SIGN_WEIGHTS = {"stop": 0.0, "yield": 0.5, "direction": 0.5, "no_entry": 0.6, "speed_limit": 1.5, "parking": 1.5}
"""How often kinds of signs stand along a street, against 1 for all others."""
TREES, BUILDINGS = 8, 28
"""How many different ones a town has."""
_BUILDING_HEIGHTS = {"city": (7.0, 22.0), "downtown": (14.0, 60.0), "residential": (5.0, 9.0)}
_SETBACK = {"city": (0.4, 2.5), "downtown": (0.3, 1.0), "residential": (4.0, 8.0)}
_GAP = {"city": (0.0, 4.0), "downtown": (0.0, 2.5), "residential": (3.0, 9.0)}


def stage_town(name_or_town: str | Town) -> StagedTown:
    """The furnished town of that name, ready to be rendered."""
    town = build_town(name_or_town) if isinstance(name_or_town, str) else name_or_town
    return _Furnisher(town).stage()


class _Furnisher:
    """Collects placements for one town, keeping later things out of the way of earlier ones."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.rng = np.random.default_rng([town.seed, 3])
        self.assets: dict[str, Asset] = {}
        self.placements: list[Placement] = []
        self.lamps: list[LampPost] = []
        self.instances = 0
        self.road = surface.road_area(town)
        self.paved = self.road.buffer(SIDEWALK_WIDTH)
        self.road_margin = self.road.buffer(0.6)
        self.paved_margin = self.paved.buffer(6.0)
        for area in (self.paved, self.road_margin, self.paved_margin):
            shapely.prepare(area)
        self.taken: list = []

    def stage(self) -> StagedTown:
        self._library()
        self._signals()
        for street in self.town.streets.values():
            for side in (1, -1):
                self._lamps(street, side)
                self._signs(street, side)
                self._trees(street, side)
                self._odds_and_ends(street, side)
        self._buildings()
        self._yards()
        self._surroundings()
        closed = self._roadworks()
        fleet, copies = self._fleet()
        return StagedTown(
            self.town, surface.build_ground(self.town), tuple(self.placements), tuple(self.lamps),
            self.assets, fleet, copies, closed,
        )  # fmt: skip

    # -------------------------------------------------------- assets

    def _library(self) -> None:
        self.assets.update(_street_assets(self.town.style.fleet))
        self.catalogue = _buildings(self.town.style.fleet, self.town.style.kind)
        self.assets.update({key: asset for key, asset, _, _ in self.catalogue})

    def _roadworks(self) -> dict[str, tuple[tuple[float, float], ...]]:
        """Construction sites on parking strips; returns the stretches that they take."""
        if self.town.style.roadworks == 0:
            return {}
        rng = np.random.default_rng([self.town.seed, 4])  # of its own: other things stay where they are without sites
        self.assets.update(_site_assets(self.town.style.fleet))
        closed: dict[str, tuple[tuple[float, float], ...]] = {}
        for lane in self.town.lanes.values():
            if lane.kind == "parking" and lane.length > 45.0 and rng.random() < self.town.style.roadworks:
                start = float(rng.uniform(16.0, lane.length - 26.0))
                end = start + float(rng.uniform(11.0, min(22.0, lane.length - 14.0 - start)))
                self._site(lane, start, end, rng)
                closed[lane.id] = ((start - 7.0, end + 1.0),)  # the cones before it included
        return closed

    def _site(self, lane: Lane, start: float, end: float, rng: np.random.Generator) -> None:
        """Barriers towards the traffic, cones that lead up to them, a machine behind."""
        beside = lane.width / 2 - 0.35

        def put(asset: str, along: float, aside: float, turn: float) -> None:
            point, heading = lane.at(along)
            point = point + aside * np.array([-math.sin(heading), math.cos(heading)])
            self._put(asset, point, float(heading) + turn + rng.normal(0, 0.04), 0.0)

        for along in np.arange(start + 2.2, end - 1.0, 2.1):
            # A barrier faces along x, so that it lies along the lane with its x to the right.
            put(f"barrier{rng.integers(SITE_VARIANTS)}", float(along), beside, -math.pi / 2)
        for along, tilt in ((start + 0.8, 0.35), (end - 0.3, -0.35)):
            put(f"barrier{rng.integers(SITE_VARIANTS)}", along, beside - 1.1, math.pi + tilt)
        for number in range(int(rng.integers(3, 6))):
            put(f"cone{rng.integers(2)}", start - 0.6 - 1.3 * number, beside - 0.35 * number, rng.uniform(0, 6.28))
        if rng.random() < 0.8:
            machine = f"machine{rng.integers(SITE_VARIANTS)}"
            # Where the strip is too narrow for it, it stands with a track on the kerb.
            put(machine, (start + end) / 2, -0.7, math.pi if rng.random() < 0.5 else 0.0)

    def _fleet(self) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
        fleet: dict[str, tuple[str, ...]] = {}
        copies: dict[str, int] = {}
        for category, (variants, count) in (FLEET | (NUSCENES_FLEET if self.town.style.roadworks > 0 else {})).items():
            if category == "train" and not self.town.style.tram:
                continue
            keys = []
            for index in range(variants):
                key = f"{category}{index}"
                self.assets[key] = _mover(self.town.style.fleet, category, index)
                copies[key] = count
                keys.append(key)
            fleet[category] = tuple(keys)
        return fleet, copies

    # -------------------------------------------------------- placing

    def _put(self, asset: str, point, yaw, z: float = surface.KERB_HEIGHT, signal: str | None = None) -> None:
        instance = 0
        if self.assets[asset].category is not None:
            self.instances += 1
            instance = self.instances
        self.placements.append(
            Placement(asset, float(point[0]), float(point[1]), float(z), float(yaw), instance, signal)
        )

    def _beside(self, street: Street, side: int, along: float, beyond_kerb: float) -> tuple[np.ndarray, float]:
        """A point beside the street (side 1: left of its axis) and the direction that faces the street."""
        point, heading = polyline.sample(street.axis, along)
        left = heading + math.pi / 2
        out = point + side * (street.half_width + beyond_kerb) * np.array([math.cos(left), math.sin(left)])
        return out, float(left + (math.pi if side > 0 else 0.0))

    def _free(self, point: np.ndarray, radius: float) -> bool:
        return all((point[0] - x) ** 2 + (point[1] - y) ** 2 > (radius + r) ** 2 for x, y, r in self.taken)

    # -------------------------------------------------------- along the kerb

    def _signals(self) -> None:
        """For each approach: a mast on the far right with its arm over the lanes, and a near post on the right."""
        town = self.town
        for signal in town.signals:
            node = next(n for n in town.nodes if n.id == signal.node)
            arm = next(a for a in node.arms if a.street == signal.street)
            street = town.streets[signal.street]
            self._far_mast(signal, arm, street)
            if self.rng.random() < 0.45:
                self._near_post(signal, arm, street)
        for line in town.stop_lines:
            node = next(n for n in town.nodes if n.id == line.node)
            if node.control == "stop":
                right = np.array([math.sin(line.heading), -math.cos(line.heading)])
                street = town.streets[line.street]
                point = line.points[0] + right * (street.half_width + 0.7)
                self._put("sign_stop0", point, line.heading + math.pi)
                self.taken.append((*point, 0.5))

    def _far_mast(self, signal, arm: Arm, street: Street) -> None:
        forward = np.array([math.cos(signal.heading), math.sin(signal.heading)])
        right = np.array([forward[1], -forward[0]])
        base = None
        for ahead in np.arange(16.0, 44.0, 1.0):
            for aside in (street.half_width + 1.0, street.half_width + 3.0):
                trial = arm.point + forward * ahead + right * aside
                if not self.road_margin.contains(Point(trial)):
                    base = trial
                    break
            if base is not None:
                break
        if base is None:
            return
        aside = float((base - arm.point) @ right)
        reach = float(np.clip(aside - LANE_WIDTH * 0.5, 2.0, 11.0))
        reach = round(reach)
        key = f"mast{reach}"
        # The mast's arm is along its +y: to the left of traffic that it faces means yaw = heading of travel.
        self._put(key, base, signal.heading)
        left = -right
        for lane in range(street.lanes):
            across = reach - 0.4 - lane * LANE_WIDTH
            if across > 0.8:
                point = base + left * across - forward * 0.2
                self._put("head", point, signal.heading + math.pi, surface.KERB_HEIGHT + 5.15, signal.id)
        self.taken.append((*base, 1.0))

    def _near_post(self, signal, arm: Arm, street: Street) -> None:
        forward = np.array([math.cos(signal.heading), math.sin(signal.heading)])
        right = np.array([forward[1], -forward[0]])
        point = arm.point - forward * (4.4) + right * (street.half_width + 0.6)
        self._put("pole", point, signal.heading)
        self._put("head", point - forward * 0.16, signal.heading + math.pi, surface.KERB_HEIGHT + 2.2, signal.id)
        self.taken.append((*point, 1.0))

    def _lamps(self, street: Street, side: int) -> None:
        start = street.start + 9.0 + (0.0 if side > 0 else 11.0)
        for along in np.arange(start, street.end - 6.0, 24.0):
            point, toward = self._beside(street, side, along, 0.5)
            if self._free(point, 0.6):
                self._put("lamp", point, toward - math.pi / 2)
                hang = point + 1.8 * np.array([math.cos(toward), math.sin(toward)])
                height = float(self.assets["lamp"].attributes.get("lamp_height", 8.0))
                self.lamps.append(LampPost(float(hang[0]), float(hang[1]), height))
                self.taken.append((*point, 0.6))

    def _signs(self, street: Street, side: int) -> None:
        """Signs face the traffic on their side: on the right of travel along the axis, or of travel against it."""
        weights = np.array([_SIGN_WEIGHTS.get(kind, 1.0) for kind in meshes.SIGN_KINDS])
        along = street.start + self.rng.uniform(9.0, 14.0)
        while along < street.end - 6.0:
            point, _ = self._beside(street, side, along, 0.55)
            _, heading = polyline.sample(street.axis, along)
            travel = heading if side < 0 else heading + math.pi
            if self._free(point, 0.7):
                kind = str(self.rng.choice(meshes.SIGN_KINDS, p=weights / weights.sum()))
                self._put(f"sign_{kind}{self.rng.integers(2)}", point, travel + math.pi + self.rng.normal(0, 0.06))
                self.taken.append((*point, 0.5))
            along += self.rng.uniform(11.0, 28.0)

    def _odds_and_ends(self, street: Street, side: int) -> None:
        """Bins, hydrants and bollards at the kerb, benches and bus stops at the back of the sidewalk."""
        for along in np.arange(street.start + 8.0, street.end - 8.0, 7.0):
            if self.rng.random() < 0.3:
                name = str(
                    self.rng.choice(["bin", "hydrant", "bollard", "bench", "bus_stop"], p=[0.3, 0.3, 0.2, 0.14, 0.06])
                )
                deep = name in ("bench", "bus_stop")
                point, toward = self._beside(street, side, along + self.rng.uniform(-2, 2), 2.6 if deep else 0.5)
                if self._free(point, 1.6 if deep else 0.5):
                    self._put(name, point, toward)
                    self.taken.append((*point, 1.6 if deep else 0.4))

    def _trees(self, street: Street, side: int) -> None:
        density = {"city": 0.55, "downtown": 0.4, "residential": 0.7}[self.town.style.kind]
        for along in np.arange(street.start + 10.0, street.end - 8.0, 8.0):
            point, _ = self._beside(street, side, along + self.rng.uniform(-1.5, 1.5), 1.0)
            if self.rng.random() < density and self._free(point, 1.6):
                self._put(f"tree{self.rng.integers(TREES)}", point, self.rng.uniform(0, 6.28))
                self.taken.append((*point, 1.2))

    # -------------------------------------------------------- blocks

    def _buildings(self) -> None:
        """Rows of buildings along every street, front to the street, none on another or on the pavement."""
        kind = self.town.style.kind
        footprints: list[Polygon] = []
        for street in self.town.streets.values():
            for side in (1, -1):
                along = self.rng.uniform(-4.0, 4.0)
                total = polyline.length(street.axis)
                while along < total:
                    key, _, width, depth = self.catalogue[int(self.rng.integers(len(self.catalogue)))]
                    setback = float(self.rng.uniform(*_SETBACK[kind]))
                    point, toward = self._beside(street, side, along + width / 2, SIDEWALK_WIDTH + setback + depth / 2)
                    footprint = _rectangle(point, toward, depth + 0.3, width + 0.3)
                    if self._fits(footprint, footprints):
                        self._put(key, point, toward, surface.KERB_HEIGHT - 0.05)
                        footprints.append(footprint)
                        along += width + self.rng.uniform(*_GAP[kind])
                    else:
                        along += 3.0
        self.footprints = footprints

    def _fits(self, footprint: Polygon, others: list[Polygon]) -> bool:
        return not footprint.intersects(self.paved) and not any(footprint.intersects(other) for other in others)

    def _yards(self) -> None:
        """Fences, walls, hedges and bushes between the sidewalk and what lies behind, where there is no building."""
        tree = STRtree(self.footprints) if self.footprints else None
        for street in self.town.streets.values():
            for side in (1, -1):
                style = self.rng.choice(["fence", "wall", "hedge", "none"], p=[0.35, 0.25, 0.2, 0.2])
                variant = int(self.rng.integers(2))
                for along in np.arange(street.start + 1.0, street.end - 6.0, 6.0):
                    point, toward = self._beside(street, side, along + 3.0, SIDEWALK_WIDTH + 0.5)
                    strip = _rectangle(point, toward, 0.8, 6.0)
                    if tree is not None and len(tree.query(strip, predicate="intersects")):
                        continue
                    if style != "none":
                        self._put(f"{style}{variant}", point, toward + math.pi / 2, surface.KERB_HEIGHT - 0.03)
                    if self.rng.random() < 0.6:
                        behind, _ = self._beside(street, side, along + self.rng.uniform(0, 6), SIDEWALK_WIDTH + 2.5)
                        if tree is None or not len(tree.query(Point(behind).buffer(2.0), predicate="intersects")):
                            what = (
                                f"tree{self.rng.integers(TREES)}"
                                if self.rng.random() < 0.4
                                else f"bush{self.rng.integers(3)}"
                            )
                            self._put(what, behind, self.rng.uniform(0, 6.28), surface.KERB_HEIGHT - 0.05)

    def _surroundings(self) -> None:
        """Trees and taller buildings beyond the town, so that no street ends in an empty plain."""
        west, south, east, north = self.road.bounds
        centre = np.array([(west + east) / 2, (south + north) / 2])
        radius = math.hypot(east - west, north - south) / 2
        for index in range(70):
            angle = self.rng.uniform(0, 2 * math.pi)
            far = radius + self.rng.uniform(10, 120)
            point = centre + far * np.array([math.cos(angle), math.sin(angle)])
            if self.paved_margin.contains(Point(point)):
                continue
            if index % 3 == 0:
                key = self.catalogue[int(self.rng.integers(len(self.catalogue)))][0]
                self._put(key, point, angle + math.pi, surface.KERB_HEIGHT - 0.05)
            else:
                self._put(f"tree{self.rng.integers(TREES)}", point, angle, surface.KERB_HEIGHT - 0.05)


@lru_cache(maxsize=8)
def _street_assets(fleet: str) -> dict[str, Asset]:
    """Vegetation and street furniture; towns of one fleet share them, so that a process makes each only once."""
    rng = np.random.default_rng([town_seed(fleet), 20])
    assets = {f"tree{index}": meshes.make_tree(rng) for index in range(TREES)}
    assets |= {f"bush{index}": meshes.make_bush(rng) for index in range(3)}
    for index in range(2):
        assets[f"hedge{index}"] = meshes.make_hedge(rng, 6.0)
        assets[f"fence{index}"] = meshes.make_fence(rng, 6.0)
        assets[f"wall{index}"] = meshes.make_wall(rng, 6.0)
    assets["lamp"] = meshes.make_street_lamp(rng, 1.8)
    assets["pole"] = meshes.make_pole(rng, 3.0)
    assets["head"] = meshes.make_signal_head(rng, "vehicle")
    assets["walk_head"] = meshes.make_signal_head(rng, "pedestrian")
    assets["bus_stop"] = meshes.make_bus_stop(rng)
    for reach in range(2, 12):
        assets[f"mast{reach}"] = meshes.make_signal_mast(rng, reach, 5.9)
    for name in ("bench", "bin", "hydrant", "bollard"):
        assets[name] = getattr(meshes, f"make_{name}")(rng)
    for kind in meshes.SIGN_KINDS:
        for variant in range(2):
            assets[f"sign_{kind}{variant}"] = meshes.make_traffic_sign(rng, kind)
    return assets


SITE_VARIANTS = 4
"""How many different barriers and machines the sites of a fleet's towns have."""


@lru_cache(maxsize=8)
def _site_assets(fleet: str) -> dict[str, Asset]:
    """What construction sites are made of."""
    rng = np.random.default_rng([town_seed(fleet), 22])
    assets = {f"barrier{index}": meshes.make_barrier(rng) for index in range(SITE_VARIANTS)}
    assets |= {f"machine{index}": meshes.make_construction_vehicle(rng) for index in range(SITE_VARIANTS)}
    assets |= {f"cone{index}": replace(meshes.make_traffic_cone(rng), category="traffic_cone") for index in range(2)}
    return assets


@lru_cache(maxsize=16)
def _buildings(fleet: str, kind: str) -> list[tuple[str, Asset, float, float]]:
    """A catalogue of buildings (key, asset, width along the street, depth) for one kind of town."""
    rng = np.random.default_rng([town_seed(fleet), 21, town_seed(kind)])
    catalogue = []
    for index in range(BUILDINGS):
        width = float(rng.uniform(9, 16) if kind == "residential" else rng.uniform(12, 26))
        depth = float(rng.uniform(8, 12) if kind == "residential" else rng.uniform(11, 18))
        height = float(np.exp(rng.uniform(*np.log(_BUILDING_HEIGHTS[kind]))))
        catalogue.append((f"building{index}", meshes.make_building(rng, width, depth, height), width, depth))
    return catalogue


@lru_cache(maxsize=256)
def _mover(fleet: str, category: str, index: int) -> Asset:
    """One road user of a fleet; towns share fleets, so that a process makes each only once."""
    rng = np.random.default_rng([town_seed(fleet), [*FLEET, "trailer", *POSTURES].index(category), index])
    if category == "pedestrian":
        return meshes.make_person(rng, float(rng.uniform(0, 1)))
    if category in POSTURES:
        return meshes.make_person(rng, posture=category)
    if category in ("motorcycle", "bicycle"):
        return meshes.make_two_wheeler(category, rng)
    if category == "train":
        return meshes.make_train(rng)
    if category == "trailer":
        return meshes.make_trailer(rng)
    return meshes.make_vehicle(category, rng)


def _rectangle(centre: np.ndarray, heading: float, along: float, across: float) -> Polygon:
    forward = np.array([math.cos(heading), math.sin(heading)]) * along / 2
    left = np.array([-math.sin(heading), math.cos(heading)]) * across / 2
    return shapely.Polygon(
        [centre + forward + left, centre - forward + left, centre - forward - left, centre + forward - left]
    )
