"""Traffic that moves: from a sampled moment on, everybody follows lanes, keeps distance, obeys lights and yields.

Vehicles follow their lanes' centres with the Intelligent Driver Model (Treiber et al., 2000) towards the nearest of
the vehicle ahead, a red light, a junction that is not free, a person on a crosswalk. A junction is entered only with
its conflicting movements reserved, and its exit free: nobody blocks the box, and left turns wait for oncoming traffic.
People walk along sidewalks and cross when the cars of a street have red, or where nobody comes.

The ego is one of the vehicles; whoever drives it otherwise says with `Traffic.step(ego=...)` where it is. Others then
mind it wherever it is, on its lane or across several, and `Traffic.advice` says what it would do as one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import shapely

from automoe.world import polyline
from automoe.world.scene import Actor, EgoState, Scene, StagedTown
from automoe.world.surface import KERB_HEIGHT
from automoe.world.town import Crosswalk, Lane, Town, TrafficSignal
from automoe.world.traffic import EGO_BACK, EGO_FRONT

EGO = -1
"""The ego's key among the vehicles; actors have positive ids."""

LOOK_AHEAD = 70.0
ACCELERATION, BRAKING, HARD_BRAKING = 1.6, 2.2, 6.0
"""Metres a second squared: what drivers like, and the most they do."""
HEADWAY, STANDSTILL_GAP = 1.3, 2.0
"""Seconds and metres to the vehicle ahead."""
SPARE = 2.5
"""Metres before a line at which a learner is taught to stop earlier than others do."""
ACROSS = 3.0
"""Metres beyond the line of a red light: who is taught stays there, since his tail has not crossed it yet."""
SIDEWAYS = 2.2
"""Most comfortable acceleration in bends, metres a second squared."""
GAP_SECONDS = 4.5
"""How far away in time oncoming or crossing traffic must be."""
WALKING = (1.0, 1.6)
BESIDE = 1.6
"""Metres from the kerb to where people turn off to a crosswalk: the middle of the sidewalk."""

CROSSING_SHARE = 0.3
"""Of the people who pass a crosswalk."""

_DESIRED = {"car": 1.0, "truck": 0.85, "bus": 0.85, "train": 0.75, "motorcycle": 1.0, "bicycle": 0.36}
"""Share of the speed limit that a category drives, on average."""
_MIDDLE = (EGO_FRONT - EGO_BACK) / 2
"""Metres from the ego's rear axle, where its place is, to the middle of its body, which is a vehicle's here."""

_HALF_WIDTH = 1.5  # of the strip around a turning lane that another movement must not touch

OFF_PATH = 3.0
"""Metres to the side of its path at which somebody else's ego is no longer on it."""

STEP_METRES = 10.0
"""Farther along its path than this somebody else's ego is not looked for from step to step."""

IN_THE_WAY = 1.2
"""A body so near to a lane's centre stands in the way of those on it, metres."""


@dataclass
class _Vehicle:
    """Somebody on a path of lanes; `station` is how far along the path the middle of the vehicle is."""

    id: int
    category: str
    length: float
    aside: float
    """Metres to the left of the lane's centre."""
    desired: float
    """Share of the speed limit."""
    speed: float
    lanes: list[str]
    starts: list[float]
    """Where each lane begins along the path."""
    line: np.ndarray
    along: np.ndarray
    station: float
    acceleration: float = 0.0
    waited: float = 0.0
    """Seconds at the stop line that it stands at."""
    granted: set[str] = field(default_factory=set)
    """Junction lanes that it may enter."""

    @property
    def front(self) -> float:
        return self.station + self.length / 2

    @property
    def rear(self) -> float:
        return self.station - self.length / 2


@dataclass
class _Walker:
    """A pedestrian on a sidewalk lane or a crosswalk."""

    id: int
    speed: float
    aside: float
    lane: str | None
    station: float
    direction: int
    crosswalk: int | None = None
    patience: float = 0.0
    """Seconds left of waiting at the kerb before walking on."""


class Traffic:
    """A scene that goes on. Deterministic: the same scene, seed and steps give the same traffic."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.stage: StagedTown = scene.stage
        self.town: Town = scene.stage.town
        self.rng = np.random.default_rng([seed, 77])
        self.time = scene.time
        self.scene = scene
        self._roads = _Roads.of(self.town)
        self._vehicles: dict[int, _Vehicle] = {}
        for actor in scene.actors:
            if actor.lane is not None and not actor.parked and actor.mount is None and actor.category != "rider":
                self._vehicles[actor.id] = self._vehicle(actor)
        self._vehicles[EGO] = self._ego_vehicle(scene.ego)
        self._plan = scene.ego.route
        self._driven: EgoState | None = None
        walking = [actor for actor in scene.actors if actor.category == "pedestrian" and actor.speed > 0]
        self._walkers = {actor.id: self._walker(actor) for actor in walking}
        self._settle()

    # -------------------------------------------------------- taking everybody over

    def _vehicle(self, actor: Actor) -> _Vehicle:
        lane = self.town.lanes[str(actor.lane)]
        station, aside = polyline.project(lane.centre, np.array([actor.x, actor.y]))
        desired = _DESIRED.get(actor.category, 1.0) * float(self.rng.normal(1.0, 0.08))
        return self._on_path(actor.id, actor.category, actor.size[0], aside, desired, actor.speed, [lane.id], station)

    def _ego_vehicle(self, ego: EgoState) -> _Vehicle:
        lane = self.town.lanes[ego.route[0]]
        station, aside = polyline.project(lane.centre, _middle(ego))
        length = EGO_FRONT + EGO_BACK
        return self._on_path(EGO, "car", length, aside, 0.95, ego.speed, list(ego.route), station)

    def _on_path(
        self, key: int, category: str, length: float, aside: float, desired: float, speed: float, lanes: list[str],
        station: float,
    ) -> _Vehicle:  # fmt: skip
        vehicle = _Vehicle(
            key, category, length, aside, max(desired, 0.2), speed, [], [], np.zeros((0, 2)), np.zeros(0), station
        )
        # Long vehicles that start on their lane's first metres have their rear on the lane before.
        before = self.town.lanes[lanes[0]].predecessors[:1]
        for lane in [*before, *lanes]:
            self._extend(vehicle, lane)
        vehicle.station += vehicle.starts[len(before)]
        self._look_ahead(vehicle)
        if self.town.lanes[lanes[0]].junction is not None:
            vehicle.granted.add(lanes[0])
        return vehicle

    def _look_ahead(self, vehicle: _Vehicle) -> None:
        """Choose lanes until the path is as long as the driver looks, and forget those far behind."""
        while vehicle.along[-1] < vehicle.station + LOOK_AHEAD + 10.0:
            self._extend(vehicle, self._next_lane(vehicle))
        while len(vehicle.starts) > 2 and vehicle.starts[1] < vehicle.rear - 5.0:
            first = vehicle.starts[1]
            keep = int(np.searchsorted(vehicle.along, first - 1e-6))
            vehicle.line, vehicle.along = vehicle.line[keep:], vehicle.along[keep:] - first
            vehicle.starts = [start - first for start in vehicle.starts[1:]]
            vehicle.lanes = vehicle.lanes[1:]
            vehicle.station -= first

    def _extend(self, vehicle: _Vehicle, lane_id: str) -> None:
        lane = self.town.lanes[lane_id]
        vehicle.lanes.append(lane_id)
        if not len(vehicle.line):
            vehicle.line, vehicle.along = lane.centre, lane.stations
            vehicle.starts.append(0.0)
            return
        # A small gap between two lanes is part of the path, and of the lane that it leads to.
        gap = float(np.hypot(*(lane.centre[0] - vehicle.line[-1])))
        begin = float(vehicle.along[-1]) + gap
        skip = int(gap < 1e-6)  # the same point twice would have no direction
        vehicle.line = np.concatenate([vehicle.line, lane.centre[skip:]])
        vehicle.along = np.concatenate([vehicle.along, begin + lane.stations[skip:]])
        vehicle.starts.append(begin)

    def _walker(self, actor: Actor) -> _Walker:
        point = np.array([actor.x, actor.y])
        speed = float(self.rng.uniform(*WALKING))
        for index, crosswalk in enumerate(self.town.crosswalks):
            if actor.z < KERB_HEIGHT / 2 and shapely.Polygon(crosswalk.polygon).buffer(1.5).contains(
                shapely.Point(point)
            ):
                station, aside = _along_and_aside(crosswalk.path, point)
                direction = 1 if math.cos(actor.yaw - _heading(crosswalk.path)) > 0 else -1
                return _Walker(actor.id, speed, aside, None, station, direction, index)
        lane = self._roads.nearest_sidewalk(point)
        station, aside = polyline.project(self.town.lanes[lane].centre, point)
        _, heading = self.town.lanes[lane].at(station)
        direction = 1 if math.cos(actor.yaw - float(heading)) > 0 else -1
        return _Walker(actor.id, speed, aside, lane, station, direction)

    def _settle(self) -> None:
        """Let nobody begin faster than what lies ahead allows: a sampled moment knows nothing of the next one."""
        self._occupied = self._occupancy()
        self._crossed = {walker.crosswalk for walker in self._walkers.values()}
        self._grant()
        allowed = self._allowed(list(self._vehicles.values()))
        for _ in range(3):
            for vehicle in self._vehicles.values():
                gap, speed = self._obstacle(vehicle)
                safe = math.sqrt(max(0.0, 2 * BRAKING * max(gap - STANDSTILL_GAP, 0.0) + speed**2))
                vehicle.speed = min(vehicle.speed, safe, allowed[vehicle.id])

    # -------------------------------------------------------- a step

    def step(self, seconds: float, ego: EgoState | None = None) -> Scene:
        """Go on by `seconds` (0.05 or so) and return what is then. ego: where the ego is then, if somebody else drives;
        its route and station are found here."""
        self.time += seconds
        self._driven = ego
        if ego is not None:
            self._follow(ego, seconds)
        self._occupied = self._occupancy()
        self._crossed = {walker.crosswalk for walker in self._walkers.values()}
        self._grant()
        allowed = self._allowed(list(self._vehicles.values()))
        for vehicle in self._vehicles.values():
            if vehicle.id != EGO or ego is None:
                gap, speed = self._obstacle(vehicle)
                vehicle.acceleration = _idm(vehicle.speed, allowed[vehicle.id], gap, speed)
        for vehicle in self._vehicles.values():
            if vehicle.id != EGO or ego is None:
                self._advance(vehicle, seconds)
        for walker in self._walkers.values():
            self._walk(walker, seconds)
        return self._snapshot(ego)

    def place_ego(self, ego: EgoState) -> Scene:
        """The present moment with the ego, which somebody else drives, somewhere else: it ran into something."""
        self._driven = ego
        self._follow(ego, math.inf)
        self._occupied = self._occupancy()
        return self._snapshot(ego)

    def advice(self) -> float:
        """The acceleration, m/s^2, with which the ego would now go on along its path as all others do: minding lights,
        lines, people and whoever is ahead."""
        vehicle = self._vehicles[EGO]
        gap, speed = self._obstacle(vehicle)
        return _idm(vehicle.speed, self._allowed([vehicle])[EGO], gap, speed)

    def target_speed(self) -> float:
        """The speed, m/s, at which the `advice` here would be neither to speed up nor to slow down, however fast the
        ego is, for a learner to go by: lines are stopped at SPARE metres earlier, since he errs, and from where their
        lights are in sight; a junction that may be entered by now is free, from as far as it is seen; yellow is like
        red as long as the nose is before the line; and who has come to stand across the line of a red light stays."""
        vehicle = self._vehicles[EGO]
        allowed = self._allowed([vehicle])[EGO]
        granted, (lane_id, distance) = set(vehicle.granted), self._next_junction(vehicle)
        if lane_id is not None and -ACROSS < distance <= 0.0 and self._signal(lane_id) == "red":
            return 0.0
        if lane_id is not None and distance > 0.0 and self._signal(lane_id) in ("yellow", "red"):
            granted.discard(lane_id)
        elif lane_id is not None and self._may_enter(vehicle, lane_id, distance, self._arrivals()):
            granted.add(lane_id)
        gap, speed = self._obstacle(replace(vehicle, granted=granted), SPARE)
        low, high = 0.0, allowed
        for _ in range(20):  # to a hundred thousandth of the limit
            middle = (low + high) / 2
            low, high = (middle, high) if _idm(middle, allowed, gap, speed) > 0.0 else (low, middle)
        return low

    def light_ahead(self) -> tuple[TrafficSignal, float] | None:
        """The light that holds the ego at the next junction, and how far before its nose the line is, metres."""
        lane_id, distance = self._next_junction(self._vehicles[EGO])
        if lane_id is None:
            return None
        signal = self._roads.signal_of.get(self.town.lanes[lane_id].predecessors[0])
        return None if signal is None else (signal, distance)

    def speed_limit(self) -> float:
        """Of the lane that the ego is on, m/s."""
        return self.town.lanes[self._ahead_of_ego()[0][0]].speed_limit

    def _follow(self, ego: EgoState, seconds: float) -> None:
        """Bring the ego's vehicle to where somebody else has driven it: along its path, or onto another lane."""
        vehicle, point = self._vehicles[EGO], _middle(ego)
        low, high = vehicle.station - STEP_METRES, vehicle.station + STEP_METRES
        station, aside = polyline.project_within(vehicle.line, vehicle.along, point, low, high)
        if abs(aside) > OFF_PATH:
            lane = self._roads.nearest_lane(point, ego.yaw)
            lanes = self._plan[self._plan.index(lane) :] if lane in self._plan else (lane,)
            station, aside = polyline.project(self.town.lanes[lane].centre, point)
            length = EGO_FRONT + EGO_BACK
            vehicle = self._on_path(EGO, "car", length, aside, 0.95, ego.speed, list(lanes), station)
            self._vehicles[EGO] = vehicle
        else:
            vehicle.station, vehicle.aside = station, aside
            self._look_ahead(vehicle)
        vehicle.acceleration = (ego.speed - vehicle.speed) / seconds
        vehicle.speed = ego.speed
        if math.isfinite(seconds):
            vehicle.waited = vehicle.waited + seconds if ego.speed < 0.1 else 0.0
        vehicle.granted = {lane for lane in vehicle.granted if self._ahead_of_rear(vehicle, lane)}

    def _advance(self, vehicle: _Vehicle, seconds: float) -> None:
        speed = max(0.0, vehicle.speed + vehicle.acceleration * seconds)
        vehicle.station += (vehicle.speed + speed) / 2 * seconds
        vehicle.speed = speed
        vehicle.waited = vehicle.waited + seconds if speed < 0.3 else 0.0
        # Drift back to the lane's middle, cyclists to their edge.
        home = -1.0 if vehicle.category == "bicycle" else 0.0
        vehicle.aside += (home - vehicle.aside) * min(1.0, 0.05 * speed * seconds)
        self._look_ahead(vehicle)
        vehicle.granted = {lane for lane in vehicle.granted if self._ahead_of_rear(vehicle, lane)}

    def _next_lane(self, vehicle: _Vehicle) -> str:
        """Straight on mostly, a turn now and then; trams stay on their rails."""
        options = [self.town.lanes[name] for name in self.town.lanes[vehicle.lanes[-1]].successors]
        if vehicle.category == "train":
            straight = [lane for lane in options if lane.turn == "straight" or lane.junction is None]
            options = straight or options
        weights = np.array([3.0 if lane.turn in (None, "straight") else 1.0 for lane in options])
        return options[int(self.rng.choice(len(options), p=weights / weights.sum()))].id

    def _ahead_of_rear(self, vehicle: _Vehicle, lane: str) -> bool:
        """Whether a lane of the path is not yet left behind."""
        if lane not in vehicle.lanes:
            return False
        return vehicle.rear < vehicle.starts[vehicle.lanes.index(lane)] + self.town.lanes[lane].length

    # -------------------------------------------------------- who is where

    def _occupancy(self) -> dict[str, list[tuple[float, float, _Vehicle]]]:
        """For each lane the stretches that vehicles cover: rear, front, who; in order of the rear."""
        taken: dict[str, list[tuple[float, float, _Vehicle]]] = {}
        for vehicle in self._vehicles.values():
            if vehicle.id == EGO and self._driven is not None:
                continue
            for lane, start in self._covered(vehicle, vehicle.rear, vehicle.front):
                taken.setdefault(lane, []).append((vehicle.rear - start, vehicle.front - start, vehicle))
        if self._driven is not None:
            for lane, rear, front, who in self._driven_over(self._driven):
                taken.setdefault(lane, []).append((rear, front, who))
        for stretches in taken.values():
            stretches.sort(key=lambda stretch: stretch[0])
        return taken

    def _driven_over(self, ego: EgoState) -> list[tuple[str, float, float, _Vehicle]]:
        """The lanes that somebody else's ego is in the way of, from where to where along them, and as what."""
        vehicle = self._vehicles[EGO]
        forward = np.array([math.cos(ego.yaw), math.sin(ego.yaw)])
        ends = _middle(ego) + np.outer([-vehicle.length / 2, vehicle.length / 2], forward)
        own = {lane for lane, _ in self._covered(vehicle, vehicle.rear, vehicle.front)}
        found = []
        for lane_id in self._roads.lanes_within(shapely.LineString(ends), IN_THE_WAY):
            lane = self.town.lanes[lane_id]
            inner = polyline.sample(ends, np.linspace(0.0, vehicle.length, 6))[0]
            stations = [polyline.project(lane.centre, point) for point in inner]
            near = [station for station, aside in stations if abs(aside) < IN_THE_WAY]
            if not near:
                continue
            along = float(np.cos(float(lane.at(near[0])[1]) - ego.yaw)) * ego.speed
            if lane_id in own or along > 0.7 * ego.speed:
                who = vehicle if lane_id in own else replace(vehicle, speed=max(along, 0.0))
            else:
                who = replace(vehicle, speed=0.0)  # across or against the lane: nothing to follow
            found.append((lane_id, min(near), max(near), who))
        return found

    def _covered(self, vehicle: _Vehicle, start: float, end: float) -> list[tuple[str, float]]:
        """The lanes of a vehicle's path between two stations, and where they begin on it."""
        starts, found = vehicle.starts, []
        for index, begins in enumerate(starts):
            if begins >= end:
                break
            if (starts[index + 1] if index + 1 < len(starts) else vehicle.along[-1]) > start:
                found.append((vehicle.lanes[index], begins))
        return found

    # -------------------------------------------------------- what to mind

    def _allowed(self, vehicles: Sequence[_Vehicle]) -> dict[int, float]:
        """The speed that each of some would have on a free road: limit, taste, and the bends of the next metres."""
        ahead = np.arange(0.0, 28.0, 3.0)
        _, heading = _on_paths(vehicles, np.array([vehicle.station for vehicle in vehicles])[:, None] + ahead)
        bend = np.abs(polyline.wrap_angle(np.diff(heading))) / 3.0
        # v^2 k <= SIDEWAYS at the bend, and braking comfortably until there.
        in_bend = SIDEWAYS / np.maximum(bend, 1e-4)
        bends = np.sqrt(np.min(in_bend + 2 * 1.5 * ahead[:-1], axis=1)).tolist()
        allowed = {}
        for vehicle, most in zip(vehicles, bends, strict=True):
            lane = self.town.lanes[self._covered(vehicle, vehicle.station, vehicle.station + 0.1)[0][0]]
            allowed[vehicle.id] = min(lane.speed_limit * vehicle.desired, most)
        return allowed

    def _obstacle(self, vehicle: _Vehicle, spare: float = 0.0) -> tuple[float, float]:
        """Distance to the nearest thing to stop or slow down for, and its speed along the lane. spare: metres by which
        lines are stopped at earlier."""
        gap, speed = self._leader(vehicle)
        stop = self._stop(vehicle)
        if stop is not None and stop < gap - 1e-6:
            # A line is stopped at, not two metres before it.
            gap, speed = max(stop - spare, 0.0) + STANDSTILL_GAP - 0.5, 0.0
        return gap, speed

    def _leader(self, vehicle: _Vehicle) -> tuple[float, float]:
        for lane, start in self._covered(vehicle, vehicle.front - 0.01, vehicle.front + LOOK_AHEAD):
            nearest, speed = math.inf, 0.0
            # Lanes that part from this one's entry: whoever's rear is still on the common stretch is in the way.
            for name, common in ((lane, math.inf), *self._roads.siblings.get(lane, ())):
                for rear, front, other in self._occupied.get(name, []):
                    # Who is beside or behind on the same lane is not ahead.
                    ahead = start + (rear + front) / 2 > vehicle.station
                    if other.id != vehicle.id and ahead and rear < common and start + rear - vehicle.front < nearest:
                        nearest, speed = start + rear - vehicle.front, other.speed
            if math.isfinite(nearest):
                return nearest, speed
        return math.inf, 0.0

    def _stop(self, vehicle: _Vehicle) -> float | None:
        """Metres from the vehicle's nose to the next point where it has to stop; None where there is none near."""
        stops = []
        for lane_id, start in self._covered(vehicle, vehicle.front - 0.5, vehicle.front + LOOK_AHEAD):
            lane = self.town.lanes[lane_id]
            if lane.junction is None:
                stops += self._crossing_people(lane_id, start - vehicle.front)
                continue
            entry = start - self._roads.setback.get(lane_id, 0.3) - vehicle.front
            if lane_id not in vehicle.granted and entry > -1.5:
                stops.append(entry)
                break
        ahead = [gap for gap in stops if gap > -1.5]
        return min(ahead) if ahead else None

    def _crossing_people(self, lane: str, offset: float) -> list[float]:
        """Distances to crosswalks of this lane that somebody is on, or about to step onto."""
        gaps = []
        for index, near in self._roads.crosswalks_of_lane.get(lane, ()):
            if index in self._crossed:
                gaps.append(offset + near - 1.0)
        return gaps

    # -------------------------------------------------------- junctions

    def _grant(self) -> None:
        """Let vehicles that come to a junction enter it, the nearest first, as far as nothing speaks against it."""
        arrivals = self._arrivals()
        held: set[str] = set()
        for distance, vehicle, lane_id in arrivals:
            entry = self.town.lanes[lane_id].predecessors[0]
            if entry in held:
                vehicle.granted.discard(lane_id)  # somebody before it on its lane has to wait
                continue
            reach = _braked(vehicle.speed) + vehicle.speed * 0.5 + 4.0
            if lane_id in vehicle.granted:
                state = self._signal(lane_id)
                too_late = state == "yellow" and distance > _braked(vehicle.speed) + 1.0
                # Somebody else's ego may have stood through its green: what it was granted then is over.
                if too_late or (vehicle.id == EGO and self._driven and state == "red" and distance > 0.0):
                    vehicle.granted.discard(lane_id)
            elif distance < reach and self._may_enter(vehicle, lane_id, distance, arrivals):
                vehicle.granted.add(lane_id)
            if lane_id not in vehicle.granted:
                held.add(entry)

    def _arrivals(self) -> list[tuple[float, _Vehicle, str]]:
        """Who comes to a junction, the nearest first: metres before its line, the vehicle, its junction lane."""
        coming = []
        for vehicle in self._vehicles.values():
            lane_id, distance = self._next_junction(vehicle)
            if lane_id is not None:
                coming.append((distance, vehicle, lane_id))
        return sorted(coming, key=lambda entry: (entry[0], entry[1].id))

    def _next_junction(self, vehicle: _Vehicle) -> tuple[str | None, float]:
        """The first junction lane ahead that the vehicle's nose has not entered, and how far its line is."""
        for lane_id, start in self._covered(vehicle, vehicle.front, vehicle.front + LOOK_AHEAD):
            if self.town.lanes[lane_id].junction is not None and start > vehicle.front - 1.5:
                return lane_id, start - self._roads.setback.get(lane_id, 0.3) - vehicle.front
        return None, math.inf

    def _signal(self, lane_id: str) -> str | None:
        """The state of the light that controls a junction lane's entry."""
        signal = self._roads.signal_of.get(self.town.lanes[lane_id].predecessors[0])
        return None if signal is None else signal.state(self.time)

    def _may_enter(
        self, vehicle: _Vehicle, lane_id: str, distance: float, arrivals: list[tuple[float, _Vehicle, str]]
    ) -> bool:
        """Whether nothing speaks against it."""
        state = self._signal(lane_id)
        if state == "red" or (state == "yellow" and distance > _braked(vehicle.speed)):
            return False
        must_stop = lane_id in self._roads.stop_controlled
        if must_stop and vehicle.waited < 0.6:
            return False
        conflicts = self._roads.conflicts.get(lane_id, frozenset())
        taken = self._occupied
        if any(taken.get(other) for other in conflicts):
            return False
        if any(other is not vehicle and conflicts & other.granted for other in self._vehicles.values()):
            return False
        if not self._exit_free(vehicle, lane_id):
            return False
        if self.town.lanes[lane_id].turn != "straight" or must_stop or state is None:
            mine = self._roads.rank(lane_id)
            for far, other, theirs in arrivals:
                # Those with priority who are close in time go first; who stands still is waiting, too.
                if other is vehicle or theirs not in conflicts or self._signal(theirs) in ("red", "yellow"):
                    continue
                if self._roads.rank(theirs) < mine and other.speed > 1.0 and far < GAP_SECONDS * other.speed:
                    return False
        return True

    def _exit_free(self, vehicle: _Vehicle, lane_id: str) -> bool:
        """Whether there is room behind the junction, or what is there moves on."""
        leave = self.town.lanes[lane_id].successors[0]
        for rear, _, other in self._occupied.get(leave, []):
            if other.id != vehicle.id:
                return rear > vehicle.length + STANDSTILL_GAP + 1.0 or other.speed > 3.0
        waiting = [
            other for other in self._vehicles.values()
            if other is not vehicle and any(self.town.lanes[g].successors[0] == leave for g in other.granted)
        ]  # fmt: skip
        return len(waiting) < 3

    # -------------------------------------------------------- people

    def _walk(self, walker: _Walker, seconds: float) -> None:
        if walker.crosswalk is not None:
            walker.station += walker.direction * walker.speed * seconds
            length = polyline.length(self.town.crosswalks[walker.crosswalk].path)
            if (walker.station > length + BESIDE) if walker.direction > 0 else (walker.station < -BESIDE):
                self._leave_crosswalk(walker)
            return
        lane = self.town.lanes[str(walker.lane)]
        before = walker.station
        moved = before + walker.direction * walker.speed * seconds
        for index, station in self._roads.crosswalks_of_sidewalk.get(lane.id, ()):
            if (before - station) * (moved - station) <= 0 and before != moved:
                if walker.patience == 0.0:
                    walker.patience = 12.0 if self.rng.random() < CROSSING_SHARE else -1.0
                if walker.patience > 0.0:
                    walker.patience = max(walker.patience - seconds, -1.0)
                    if self._may_cross(index):
                        self._enter_crosswalk(walker, index)
                    return  # waits at the kerb
        if walker.patience < 0.0 and all(
            abs(moved - station) > 2.0 for _, station in self._roads.crosswalks_of_sidewalk.get(lane.id, ())
        ):
            walker.patience = 0.0
        if moved < 0.5:
            walker.direction = 1
        elif moved > lane.length - 0.5:
            walker.direction = -1
        walker.station = min(max(moved, 0.0), lane.length)

    def _may_cross(self, index: int) -> bool:
        """While the cars of the street have red; where no light is, if nobody comes."""
        crosswalk = self.town.crosswalks[index]
        signal = self._roads.signal_at.get((crosswalk.node, crosswalk.street))
        if signal is not None:
            return signal.state(self.time) == "red" and signal.state(self.time + 8.0) == "red"
        for lane, near in self._roads.lanes_of_crosswalk[index]:
            for rear, front, other in self._occupied.get(lane, []):
                if rear < near + 4.0 and (near - front) < max(4.0 * other.speed, 3.0):
                    return False
        return True

    def _enter_crosswalk(self, walker: _Walker, index: int) -> None:
        point = self._place(walker)[0]
        path = self.town.crosswalks[index].path
        walker.crosswalk, walker.lane = index, None
        walker.station, walker.aside = _along_and_aside(path, point)
        walker.direction = 1 if walker.station < polyline.length(path) / 2 else -1

    def _leave_crosswalk(self, walker: _Walker) -> None:
        point = self._place(walker)[0]
        lane = self._roads.nearest_sidewalk(np.asarray(point))
        walker.station, walker.aside = polyline.project(self.town.lanes[lane].centre, np.asarray(point))
        walker.crosswalk, walker.lane, walker.patience = None, lane, -1.0
        walker.direction = 1 if walker.station < self.town.lanes[lane].length / 2 else -1

    def _place(self, walker: _Walker) -> tuple[np.ndarray, float, float]:
        """Point, heading, height."""
        if walker.crosswalk is not None:
            path = self.town.crosswalks[walker.crosswalk].path
            unit = (path[1] - path[0]) / polyline.length(path)
            point, heading = path[0] + walker.station * unit, math.atan2(unit[1], unit[0])
            height = 0.0 if 0.0 <= walker.station <= polyline.length(path) else KERB_HEIGHT
        else:
            point, heading = self.town.lanes[str(walker.lane)].at(walker.station)
            height = KERB_HEIGHT
        point = point + walker.aside * np.array([-math.sin(heading), math.cos(heading)])
        return point, float(heading) + (0.0 if walker.direction > 0 else math.pi), height

    # -------------------------------------------------------- out again

    def _snapshot(self, ego: EgoState | None) -> Scene:
        actors = []
        poses = _poses(list(self._vehicles.values()))
        for actor in self.scene.actors:
            key = actor.mount if actor.mount is not None else actor.id
            if key in self._vehicles:
                actors.append(self._moved(actor, self._vehicles[key], *poses[key]))
            elif actor.id in self._walkers:
                walker = self._walkers[actor.id]
                point, yaw, height = self._place(walker)
                standing = walker.crosswalk is None and walker.patience > 0.0
                actors.append(
                    replace(
                        actor,
                        x=float(point[0]),
                        y=float(point[1]),
                        z=height,
                        yaw=yaw,
                        speed=0.0 if standing else walker.speed,
                    )
                )
            else:
                actors.append(actor)
        if ego is None:
            ego = self._ego_state(*poses[EGO])
        else:
            covered = self._ahead_of_ego()
            station = self._vehicles[EGO].station - covered[0][1] - _MIDDLE
            ego = replace(ego, route=tuple(lane for lane, _ in covered), station=station)
        self.scene = replace(self.scene, time=self.time, ego=ego, actors=tuple(actors))
        return self.scene

    def _moved(self, actor: Actor, vehicle: _Vehicle, point: np.ndarray, yaw: float) -> Actor:
        lane = self._covered(vehicle, vehicle.station, vehicle.station + 0.1)[0][0]
        return replace(
            actor, x=float(point[0]), y=float(point[1]), yaw=yaw, speed=vehicle.speed, lane=lane,
            braking=vehicle.acceleration < -0.7 or vehicle.speed < 0.2,
        )  # fmt: skip

    def _ego_state(self, point: np.ndarray, yaw: float) -> EgoState:
        vehicle = self._vehicles[EGO]
        x, y = point - _MIDDLE * np.array([math.cos(yaw), math.sin(yaw)])
        covered = self._ahead_of_ego()
        route = tuple(lane for lane, _ in covered)
        return EgoState(float(x), float(y), yaw, vehicle.speed, route, vehicle.station - covered[0][1] - _MIDDLE)

    def _ahead_of_ego(self) -> list[tuple[str, float]]:
        vehicle = self._vehicles[EGO]
        return self._covered(vehicle, vehicle.station, vehicle.along[-1])


def _middle(ego: EgoState) -> np.ndarray:
    """The middle of the ego's body on the ground, world [2]."""
    return np.array([ego.x + _MIDDLE * math.cos(ego.yaw), ego.y + _MIDDLE * math.sin(ego.yaw)])


def _on_paths(vehicles: Sequence[_Vehicle], stations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [V, K, 2] and headings [V, K] at stations [V, K] of each vehicle's own path: polyline.sample for all."""
    last = np.array([vehicle.along[-1] for vehicle in vehicles])[:, None]
    stations = np.minimum(np.maximum(stations, 0.0), last)
    first, segments = 0, []
    for vehicle, own in zip(vehicles, stations, strict=True):
        segments.append(np.minimum(vehicle.along.searchsorted(own, side="right") - 1, len(vehicle.line) - 2) + first)
        first += len(vehicle.line)
    segment = np.stack(segments)
    line = np.concatenate([vehicle.line for vehicle in vehicles])
    along = np.concatenate([vehicle.along for vehicle in vehicles])
    start, end = line[segment], line[segment + 1]
    delta = end - start
    slope = delta / (along[segment + 1] - along[segment])[..., None]
    points = slope * (stations - along[segment])[..., None] + start
    points = np.where((stations == last)[..., None], end, points)
    return points, np.arctan2(delta[..., 1], delta[..., 0])


def _poses(vehicles: list[_Vehicle]) -> dict[int, tuple[np.ndarray, float]]:
    """Middle and heading of each: the chord between two points of the path, as a body follows a bend."""
    station, length, aside = np.array([(one.station, one.length, one.aside) for one in vehicles]).T
    reach = np.maximum(length * 0.3, 0.5)
    points, headings = _on_paths(vehicles, np.stack([station - reach, station + reach], axis=1))
    points += np.stack([-np.sin(headings), np.cos(headings)], axis=-1) * aside[:, None, None]
    back, front = points[:, 0], points[:, 1]
    gaps, middles = (front - back).tolist(), (back + front) / 2
    return {
        vehicle.id: (middle, math.atan2(gap[1], gap[0]))
        for vehicle, middle, gap in zip(vehicles, middles, gaps, strict=True)
    }


def _braked(speed: float) -> float:
    """Metres in which one comes to rest from a speed, braking comfortably."""
    return speed**2 / (2 * BRAKING)


def _idm(speed: float, allowed: float, gap: float, other: float) -> float:
    """The Intelligent Driver Model's acceleration, with braking bounded by what tyres give."""
    free = 1 - (speed / max(allowed, 0.1)) ** 4
    wanted = STANDSTILL_GAP + max(
        0.0, speed * HEADWAY + speed * (speed - other) / (2 * math.sqrt(ACCELERATION * BRAKING))
    )
    close = (wanted / max(gap, 0.1)) ** 2 if math.isfinite(gap) else 0.0
    return max(-HARD_BRAKING, min(ACCELERATION, ACCELERATION * (free - close)))


def _along_and_aside(path: np.ndarray, point: np.ndarray) -> tuple[float, float]:
    """Where a point lies beside a straight path [2, 2] or beyond its ends: metres along it and to its left."""
    unit = (path[1] - path[0]) / polyline.length(path)
    gap = np.asarray(point) - path[0]
    return float(gap @ unit), float(unit[0] * gap[1] - unit[1] * gap[0])


def _heading(path: np.ndarray) -> float:
    along = path[-1] - path[0]
    return math.atan2(along[1], along[0])


@dataclass(frozen=True)
class _Roads:
    """What never changes about a town and is asked often."""

    town: Town
    signal_of: dict[str, TrafficSignal]
    """Of each lane that a light holds."""
    signal_at: dict[tuple[int, str], TrafficSignal]
    setback: dict[str, float]
    """For each junction lane how far before it vehicles stop."""
    stop_controlled: frozenset[str]
    """Junction lanes that are entered over a stop line without a light."""
    conflicts: dict[str, frozenset[str]]
    """For each junction lane the others that must not be used at the same time."""
    crosswalks_of_lane: dict[str, tuple[tuple[int, float], ...]]
    """For each driving lane its crosswalks and how far along their near edges are."""
    lanes_of_crosswalk: tuple[tuple[tuple[str, float], ...], ...]
    crosswalks_of_sidewalk: dict[str, tuple[tuple[int, float], ...]]
    siblings: dict[str, tuple[tuple[str, float], ...]]
    """For each junction lane the others from its entry, and how far along it they are still on the same strip."""
    sidewalks: tuple[str, ...]
    tree: shapely.STRtree
    """Of the sidewalks."""
    driving: tuple[str, ...]
    """All lanes for vehicles, those inside junctions too."""
    driving_tree: shapely.STRtree

    @classmethod
    def of(cls, town: Town) -> _Roads:
        inner = [lane for lane in town.lanes.values() if lane.junction is not None]
        signal_of = {lane: signal for signal in town.signals for lane in signal.lanes}
        lines = {lane: line for line in town.stop_lines for lane in line.lanes}
        setback = {}
        for lane in inner:
            entry = town.lanes[lane.predecessors[0]]
            if entry.id in lines:
                station, _ = polyline.project(entry.centre, lines[entry.id].points.mean(0))
                setback[lane.id] = entry.length - station + 0.5
        stop_controlled = frozenset(
            lane.id for lane in inner if lane.predecessors[0] in lines and lane.predecessors[0] not in signal_of
        )
        crossings, of_lane = [], {}
        for index, crosswalk in enumerate(town.crosswalks):
            found = _lanes_across(town, crosswalk)
            crossings.append(tuple(found))
            for lane, near in found:
                of_lane.setdefault(lane, []).append((index, near))
        sidewalks = tuple(lane.id for lane in town.lanes.values() if lane.kind == "sidewalk")
        of_sidewalk: dict[str, list[tuple[int, float]]] = {}
        for index, crosswalk in enumerate(town.crosswalks):
            for name in sidewalks:
                lane = town.lanes[name]
                if lane.street == crosswalk.street:
                    ends = [polyline.project(lane.centre, end) for end in crosswalk.path]
                    station, aside = min(ends, key=lambda end: abs(end[1]))
                    if abs(aside) < 3.0:
                        of_sidewalk.setdefault(name, []).append((index, station))
        return cls(
            town,
            signal_of,
            {(signal.node, signal.street): signal for signal in town.signals},
            setback,
            stop_controlled,
            _conflicts(inner),
            {lane: tuple(found) for lane, found in of_lane.items()},
            tuple(crossings),
            {name: tuple(found) for name, found in of_sidewalk.items()},
            _siblings(inner),
            sidewalks,
            shapely.STRtree([shapely.LineString(town.lanes[name].centre) for name in sidewalks]),
            driving := tuple(lane.id for lane in town.lanes.values() if lane.kind == "driving"),
            shapely.STRtree([shapely.LineString(town.lanes[name].centre) for name in driving]),
        )

    def nearest_sidewalk(self, point: np.ndarray) -> str:
        return self.sidewalks[int(self.tree.nearest(shapely.Point(point)))]

    def lanes_within(self, shape: shapely.Geometry, distance: float) -> list[str]:
        """Lanes for vehicles whose centres come so near to a shape, metres."""
        return [self.driving[index] for index in sorted(self.driving_tree.query(shape, "dwithin", distance))]

    def nearest_lane(self, point: np.ndarray, yaw: float) -> str:
        """The lane for vehicles whose centre is nearest to a point, of those within 10 m that lead about that way, if
        there are any."""
        near = self.lanes_within(shapely.Point(point), 10.0)

        def strange(name: str) -> float:
            lane = self.town.lanes[name]
            station, aside = polyline.project(lane.centre, point)
            return abs(aside) + (100.0 if math.cos(float(lane.at(station)[1]) - yaw) < 0.0 else 0.0)

        return min(near, key=strange) if near else self.driving[int(self.driving_tree.nearest(shapely.Point(point)))]

    def rank(self, lane_id: str) -> int:
        """Who goes first: 0 straight on, 1 right, 2 left, and later by 3 who has a stop line."""
        turn = self.town.lanes[lane_id].turn or "straight"
        return ("straight", "right", "left").index(turn) + (3 if lane_id in self.stop_controlled else 0)


def _conflicts(inner: list[Lane]) -> dict[str, frozenset[str]]:
    """Junction lanes whose strips touch, but for those that part from one entry: there one follows the other."""
    strips = {lane.id: shapely.LineString(lane.centre).buffer(_HALF_WIDTH, cap_style="flat") for lane in inner}
    found: dict[str, set[str]] = {lane.id: set() for lane in inner}
    for lane in inner:
        for other in inner:
            if lane.junction != other.junction or lane is other or lane.predecessors == other.predecessors:
                continue
            if strips[lane.id].intersects(strips[other.id]):
                found[lane.id].add(other.id)
    return {lane: frozenset(others) for lane, others in found.items()}


def _siblings(inner: list[Lane]) -> dict[str, tuple[tuple[str, float], ...]]:
    """For each junction lane those that begin where it does, and the station at which their centres are a strip's
    width apart."""
    found: dict[str, list[tuple[str, float]]] = {}
    for lane in inner:
        for other in inner:
            if lane is other or lane.predecessors != other.predecessors:
                continue
            distance = shapely.distance(shapely.points(other.centre), shapely.LineString(lane.centre))
            apart = np.flatnonzero(distance > 2 * _HALF_WIDTH)
            found.setdefault(lane.id, []).append(
                (other.id, float(other.stations[apart[0]]) if len(apart) else math.inf)
            )
    return {name: tuple(others) for name, others in found.items()}


def _lanes_across(town: Town, crosswalk: Crosswalk) -> list[tuple[str, float]]:
    """Driving lanes that a crosswalk lies on, and the station of its near edge on each."""
    area = shapely.Polygon(crosswalk.polygon)
    found = []
    for lane in town.driving_lanes():
        if lane.street != crosswalk.street:
            continue
        common = shapely.LineString(lane.centre).intersection(area)
        if not common.is_empty:
            stations = [polyline.project(lane.centre, np.array(point))[0] for point in shapely.get_coordinates(common)]
            found.append((lane.id, min(stations)))
    return found
