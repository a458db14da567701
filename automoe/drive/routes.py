"""Routes to drive: drawn in the embedded world's towns, with a number that names them for good, or read from a file.

Files are those of the CARLA leaderboard, in all their dialects: 1.0's waypoints (Longest6 and LAV, which tell the
weather beside them) and 2.0's positions with weathers and scenarios (Bench2Drive's, too). What is read here is what
leaderboard/utils/route_parser.py of either version reads.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np

from automoe.carla.frame import say_vector, say_yaw, vector, yaw
from automoe.errors import DataError, WorldError
from automoe.files import write_bytes
from automoe.world import polyline
from automoe.world.carla_writer import TRAIN_TOWNS, VAL_TOWNS
from automoe.world.route import Route, draw_route, plan_through
from automoe.world.town import Town, build_town

GENERATED = "generated"

DRAWN = 20
"""How many routes are drawn if nobody says how many."""

SHORTEST_DRAWN = 60.0
"""Metres of the shortest route that is drawn."""

WAYPOINT_METRES = 20.0
"""At most so far lie two waypoints of a written route apart."""

TOWNS = (*TRAIN_TOWNS, *VAL_TOWNS)
"""Of the embedded world, for routes."""

_YAW_DIGITS = 10
"""Decimals of a written angle in degrees: what was read comes back to the last bit."""

_WEATHER = (
    "cloudiness", "precipitation", "precipitation_deposits", "wind_intensity", "sun_azimuth_angle",
    "sun_altitude_angle", "fog_density", "fog_distance", "fog_falloff", "wetness", "scattering_intensity",
    "mie_scattering_scale", "rayleigh_scattering_scale", "dust_storm",
)  # fmt: skip
"""The parameters of carla.WeatherParameters; what else a file says of the weather is not looked at."""


# --- tasks ---


@dataclass(frozen=True)
class RouteTask:
    """A route to be driven in the embedded world.

    number: it names a drawn route among those of its length (metres) and its town, and with a drive's seed decides on
    the traffic. id: of a route from a file, which leads through `points`, (x, y) in metres of our frame.
    """

    number: int
    town: str
    length: float
    id: str | None = None
    points: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    on_server = False
    """Whether it is driven on a CARLA server, where one drive at a time is possible."""

    def name(self, seed: int) -> str:
        """Of a drive, as the leaderboard has it."""
        return f"RouteScenario_{self.number if self.id is None else self.id}_rep{seed}"

    def stem(self, seed: int) -> str:
        """Of a drive's file; no other route has it, be it another file's of the same id."""
        if self.id is None:
            return f"{self.town}_{self.length:g}m_{self.name(seed)}"
        digest = hashlib.sha256(repr(self._told()).encode()).hexdigest()[:8]
        return f"{self.town}_{digest}_{quote(self.name(seed), safe='')}"

    def _told(self) -> Any:
        """What of a file's route decides how it is driven."""
        return self.points

    def route(self) -> Route:
        """The way itself."""
        from automoe.drive.embedded import staged

        return self.route_in(staged(self.town)[0].town)

    def route_in(self, town: Town) -> Route:
        """The way in its town, for who has that at hand. Raises WorldError where there is none."""
        if self.id is not None:
            return plan_through(town, np.array(self.points))
        return draw_route(town, np.random.default_rng([self.number, 500]), self.length)


def generated_routes(count: int, length: float = 300.0, towns: Sequence[str] = VAL_TOWNS) -> list[RouteTask]:
    """The first `count` routes, in the towns in turn."""
    return [RouteTask(number, towns[number % len(towns)], length) for number in range(count)]


def planned_routes(routes: Sequence[RouteFile], path: Path) -> list[RouteTask]:
    """Routes of a file, which is named in errors, as tasks; each is planned once. A route whose id is a number has that
    number, so that a drawn one that was written to a file meets the same traffic.

    Raises DataError, naming the route, where the embedded world doesn't have its town or no way through its points.
    """
    towns: dict[str, Town] = {}
    tasks = []
    for route in routes:
        if route.town not in towns:
            towns[route.town] = _build(route.town, f"{path}, route {route.id}")
        points = tuple((float(x), float(y)) for x, y in route.points[:, :2])
        try:
            length = plan_through(towns[route.town], route.points).length
        except WorldError as error:
            raise DataError(f"{path}, route {route.id}: {error}") from error
        tasks.append(RouteTask(number_of(route.id), route.town, length, route.id, points))
    return tasks


def written_routes(tasks: Sequence[RouteTask]) -> list[RouteFile]:
    """Routes as files have them: the number or the id, and waypoints at most `WAYPOINT_METRES` apart; weather and
    traffic are a drive's own. Raises DataError for a town that the embedded world doesn't have, WorldError as
    `RouteTask.route_in` does."""
    towns = {name: _build(name, "the routes to write") for name in dict.fromkeys(task.town for task in tasks)}
    written = []
    for task in tasks:
        route = task.route_in(towns[task.town])
        count = max(2, math.ceil(route.length / WAYPOINT_METRES) + 1)
        ground, _ = polyline.sample(route.line, np.linspace(0.0, route.length, count), route.along)
        points = np.concatenate([ground, np.zeros((count, 1))], axis=1)
        written.append(RouteFile(str(task.number) if task.id is None else task.id, task.town, points))
    return written


def _build(name: str, place: str) -> Town:
    """A town of the embedded world. place: where its name was said."""
    if name not in TOWNS:
        raise DataError(
            f"{place}: the embedded world has no town {name!r}. It has {', '.join(TOWNS)}; CARLA's own towns need a "
            "CARLA server."
        )
    return build_town(name)


def number_of(name: str) -> int:
    """Of a route with an id: the id itself where it is one, a checksum of it elsewhere."""
    return int(name) if name.isascii() and name.isdecimal() and len(name) < 10 else zlib.crc32(name.encode())


# --- files ---


@dataclass(frozen=True)
class Scenario:
    """What happens on the way when the ego comes to `point`, float64 [3], with heading `yaw`; metres and radians, our
    frame. parameters: what else the file says, for each element its attributes as they stand: CARLA's frame and units.
    """

    name: str
    type: str
    point: np.ndarray
    yaw: float
    parameters: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class RouteFile:
    """A route of a file. points: float64 [N, 3], metres, our frame, N >= 2; they may lie far apart. weather: CARLA's
    parameters where the route begins, empty if the file doesn't tell them."""

    id: str
    town: str
    points: np.ndarray = field(repr=False)
    weather: dict[str, float] = field(default_factory=dict)
    scenarios: tuple[Scenario, ...] = ()


def read_routes(path: Path) -> list[RouteFile]:
    """The routes of a file of the CARLA leaderboard 1.0 or 2.0, plain or gzipped, in its order.

    Weather that changes along a route is told as it is at the beginning. Raises DataError, naming file and route, where
    the file is no XML or has no route, where an id is there twice, and where a route has no id, no town, fewer than two
    points, or a number that is none or isn't finite.
    """
    try:
        data = Path(path).read_bytes()
        root = ElementTree.fromstring(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}); get it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} is no XML file of routes: {error}") from error
    routes = []
    for index, element in enumerate(root.iter("route")):
        name = f"route {element.get('id')}" if element.get("id") else f"the route in place {index + 1}"
        try:
            routes.append(_route(element))
        except DataError as error:
            raise DataError(f"{path}, {name}: {error}") from error
    if not routes:
        raise DataError(f"{path} has no route; give a file of routes of the CARLA leaderboard")
    twice = [name for name, count in Counter(route.id for route in routes).items() if count > 1]
    if twice:
        raise DataError(f"{path} has more than one route {', '.join(twice)}; give each an id of its own")
    return routes


def write_routes(path: Path, routes: Iterable[RouteFile]) -> None:
    """Write routes in leaderboard 2.0's dialect, gzipped where the name ends in .gz; `read_routes` gives them back as
    they are, angles to a ten-billionth of a degree. Raises WriteError as `atomic_file` does."""
    root = ElementTree.Element("routes")
    for route in routes:
        element = ElementTree.SubElement(root, "route", id=route.id, town=route.town)
        if route.weather:
            told = {key: repr(float(value)) for key, value in route.weather.items()}
            weathers = ElementTree.SubElement(element, "weathers")
            ElementTree.SubElement(weathers, "weather", {"route_percentage": "0"} | told)
        waypoints = ElementTree.SubElement(element, "waypoints")
        for point in route.points:
            ElementTree.SubElement(waypoints, "position", _say_point(point))
        scenarios = ElementTree.SubElement(element, "scenarios")
        for scenario in route.scenarios:
            _say_scenario(ElementTree.SubElement(scenarios, "scenario"), scenario)
    ElementTree.indent(root, "   ")
    data = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"
    write_bytes(path, gzip.compress(data, mtime=0) if Path(path).suffix == ".gz" else data)


def _route(element: ElementTree.Element) -> RouteFile:
    positions = element.findall("waypoints/position") or element.findall("waypoint")
    points = [_point(position, f"point {index + 1}") for index, position in enumerate(positions)]
    if len(points) < 2:
        raise DataError(f"it has {len(points)} points, and a route needs two or more")
    scenarios = tuple(_scenario(found) for found in element.findall("scenarios/scenario"))
    return RouteFile(_word(element, "id"), _word(element, "town"), np.array(points), _weather(element), scenarios)


def _weather(element: ElementTree.Element) -> dict[str, float]:
    found = element.findall("weathers/weather") or element.findall("weather")
    begins = [_number_of(one, "route_percentage", "a weather") if len(found) > 1 else 0.0 for one in found]
    if not found:
        return {}
    first = found[begins.index(min(begins))]
    return {key: _number_of(first, key, "its weather") for key in _WEATHER if first.get(key) is not None}


def _scenario(element: ElementTree.Element) -> Scenario:
    name = _word(element, "name")
    trigger = element.find("trigger_point")
    if trigger is None:
        raise DataError(f"scenario {name} has no trigger_point; give it one, or leave the scenario out")
    place = f"the trigger point of scenario {name}"
    parameters = {child.tag: dict(child.attrib) for child in element if child is not trigger}
    heading = yaw(_number_of(trigger, "yaw", place))
    return Scenario(name, _word(element, "type"), _point(trigger, place), heading, parameters)


def _say_scenario(element: ElementTree.Element, scenario: Scenario) -> None:
    element.attrib.update(name=scenario.name, type=scenario.type)
    heading = 0.0 + round(say_yaw(scenario.yaw), _YAW_DIGITS)
    ElementTree.SubElement(element, "trigger_point", _say_point(scenario.point) | {"yaw": repr(heading)})
    for tag, attributes in scenario.parameters.items():
        ElementTree.SubElement(element, tag, attributes)


def _point(element: ElementTree.Element, place: str) -> np.ndarray:
    return vector({key: _number_of(element, key, place) for key in ("x", "y", "z")})


def _say_point(point: np.ndarray) -> dict[str, str]:
    return {key: repr(value) for key, value in say_vector(point).items()}


def _word(element: ElementTree.Element, key: str) -> str:
    found = element.get(key)
    if not found:
        raise DataError(f"a {element.tag} has no {key}; give it one")
    return found


def _number_of(element: ElementTree.Element, key: str, place: str) -> float:
    said = element.get(key)
    try:
        value = float(said or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{place} says {'nothing of' if said is None else f'{said!r} as'} {key}; give a finite number")
    return value
