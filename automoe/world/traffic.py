"""Who is where: seeded snapshots of traffic around an ego car.

`sample_scene` draws one moment: the ego on a lane, queues at red lights, moving and parked vehicles, two-wheelers,
trams on their rails, people on sidewalks and crosswalks. A later moving world starts from such a scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from automoe.world import polyline
from automoe.world.scene import Actor, Conditions, EgoState, Scene, StagedTown
from automoe.world.surface import KERB_HEIGHT
from automoe.world.town import LANE_WIDTH, Lane
from automoe.world.vehicle import AHEAD, LENGTH, WIDTH

EGO_FRONT, EGO_BACK = 3.7, 0.9
"""The ego reaches this far before and behind its rear axle, metres."""
REACH = 130.0
"""Traffic is placed within this distance of the ego."""

BACKREST = 0.22
"""Metres that people on a bench reach behind its middle."""


@dataclass(frozen=True)
class Density:
    """How full the streets are. Rates are per 100 m of lane or sidewalk."""

    vehicles: float = 3.4
    parked: float = 0.55
    """Share of parking bays taken."""
    pedestrians: float = 2.6
    crossing: float = 0.9
    """People on each crosswalk while it is their turn."""
    mix: tuple[tuple[str, float], ...] = (
        ("car", 0.77), ("truck", 0.06), ("bus", 0.035), ("motorcycle", 0.055), ("bicycle", 0.08),
    )  # fmt: skip
    parked_mix: tuple[tuple[str, float], ...] = (("car", 0.97), ("truck", 0.03))
    at_kerb: float = 0.22
    """Chance of one more two-wheeler on each of the nearest lanes."""
    standing: float = 0.0
    """Groups of people who stand on the sidewalk, per 100 m."""
    sitting: float = 0.0
    """Chance of somebody on each bench."""
    cycles: float = 0.0
    """Rows of bicycles and motorcycles without a rider on the sidewalk, per 100 m."""


def draw_conditions(rng: np.random.Generator) -> Conditions:
    """Weather and time of day with BDD100K's shares: about 53 % day, 40 % night, 7 % dawn or dusk."""
    time_of_day = str(rng.choice(["daytime", "night", "dawn/dusk"], p=[0.53, 0.40, 0.07]))
    if time_of_day == "night":
        weather = str(rng.choice(["clear", "overcast", "rainy", "foggy"], p=[0.72, 0.14, 0.11, 0.03]))
    else:
        names = ["clear", "partly cloudy", "overcast", "rainy", "foggy"]
        weather = str(rng.choice(names, p=[0.45, 0.17, 0.22, 0.11, 0.05]))
    elevation = {"daytime": rng.uniform(0.45, 1.1), "dawn/dusk": rng.uniform(0.06, 0.2), "night": -0.4}[time_of_day]
    return Conditions(weather, time_of_day, float(rng.uniform(0, 2 * math.pi)), float(elevation))


def sample_scene(
    stage: StagedTown,
    rng: np.random.Generator,
    conditions: Conditions | None = None,
    density: Density | None = None,
    all_round: bool = True,
    ego: EgoState | None = None,
) -> Scene:
    """One moment in a town, a function of the arguments and the generator's state only.

    all_round: False leaves out what is more than 15 m behind the ego, which a front camera never sees. ego: where it
    is, with the lanes of its route; traffic then is near all of these. Drawn if not given.
    """
    conditions, density = conditions or draw_conditions(rng), density or _draw_density(rng)
    return _Sampler(stage, rng, conditions, density, all_round, ego).scene()


def _draw_density(rng: np.random.Generator) -> Density:
    """Some streets are empty, some are full."""
    busy = float(rng.uniform(0.25, 1.5))
    return Density(
        vehicles=3.4 * busy, parked=float(rng.uniform(0.15, 0.85)), pedestrians=2.6 * busy * rng.uniform(0.3, 1.5)
    )


def draw_nuscenes_density(rng: np.random.Generator) -> Density:
    """Streets for nuScenes' classes: more buses and two-wheelers, some of them parked, people who stand or sit."""
    busy = float(rng.uniform(0.6, 1.4))
    return Density(
        vehicles=3.4 * busy, parked=float(rng.uniform(0.3, 0.8)), pedestrians=2.6 * busy * rng.uniform(0.4, 1.3),
        mix=(("car", 0.66), ("truck", 0.08), ("bus", 0.08), ("motorcycle", 0.08), ("bicycle", 0.10)),
        parked_mix=(("car", 0.73), ("truck", 0.04), ("bus", 0.03), ("trailer", 0.17), ("motorcycle", 0.03)),
        at_kerb=0.3, standing=1.2, sitting=0.7, cycles=1.0,
    )  # fmt: skip


class _Sampler:
    """Places road users one by one; a rectangle grid is not needed, a list of circles is quick enough."""

    def __init__(
        self, stage: StagedTown, rng: np.random.Generator, conditions: Conditions, density: Density, all_round: bool,
        ego: EgoState | None,
    ) -> None:  # fmt: skip
        self.all_round = all_round
        self.given = ego
        self.stage, self.town, self.rng = stage, stage.town, rng
        self.conditions, self.density = conditions, density
        self.time = float(rng.uniform(0, 600))
        self.left = dict(stage.copies)
        self.actors: list[Actor] = []
        self.next_id = stage.first_actor_id
        self.signal_of_lane = {lane: signal for signal in self.town.signals for lane in signal.lanes}
        self.stops = {lane: line for line in self.town.stop_lines for lane in line.lanes}
        self.footprints: list[np.ndarray] = []
        """Discs [N, 3] of everything placed, the ego first."""
        self.taken: dict[str, list[tuple[float, float]]] = {}
        """For each lane the stretches (from, to) that are occupied."""

    def scene(self) -> Scene:
        if self.given is None:
            self._place_ego()
        else:
            self.ego = self.given
            self._occupy(self.ego.route[0], self.ego.station - EGO_BACK - 3.5, self.ego.station + EGO_FRONT + 3.0)
        near = self._lanes_near()
        self._trams(near)
        for lane in near:
            if lane.kind == "driving":
                self._fill(lane)
        self._two_wheelers_at_kerb(near)
        for lane in near:
            if lane.kind == "parking":
                self._park(lane)
            elif lane.kind == "sidewalk":
                self._stay(lane)
                self._walk(lane)
        self._sit()
        self._cross()
        kind = "residential" if self.town.style.kind == "residential" else "city street"
        return Scene(self.stage, self.time, self.conditions, self.ego, tuple(self.actors), kind)

    # -------------------------------------------------------- ego

    def _place_ego(self) -> None:
        rng = self.rng
        lanes = self.town.driving_lanes()
        weight = np.array([lane.length for lane in lanes])
        lane = lanes[int(rng.choice(len(lanes), p=weight / weight.sum()))]
        stop = self._stop_station(lane)
        station = float(rng.uniform(2.0, max(3.0, stop - EGO_FRONT)))
        # Sometimes wait at the line: that is where lights, crossing people and queues are looked at.
        waiting = lane.id in self.stops and rng.random() < 0.2
        if waiting:
            station = stop - EGO_FRONT - float(rng.choice([0.6, 0.6, 7.0, 13.0]))
            station = max(station, 1.0)
        point, heading = lane.at(station)
        aside = float(np.clip(rng.normal(0, 0.18), -0.5, 0.5))
        left = np.array([-math.sin(heading), math.cos(heading)])
        point = point + aside * left
        yaw = float(heading + np.radians(rng.normal(0, 0.8)))
        speed = 0.0 if waiting else float(rng.uniform(3, 13))
        self.ego = EgoState(float(point[0]), float(point[1]), yaw, speed, self._route(lane), station)
        self._occupy(lane.id, station - EGO_BACK - 3.5, station + EGO_FRONT + 3.0)

    def _route(self, lane: Lane) -> tuple[str, ...]:
        """The lanes from here onward: straight on mostly, a turn now and then."""
        route, current, total = [lane.id], lane, lane.length
        while total < 200.0:
            options = [self.town.lanes[other] for other in current.successors]
            weights = np.array([3.0 if option.turn == "straight" else 1.0 for option in options])
            current = options[int(self.rng.choice(len(options), p=weights / weights.sum()))]
            route.append(current.id)
            total += current.length
            if current.junction is not None:
                current = self.town.lanes[current.successors[0]]
                route.append(current.id)
                total += current.length
        return tuple(route)

    def _stop_station(self, lane: Lane) -> float:
        """Where vehicles on this lane stop for a line, or the lane's end."""
        line = self.stops.get(lane.id)
        return lane.length if line is None else polyline.project(lane.centre, line.points.mean(0))[0] - 0.4

    def _lanes_near(self) -> list[Lane]:
        """Lanes within reach, nearest first, so that the pool of cars is used where it is seen."""
        lanes = list(self.town.lanes.values())
        points = np.concatenate([lane.centre for lane in lanes])
        first = np.cumsum([0] + [len(lane.centre) for lane in lanes[:-1]])
        squared = ((points - [self.ego.x, self.ego.y]) ** 2).sum(1)
        if self.given is not None:
            way = np.concatenate([self.town.lanes[lane].centre[::10] for lane in self.given.route])
            for place in way:
                squared = np.minimum(squared, ((points - place) ** 2).sum(1))
        distance = np.sqrt(np.minimum.reduceat(squared, first))
        if not self.all_round:
            forward = [math.cos(self.ego.yaw), math.sin(self.ego.yaw)]
            ahead = np.maximum.reduceat((points - [self.ego.x, self.ego.y]) @ forward, first)
            distance[ahead < -15.0] = np.inf
        limit = np.where([lane.junction is None for lane in lanes], REACH, 70.0)
        return [lanes[i] for i in np.argsort(distance, kind="stable") if distance[i] < limit[i]]

    # -------------------------------------------------------- vehicles

    def _occupy(self, lane: str, start: float, end: float) -> None:
        self.taken.setdefault(lane, []).append((start, end))

    def _lane_free(self, lane: str, start: float, end: float) -> bool:
        return all(end < a or start > b for a, b in self.taken.get(lane, []))

    def _clear(self, point: np.ndarray, length: float, width: float, yaw: float) -> bool:
        """Whether a footprint touches no vehicle placed so far, nor the ego."""
        own = _discs(point, length, width, yaw)
        if not self.footprints:
            forward = np.array([math.cos(self.ego.yaw), math.sin(self.ego.yaw)])
            ego = np.array([self.ego.x, self.ego.y]) + AHEAD * forward
            self.footprints.append(_discs(ego, LENGTH, WIDTH, self.ego.yaw))
        others = np.concatenate(self.footprints)
        gap = np.hypot(own[:, None, 0] - others[None, :, 0], own[:, None, 1] - others[None, :, 1])
        return bool((gap > own[:, None, 2] + others[None, :, 2]).all())

    def _pick(self, category: str) -> str | None:
        keys = [key for key in self.stage.fleet.get(category, ()) if self.left[key] > 0]
        return str(self.rng.choice(keys)) if keys else None

    def _add(self, category: str, key: str, point, z: float, yaw, **extra) -> Actor:
        asset = self.stage.assets[key]
        actor = Actor(
            self.next_id, category, key, float(point[0]), float(point[1]), z, float(yaw), asset.size,
            lights=self.conditions.dark, **extra,
        )  # fmt: skip
        self.left[key] -= 1
        self.footprints.append(_discs(np.asarray(point), asset.size[0], asset.size[1], yaw))
        self.next_id += 1
        self.actors.append(actor)
        if asset.rider is not None and not actor.parked:
            rider = replace(actor, id=self.next_id, category="rider", size=asset.rider.size, mount=actor.id)
            self.next_id += 1
            self.actors.append(rider)
        return actor

    def _add_parked(self, key: str, point, z: float, yaw, **extra) -> None:
        category = str(self.stage.assets[key].category)
        actor = self._add(category, key, point, z, yaw, parked=True, **extra)
        self.actors[-1] = replace(actor, lights=False)

    def _vehicle_on(self, lane: Lane, front: float, category: str, speed: float, braking: bool) -> float | None:
        """Put a vehicle with its nose at `front`; returns where its tail is, None when it found no place."""
        key = self._pick(category)
        if key is None:
            return None
        length, width, _ = self.stage.assets[key].size
        start = front - length
        if start < 0.5 or not self._lane_free(lane.id, start - 1.5, front + 1.5):
            return None
        point, heading = lane.at(front - length / 2)
        small = category in ("bicycle", "motorcycle")
        aside = -LANE_WIDTH / 2 + 0.7 + self.rng.uniform(0, 0.4) if category == "bicycle" else self.rng.normal(0, 0.15)
        point = point + aside * np.array([-math.sin(heading), math.cos(heading)])
        yaw = float(heading + np.radians(self.rng.normal(0, 2.0 if small else 1.0)))
        if not self._clear(point, length, width, yaw):
            return None
        self._add(category, key, point, 0.0, yaw, speed=speed, lane=lane.id, braking=braking)
        self._occupy(lane.id, start, front)
        return start

    def _category(self, lane: Lane) -> str:
        names, weights = zip(*self.density.mix, strict=True)
        return str(self.rng.choice(names, p=np.array(weights) / sum(weights)))

    def _fill(self, lane: Lane) -> None:
        """A queue where the light is red, moving traffic with random gaps otherwise."""
        rng = self.rng
        if lane.junction is not None:
            entry = self.town.lanes[lane.predecessors[0]]
            if self._held(entry) or rng.random() > 0.18:
                return
            self._vehicle_on(lane, float(rng.uniform(0.5, 1.0)) * lane.length, self._category(lane), 6.0, False)
            return
        front = lane.length - 0.5
        if self._held(lane):
            front = self._stop_station(lane) - rng.uniform(0.3, 1.2)
            for _ in range(int(rng.poisson(1.6 * min(self.density.vehicles / 3.0, 1.5)))):
                tail = self._vehicle_on(lane, front, self._category(lane), 0.0, True)
                front = (tail if tail is not None else front - 5.0) - rng.uniform(1.6, 3.2)
            front -= rng.uniform(5, 20)
        rate = self.density.vehicles / 100.0
        front -= rng.exponential(1 / rate) * 0.6
        while front > 5.0:
            braking = rng.random() < 0.2
            tail = self._vehicle_on(lane, front, self._category(lane), float(rng.uniform(4, 13)), bool(braking))
            front = (tail if tail is not None else front) - 6.0 - rng.exponential(max(1 / rate - 6.0, 3.0))

    def _held(self, lane: Lane) -> bool:
        signal = self.signal_of_lane.get(lane.id)
        return signal is not None and signal.state(self.time) != "green"

    def _trams(self, near: list[Lane]) -> None:
        """Trams on their rails, which lie in the lanes next to the axis."""
        tracks = [
            lane for lane in near
            if lane.junction is None and lane.kind == "driving" and lane.left is None
            and self.town.streets[lane.street].tram
        ]  # fmt: skip
        for lane in tracks:
            if self.rng.random() < 0.6:
                limit = self._stop_station(lane) if self._held(lane) else lane.length
                self._vehicle_on(lane, limit - float(self.rng.uniform(1, 12)), "train", 5.0, False)

    def _two_wheelers_at_kerb(self, near: list[Lane]) -> None:
        """Cyclists keep to the edge of the road, more of them near the ego than chance would put there."""
        lanes = [lane for lane in near if lane.kind == "driving" and lane.junction is None and lane.right is None]
        for lane in lanes[:6]:
            if self.rng.random() < self.density.at_kerb:
                category = "bicycle" if self.rng.random() < 0.65 else "motorcycle"
                self._vehicle_on(lane, float(self.rng.uniform(4, lane.length)), category, 5.0, False)

    def _park(self, lane: Lane) -> None:
        rng = self.rng
        along = 12.0
        closed = self.stage.closed.get(lane.id, ())
        while along < lane.length - 12.0:
            site = next((end for start, end in closed if start - 13.0 < along < end), None)
            if site is not None:
                along = site + 1.0
            elif rng.random() < self.density.parked:
                category = _draw(self.density.parked_mix, float(rng.random()))
                key = self._pick(category)
                if key is None and category in ("car", "truck"):
                    return
                if key is None:
                    along += 6.0
                    continue
                length, width, _ = self.stage.assets[key].size
                point, heading = lane.at(along + length / 2)
                point = point + rng.normal(0, 0.08) * np.array([-math.sin(heading), math.cos(heading)])
                yaw = heading + np.radians(rng.normal(0, 1.2))
                if along + length < lane.length - 8.0 and self._clear(point, length, width, yaw):
                    self._add_parked(key, point, 0.0, yaw, lane=lane.id)
                along += length + rng.uniform(0.8, 1.8)
            else:
                along += 6.0

    # -------------------------------------------------------- people

    def _walk(self, lane: Lane) -> None:
        rng = self.rng
        for _ in range(int(rng.poisson(self.density.pedestrians * lane.length / 100.0))):
            key = self._pick("pedestrian")
            if key is None:
                return
            point, heading = lane.at(rng.uniform(0, lane.length))
            aside = rng.uniform(-0.9, 1.0)
            point = point + aside * np.array([-math.sin(heading), math.cos(heading)])
            yaw = heading + (math.pi if rng.random() < 0.5 else 0.0) + rng.normal(0, 0.25)
            if rng.random() < 0.15:
                yaw = rng.uniform(0, 2 * math.pi)
            if self._clear_of_furniture(point):
                self._add("pedestrian", key, point, KERB_HEIGHT, yaw, speed=1.3)

    def _stay(self, lane: Lane) -> None:
        """Who and what stays on a sidewalk, on its far side from the road: groups of people, rows of cycles."""
        rng, density = self.rng, self.density
        if not density.standing and not density.cycles:
            return
        for _ in range(int(rng.poisson(density.standing * lane.length / 100.0))):
            along = float(rng.uniform(1.0, lane.length - 1.0))
            count = int(rng.integers(1, 4))
            for number in range(count):
                point, heading = lane.at(along + 0.8 * number)
                point = point - rng.uniform(0.95, 1.3) * np.array([-math.sin(heading), math.cos(heading)])
                # Those of a group look at each other, somebody alone wherever he likes.
                turn = rng.uniform(0, 2 * math.pi) if count == 1 else math.pi * (number % 2) + rng.normal(0, 0.5)
                key = self._pick("standing")
                if key is not None and self._clear_of_furniture(point):
                    self._add("pedestrian", key, point, KERB_HEIGHT, heading + turn)
        for _ in range(int(rng.poisson(density.cycles * lane.length / 100.0))):
            along = float(rng.uniform(1.0, lane.length - 1.0))
            for number in range(int(rng.integers(1, 4))):
                key = self._pick("bicycle" if rng.random() < 0.6 else "motorcycle")
                point, heading = lane.at(along + 2.3 * number)
                point = point - rng.uniform(1.15, 1.25) * np.array([-math.sin(heading), math.cos(heading)])
                yaw = float(heading + (math.pi if rng.random() < 0.5 else 0.0) + rng.normal(0, 0.05))
                if key is not None and self._clear(point, 2.0, 0.6, yaw) and self._clear_of_furniture(point, 1.7):
                    self._add_parked(key, point, KERB_HEIGHT, yaw)

    def _sit(self) -> None:
        """People on the benches."""
        if not self.density.sitting:
            return
        for bench in self.stage.placements:
            near = math.hypot(bench.x - self.ego.x, bench.y - self.ego.y) < REACH
            if bench.asset == "bench" and near and self.rng.random() < self.density.sitting:
                key = self._pick("sitting")
                if key is None:
                    return
                forward = np.array([math.cos(bench.yaw), math.sin(bench.yaw)])
                aside = self.rng.uniform(-0.5, 0.5) * np.array([-forward[1], forward[0]])
                reach = self.stage.assets[key].size[0] / 2 - BACKREST
                self._add("pedestrian", key, np.array([bench.x, bench.y]) + reach * forward + aside, bench.z, bench.yaw)

    def _clear_of_furniture(self, point: np.ndarray, distance: float = math.sqrt(0.5)) -> bool:
        near = ((self._furniture - point) ** 2).sum(1).min(initial=9.0) > distance**2
        others = all(
            (a.x - point[0]) ** 2 + (a.y - point[1]) ** 2 > 0.4 for a in self.actors if a.category == "pedestrian"
        )
        return bool(near) and others

    @property
    def _furniture(self) -> np.ndarray:
        if not hasattr(self, "_furniture_points"):
            self._furniture_points = np.array([(p.x, p.y) for p in self.stage.placements]).reshape(-1, 2)
        return self._furniture_points

    def _cross(self) -> None:
        """People on crosswalks while the cars of that street have red, or where nothing controls them."""
        here = np.array([self.ego.x, self.ego.y])
        for crosswalk in self.town.crosswalks:
            if np.hypot(*(crosswalk.path.mean(0) - here)) > 80.0:
                continue
            signal = next(
                (s for s in self.town.signals if (s.node, s.street) == (crosswalk.node, crosswalk.street)), None
            )
            if signal is not None and signal.state(self.time) != "red":
                continue
            for _ in range(int(self.rng.poisson(self.density.crossing))):
                key = self._pick("pedestrian")
                if key is None:
                    return
                along = crosswalk.path[1] - crosswalk.path[0]
                point = crosswalk.path[0] + along * self.rng.uniform(0.03, 0.97)
                heading = math.atan2(along[1], along[0])
                point = point + self.rng.uniform(-1.2, 1.2) * np.array([-math.sin(heading), math.cos(heading)])
                if self._clear(point, 0.6, 0.6, 0.0):
                    yaw = heading + (math.pi if self.rng.random() < 0.5 else 0.0)
                    self._add("pedestrian", key, point, 0.0, yaw + self.rng.normal(0, 0.1), speed=1.3)


def _draw(mix: tuple[tuple[str, float], ...], chance: float) -> str:
    """The name at a chance in [0, 1) of a mix of (name, share); shares make 1."""
    for name, share in mix:
        chance -= share
        if chance < 0:
            return name
    return mix[-1][0]


def _discs(point: np.ndarray, length: float, width: float, yaw: float) -> np.ndarray:
    """A footprint as discs [N, 3] of x, y, radius along its middle."""
    count = max(1, math.ceil(length / max(width, 0.5)))
    at = (np.arange(count) + 0.5) / count * length - length / 2
    radius = width / 2 + 0.1
    return np.column_stack([point[0] + at * math.cos(yaw), point[1] + at * math.sin(yaw), np.full(count, radius)])
