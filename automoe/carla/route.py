"""Ways on CARLA's maps: from a route file's points to a dense line with a driver's commands.

Works on a carla.Map alone, be it a server's or made of OpenDRIVE text; nothing here talks to a server. What is planned
is what GlobalRoutePlanner (agents/navigation of CARLA's client) plans between two points, the shortest way on driving
lanes with the changes of lane that markings allow; where a point may lie on several lanes of a junction, the whole way
decides.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from automoe.carla import frame
from automoe.carla.observe import pose_of
from automoe.errors import DataError
from automoe.world import polyline
from automoe.world.route import ASIDE_COST, COMMANDS, ON_LANE, ROUNDED, SHORTEST, RouteGuide

STEP, LEAST = 1.0, 0.06
"""Metres between two points of a lane, as in the leaderboard's dense plan, and of the shortest lane: some maps have
lanes of a hand's breadth."""

CHANGE_METRES, CHANGE_COST = 10.0, 10.0
"""Metres of way that a change of lane takes, and metres of way that it is worth to do without."""

TURN = math.radians(35.0)
"""A way through a junction that turns by less is straight on, as GlobalRoutePlanner has it."""

FARTHER = 60.0
"""Metres of way beyond the shortest to a waypoint's lane after which no other lane is looked for on which it may
lie."""

LONGEST, DETOUR = 5000.0, 3.0
"""Metres of way after which a waypoint is given up, and what is added for each metre to it as the crow flies."""

SAME_POINT, BACK_METRES = 0.1, 3.0
"""Metres between points of the leaderboard's plan that are one, and metres that it may go back where the way from one
of a route's points ends and that to the next begins."""

Key = tuple[int, int, int]
"""A lane of a map: its road, its section, its number."""


@dataclass(frozen=True)
class CarlaRoute(RouteGuide):
    """A way on a map.

    line: float64 [N, 2], world, our frame, a point about every metre; turns: for each point `left`, `right` or
    `straight` inside junctions, `follow` elsewhere, in changes of lane too. start: T_world_ego [4, 4] on its first
    point, on the ground.
    """

    line: np.ndarray = field(repr=False)
    turns: tuple[str, ...] = field(repr=False)
    start: np.ndarray = field(repr=False)


def plan_on_map(carla: Any, carla_map: Any, points: np.ndarray) -> CarlaRoute:
    """The shortest way on a map's driving lanes that passes waypoints in order, from the first to the last.

    carla: the client's module; carla_map: a carla.Map. points: [N, 3], world, our frame, metres; height tells a bridge
    from what is under it. Raises DataError, with the number of the waypoint from 1 on, where one is more than `ON_LANE`
    metres from every driving lane or cannot be reached from the one before, and where fewer than two are given or the
    way is shorter than `SHORTEST` metres.
    """
    if len(points) < 2:
        raise DataError(f"a route needs two waypoints or more, not {len(points)}")
    lanes = _Lanes(carla, carla_map)
    ways: list[_Way] = []
    for index, point in enumerate(points):
        said = f"waypoint {index + 1} of {len(points)} at {_said(point)}"
        places = list(lanes.places(point))
        if not places:
            raise DataError(f"{said} is more than {ON_LANE:g} m from every driving lane; move it onto one")
        if index == 0:
            ways = [_Way(ASIDE_COST * aside, (_Piece(lane, at, at),)) for lane, at, aside in places]
        else:
            limit = LONGEST + DETOUR * float(np.hypot(*(point - points[index - 1])[:2]))
            ways = _onward(lanes, ways, places, limit)
        if not ways:
            raise DataError(f"{said} cannot be reached from the one before; is the route one of this map?")
    return _built(min(ways, key=lambda way: way.cost).pieces)


def route_of_plan(plan: Sequence[tuple[Any, Any]]) -> CarlaRoute:
    """The leaderboard's plan as a route: pairs of a carla.Transform and a RouteOption of CARLA's client (1 to 4 as
    COMMANDS, others are changes of lane or void), dense, in order. Points that lie on each other count once, and those
    that go back not at all.

    Raises DataError where that leaves fewer than two.
    """
    line: list[np.ndarray] = []
    turns: list[str] = []
    for transform, option in plan:
        pose = pose_of(transform)
        here = pose[:2, 3]
        if line:
            gap = here - line[-1]
            metres, onward = float(np.hypot(*gap)), float(gap @ pose[:2, 0])
            if metres < SAME_POINT or (onward < 0.0 and metres < BACK_METRES):
                continue
        number = int(getattr(option, "value", option))
        line.append(here)
        turns.append(COMMANDS[number - 1] if 1 <= number <= len(COMMANDS) else "follow")
    if len(line) < 2:
        raise DataError(f"the leaderboard's plan has {len(line)} points apart from each other; a route needs two")
    return CarlaRoute(np.array(line), tuple(turns), pose_of(plan[0][0]))


# --- lanes ---


@dataclass(eq=False)
class _Lane:
    """A driving lane from its beginning to its end. waypoints: carla.Waypoint, about every metre; line: their places
    [N, 2], our frame."""

    key: Key
    waypoints: list[Any]
    line: np.ndarray

    @cached_property
    def along(self) -> np.ndarray:
        return polyline.stations(self.line)

    @property
    def length(self) -> float:
        return float(self.along[-1])

    @property
    def junction(self) -> int | None:
        first = self.waypoints[0]
        return int(first.junction_id) if first.is_junction else None

    def nearest(self, station: float) -> Any:
        return self.waypoints[int(np.abs(self.along - station).argmin())]


class _Lanes:
    """A map's lanes, each looked at when a search comes to it."""

    def __init__(self, carla: Any, carla_map: Any) -> None:
        self.carla, self.map, self.driving = carla, carla_map, carla.LaneType.Driving
        self._known: dict[Key, _Lane | None] = {}
        self._next: dict[Key, list[_Lane]] = {}

    def lane(self, waypoint: Any) -> _Lane | None:
        """The lane of a waypoint; None where it is no driving lane, or too short to have a direction."""
        key = _key(waypoint)
        if key not in self._known:
            found = [*reversed(_stretch(waypoint, "previous")), waypoint, *_stretch(waypoint, "next")]
            places = [one.transform.location for one in found]
            line = frame.flip(np.array([[place.x, place.y] for place in places]))
            apart = np.concatenate([[True], np.hypot(*np.diff(line, axis=0).T) > 0.01])
            waypoints = [one for one, kept in zip(found, apart, strict=True) if kept]
            good = waypoint.lane_type == self.driving and len(waypoints) > 1
            self._known[key] = _Lane(key, waypoints, line[apart]) if good else None
        return self._known[key]

    def successors(self, lane: _Lane) -> list[_Lane]:
        if lane.key not in self._next:
            found, ahead = {}, [one for one in lane.waypoints[-1].next(LEAST) if _key(one) != lane.key]
            for _ in range(4):  # beyond lanes that are shorter still
                known = [(one, self.lane(one)) for one in ahead if one.lane_type == self.driving]
                found |= {one.key: one for _, one in known if one is not None}
                ahead = [next_one for one, short in known if short is None for next_one in one.next(LEAST)]
            self._next[lane.key] = list(found.values())
        return self._next[lane.key]

    def beside(self, lane: _Lane, station: float) -> Iterator[tuple[float, _Lane, float]]:
        """The lanes that may be changed to: the first station from the given one on at which, the lane, and its station
        there. Who is past the stretch where it is allowed may do it at once, as with GlobalRoutePlanner."""
        change = self.carla.LaneChange
        for side, allowed in (("get_left_lane", (change.Left, change.Both)),
                              ("get_right_lane", (change.Right, change.Both))):  # fmt: skip
            here = int(np.searchsorted(lane.along, station - 1e-6))
            for row in (*range(here, len(lane.waypoints)), *reversed(range(here))):
                waypoint = lane.waypoints[row]
                if waypoint.lane_change not in allowed:
                    continue
                other = getattr(waypoint, side)()
                if other is None or other.lane_type != self.driving or other.lane_id * waypoint.lane_id < 0:
                    continue
                neighbour = self.lane(other)
                if neighbour is not None:
                    at = max(float(lane.along[row]), station)
                    point, _ = polyline.sample(lane.line, at, lane.along)
                    yield at, neighbour, polyline.project(neighbour.line, point)[0]
                    break

    def places(self, point: np.ndarray) -> Iterator[tuple[_Lane, float, float]]:
        """The lanes on which a point may lie, the nearest, and in junctions all within ON_LANE: metres along each, and
        metres from it."""
        location = self.carla.Location(**frame.say_vector(point))
        nearest = self.map.get_waypoint(location, project_to_road=True, lane_type=self.driving)
        if nearest is None:
            return
        waypoints = [nearest]
        if nearest.is_junction:
            pairs = nearest.get_junction().get_waypoints(self.driving)
            waypoints += [first for first, _ in pairs]
        seen: set[Key] = set()
        for waypoint in waypoints:
            lane = self.lane(waypoint)
            if lane is None or lane.key in seen:
                continue
            seen.add(lane.key)
            station, aside = polyline.project(lane.line, point[:2])
            if abs(aside) <= ON_LANE:
                yield lane, station, abs(aside)


def _stretch(waypoint: Any, way: str) -> list[Any]:
    """The waypoints of the same lane that come next, or that came before, about a metre from each other; the client's
    own next_until_lane_end and previous_until_lane_start crash where a lane has nothing beyond its end."""
    found, key = [waypoint], _key(waypoint)
    for step in (STEP, STEP / 4, 0.9 * LEAST):
        while (onward := next((one for one in getattr(found[-1], way)(step) if _key(one) == key), None)) is not None:
            if len(found) > LONGEST / STEP:
                break  # a lane that leads back to its own beginning
            found.append(onward)
    return found[1:]


def _key(waypoint: Any) -> Key:
    return waypoint.road_id, waypoint.section_id, waypoint.lane_id


# --- the search ---


@dataclass(frozen=True)
class _Piece:
    """A stretch of a lane, metres along it. changed: whether it was come to from a lane beside it."""

    lane: _Lane
    start: float
    end: float
    changed: bool = False


@dataclass(frozen=True)
class _Way:
    cost: float
    pieces: tuple[_Piece, ...]


def _onward(
    lanes: _Lanes, ways: Sequence[_Way], places: Sequence[tuple[_Lane, float, float]], limit: float
) -> list[_Way]:
    """The cheapest continuation of one of the ways to each place that can be reached."""
    best: dict[Key, _Way] = {}
    goals = {lane.key: at for lane, at, _ in places}
    for way in ways:
        found = _reached(lanes, way.pieces[-1], goals, limit)
        for lane, _, aside in places:
            if lane.key not in found:
                continue
            metres, pieces = found[lane.key]
            cost = way.cost + metres + ASIDE_COST * aside
            if lane.key not in best or cost < best[lane.key].cost:
                best[lane.key] = _Way(cost, way.pieces[:-1] + pieces)
    return list(best.values())


def _reached(
    lanes: _Lanes, here: _Piece, goals: Mapping[Key, float], limit: float
) -> dict[Key, tuple[float, tuple[_Piece, ...]]]:
    """The shortest ways from the end of a piece to stations of lanes, by Dijkstra's algorithm: metres, and the pieces
    from that one on."""
    queue: list[tuple[float, int, float, tuple[_Piece, ...]]] = [(0.0, 0, here.end, (here,))]
    found: dict[Key, tuple[float, tuple[_Piece, ...]]] = {}
    seen: set[tuple[Key, int]] = set()
    number = 0
    while queue and len(found) < len(goals):
        cost, _, station, pieces = heapq.heappop(queue)
        last = pieces[-1]
        lane = last.lane
        if cost > limit:
            break
        goal = goals.get(lane.key)
        if goal is not None and lane.key not in found and station <= goal + ROUNDED:
            end = max(goal, station)
            found[lane.key] = cost + end - station, (*pieces[:-1], _Piece(lane, last.start, end, last.changed))
            limit = min(limit, cost + end - station + FARTHER)
        if (lane.key, int(station // 5.0)) in seen:
            continue
        seen.add((lane.key, int(station // 5.0)))
        whole = (*pieces[:-1], _Piece(lane, last.start, lane.length, last.changed))
        options = [(lane.length - station, 0.0, (*whole, _Piece(one, 0.0, 0.0))) for one in lanes.successors(lane)]
        for at, neighbour, entered in lanes.beside(lane, station):
            left = (*pieces[:-1], _Piece(lane, last.start, at, last.changed))
            options.append((at - station + CHANGE_COST, entered, (*left, _Piece(neighbour, entered, entered, True))))
        for metres, entered, onward in options:
            number += 1
            heapq.heappush(queue, (cost + metres, number, entered, onward))
    return found


# --- the line ---


def _built(pieces: Sequence[_Piece]) -> CarlaRoute:
    """The pieces of a way as one line. A change of lane goes straight across for `CHANGE_METRES`, or to the end."""
    points: list[np.ndarray] = []
    turns: list[str] = []
    across = 0.0
    for index, (piece, turn) in enumerate(zip(pieces, _turns(pieces), strict=True)):
        lane = piece.lane
        across = CHANGE_METRES if piece.changed else across
        inner = lane.along[(lane.along > piece.start + 0.01) & (lane.along < piece.end - 0.01)]
        at = np.array([piece.start, *inner, piece.end])
        kept = at[at - piece.start >= across]
        across = max(across - (piece.end - piece.start), 0.0)
        if not len(kept) and index == len(pieces) - 1:
            kept = at[-1:]
        for point in polyline.sample(lane.line, kept, lane.along)[0]:
            if not points or np.hypot(*(point - points[-1])) > 0.05:
                points.append(point)
                turns.append(turn)
    line = np.array(points)
    if len(line) < 2 or polyline.length(line) < SHORTEST:
        raise DataError(f"the waypoints lie within {SHORTEST:g} m of way; a route needs more")
    return CarlaRoute(*_filled(line, turns), _start(pieces[0], line))


def _filled(line: np.ndarray, turns: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """A line without gaps: where it goes across in a change of lane, a point about every metre."""
    points, said = [line[:1]], [turns[0]]
    for before, after, turn in zip(line, line[1:], turns[1:]):
        count = max(1, round(float(np.hypot(*(after - before))) / STEP))
        points.append(before + (after - before) * np.arange(1, count + 1)[:, None] / count)
        said += [turn] * count
    return np.concatenate(points), tuple(said)


def _turns(pieces: Sequence[_Piece]) -> Iterator[str]:
    """The turn of each piece: that of the junction that it leads through, from where the way enters to where it
    leaves it."""
    index = 0
    while index < len(pieces):
        junction, last = pieces[index].lane.junction, index + 1
        while last < len(pieces) and pieces[last].lane.junction == junction:
            last += 1
        turn = "follow" if junction is None else _turn(pieces[index].lane, pieces[last - 1].lane)
        for _ in range(index, last):
            yield turn
        index = last


def _turn(first: _Lane, last: _Lane) -> str:
    begins, ends = (float(polyline.sample(lane.line, at)[1]) for lane, at in ((first, 0.0), (last, last.length)))
    turned = float(polyline.wrap_angle(ends - begins))
    return "straight" if abs(turned) < TURN else "left" if turned > 0.0 else "right"


def _start(piece: _Piece, line: np.ndarray) -> np.ndarray:
    """T_world_ego on the first point of a line, with its heading, as high and as tilted as the lane there."""
    said = pose_of(piece.lane.nearest(piece.start).transform)
    said[:2, 3] = line[0]
    return said


def _said(point: np.ndarray) -> str:
    """A place in CARLA's axes, as a route file has it."""
    said = frame.say_vector(point)
    return f"({said['x']:.1f}, {said['y']:.1f})"
