"""Who watches a drive in CARLA: infractions and the end of a route, decided without a server from a moment's facts.

The criteria are those of `automoe.drive.referee`, by the same constants, and follow the same file of scenario_runner
(srunner/scenariomanager/scenarioatomics/atomic_criteria.py, commit 94ff3b8): lanes, lights and signs are CARLA's own,
so red lights and stop signs are judged as there, by stop lines and trigger volumes. Two things differ: a lane for
oncoming traffic is known by its direction at every moment and not by how the ego came to it, and no scenarios are
played, so none of theirs is judged.

Frames: ours; sentences are in CARLA's axes, as the leaderboard's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from automoe.carla.frame import say_vector
from automoe.drive.referee import (
    LIGHT_METRES,
    OUTSIDE_METRES,
    STANDING,
    Criteria,
    Hit,
    comes_the_other_way,
    crosses,
    tail_of,
)
from automoe.world.route import RouteGuide

STOP_METRES, STOP_AREA, AWAY = 4.0, 1.2, -0.17
"""RunningStopTest: signs farther away are not looked at; so much larger than its trigger volume is the area of one; and
the cosine of a direction that counts as the other way."""

SLOWEST_LIMIT = 1.0
"""m/s of a speed limit, at least: a server that tells of none says 0."""


LaneId = tuple[int, int]
"""A lane as lights know it: its road and its number there."""


# --- what stands there ---


@dataclass(frozen=True)
class LightLine:
    """Where a traffic light stops a lane. points: float64 [2, 2], the line; heading: radians, of the lane there."""

    lane: LaneId
    points: np.ndarray = field(repr=False)
    heading: float


@dataclass(frozen=True)
class Light:
    """A traffic light: where it stands [3], the middle of its trigger volume [3], and the lines of the lanes that it
    holds."""

    id: int
    place: np.ndarray
    middle: np.ndarray
    lines: tuple[LightLine, ...]


@dataclass(frozen=True)
class StopSign:
    """A stop sign: where it stands [3], and the middle [3] and half the size [2], metres along the world's axes, of its
    trigger volume."""

    id: int
    place: np.ndarray
    middle: np.ndarray
    extent: np.ndarray

    def holds(self, waypoints: np.ndarray) -> bool:
        """Whether it concerns who is at the first of some places on the middle of his lane [N, 3] and comes to the
        others next."""
        if np.linalg.norm(waypoints[0] - self.middle) > STOP_METRES:
            return False
        return bool((np.abs(waypoints[:, :2] - self.middle[:2]) < STOP_AREA * self.extent).all(axis=1).any())


# --- a moment ---


@dataclass(frozen=True)
class LaneFact:
    """What is under the ego. away: metres from the middle of the nearest lane for driving or parking; width: of that
    one. heading: radians, of the nearest for driving; junction: whether that is in one."""

    away: float
    width: float
    heading: float
    junction: bool

    def is_outside(self, yaw: float) -> bool:
        """Beside all lanes, or on one for those who come the other way."""
        if self.away > self.width / 2 + OUTSIDE_METRES:
            return True
        return not self.junction and comes_the_other_way(self.heading, yaw)


@dataclass(frozen=True)
class Facts:
    """All that is judged at a moment.

    time: seconds. place: [2], the ego's origin; yaw: radians. speed: m/s over ground, forward: m/s along the car.
    speed_limit: m/s. lane: under the ego. tail_lane: under the far end of its `tail_of`. ahead: float64 [N, 3], the
    middle of its lane where it is and at every half metre of the next `STOP_METRES`. red: ids of the lights that are.
    hits: what the ego touched since the moment before, as CARLA's type_id and id.
    """

    time: float
    place: np.ndarray
    yaw: float
    speed: float
    forward: float
    speed_limit: float
    lane: LaneFact
    tail_lane: LaneId
    ahead: np.ndarray = field(repr=False)
    red: frozenset[int] = frozenset()
    hits: tuple[tuple[str, int], ...] = ()


def hit_of(type_id: str, actor_id: int) -> Hit:
    """A contact with an actor, as CollisionTest sorts them: a kerb is no infraction. An id of 0 is level geometry's."""
    still = ("static" in type_id or "traffic" in type_id) and "sidewalk" not in type_id
    kind = (
        "collisions_layout" if still
        else "collisions_vehicle" if "vehicle" in type_id
        else "collisions_pedestrian" if "walker" in type_id
        else None
    )  # fmt: skip
    return Hit(kind, actor_id, type_id, actor_id != 0)


# --- the referee ---


class CarlaReferee(Criteria):
    """Watches one drive along a route from its first moment. `observe` at every tick; `ended` says why there is nothing
    left.

    now: seconds of the clock that facts tell. lights, stops: of the map. half: of the ego's length, metres.
    """

    def __init__(
        self, route: RouteGuide, route_id: str, *, now: float = 0.0, lights: Sequence[Light] = (),
        stops: Sequence[StopSign] = (), half: float = 2.45,
    ) -> None:  # fmt: skip
        super().__init__(route, route_id, now)
        self.lights, self.stops, self.half = lights, stops, half
        self._last_light: int | None = None
        self._stop: StopSign | None = None
        self._stood = False
        self._last_stop: int | None = None

    def at(self, point: np.ndarray) -> str:
        said = say_vector(point)
        return f"(x={said['x']:.3f}, y={said['y']:.3f}, z={said['z']:.3f})"

    def observe(self, facts: Facts) -> None:
        """Judge a moment."""
        self.now = facts.time
        self._collide(facts.place, facts.speed, (hit_of(*said) for said in facts.hits))
        self._red_lights(facts)
        self._stop_signs(facts)
        station = self.route.advance(facts.place, self.station)
        driven = self._advance(station, max(facts.speed_limit, SLOWEST_LIMIT), facts.lane.is_outside(facts.yaw))
        self._end(facts.place, facts.speed, driven)

    def _red_lights(self, facts: Facts) -> None:
        tail = tail_of(facts.place, facts.yaw, self.half)
        for light in self.lights:
            if light.id == self._last_light or light.id not in facts.red:
                continue
            if np.hypot(*(light.middle[:2] - facts.place)) > LIGHT_METRES:
                continue
            if any(self._runs(line, facts, tail) for line in light.lines):
                self.infractions["red_light"].append(f"Agent ran a red light {light.id} at {self.at(light.place)}")
                self._last_light = light.id

    def _runs(self, line: LightLine, facts: Facts, tail: np.ndarray) -> bool:
        towards = math.cos(line.heading - facts.yaw) > 0.0
        return towards and line.lane == facts.tail_lane and crosses(tail, line.points)

    def _stop_signs(self, facts: Facts) -> None:
        if self._stop is None:
            self._stop, self._stood = self._sign_ahead(facts), False
            return
        self._stood |= facts.speed < STANDING
        if not self._stop.holds(facts.ahead):
            if not self._stood and self._stop.id != self._last_stop:
                self.infractions["stop_infraction"].append(
                    f"Agent ran a stop with id={self._stop.id} at {self.at(self._stop.place)}"
                )
                self._last_stop = self._stop.id
            self._stop = None

    def _sign_ahead(self, facts: Facts) -> StopSign | None:
        if facts.forward < AWAY or math.cos(facts.lane.heading - facts.yaw) < AWAY:
            return None
        return next((sign for sign in self.stops if sign.holds(facts.ahead)), None)
