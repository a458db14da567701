"""Routes through a town: which lanes to take, and what a driver is told of them on the way."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import shapely

from automoe.errors import WorldError
from automoe.world import polyline
from automoe.world.scene import EgoState
from automoe.world.town import Lane, Town
from automoe.world.vehicle import AHEAD

COMMANDS = ("left", "right", "straight", "follow")
"""What a driver is told, in the order of CARLA's RoadOption 1 to 4."""

TOLD_BEFORE = 25.0
"""Metres before a junction at which its turn is told."""

TARGET_METRES = 50.0
"""At most so far lie two target points apart (as in the CARLA leaderboard's sparse plan)."""

END_METRES = 3.0
"""Of a route's line, whose direction is the one in which it would go on."""

ON_LANE = 3.0
"""Metres from a lane's centre within which a waypoint may be meant to lie on it."""

ASIDE_COST = 10.0
"""Metres of way that it is worth to pass a waypoint a metre nearer, where it may lie on several lanes."""

ROUNDED = 1.0
"""Metres that a waypoint may lie behind the one before it on its lane: files round them."""

SHORTEST = 1.0
"""Metres of the shortest route that is planned."""


PROGRESS = 15.0
"""Metres ahead of where somebody was on his route at which he is looked for: no short cut completes a route."""


class RouteGuide:
    """What a driver is told on a way, and how far along it he is, in whatever world.

    line: float64 [N, 2], world, a point about every metre; turns: for each point `left`, `right` or `straight` inside
    junctions, `follow` elsewhere.
    """

    line: np.ndarray
    turns: tuple[str, ...]

    @cached_property
    def along(self) -> np.ndarray:
        """Metres along the route of each point of its line."""
        return polyline.stations(self.line)

    @property
    def length(self) -> float:
        """Metres."""
        return float(self.along[-1])

    def command(self, station: float) -> str:
        """What the driver is told there: the turn at the junction that he is in or comes to, or to follow the road."""
        ahead = (self.along >= station - 1.0) & (self.along <= station + TOLD_BEFORE)
        return next((self.turns[index] for index in np.flatnonzero(ahead) if self.turns[index] != "follow"), "follow")

    @cached_property
    def targets(self) -> np.ndarray:
        """The sparse plan, float64 [K, 2]: the last point always, where a junction begins and ends, and at least every
        `TARGET_METRES`."""
        return self.line[self._target_rows]

    @cached_property
    def _target_rows(self) -> list[int]:
        rows, last = [], 0.0
        for index in range(1, len(self.line)):
            changes = self.turns[index] != self.turns[index - 1]
            if changes or self.along[index] - last >= TARGET_METRES or index == len(self.line) - 1:
                rows.append(index)
                last = self.along[index]
        return rows

    def next_targets(self, station: float, count: int = 2) -> np.ndarray:
        """The next points of the sparse plan, [count, 2]. Behind the last one they go straight on, one after every
        `TARGET_METRES`: recordings break off in the middle of their ways, so who has learnt from them has never seen a
        way end, and would stand there."""
        onward = TARGET_METRES * np.arange(1, count + 1)
        stations = np.concatenate([self.along[self._target_rows], self.length + onward])
        points = np.concatenate([self.targets, self.line[-1] + onward[:, None] * self._last_heading])
        return points[stations > station + 4.0][:count]

    @cached_property
    def _last_heading(self) -> np.ndarray:
        """The direction [2] in which the line ends."""
        tail, _ = polyline.sample(self.line, max(self.length - END_METRES, 0.0), self.along)
        way = self.line[-1] - tail
        return way / max(float(np.hypot(*way)), 1e-6)

    def advance(self, point: np.ndarray, station: float) -> float:
        """The station of who is at a point [2] and was at `station` before: it never falls, and never jumps farther
        than `PROGRESS`."""
        here, _ = polyline.project_within(self.line, self.along, point, station - 2.0, station + PROGRESS)
        return max(station, here)

    def apart(self, point: np.ndarray, station: float) -> float:
        """Metres between a point [2] and the route's at a station."""
        return float(np.hypot(*(polyline.sample(self.line, station, self.along)[0] - point)))


@dataclass(frozen=True)
class Route(RouteGuide):
    """A way through a town, on its lanes' centres.

    lanes: in order, junctions included; start: metres along the first one; line: float64 [N, 2], world, a point about
    every metre; turns: for each point `left`, `right` or `straight` inside junctions, `follow` elsewhere.
    """

    town: str
    lanes: tuple[str, ...]
    start: float
    line: np.ndarray = field(repr=False)
    turns: tuple[str, ...] = field(repr=False)

    def begin(self) -> EgoState:
        """The ego at the route's start, standing, with the whole route before it."""
        point, heading = polyline.sample(self.line, 0.0)
        x, y = point - AHEAD * np.array([np.cos(heading), np.sin(heading)])
        return EgoState(float(x), float(y), float(heading), 0.0, self.lanes, max(self.start - AHEAD, 0.0))


def plan_route(town: Town, lanes: tuple[str, ...], start: float, length: float) -> Route:
    """The route along given lanes, from `start` metres along the first one. Raises WorldError where a lane doesn't
    follow the one before, or where they are shorter than the length (metres)."""
    line, turns = _joined(town, lanes)
    along = polyline.stations(line)
    if along[-1] < start + length:
        raise WorldError(f"the lanes from {lanes[0]} on are {along[-1] - start:.0f} m long, not {length:.0f} m")
    first, last = (int(np.searchsorted(along, at)) for at in (start, start + length))
    return Route(town.name, lanes, start, line[first : last + 1], tuple(turns[first : last + 1]))


def plan_through(town: Town, points: np.ndarray) -> Route:
    """The shortest way on a town's lanes that passes waypoints in order, from the first to the last.

    points: [N, 2 or more], world, metres; further columns are not looked at. They may lie far apart: between two of
    them Dijkstra's algorithm goes from lane to successor, and no lane is changed on the way. A waypoint that may lie on
    several lanes, in a junction say, lies on those that make the sum over the whole way smallest; a metre aside counts
    as `ASIDE_COST` metres of it. A lane may come twice. Raises WorldError, with the number of the waypoint from 1 on,
    where one is more than `ON_LANE` metres from every lane or cannot be reached from the one before, and where fewer
    than two are given or the way is shorter than `SHORTEST` metres.
    """
    if len(points) < 2:
        raise WorldError(f"a route needs two waypoints or more, not {len(points)}")
    ways: list[_Way] = []
    for index, places in enumerate(_places(town, points)):
        said = f"waypoint {index + 1} of {len(points)} at ({points[index][0]:.1f}, {points[index][1]:.1f})"
        if not places:
            raise WorldError(f"{said} is more than {ON_LANE:g} m from every lane of town {town.name}; move it onto one")
        if index == 0:
            ways = [_Way(ASIDE_COST * place.aside, (place.lane,), place.station, place.station) for place in places]
        else:
            ways = _onward(town, ways, places)
        if not ways:
            raise WorldError(
                f"{said} cannot be reached from the one before without changing lanes in town {town.name}; move it to "
                "a lane that can, or add waypoints between"
            )
    best = min(ways, key=lambda way: (way.cost, way.lanes))
    line, turns = _joined(town, best.lanes)
    along = polyline.stations(line)
    start, end = best.start, float(along[-1]) - town.lanes[best.lanes[-1]].length + best.station
    if end - start < SHORTEST:
        raise WorldError(f"the waypoints lie within {SHORTEST:g} m of way in town {town.name}; a route needs more")
    at = along[(along > start - 0.01) & (along < end + 0.01)]
    at = np.concatenate([[start] if at[0] > start + 0.01 else [], at, [end] if at[-1] < end - 0.01 else []])
    rows = np.minimum(np.searchsorted(along, at), len(line) - 1)
    return Route(town.name, best.lanes, start, polyline.sample(line, at, along)[0], tuple(turns[row] for row in rows))


def draw_route(town: Town, rng: np.random.Generator, length: float = 300.0) -> Route:
    """A random way of about that length (metres): it starts on a street, never twice runs through the same lane, turns
    at some junctions and goes straight on at others, and ends outside junctions."""
    for _ in range(200):
        lanes = town.driving_lanes()
        lane = lanes[int(rng.integers(len(lanes)))]
        if lane.length < 30.0:
            continue
        start = float(rng.uniform(5.0, lane.length - 20.0))
        found, left = [lane.id], length - (lane.length - start)
        while left > -15.0 and len(set(found)) == len(found):
            options = [town.lanes[name] for name in town.lanes[found[-1]].successors]
            option = options[int(rng.integers(len(options)))]
            found.append(option.id)
            left -= option.length
        last = town.lanes[found[-1]]
        if len(set(found)) < len(found) or last.junction is not None:
            continue
        # As long as asked for, but for an end that would lie in a junction or right before its line.
        end = min(max(last.length + left, 8.0), last.length - 15.0)
        if end >= 8.0:
            whole = sum(town.lanes[name].length for name in found[:-1]) - start + end
            return plan_route(town, tuple(found), start, whole)
    raise WorldError(f"town {town.name} has no route of {length:.0f} m; choose a shorter one")


def _joined(town: Town, lanes: tuple[str, ...]) -> tuple[np.ndarray, list[str]]:
    """The centres of lanes that follow each other as one line [N, 2], and the turn at each of its points."""
    points, turns = [], []
    for index, name in enumerate(lanes):
        lane = town.lanes[name]
        if index and name not in town.lanes[lanes[index - 1]].successors:
            raise WorldError(f"lane {name} does not follow lane {lanes[index - 1]} in town {town.name}")
        points.append(lane.centre)
        turns += [_turn(town, lane)] * len(lane.centre)
    line = np.concatenate(points)
    apart = np.concatenate([[True], np.hypot(*np.diff(line, axis=0).T) > 1e-6])
    return line[apart], [turn for turn, kept in zip(turns, apart, strict=True) if kept]


@dataclass(frozen=True)
class _Place:
    """A waypoint's foot on a lane: metres along the lane, and metres from it."""

    lane: str
    station: float
    aside: float


@dataclass(frozen=True)
class _Way:
    """From `start` metres along its first lane to `station` metres along its last."""

    cost: float
    lanes: tuple[str, ...]
    start: float
    station: float


def _places(town: Town, points: np.ndarray) -> list[list[_Place]]:
    """For each point [N, 2 or more] where it may lie, in the order of the town's lanes."""
    lanes = [lane for lane in town.lanes.values() if lane.kind == "driving"]
    ground = np.asarray(points, np.float64)[:, :2]
    tree = shapely.STRtree([shapely.LineString(lane.centre) for lane in lanes])
    found: list[list[_Place]] = [[] for _ in ground]
    for row, index in sorted(tree.query(shapely.points(ground), "dwithin", ON_LANE).T.tolist()):
        station, aside = polyline.project(lanes[index].centre, ground[row])
        found[row].append(_Place(lanes[index].id, station, abs(aside)))
    return found


def _onward(town: Town, ways: Iterable[_Way], places: Collection[_Place]) -> list[_Way]:
    """The cheapest continuation of one of the ways to each place that can be reached."""
    best: dict[str, _Way] = {}
    for way in ways:
        here = way.lanes[-1]
        entered = _entered(town, here, way.station, {place.lane for place in places})
        for place in places:
            if place.lane == here and place.station >= way.station - ROUNDED:
                station, lanes = max(place.station, way.station), ()
                metres = station - way.station
            elif place.lane in entered:
                station, (metres, lanes) = place.station, entered[place.lane]
                metres += station
            else:
                continue
            cost = way.cost + metres + ASIDE_COST * place.aside
            if place.lane not in best or cost < best[place.lane].cost:
                best[place.lane] = _Way(cost, way.lanes + lanes, way.start, station)
    return list(best.values())


def _entered(town: Town, lane: str, station: float, goals: set[str]) -> dict[str, tuple[float, tuple[str, ...]]]:
    """The shortest way from a place on a lane to the beginning of each goal: metres, and the lanes after that one."""
    ahead = town.lanes[lane].length - station
    queue: list[tuple[float, tuple[str, ...]]] = [(ahead, (name,)) for name in sorted(town.lanes[lane].successors)]
    found: dict[str, tuple[float, tuple[str, ...]]] = {}
    seen: set[str] = set()
    while queue and not goals <= found.keys():
        metres, lanes = heapq.heappop(queue)
        last = town.lanes[lanes[-1]]
        if last.id in seen:
            continue
        seen.add(last.id)
        if last.id in goals:
            found[last.id] = metres, lanes
        for name in last.successors:
            heapq.heappush(queue, (metres + last.length, (*lanes, name)))
    return found


def _turn(town: Town, lane: Lane) -> str:
    """A bend between two streets is no junction to a driver."""
    if lane.junction is None or len(town.nodes[[node.id for node in town.nodes].index(lane.junction)].arms) == 2:
        return "follow"
    return str(lane.turn)
