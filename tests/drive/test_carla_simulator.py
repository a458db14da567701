"""Driving on a stand-in server, with the real client's types and a real map: what is seen, what is judged, and that
nothing stays behind whatever happens."""

from __future__ import annotations

import gzip
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from carla_server import Actor, Blueprint, Client, World

from automoe import cli
from automoe.carla import frame
from automoe.carla.observe import pose_of
from automoe.carla.route import plan_on_map
from automoe.data.sequences import Observation
from automoe.drive import carla_simulator as module
from automoe.drive.carla_simulator import CarlaSimulator, carla_drive, lights_of, rig_sensor, stops_of, weather_of
from automoe.drive.closed_loop import drive_route
from automoe.drive.controllers import CARLA_CAR, Controller
from automoe.drive.evaluation import server_at
from automoe.drive.leaderboard import read_results
from automoe.drive.routes import RouteFile, write_routes
from automoe.errors import CheckpointError, CollectError, ConfigError
from automoe.poses import into_frame
from automoe.taxonomy import CARLA_COMMANDS
from automoe.world import polyline
from automoe.world.vehicle import Control

carla: Any = pytest.importorskip("carla", reason="the real client comes with `pip install automoe[carla]`")

TOWN = "Town02"
MAP = f"carla_maps/src/py123d/parser/opendrive/carla_maps/{TOWN}.xodr.gz"
LIGHT = "traffic.traffic_light"
RIG = {
    "cameras": {
        "front": {
            "size": [48, 64],
            "field_of_view": 90.0,
            "T_ego_mount": [[1, 0, 0, 1.5], [0, 1, 0, 0], [0, 0, 1, 2.4], [0, 0, 0, 1]],
        }
    }
}


class Car(Actor):
    """The ego: a bicycle round its middle, in CARLA's axes."""

    control = carla.VehicleControl()
    velocity = yaw_rate = 0.0

    def apply_control(self, control: Any) -> None:
        self.control = control

    def move(self) -> None:
        push = 4.0 * self.control.throttle - 8.0 * self.control.brake - 0.3
        self.velocity = max(self.velocity + 0.05 * push, 0.0)
        self.yaw_rate = self.velocity * math.tan(self.control.steer * CARLA_CAR.most_wheel) / CARLA_CAR.wheelbase
        yaw = math.radians(self.transform.rotation.yaw) + 0.05 * self.yaw_rate
        here = self.transform.location
        x, y = (0.05 * self.velocity * one for one in (math.cos(yaw), math.sin(yaw)))
        self.transform = carla.Transform(
            carla.Location(here.x + x, here.y + y, 0.0), carla.Rotation(yaw=math.degrees(yaw))
        )

    def get_transform(self) -> Any:
        return self.transform

    def get_velocity(self) -> Any:
        forward = self.transform.get_forward_vector()
        return carla.Vector3D(self.velocity * forward.x, self.velocity * forward.y, 0.0)

    def get_angular_velocity(self) -> Any:
        return carla.Vector3D(0.0, 0.0, math.degrees(self.yaw_rate))


class Town(World):
    """One of CARLA's towns, with what stands in it."""

    def __init__(self, real: Any, faults: dict[str, Exception], mute: str | None) -> None:
        super().__init__(TOWN, faults, mute)
        self.library.append(Blueprint("vehicle.lincoln.mkz_2017"))
        self.standing: list[Any] = []
        self.real = real

    def get_map(self) -> Any:
        spots = [first.transform for first, _ in self.real.get_topology()[:40]]
        return SimpleNamespace(
            name=f"Carla/Maps/{self.name}", get_spawn_points=lambda: spots, get_waypoint=self.real.get_waypoint
        )

    def get_actors(self) -> list[Any]:
        return [*self.standing, *self.actors]

    def spawn_actor(self, blueprint: Blueprint, transform: Any, attach_to: Any = None) -> Actor:
        actor = super().spawn_actor(blueprint, transform, attach_to)
        if blueprint.attributes.get("role_name") == "hero":
            actor.__class__ = Car
        return actor

    def tick(self) -> int:
        for actor in self.actors:
            if isinstance(actor, Car):
                actor.move()
        return super().tick()

    def hit(self, type_id: str) -> None:
        """Let whoever listens know of a collision."""
        other = SimpleNamespace(type_id=type_id, id=99)
        for actor in self.actors:
            if actor.type_id == "sensor.other.collision":
                actor.callback(SimpleNamespace(other_actor=other))


class Server(Client):
    def __init__(self, real: Any, faults: dict[str, Exception] | None = None, mute: str | None = None) -> None:
        super().__init__(faults, mute)
        self.real = real

    def load_world(self, name: str) -> World:
        self.worlds.append(Town(self.real, self.faults, self.mute))
        return self.worlds[-1]

    @property
    def town(self) -> Town:
        world = self.get_world()
        assert isinstance(world, Town)
        return world


class Follower:
    """Follows the route of a simulator, which it looks into."""

    def __init__(self, simulator: CarlaSimulator) -> None:
        self.simulator, self.controller, self.trouble = simulator, Controller(CARLA_CAR), {}
        self.seen: list[Observation] = []
        self.done: list[Control] = []

    def act(self, observation: Observation) -> Control:
        self.seen.append(observation)
        route, station = self.simulator.route, self.simulator.referee.station
        ahead, _ = polyline.sample(route.line, station + np.arange(1.0, 20.0), route.along)
        path = into_frame(pose_of(self.simulator.ego.get_transform()), ahead)
        self.done.append(self.controller.control(path, 5.0, observation.speed))
        return self.done[-1]

    def shown(self) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def real(fixtures) -> Any:
    return carla.Map(TOWN, gzip.decompress(fixtures(MAP).read_bytes()).decode())


@pytest.fixture(scope="module")
def to_the_right(real) -> RouteFile:
    """A way that turns to the right at a junction, 30 m before it to 30 m behind."""
    for first, last in real.get_topology():
        turned = (last.transform.rotation.yaw - first.transform.rotation.yaw + 180.0) % 360.0 - 180.0
        if first.is_junction and abs(turned - 90.0) < 10.0 and len(last.next(30.0)) == 1:
            ways = [pose_of(one.transform)[:3, 3] for one in (first.previous(30.0)[0], first, last, last.next(30.0)[0])]
            return RouteFile("7", TOWN, np.array(ways), {"precipitation": 60.0, "sun_altitude_angle": -5.0})
    raise AssertionError("no such way")


@pytest.fixture
def begun(to_the_right) -> Callable[..., Any]:
    def drive(client: Client, route: RouteFile = to_the_right, rig: dict | None = RIG, **more: Any) -> Any:
        return carla_drive(client, carla, route, "RouteScenario_7_rep0", rig, **{"vehicles": 3, "walkers": 1} | more)

    return drive


def assert_nothing_stays(client: Client) -> None:
    for world in client.worlds:
        assert world.actors == []
        if world.applied:
            assert world.applied[-1] == (False, None)
    assert client.manager.synchronous in ([], [True, False])


def test_a_right_turn_is_driven_and_nothing_stays_behind(real, begun) -> None:
    client = Server(real)
    with begun(client) as simulator:
        agent = Follower(simulator)
        assert simulator.frame_seconds == pytest.approx(0.1)
        assert {actor.type_id for actor in client.town.actors} >= {"vehicle.lincoln.mkz_2017", "sensor.camera.rgb"}
        assert client.town.applied == [(True, 0.05)]
        record = drive_route(simulator, agent, "7")
    assert record.status == "Perfect"
    assert record.route_id == "RouteScenario_7_rep0"
    assert record.length == pytest.approx(simulator.route.length)
    assert record.seconds == pytest.approx(0.1 * len(agent.seen), abs=0.051)
    commands = [CARLA_COMMANDS[one.command] for one in agent.seen]
    assert [command for command, _ in groupby(commands)] == ["follow", "right", "follow"]
    steers = [one.steer for one in agent.done]
    assert max(steers) > 0.15
    assert min(steers) > -0.15
    rates = np.array([one.motion[-1, 1] for one in agent.seen])
    assert rates.min() < -0.2  # to the right is negative here
    turning = agent.seen[int(rates.argmin())]
    assert turning.route[1, 1] < 0.0
    first = agent.seen[0]
    assert first.image.shape == (48, 64, 3)
    assert first.image[-1, 0].tolist() == [200, 0, 0]  # what was red on the server is red here
    assert first.ambient.tolist() == [1.0, 1.0]
    assert first.speed == 0.0
    np.testing.assert_allclose(first.route[0, 1], 0.0, atol=1.0)
    assert 0.0 < first.route[0, 0] < 31.0
    assert client.town.weather.precipitation == pytest.approx(60.0)
    assert_nothing_stays(client)


def test_the_camera_is_the_rigs() -> None:
    said = rig_sensor(RIG)
    assert said == {
        "type": "sensor.camera.rgb", "id": "front", "x": 1.5, "y": 0.0, "z": 2.4, "pitch": 0.0, "yaw": 0.0,
        "roll": 0.0, "width": 64, "height": 48, "fov": 90.0,
    }  # fmt: skip
    # Half a metre to the left and turned to the left: negative, both, in CARLA's axes.
    mount = np.array([[0.8, -0.6, 0, 1.2], [0.6, 0.8, 0, 0.5], [0, 0, 1, 2.2], [0, 0, 0, 1]])
    rig = {"cameras": {"front": {**RIG["cameras"]["front"], "T_ego_mount": mount.tolist()}}}
    turned = rig_sensor(rig)
    assert (turned["x"], turned["y"]) == (1.2, -0.5)
    assert turned["yaw"] == pytest.approx(-math.degrees(math.asin(0.6)))
    with pytest.raises(CheckpointError, match="no front camera"):
        rig_sensor({"cameras": {}})


def test_a_camera_that_says_nothing_is_dead_and_no_crash(real, begun, monkeypatch) -> None:
    monkeypatch.setattr(module, "PICTURE_SECONDS", 0.05)
    monkeypatch.setattr(module, "DEAD_SECONDS", 0.01)
    client = Server(real, mute="sensor.camera.rgb")
    with begun(client) as simulator:
        simulator.step(Control())
        assert simulator.observe().image.size == 0
        client.town.mute = None
        simulator.step(Control())
        assert simulator.observe().image.shape == (48, 64, 3)  # and it drives on when it is back
    with begun(Server(real), rig=None) as simulator:
        assert simulator.observe().image.size == 0
    assert_nothing_stays(client)


def standing(kind: str, transform: Any, extent: tuple[float, float], state: Any = None) -> Any:
    volume = carla.BoundingBox(carla.Location(), carla.Vector3D(*extent, 1.0))
    return SimpleNamespace(
        type_id=kind, id=42, state=state, trigger_volume=volume, get_transform=lambda: transform, attributes={}
    )


def before_the_line(real, route: RouteFile, metres: float) -> Any:
    """The transform so far before the junction of a route, and its yaw."""
    junction = real.get_waypoint(carla.Location(**frame.say_vector(route.points[1])))
    return junction.previous(metres)[0].transform


@pytest.mark.parametrize(("state", "count"), [("Red", 1), ("Green", 0)])
def test_a_red_light_is_run_where_it_stops_the_lane(real, begun, to_the_right, state: str, count: int) -> None:
    place = before_the_line(real, to_the_right, 6.0)
    across = carla.Transform(place.location, carla.Rotation(yaw=place.rotation.yaw + 90.0))
    light = standing(LIGHT, across, (1.5, 2.0), getattr(carla.TrafficLightState, state))
    (found,) = lights_of(carla, real, [light, SimpleNamespace(type_id="vehicle.audi.tt")])
    (line,) = found.lines
    heading = frame.yaw(place.rotation.yaw)
    assert math.cos(line.heading - heading) == pytest.approx(1.0, abs=1e-3)
    along = (line.points.mean(axis=0) - frame.vector(frame.location_of(place.location))[:2]) @ [
        math.cos(heading), math.sin(heading),
    ]  # fmt: skip
    assert along == pytest.approx(6.0, abs=0.6)  # the line is at the junction, six metres on
    client = Server(real)
    client.town.standing.append(light)
    with begun(client) as simulator:
        record = drive_route(simulator, Follower(simulator), "7")
    assert len(record.infractions["red_light"]) == count
    assert record.completion == 100.0


def test_a_stop_sign_is_run(real, begun, to_the_right) -> None:
    sign = standing("traffic.stop", before_the_line(real, to_the_right, 4.0), (2.0, 2.0))
    (found,) = stops_of([sign])
    np.testing.assert_allclose(found.extent, [2.0, 2.0])
    client = Server(real)
    client.town.standing.append(sign)
    with begun(client) as simulator:
        record = drive_route(simulator, Follower(simulator), "7")
    assert len(record.infractions["stop_infraction"]) == 1
    assert record.penalty == pytest.approx(0.8)


def test_a_collision_is_judged_at_the_next_tick(real, begun) -> None:
    client = Server(real)
    with begun(client) as simulator:
        for _ in range(20):
            simulator.step(Control(throttle=1.0))
        client.town.hit("walker.pedestrian.0001")
        simulator.step(Control(throttle=1.0))
        record = simulator.record(0.0)
    assert len(record.infractions["collisions_pedestrian"]) == 1


def test_only_another_town_is_loaded(real, begun, to_the_right) -> None:
    client = Server(real)
    client.get_world()
    for _ in range(2):
        with begun(client):
            pass
    assert len(client.worlds) == 1
    client.town.name = "Town01"
    with begun(client):
        assert len(client.worlds) == 2
    with (
        pytest.raises(CollectError, match="no map Town99"),
        begun(client, RouteFile("1", "Town99", to_the_right.points)),
    ):
        pass


def test_what_a_route_does_not_tell_of_the_weather_is_day() -> None:
    assert weather_of(carla, {}).sun_altitude_angle == pytest.approx(70.0)
    assert weather_of(carla, {"sun_altitude_angle": -5.0, "wetness": 30.0}).wetness == pytest.approx(30.0)


@pytest.mark.parametrize("blueprint", ["vehicle.lincoln.mkz_2017", "sensor.camera.rgb", "sensor.other.collision"])
def test_nothing_stays_behind_when_something_cannot_be_spawned(real, begun, blueprint: str) -> None:
    client = Server(real, faults={blueprint: RuntimeError("failed to spawn")})
    with pytest.raises(CollectError, match="could not be spawned"), begun(client):
        pass
    assert_nothing_stays(client)


def test_a_server_without_the_leaderboards_car_is_told(real, begun) -> None:
    client = Server(real)
    client.town.library.pop()
    with pytest.raises(CollectError, match="the server has none of vehicle"), begun(client):
        pass
    assert_nothing_stays(client)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_behind_when_it_is_killed(real, begun, number: int) -> None:
    client = Server(real)
    world = client.town
    world.on_tick = lambda tick: signal.raise_signal(number) if tick == 40 else None
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stopped, begun(client) as simulator:
        drive_route(simulator, Follower(simulator), "7")
    if number == signal.SIGTERM:
        assert isinstance(stopped.value, SystemExit)
        assert stopped.value.code == 128 + number
    assert world.tick_count == 40
    assert_nothing_stays(client)


def test_a_server_that_stops_answering_loses_its_route(real, begun, capsys) -> None:
    client = Server(real)

    def fail(tick: int) -> None:
        if tick == 40:
            raise RuntimeError("time-out of 20000ms while waiting for the simulator")

    client.town.on_tick = fail
    patience: list[float] = []
    client.town.on_destroy = lambda actor: patience.append(client.timeouts[-1])
    with begun(client) as simulator:
        record = drive_route(simulator, Follower(simulator), "7")
    assert record.status == "Failed - Simulation crashed"
    assert record.reason == "RuntimeError: time-out of 20000ms while waiting for the simulator"
    assert set(patience) == {module.LEAVING_SECONDS}
    assert "Traceback" in capsys.readouterr().err
    assert_nothing_stays(client)


def test_the_same_seed_draws_the_same_traffic(real, begun) -> None:
    drawn = []
    for seed in (1, 1, 2):
        client = Server(real)
        with begun(client, seed=seed, walkers=0) as simulator:
            assert isinstance(simulator, CarlaSimulator)
            drawn.append([(one.type_id, one.transform.location.x) for one in simulator.people.vehicles])
            start = plan_on_map(carla, real, np.array([simulator.route.start[:3, 3], [*simulator.route.line[-1], 0.0]]))
            assert start.length == pytest.approx(simulator.route.length, abs=1.0)
    assert drawn[0] == drawn[1] != drawn[2]


# --- the command ---


@pytest.fixture
def straight(real, tmp_path) -> Path:
    """A file with a route of 40 m straight on."""
    first = next(
        first for first, last in real.get_topology()
        if not first.is_junction and first.transform.location.distance(last.transform.location) > 60.0
        and abs(first.transform.rotation.yaw - last.transform.rotation.yaw) < 0.1
    )  # fmt: skip
    points = np.array([pose_of(one.transform)[:3, 3] for one in (first.next(10.0)[0], first.next(50.0)[0])])
    path = tmp_path / "routes.xml"
    write_routes(path, [RouteFile("7", TOWN, points)])
    return path


@pytest.fixture
def served(real, monkeypatch) -> Iterator[Server]:
    """A server that the command line finds."""
    client = Server(real)
    monkeypatch.setitem(sys.modules, "carla", SimpleNamespace(**{**vars(carla), "Client": lambda host, port: client}))
    server_at.cache_clear()
    yield client
    server_at.cache_clear()


def test_routes_are_driven_on_the_command_line(served, straight, tmp_path, capsys) -> None:
    line = f"drive --simulator carla --routes {straight} --out {tmp_path} --seeds 1"
    cli.app([*line.split()])
    assert "the teacher drives in the embedded world alone" in capsys.readouterr().out
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["simulator"] == "carla"
    assert list(said["drivers"]) == ["constant_velocity"]
    (record,) = read_results(tmp_path / "constant_velocity" / "results.json")
    assert (record.status, record.route_id) == ("Perfect", "RouteScenario_7_rep0")
    assert record.length == pytest.approx(40.0, abs=0.5)
    assert_nothing_stays(served)
    ticks = served.town.tick_count
    cli.app([*line.split()])
    assert served.town.tick_count == ticks  # what was driven is kept


def test_a_drive_that_the_server_broke_off_is_driven_again(served, straight, tmp_path) -> None:
    def fail(tick: int) -> None:
        if tick == 40:
            raise RuntimeError("time-out")

    line = f"drive --simulator carla --routes {straight} --out {tmp_path} --seeds 1 --beside constant_velocity"
    served.town.on_tick = fail
    cli.app([*line.split()])
    (record,) = read_results(tmp_path / "constant_velocity" / "results.json")
    assert record.driving_score == 0.0
    assert record.failure == "Simulation crashed"
    served.town.on_tick = None
    cli.app([*line.split()])
    (record,) = read_results(tmp_path / "constant_velocity" / "results.json")
    assert record.driving_score == 100.0


def test_what_cannot_be_driven_on_a_server_gets_a_sentence(straight, tmp_path, monkeypatch) -> None:
    server_at.cache_clear()
    line = f"drive --simulator carla --out {tmp_path}"
    with pytest.raises(ConfigError, match="drives routes of a file, and there is no file generated"):
        cli.app([*line.split()])
    with pytest.raises(ConfigError, match="drivers need different names, and one at least"):
        cli.app([*line.split(), "--routes", str(straight), "--beside", "teacher"])
    monkeypatch.setitem(sys.modules, "carla", None)
    with pytest.raises(CollectError, match=r"pip install automoe\[carla\]"):
        cli.app([*line.split(), "--routes", str(straight)])
