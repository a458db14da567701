"""Who watches a drive: infractions and the end of a route, by the criteria of the CARLA leaderboard.

Each criterion follows the one of that name in srunner/scenariomanager/scenarioatomics/atomic_criteria.py
(carla-simulator/scenario_runner, commit 94ff3b8), with the thresholds given there, on the embedded world's own lanes
and lines. Where the world differs, the constant here says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import shapely

from automoe.drive.leaderboard import KINDS, OUTSIDE, RouteRecord
from automoe.world import polyline
from automoe.world.contacts import Contact
from automoe.world.drive import Drive
from automoe.world.route import RouteGuide
from automoe.world.town import Lane, StopLine, TrafficSignal
from automoe.world.vehicle import LENGTH

COMPLETE, TARGET_METRES = 99.0, 10.0
"""RouteCompletionTest: per cent of the route, and metres from its end."""

SAME_PLACE, SAME_SECONDS, FAULT = 5.0, 5.0, 0.1
"""CollisionTest: contacts within so many metres of the last one that counted are one with it, those with the same thing
within so many seconds too, and below that speed (m/s) they are nobody's fault."""

KNOWN_AGAIN = ("traffic light", "traffic sign", "traffic_cone")
"""CollisionTest: of what stands still, what CARLA knows by an id. All else is level geometry, which has none: only the
place tells one collision with it from the next."""

OUTSIDE_METRES = 0.5
"""OutsideRouteLanesTest: beyond a lane's edge."""

WRONG_WAY = math.radians(120.0)
"""OutsideRouteLanesTest: a lane that leads so far from the car's heading is one for oncoming traffic."""

TAIL = (0.8, 1.0, 1.0)
"""RunningRedLightTest: the tail reaches from that share of half the length to that share and so many metres more."""

LIGHT_METRES = 15.0
"""RunningRedLightTest: lights farther away are not looked at."""

STOP_ZONE, STANDING = (-6.0, 1.0), 0.1
"""RunningStopTest: metres of the car's middle before and behind the line between which it has to stand once, slower
than that (m/s). CARLA's signs have trigger volumes; the world's stop lines have this stretch."""

OFF_ROUTE, NEAR_ROUTE, OFF_SHARE = 30.0, 15.0, 0.30
"""InRouteTest: metres from the route that end it, and metres that do when more than that share of it is driven so."""

BLOCKED_SPEED, BLOCKED_SECONDS = 0.1, 180.0
"""ActorBlockedTest."""

TIMEOUT_SECONDS, TIMEOUT_SPEED = 300.0, 0.10
"""RouteTimeoutBehavior: to begin with, and more for each driven metre at that share of its speed limit."""


@dataclass(frozen=True)
class Hit:
    """A contact of a moment. kind: of infraction; one without is none, but others near it belong to it. what: the other
    thing, as sentences have it; known_again: whether its id tells it from others."""

    kind: str | None
    id: int
    what: str
    known_again: bool


class Criteria:
    """What is judged alike in every world: collisions, metres outside, and the end of a route. A referee tells it what
    happened at every moment, in order.

    infractions: sentences for each kind. completion: per cent. ended: why there is nothing left. timeout: seconds from
    the beginning on after which the route ends.
    """

    def __init__(self, route: RouteGuide, route_id: str, now: float, station: float = 0.0) -> None:
        """now: seconds of the world's clock. station: metres of the route that are behind the ego already."""
        self.route, self.route_id = route, route_id
        self.now = self.began = self.moved = now
        self.infractions: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.completion: float = 0.0
        self.ended: str | None = None
        self.outside_metres = self.far_metres = 0.0
        self.timeout = TIMEOUT_SECONDS
        self.station = station
        self._hit_id: int | None = None
        self._hit_time = 0.0
        self._hit_place: np.ndarray | None = None

    def at(self, point: np.ndarray) -> str:
        """A place [2] as sentences have it."""
        return f"(x={point[0]:.3f}, y={point[1]:.3f}, z=0.0)"

    # -------------------------------------------------------- the route

    def _advance(self, station: float, speed_limit: float, outside: bool) -> float:
        """The metres that the ego has come on; speed_limit: m/s. outside: whether it drove them outside its lanes."""
        driven = max(station - self.station, 0.0)
        if driven and outside:
            self.outside_metres += driven
        self.station = station
        self.timeout += driven / (TIMEOUT_SPEED * speed_limit)
        return driven

    def _end(self, here: np.ndarray, speed: float, driven: float) -> None:
        """Whether the route ends here; after `_advance`."""
        self.completion = min(100.0, 100.0 * self.station / self.route.length)
        apart = self.route.apart(here, self.station)
        if speed >= BLOCKED_SPEED:
            self.moved = self.now
        if apart > NEAR_ROUTE:
            self.far_metres += driven
        if self.completion > COMPLETE and np.hypot(*(self.route.line[-1] - here)) < TARGET_METRES:
            self.completion, self.ended = 100.0, "completed"
        elif apart > OFF_ROUTE or self.far_metres > OFF_SHARE * self.route.length:
            self._fail("route_dev", f"Agent deviated from the route at {self.at(here)}")
        elif self.now - self.moved > BLOCKED_SECONDS:
            self._fail("vehicle_blocked", f"Agent got blocked at {self.at(here)}")
        elif self.now - self.began > self.timeout:
            self._fail("route_timeout", "Route timeout.")

    def _fail(self, kind: str, words: str) -> None:
        self.infractions[kind].append(words)
        self.ended = kind

    # -------------------------------------------------------- infractions

    def _collide(self, here: np.ndarray, speed: float, hits: Iterable[Hit]) -> None:
        """Every contact of every moment is a collision, but for those that belong to the last one that counted."""
        if self._hit_place is not None and np.hypot(*(here - self._hit_place)) > SAME_PLACE:
            self._hit_place = None
        if self.now - self._hit_time > SAME_SECONDS:
            self._hit_id = None
        for hit in hits:
            if hit.id == self._hit_id or self._hit_place is not None or speed < FAULT:
                continue
            if hit.kind is not None:
                self.infractions[hit.kind].append(
                    f"Agent collided against object with type={hit.what} and id={hit.id} at {self.at(here)}"
                )
            self._hit_time, self._hit_place = self.now, here
            if hit.known_again:
                self._hit_id = hit.id

    # -------------------------------------------------------- out

    def record(self, seconds_taken: float = 0.0, failure: str | None = None, reason: str | None = None) -> RouteRecord:
        """What became of the drive. failure, reason: a RouteRecord's, where it broke off."""
        infractions = {kind: list(said) for kind, said in self.infractions.items()}
        share = min(self.outside_metres / max(self.station, 1e-6), 1.0)
        if self.outside_metres > 0.0:
            infractions[OUTSIDE] = [
                f"Agent went outside its route lanes for about {self.outside_metres:.3f} meters "
                f"({100 * share:.2f}% of the completed route)"
            ]
        return RouteRecord(
            self.route_id,
            round(self.completion, 2),
            infractions,
            self.route.length,
            self.now - self.began,
            seconds_taken,
            share,
            self.outside_metres,
            failure,
            reason,
        )


def tail_of(middle: np.ndarray, yaw: float, half: float) -> np.ndarray:
    """The stretch [2, 2] behind a car's middle [2] that must not cross the line of a red light; half: of its length,
    metres. The first point is the nearer one."""
    forward = np.array([math.cos(yaw), math.sin(yaw)])
    return np.stack([middle - TAIL[0] * half * forward, middle - (TAIL[1] * half + TAIL[2]) * forward])


def comes_the_other_way(heading: float, yaw: float) -> bool:
    """Whether a lane with a heading is one for those who come the other way than a car with that yaw; radians."""
    return abs(float(polyline.wrap_angle(heading - yaw))) > WRONG_WAY


class Referee(Criteria):
    """Watches one drive from its first moment. `observe` after every step; `ended` says why there is nothing left."""

    def __init__(self, drive: Drive, route_id: str) -> None:
        super().__init__(drive.route, route_id, drive.scene.time, drive.station)
        town = drive.scene.stage.town
        self.drive, self.town = drive, town
        lanes = [lane for lane in town.lanes.values() if lane.kind in ("driving", "parking")]
        self._lanes, self._tree = lanes, shapely.STRtree([shapely.LineString(lane.centre) for lane in lanes])
        self._signals = {(signal.node, signal.street): signal for signal in town.signals}
        self._lights = [(line, self._signals[line.node, line.street]) for line in self._lines(lit=True)]
        self._stops = self._lines(lit=False)
        self._stop: StopLine | None = None
        self._stood = False
        self._last_light: str | None = None

    def _lines(self, lit: bool) -> list[StopLine]:
        return [line for line in self.town.stop_lines if ((line.node, line.street) in self._signals) == lit]

    def observe(self) -> None:
        """Judge the present moment."""
        drive, self.now = self.drive, self.drive.scene.time
        here = np.array(drive.car.middle)
        lane = self._lane(here)
        # A car that ran into something stands: what counts is how fast it came to it.
        self._collide(here, max(drive.car.speed, drive.impact), map(_hit, drive.contacts))
        self._red_lights()
        self._stop_lines(here)
        outside = drive.station > self.station and self._is_outside(lane, here)
        driven = self._advance(drive.station, lane.speed_limit, outside)
        self._end(here, drive.car.speed, driven)

    def _red_lights(self) -> None:
        car, now = self.drive.car, self.drive.scene.time
        middle = np.array(car.middle)
        tail = tail_of(middle, car.yaw, LENGTH / 2)
        for line, signal in self._lights:
            if signal.id == self._last_light or math.cos(line.heading - car.yaw) <= 0.0:
                continue
            near = np.hypot(*(line.points.mean(axis=0) - middle)) < LIGHT_METRES
            if near and signal.state(now) == "red" and crosses(tail, line.points):
                self._red(signal, line)
                self._last_light = signal.id

    def _red(self, signal: TrafficSignal, line: StopLine) -> None:
        self.infractions["red_light"].append(
            f"Agent ran a red light {signal.id} at {self.at(line.points.mean(axis=0))}"
        )

    def _stop_lines(self, here: np.ndarray) -> None:
        if self._stop is None:
            self._stop = next((line for line in self._stops if self._before(line, here)), None)
            self._stood = False
        if self._stop is None:
            return
        self._stood |= self.drive.car.speed < STANDING
        if not self._before(self._stop, here):
            if not self._stood:
                where = self._stop.points.mean(axis=0)
                words = f"Agent ran a stop with id={self._stop.node}/{self._stop.street} at {self.at(where)}"
                self.infractions["stop_infraction"].append(words)
            self._stop = None

    def _before(self, line: StopLine, here: np.ndarray) -> bool:
        """Whether a stop line concerns who is here: on its lanes, near it, under way towards it."""
        if math.cos(line.heading - self.drive.car.yaw) < -0.17:
            return False
        forward = np.array([math.cos(line.heading), math.sin(line.heading)])
        gap = here - line.points[0]
        across = line.points[1] - line.points[0]
        share = float(gap @ across) / float(across @ across)
        return STOP_ZONE[0] < float(gap @ forward) < STOP_ZONE[1] and -0.1 < share < 1.1

    def _lane(self, here: np.ndarray) -> Lane:
        return self._lanes[int(self._tree.nearest(shapely.Point(here)))]

    def _is_outside(self, lane: Lane, here: np.ndarray) -> bool:
        """Beside all lanes, or on one for those who come the other way."""
        station, aside = polyline.project(lane.centre, here)
        if abs(aside) > lane.width / 2 + OUTSIDE_METRES:
            return True
        if lane.junction is not None or lane.kind != "driving":
            return False
        return comes_the_other_way(float(lane.at(station)[1]), self.drive.car.yaw)


def _hit(contact: Contact) -> Hit:
    kind = {"pedestrian": "collisions_pedestrian", "vehicle": "collisions_vehicle"}.get(
        contact.kind, "collisions_layout"
    )
    return Hit(kind, contact.id, contact.what, contact.kind != "static" or contact.what in KNOWN_AGAIN)


def crosses(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two segments [2, 2] have a point in common."""
    return bool(shapely.LineString(a).intersects(shapely.LineString(b)))
