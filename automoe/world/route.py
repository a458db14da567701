"""Routes through a town: which lanes to take, and what a driver is told of them on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

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


@dataclass(frozen=True)
class Route:
    """A way through a town, on its lanes' centres.

    lanes: in order, junctions included; start: metres along the first one; line: float64 [N, 2], world, a point about
    every metre; turns: for each point `left`, `right` or `straight` inside junctions, `follow` elsewhere.
    """

    town: str
    lanes: tuple[str, ...]
    start: float
    line: np.ndarray = field(repr=False)
    turns: tuple[str, ...] = field(repr=False)

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
        """The next points of the sparse plan, [count, 2]; the last one again where there are no more."""
        ahead = [row for row in self._target_rows if self.along[row] > station + 4.0] or self._target_rows[-1:]
        rows = (ahead + [ahead[-1]] * count)[:count]
        return self.line[rows]

    def begin(self) -> EgoState:
        """The ego at the route's start, standing, with the whole route before it."""
        point, heading = polyline.sample(self.line, 0.0)
        x, y = point - AHEAD * np.array([np.cos(heading), np.sin(heading)])
        return EgoState(float(x), float(y), float(heading), 0.0, self.lanes, max(self.start - AHEAD, 0.0))


def plan_route(town: Town, lanes: tuple[str, ...], start: float, length: float) -> Route:
    """The route along given lanes, from `start` metres along the first one. Raises WorldError where a lane doesn't
    follow the one before, or where they are shorter than the length (metres)."""
    points, turns = [], []
    for index, name in enumerate(lanes):
        lane = town.lanes[name]
        if index and name not in town.lanes[lanes[index - 1]].successors:
            raise WorldError(f"lane {name} does not follow lane {lanes[index - 1]} in town {town.name}")
        points.append(lane.centre)
        turns += [_turn(town, lane)] * len(lane.centre)
    line = np.concatenate(points)
    apart = np.concatenate([[True], np.hypot(*np.diff(line, axis=0).T) > 1e-6])
    line, turns = line[apart], [turn for turn, kept in zip(turns, apart, strict=True) if kept]
    along = polyline.stations(line)
    if along[-1] < start + length:
        raise WorldError(f"the lanes from {lanes[0]} on are {along[-1] - start:.0f} m long, not {length:.0f} m")
    first, last = (int(np.searchsorted(along, at)) for at in (start, start + length))
    return Route(town.name, lanes, start, line[first : last + 1], tuple(turns[first : last + 1]))


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


def _turn(town: Town, lane: Lane) -> str:
    """A bend between two streets is no junction to a driver."""
    if lane.junction is None or len(town.nodes[[node.id for node in town.nodes].index(lane.junction)].arms) == 2:
        return "follow"
    return str(lane.turn)
