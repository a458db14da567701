"""CARLA as a simulator: one drive along a route of a file on a real server, watched by the leaderboard's criteria.

The server is driven through the official client, given as an argument (`carla`, its module, and a connected client), so
that everything here can be tested without a server. Whatever happens, actors are destroyed and settings restored.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from automoe.carla import frame, observe, run
from automoe.carla.route import CarlaRoute, plan_on_map
from automoe.carla.server import (
    ANSWER_SECONDS,
    LEAVING_SECONDS,
    WARM_UP,
    Population,
    Sensor,
    load_town,
    map_name,
    server_errors,
    signals_between_ticks,
    synchronous,
    towns_of,
)
from automoe.data.sequences import NOTHING_SEEN, Observation, ambient_of
from automoe.drive.carla_rules import STOP_METRES, CarlaReferee, Facts, LaneFact, LaneId, Light, LightLine, StopSign
from automoe.drive.leaderboard import RouteRecord
from automoe.drive.referee import tail_of
from automoe.drive.routes import RouteFile, RouteTask, number_of
from automoe.drive.simulator import camera_in, observation_of
from automoe.errors import CollectError
from automoe.world import polyline
from automoe.world.vehicle import Control

EGO_BLUEPRINTS = ("vehicle.lincoln.mkz_2020", "vehicle.lincoln.mkz_2017", "vehicle.lincoln.mkz")
"""The leaderboard's car, the first that a server has."""

VEHICLES, WALKERS = 40, 20
"""Of the traffic, as many as find room."""

CLEAR_METRES = 15.0
"""Nobody is put so near the ego."""

NEAR_METRES = 300.0
"""So near the route there is traffic before there is any elsewhere: some maps are ten kilometres wide."""

SPAWN_HEIGHT = 0.5
"""Metres above the road at which the ego is put: it falls onto its wheels."""

DAY = {"sun_altitude_angle": 70.0, "cloudiness": 50.0}
"""Of the weather what a route doesn't tell (leaderboard/utils/route_parser.py); all else is CARLA's default."""

PICTURE_SECONDS, DEAD_SECONDS = 5.0, 0.2
"""Until a camera that sends no picture is taken for dead, and then for the pictures after that one."""

AREA_SHARE, LINE_SHARE = 0.9, 0.6
"""RunningRedLightTest: of a trigger volume that is looked at for lanes, and of a lane's width that its stop line has to
each side of the middle."""

KEPT = "complete drives are kept"


# --- what is known without a server ---


@dataclass(frozen=True)
class CarlaTask(RouteTask):
    """A route of a file to be driven on the server at host and port. length: metres, as the crow flies from point to
    point: the map is the server's."""

    file: RouteFile | None = None
    host: str = "localhost"
    port: int = 2000
    on_server = True

    def _told(self) -> Any:
        return None if self.file is None else (self.file.points.tolist(), sorted(self.file.weather.items()))


def carla_tasks(routes: Sequence[RouteFile], host: str, port: int) -> list[CarlaTask]:
    """The routes of a file as tasks for a server."""
    tasks = []
    for route in routes:
        points = tuple((float(x), float(y)) for x, y in route.points[:, :2])
        length = polyline.length(route.points[:, :2])
        tasks.append(CarlaTask(number_of(route.id), route.town, length, route.id, points, route, host, port))
    return tasks


def rig_sensor(rig: Mapping[str, Any], name: str = run.LABELLED) -> dict[str, Any]:
    """A camera of a checkpoint's rig as the leaderboard specifies sensors: type, id, x, y, z (metres), pitch, yaw, roll
    (degrees) in CARLA's axes from the car's origin, width, height (pixels) and fov (degrees).

    Raises CheckpointError as `camera_in` does.
    """
    said = camera_in(rig, name)
    height, width = said["size"]
    location, rotation = frame.say_pose(np.array(said["T_ego_mount"], np.float64))
    size = {"width": int(width), "height": int(height), "fov": float(said["field_of_view"])}
    return {"type": "sensor.camera.rgb", "id": name, **location, **rotation, **size}


def weather_of(carla: Any, said: Mapping[str, float]) -> Any:
    """A route's weather as carla.WeatherParameters."""
    weather = carla.WeatherParameters()
    for key, value in {**DAY, **said}.items():
        setattr(weather, key, value)
    return weather


def transform_of(carla: Any, T_world_thing: np.ndarray) -> Any:
    """A pose [4, 4] of ours as a carla.Transform."""
    location, rotation = frame.say_pose(T_world_thing)
    return carla.Transform(carla.Location(**location), carla.Rotation(**rotation))


# --- what stands in a map ---


def lights_of(carla: Any, carla_map: Any, actors: Sequence[Any]) -> list[Light]:
    """The traffic lights among actors, with the stop lines of the lanes that run through their trigger volumes, as
    RunningRedLightTest finds them: where the lane enters a junction."""
    return [_light(carla, carla_map, actor) for actor in actors if "traffic_light" in actor.type_id]


def stops_of(actors: Sequence[Any]) -> list[StopSign]:
    """The stop signs among actors."""
    return [
        StopSign(
            actor.id,
            observe.pose_of(actor.get_transform())[:3, 3],
            _middle(actor),
            np.array([actor.trigger_volume.extent.x, actor.trigger_volume.extent.y]),
        )
        for actor in actors
        if "traffic.stop" in actor.type_id
    ]


def _middle(actor: Any) -> np.ndarray:
    """The middle [3] of an actor's trigger volume, world, our frame."""
    local = frame.vector(frame.location_of(actor.trigger_volume.location))
    return (observe.pose_of(actor.get_transform()) @ [*local, 1.0])[:3]


def _light(carla: Any, carla_map: Any, actor: Any) -> Light:
    T_world_light, middle = observe.pose_of(actor.get_transform()), _middle(actor)
    reach = AREA_SHARE * actor.trigger_volume.extent.x
    flat = np.array([*T_world_light[:2, 0], 0.0]) / np.hypot(*T_world_light[:2, 0])
    lines: dict[LaneId, LightLine] = {}
    for aside in np.arange(-reach, reach, 1.0):
        waypoint = carla_map.get_waypoint(carla.Location(**frame.say_vector(middle + aside * flat)))
        if waypoint is not None and _lane_id(waypoint) not in lines:
            lines[_lane_id(waypoint)] = _line(waypoint)
    return Light(actor.id, T_world_light[:3, 3], middle, tuple(lines.values()))


def _line(waypoint: Any) -> LightLine:
    """The stop line of a waypoint's lane: where it comes to a junction."""
    while not waypoint.is_junction:
        onward = next(iter(waypoint.next(0.5)), None)
        if onward is None or onward.is_junction:
            break
        waypoint = onward
    pose = observe.pose_of(waypoint.transform)
    aside = LINE_SHARE * waypoint.lane_width * pose[:2, 1]
    heading = math.atan2(pose[1, 0], pose[0, 0])
    return LightLine(_lane_id(waypoint), np.stack([pose[:2, 3] + aside, pose[:2, 3] - aside]), heading)


def _lane_id(waypoint: Any) -> LaneId:
    return waypoint.road_id, waypoint.lane_id


def lane_under(carla: Any, carla_map: Any, location: Any) -> LaneFact:
    """What is under a carla.Location, as OutsideRouteLanesTest finds it."""
    driving = carla_map.get_waypoint(location, lane_type=carla.LaneType.Driving)
    parking = carla_map.get_waypoint(location, lane_type=carla.LaneType.Parking)
    lanes = [one for one in (driving, parking) if one is not None]
    away = [location.distance(one.transform.location) for one in lanes]
    nearest = int(np.argmin(away))
    heading = frame.yaw(driving.transform.rotation.yaw)
    return LaneFact(away[nearest], lanes[nearest].lane_width, heading, driving.is_junction)


def way_ahead(carla_map: Any, location: Any) -> np.ndarray:
    """The middle of the lane under a carla.Location there and at every half metre of the next `STOP_METRES`, float64
    [N, 3], our frame."""
    found = [carla_map.get_waypoint(location)]
    while len(found) <= STOP_METRES / 0.5 and (onward := found[-1].next(0.5)):
        found.append(onward[0])
    return np.array([frame.vector(frame.location_of(one.transform.location)) for one in found])


# --- the drive ---


@contextmanager
def carla_drive(
    client: Any, carla: Any, route: RouteFile, name: str, rig: Mapping[str, Any] | None, *, seed: int = 0,
    vehicles: int = VEHICLES, walkers: int = WALKERS,
) -> Iterator[CarlaSimulator]:  # fmt: skip
    """A drive along a route while entered; afterwards the server is as it was, but for its map and weather.

    client: a connected carla.Client; carla: its module. name: of the record. rig: the checkpoint's, whose camera the
    car has; None for a driver who looks at nothing. seed: of the traffic.

    Raises CollectError where the server fails or can't do what is wanted, DataError where the route isn't one of the
    map, CheckpointError as `rig_sensor` does. SIGTERM, SIGHUP and Ctrl-C end the drive between two ticks, by SystemExit
    (128 + the signal's number) or KeyboardInterrupt; outside the main thread they stay as they are.
    """
    camera = None if rig is None else rig_sensor(rig)
    with signals_between_ticks() as check_signals, server_errors(f"while route {route.id} was driven", KEPT):
        world = _world(client, route.town)
        with synchronous(world, client) as manager, ExitStack() as actors:
            actors.callback(client.set_timeout, ANSWER_SECONDS)
            try:
                people = Population(carla, world, manager, actors, check_signals, seed)
                simulator = CarlaSimulator(people, route, name, camera, seed, vehicles, walkers)
                yield simulator
                if simulator.failed:
                    client.set_timeout(LEAVING_SECONDS)
            except (RuntimeError, CollectError):
                client.set_timeout(LEAVING_SECONDS)
                raise


def _world(client: Any, town: str) -> Any:
    """A server's world with that map; it is loaded if another is."""
    world = client.get_world()
    if _plain(world.get_map().name) == _plain(town):
        return world
    return load_town(client, towns_of(client, [town])[0])


def _plain(town: str) -> str:
    return map_name(str(town)).removesuffix("_Opt")


class CarlaSimulator:
    """A `Simulator`: one drive on a server in synchronous mode, twenty ticks a second, a frame every two; `carla_drive`
    makes it and cleans up.

    people: who puts actors into the world; all that is put there is its. camera: as of `rig_sensor`; without one the
    car is driven blind, and observations have no picture, as they have none when a picture doesn't come within
    `PICTURE_SECONDS`. failed: whether the server raised.
    """

    def __init__(
        self, people: Population, route: RouteFile, name: str, camera: Mapping[str, Any] | None, seed: int,
        vehicles: int, walkers: int, *, ticks: int = 2,
    ) -> None:  # fmt: skip
        self.people, self.carla, self.ticks = people, people.carla, ticks
        self.frame_seconds = ticks * run.TICK
        self.failed = False
        world = people.world
        self.map = world.get_map()
        self.route: CarlaRoute = plan_on_map(self.carla, self.map, route.points)
        weather = weather_of(self.carla, route.weather)
        world.set_weather(weather)
        self.ambient = ambient_of(weather.precipitation, weather.sun_altitude_angle)
        self._touched: list[tuple[str, int]] = []
        self._lock = threading.Lock()
        self.camera: Sensor | None = None
        self._patience = PICTURE_SECONDS
        self._populate(camera, np.random.default_rng([seed, 77]), vehicles, walkers)
        self.tick, self.count = 0, 0
        for _ in range(WARM_UP):
            self.ego.apply_control(self.carla.VehicleControl(brake=1.0))
            self.tick = people.tick()
        self._hits()
        signs = list(world.get_actors())  # a map that was just loaded has none before the first tick
        self._lights = {one.id: one for one in signs if "traffic_light" in one.type_id}
        half = float(self.ego.bounding_box.extent.x)
        lights = lights_of(self.carla, self.map, signs)
        self.referee = CarlaReferee(self.route, name, lights=lights, stops=stops_of(signs), half=half)

    def _populate(
        self, camera: Mapping[str, Any] | None, rng: np.random.Generator, vehicles: int, walkers: int
    ) -> None:
        carla, people = self.carla, self.people
        start = self.route.start.copy()
        start[2, 3] += SPAWN_HEIGHT
        self.ego = people.ego(EGO_BLUEPRINTS, transform_of(carla, start))
        people.bumper(self.ego, self._collided)
        if camera is not None:
            place = carla.Transform(
                carla.Location(camera["x"], camera["y"], camera["z"]),
                carla.Rotation(pitch=camera["pitch"], yaw=camera["yaw"], roll=camera["roll"]),
            )
            told = {"image_size_x": camera["width"], "image_size_y": camera["height"]}
            attributes = {key: str(value) for key, value in told.items()} | {"fov": f"{camera['fov']:g}"}
            self.camera = people.sensor(camera["id"], camera["type"], place, attributes, self.ego)
        people.add_vehicles(self._spots(rng)[:vehicles], rng)
        people.add_walkers(walkers, rng)

    def _spots(self, rng: np.random.Generator) -> list[Any]:
        """The map's spawn points in random order, those near the route first, none at the ego's."""
        spots = list(self.map.get_spawn_points())
        places = np.array([observe.pose_of(spot)[:2, 3] for spot in spots]).reshape(-1, 2)
        apart = np.hypot(*(places - self.route.line[0]).T)
        away = np.min([np.hypot(*(places - point).T) for point in self.route.line[::20]], axis=0)
        drawn = [index for index in rng.permutation(len(spots)).tolist() if apart[index] > CLEAR_METRES]
        return [spots[index] for index in sorted(drawn, key=lambda index: away[index] > NEAR_METRES)]

    # --- the protocol ---

    @property
    def ended(self) -> str | None:
        return self.referee.ended

    @property
    def time(self) -> float:
        """Seconds since the drive began."""
        return self.count * run.TICK

    def observe(self) -> Observation:
        """What the car's sensors and its navigation say now."""
        with self._server():
            pose, velocity = observe.pose_of(self.ego.get_transform()), self.ego.get_velocity()
            yaw_rate = frame.yaw(self.ego.get_angular_velocity().z)
            speed = math.hypot(velocity.x, velocity.y)
        return observation_of(
            self.time, self._picture(), pose, speed, yaw_rate, self.route, self.referee.station, self.ambient
        )

    def _picture(self) -> np.ndarray:
        if self.camera is None:
            return NOTHING_SEEN
        try:
            said = self.camera.at(self.tick, self._patience)
        except CollectError:
            self._patience = DEAD_SECONDS
            return NOTHING_SEEN
        self._patience = PICTURE_SECONDS
        return observe.picture(said)

    def step(self, control: Control) -> None:
        """Go on by a frame under a control."""
        said = self.carla.VehicleControl(throttle=control.throttle, steer=control.steer, brake=control.brake)
        for _ in range(self.ticks):
            if self.referee.ended is None:
                with self._server():
                    self.ego.apply_control(said)
                    self.tick = self.people.tick()
                    self.count += 1
                    facts = self._facts()
                self.referee.observe(facts)

    def record(self, seconds_taken: float, failure: str | None = None, reason: str | None = None) -> RouteRecord:
        """What became of the drive. failure, reason: a RouteRecord's, where it broke off."""
        return self.referee.record(seconds_taken, failure, reason)

    @contextmanager
    def _server(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            self.failed = True
            raise

    # --- a moment ---

    def _facts(self) -> Facts:
        carla, ego = self.carla, self.ego
        transform, velocity = ego.get_transform(), frame.vector(frame.location_of(ego.get_velocity()))
        pose = observe.pose_of(transform)
        place, yaw = pose[:2, 3], math.atan2(pose[1, 0], pose[0, 0])
        tail = [*tail_of(place, yaw, self.referee.half)[1], pose[2, 3]]
        red = carla.TrafficLightState.Red
        return Facts(
            self.time,
            place,
            yaw,
            float(np.hypot(*velocity[:2])),
            float(velocity @ pose[:3, 0]),
            float(ego.get_speed_limit()) / 3.6,
            lane_under(carla, self.map, transform.location),
            _lane_id(self.map.get_waypoint(carla.Location(**frame.say_vector(np.array(tail))))),
            way_ahead(self.map, transform.location),
            frozenset(id for id, light in self._lights.items() if light.state == red),
            self._hits(),
        )

    def _collided(self, event: Any) -> None:
        """Called by the client's own thread."""
        with self._lock:
            self._touched.append((str(event.other_actor.type_id), int(event.other_actor.id)))

    def _hits(self) -> tuple[tuple[str, int], ...]:
        """What was touched since this was last asked."""
        with self._lock:
            touched, self._touched = self._touched, []
        return tuple(touched)
