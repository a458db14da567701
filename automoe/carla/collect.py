"""Recording runs on a CARLA server: `automoe collect`.

The server is driven through the official client, given as an argument (`carla`, its module, and a connected client), so
that everything here can be tested without a server. Whatever happens, actors are destroyed and settings restored: when
something fails, and when a signal ends the recording.
"""

from __future__ import annotations

import importlib
import json
import queue
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from automoe.carla import frame, observe, run
from automoe.carla.run import Frame, RunWriter, check_free, run_name
from automoe.errors import CollectError
from automoe.stopping import StopSignals

ANSWER_SECONDS = 20.0
"""That a server may take to answer."""

LEAVING_SECONDS = 1.0
"""The same for each actor that is destroyed after a failure: a server that has gone would keep us for half an hour."""

WARM_UP = 20
"""Ticks before the first frame: cars drop onto the road, cameras find their exposure."""

AGAIN = 20
"""Ticks without a contact after which another with the same actor is a new one."""

LOAD_SECONDS = 120.0
"""That a map may take to load."""

SENSOR_SECONDS = 10.0
"""Until a sensor that says nothing of a tick stops the recording."""

EGO_BLUEPRINTS = ("vehicle.tesla.model3", "vehicle.lincoln.mkz", "vehicle.lincoln.mkz_2020", "vehicle.audi.tt")
"""What the ego is, the first that a server has."""


@dataclass(frozen=True)
class CollectPlan:
    """What to record. towns: maps, one after the other; the one that is loaded if none is given. first: the number of
    the first run. size: width and height. save_every: ticks of 0.05 s from frame to frame. carla_version: the server's,
    where it doesn't say its own."""

    out: Path
    runs: int = 1
    seconds: float = 60.0
    towns: tuple[str, ...] = ()
    vehicles: int = 40
    walkers: int = 20
    seed: int = 0
    first: int = 0
    size: tuple[int, int] = (800, 600)
    save_every: int = run.SAVE_EVERY
    carla_version: str | None = None

    def __post_init__(self) -> None:
        if self.runs < 1 or self.seconds <= 0 or self.save_every < 1 or min(self.size) < 16:
            raise CollectError("runs, seconds, save_every and the pictures' size must be positive")
        if self.vehicles < 0 or self.walkers < 0 or self.first < 0:
            raise CollectError("vehicles, walkers and first must not be negative")

    def town(self, index: int) -> str | None:
        """The map of a run, the towns in turn; None for the one that is loaded."""
        return self.towns[index % len(self.towns)] if self.towns else None

    def config(self) -> dict[str, Any]:
        """What the plan says of every run's config."""
        return {
            "duration_seconds": round(self.ticks * run.TICK, 3),
            "save_every_n": self.save_every,
            "npc_config": {"vehicles_wanted": self.vehicles, "walkers_wanted": self.walkers},
            "sensors": run.rig(*self.size),
            "seed": self.seed,
        }

    @property
    def ticks(self) -> int:
        """Of a run."""
        return round(self.seconds / run.TICK)


def collect(plan: CollectPlan, client: Any, carla: Any, say: Callable[[str], None] = print) -> list[Path]:
    """Record all runs; returns their folders. A run that is there already, complete, is kept and not recorded again.

    client: a connected carla.Client; carla: its module. Raises CollectError where the server fails or can't do what is
    wanted, and where a complete run is not what the plan asks for; WriteError where a folder holds something else.
    SIGTERM, SIGHUP and Ctrl-C end the recording between two ticks, by SystemExit (128 + the signal's number) or
    KeyboardInterrupt; outside the main thread they stay as they are.
    """
    folders = [plan.out / run_name(plan.first + index) for index in range(plan.runs)]
    with _signals_between_ticks() as check_signals:
        with _server_errors("before anything was recorded"):
            plan = replace(plan, carla_version=server_version(client, plan.carla_version))
            complete = [_is_complete(folder, plan, index, client) for index, folder in enumerate(folders)]
        for index, folder in enumerate(folders):
            check_signals()
            if complete[index]:
                say(f"{folder} is there already")
                continue
            with _server_errors(f"while {folder} was recorded"):
                world = _load(client, plan.town(index))
                with synchronous(world, client) as manager:
                    _Recording(plan, plan.first + index, client, world, manager, carla, say, check_signals).record()
    return folders


@contextmanager
def _signals_between_ticks() -> Iterator[Callable[[], None]]:
    """While entered, SIGTERM, SIGHUP and Ctrl-C act where the yielded function is called, and at the end, not before.

    An exception amid a call of the server would lose the actor that was just spawned; amid the clean-up, what is still
    to be cleaned up.
    """
    with StopSignals((signal.SIGTERM, signal.SIGHUP, signal.SIGINT), impatient=0.0) as signals:

        def check() -> None:
            if signals.received == signal.SIGINT:
                raise KeyboardInterrupt
            if signals.received:
                raise SystemExit(128 + signals.received)

        yield check
        check()


@contextmanager
def _server_errors(when: str) -> Iterator[None]:
    """Turn what the client raises when its server fails or doesn't answer into a CollectError."""
    try:
        yield
    except RuntimeError as error:
        raise CollectError(
            f"the CARLA server failed or stopped answering {when} ({error}); see whether it still runs, start it anew, "
            "and repeat the command: complete runs are kept"
        ) from error


def _is_complete(folder: Path, plan: CollectPlan, index: int, client: Any) -> bool:
    """Whether a run of the plan is there already. Raises CollectError where another is, WriteError where something that
    isn't a run is."""
    path = folder / "config.json"
    if not path.is_file():
        check_free(folder)
        return False
    try:
        said = _settings(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CollectError(
            f"{path} is damaged or not a recorded run's ({error!r}); choose another --out or --first, or remove the run"
        ) from error
    town = plan.town(index) or client.get_world().get_map().name
    for name, wanted in _settings({**plan.config(), "map": town}).items():
        if said[name] != wanted:
            raise CollectError(
                f"{folder} is a complete run with {name} {said[name]}, not {wanted}; choose another --out or --first, "
                "or remove the run"
            )
    return True


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's config what a plan asks for, None for what it doesn't say."""
    sensors = config.get("sensors") or {}
    cameras = {name: one for name, one in sensors.items() if str(one.get("type")).startswith("sensor.camera.")}
    sizes = {f"{one.get('width')} x {one.get('height')}" for one in cameras.values()}
    people = config.get("npc_config") or {}
    return {
        "map": str(config.get("map")).rsplit("/", 1)[-1].removesuffix("_Opt"),
        "seed": config.get("seed"),
        "cameras": ", ".join(sorted(cameras)) or None,
        "size": ", ".join(sorted(sizes)) or None,
        "save_every_n": config.get("save_every_n"),
        "duration_seconds": config.get("duration_seconds"),
        "vehicles": people.get("vehicles_wanted"),
        "walkers": people.get("walkers_wanted"),
    }


def _load(client: Any, town: str | None) -> Any:
    if town is None:
        return client.get_world()
    client.set_timeout(LOAD_SECONDS)
    try:
        return client.load_world(town)
    except RuntimeError as error:
        raise CollectError(f"the server could not load {town} ({error})") from error
    finally:
        client.set_timeout(ANSWER_SECONDS)


@contextmanager
def synchronous(world: Any, client: Any) -> Iterator[Any]:
    """The world in synchronous mode, twenty ticks a second, with its traffic manager; as it was again afterwards."""
    before, settings = world.get_settings(), world.get_settings()
    before.synchronous_mode = False  # a server that waits for a client that has gone hangs
    settings.synchronous_mode = True
    settings.fixed_delta_seconds = run.TICK
    manager = client.get_trafficmanager()
    # Each thing is restored whatever becomes of the others, and also if the call that changed it failed half-way.
    with ExitStack() as restore:
        restore.callback(world.apply_settings, before)
        world.apply_settings(settings)
        restore.callback(manager.set_synchronous_mode, False)
        manager.set_synchronous_mode(True)
        yield manager


class Sensor:
    """A sensor and what it said, by tick."""

    def __init__(self, actor: Any, name: str) -> None:
        self.actor, self.name = actor, name
        self._said: queue.Queue[Any] = queue.Queue()
        actor.listen(self._said.put)

    def at(self, tick: int) -> Any:
        """What it said of a tick; what it said of earlier ones is forgotten. Raises CollectError if it says nothing."""
        while True:
            try:
                data = self._said.get(timeout=SENSOR_SECONDS)
            except queue.Empty as error:
                raise CollectError(
                    f"the sensor {self.name} said nothing of tick {tick} for {SENSOR_SECONDS:.0f} s; is the server "
                    "busy, or gone?"
                ) from error
            if data.frame == tick:
                return data
            if data.frame > tick:
                raise CollectError(f"the sensor {self.name} skipped tick {tick}; is another client ticking the server?")


class _Recording:
    """One run on a world in synchronous mode."""

    def __init__(
        self, plan: CollectPlan, number: int, client: Any, world: Any, manager: Any, carla: Any,
        say: Callable[[str], None], check_signals: Callable[[], None],
    ) -> None:  # fmt: skip
        self.plan, self.client, self.world, self.manager, self.carla = plan, client, world, manager, carla
        self.folder, self.say, self.check_signals = plan.out / run_name(number), say, check_signals
        self.rng = np.random.default_rng([plan.seed, number])
        manager.set_random_device_seed(plan.seed + number)
        world.set_pedestrians_seed(plan.seed + number)
        self.library = world.get_blueprint_library()
        self.sensors: dict[str, Sensor] = {}
        self.events: list[dict[str, Any]] = []
        self.first = 0
        """The server's tick of the run's first one."""

    def record(self) -> None:
        with ExitStack() as actors:
            actors.callback(self.client.set_timeout, ANSWER_SECONDS)
            try:
                self._record(actors)
            except (RuntimeError, CollectError):
                self.client.set_timeout(LEAVING_SECONDS)
                raise

    def _record(self, actors: ExitStack) -> None:
        self._populate(actors)
        self._mount(actors)
        for _ in range(WARM_UP):
            self._tick()
        writer = RunWriter(self.folder)
        for number in range(self.plan.ticks):
            tick = self._tick()
            self.first = tick if number == 0 else self.first
            if number % self.plan.save_every == 0:
                writer.frame(self._frame(number, tick))
        writer.collisions.extend(self._collisions())
        writer.finish(self._config())
        self.say(f"{self.folder}: {len(writer.log)} frames of {self.map_name}, {len(writer.collisions)} collisions")

    def _tick(self) -> int:
        """The number of the tick that was made. Raises what a signal asks for that came meanwhile."""
        tick = self.world.tick()
        self.check_signals()
        return tick

    @property
    def map_name(self) -> str:
        return str(self.world.get_map().name).rsplit("/", 1)[-1]

    # --- who is there ---

    def _populate(self, actors: ExitStack) -> None:
        carla, rng = self.carla, self.rng
        presets = sorted(
            name for name in dir(carla.WeatherParameters)
            # Default leaves the weather to the map, and nobody knows what it is.
            if name[0].isupper() and name != "Default"
            and isinstance(getattr(carla.WeatherParameters, name), carla.WeatherParameters)
        )  # fmt: skip
        if not presets:
            raise CollectError("the client knows no weather presets")
        self.preset = str(rng.choice(presets))
        self.weather = getattr(carla.WeatherParameters, self.preset)
        self.world.set_weather(self.weather)
        spots = list(self.world.get_map().get_spawn_points())
        if not spots:
            raise CollectError(f"the map {self.map_name} has no spawn points")
        order = rng.permutation(len(spots)).tolist()
        self.spot = spots[order[0]]
        self.ego = self._spawn(actors, self._ego_blueprint(), self.spot, "the ego")
        self.ego.set_autopilot(True, self.manager.get_port())
        kinds = list(self.library.filter("vehicle.*"))
        self.vehicles = []
        for index in order[1 : 1 + self.plan.vehicles]:
            other = self.world.try_spawn_actor(kinds[int(rng.integers(len(kinds)))], spots[index])
            if other is not None:
                actors.callback(other.destroy)
                other.set_autopilot(True, self.manager.get_port())
                self.vehicles.append(other)
        self._people(actors)

    def _ego_blueprint(self) -> Any:
        known = {blueprint.id: blueprint for blueprint in self.library.filter("vehicle.*")}
        found = next((known[name] for name in EGO_BLUEPRINTS if name in known), None)
        if found is None:
            raise CollectError(f"the server has none of {', '.join(EGO_BLUEPRINTS)}")
        found.set_attribute("role_name", "hero")
        return found

    def _people(self, actors: ExitStack) -> None:
        """Walkers who go somewhere, each with the controller that makes him."""
        kinds = list(self.library.filter("walker.pedestrian.*"))
        self.walkers = []
        for _ in range(self.plan.walkers if kinds else 0):
            place = self.world.get_random_location_from_navigation()
            if place is None:
                continue
            kind = kinds[int(self.rng.integers(len(kinds)))]
            walker = self.world.try_spawn_actor(kind, self.carla.Transform(place))
            if walker is None:
                continue
            actors.callback(walker.destroy)
            mind = self.library.find("controller.ai.walker")
            controller = self._spawn(actors, mind, self.carla.Transform(), "a walker's controller", walker)
            self._tick()
            controller.start()
            actors.callback(controller.stop)
            aim = self.world.get_random_location_from_navigation()
            if aim is not None:
                controller.go_to_location(aim)
            self.walkers.append(walker)

    def _spawn(self, actors: ExitStack, blueprint: Any, transform: Any, name: str, parent: Any = None) -> Any:
        try:
            actor = self.world.spawn_actor(blueprint, transform, attach_to=parent)
        except RuntimeError as error:
            raise CollectError(
                f"{name} could not be spawned ({error}); is the map full of somebody else's actors?"
            ) from error
        actors.callback(actor.destroy)
        return actor

    # --- what looks ---

    def _mount(self, actors: ExitStack) -> None:
        carla, (width, height) = self.carla, self.plan.size
        camera = {"image_size_x": str(width), "image_size_y": str(height), "fov": f"{run.FIELD_OF_VIEW:g}"}
        for name, mount in run.MOUNTS.items():
            place = carla.Transform(carla.Location(mount.x, mount.y, mount.z), carla.Rotation(yaw=mount.yaw))
            self._sensor(actors, name, "sensor.camera.rgb", place, camera)
            if name == run.LABELLED:
                self._sensor(actors, "tags", "sensor.camera.semantic_segmentation", place, camera)
        low, high = run.LIDAR_ELEVATION
        lidar = {
            "range": f"{run.LIDAR_RANGE:g}",
            "channels": str(run.LIDAR_CHANNELS),
            "rotation_frequency": f"{1 / run.TICK:g}",
            "points_per_second": str(run.LIDAR_RATE),
            "lower_fov": f"{low:g}",
            "upper_fov": f"{high:g}",
        }
        above = carla.Transform(carla.Location(z=run.LIDAR_HEIGHT))
        self._sensor(actors, "lidar", "sensor.lidar.ray_cast", above, lidar)
        collision = self.library.find("sensor.other.collision")
        bumper = self._spawn(actors, collision, carla.Transform(), "the collision sensor", self.ego)
        bumper.listen(self._collided)
        actors.callback(bumper.stop)

    def _sensor(self, actors: ExitStack, name: str, kind: str, place: Any, attributes: dict[str, str]) -> None:
        blueprint = self.library.find(kind)
        for key, value in attributes.items():
            blueprint.set_attribute(key, value)
        actor = self._spawn(actors, blueprint, place, f"the sensor {name}", self.ego)
        self.sensors[name] = Sensor(actor, name)
        actors.callback(actor.stop)

    def _collided(self, event: Any) -> None:
        self.events.append(
            {
                "frame": event.frame,
                "actor_type": event.other_actor.type_id,
                "actor_id": event.other_actor.id,
                "impulse": frame.location_of(event.normal_impulse),
            }
        )

    def _collisions(self) -> list[dict[str, Any]]:
        """What was hit, once for each contact, by the run's own ticks: the server tells of every tick of it."""
        last: dict[int, int] = {}
        found = []
        for event in self.events:
            number = event["frame"] - self.first
            new = number - last.get(event["actor_id"], -AGAIN) >= AGAIN
            last[event["actor_id"]] = number
            if number >= 0 and new:
                found.append({**event, "timestamp": round(number * run.TICK, 3), "frame": number})
        return found

    # --- a frame ---

    def _frame(self, number: int, tick: int) -> Frame:
        said = {name: sensor.at(tick) for name, sensor in self.sensors.items()}
        width, height = self.plan.size
        others = [*self.vehicles, *self.walkers]
        ego = self.ego
        light = str(ego.get_traffic_light_state()).rsplit(".", 1)[-1] if ego.is_at_traffic_light() else None
        log = observe.log_record(
            number,
            number * run.TICK,
            transform=ego.get_transform(),
            velocity=ego.get_velocity(),
            acceleration=ego.get_acceleration(),
            angular_velocity=ego.get_angular_velocity(),
            control=ego.get_control(),
            vehicles=[one.get_transform() for one in self.vehicles],
            walkers=len(self.walkers),
            speed_limit_kmh=float(ego.get_speed_limit()),
            light=light,
        )
        return Frame(
            number,
            log,
            {name: observe.picture(said[name]) for name in run.MOUNTS},
            tags=observe.tags(said["tags"]),
            lidar=observe.points(said["lidar"]),
            boxes=observe.boxes(others, said[run.LABELLED].transform, (height, width)),
            boxes3d=observe.boxes3d(others, ego.get_transform().location, run.SEEN_METRES),
        )

    def _config(self) -> dict[str, Any]:
        asked = self.plan.config()
        spawned = {"vehicles_spawned": len(self.vehicles), "walkers_spawned": len(self.walkers)}
        return {
            **asked,
            "run_id": self.folder.name,
            "map": self.world.get_map().name,
            "weather": observe.weather_record(self.weather, self.preset),
            "spawn_point": frame.location_of(self.spot.location),
            "timestamp_start": 0.0,
            "all_cameras_enabled": True,
            "npc_config": {**asked["npc_config"], **spawned},
            "carla_version": self.plan.carla_version,
            "simulator": "CARLA",
            "tick_seconds": run.TICK,
        }


def connect(host: str, port: int, seconds: float = ANSWER_SECONDS, carla_version: str | None = None) -> tuple[Any, Any]:
    """The official client, connected, and its module. Raises CollectError where there is no client or no server, and
    where nobody says which version the server is, neither it nor `carla_version`."""
    try:
        carla: Any = importlib.import_module("carla")
    except ImportError as error:
        raise CollectError("the CARLA client is not installed; install it with `pip install automoe[carla]`") from error
    client = carla.Client(host, port)
    client.set_timeout(seconds)
    try:
        server, own = client.get_server_version(), client.get_client_version()
        server_version(client, carla_version)
    except RuntimeError as error:
        raise CollectError(f"no CARLA server answers at {host}:{port} ({error}); start one, or name another") from error
    if server != own:
        print(
            f"warning: the server is CARLA {server}, the client {own}; install the client of that version if calls fail"
        )
    return client, carla


def server_version(client: Any, carla_version: str | None = None) -> str:
    """Which CARLA a server is, as runs have it: readers choose the order of the tags by it.

    carla_version: what the user says. Raises CollectError where neither says a number, or each another one.
    """
    said = str(client.get_server_version())
    number, own = run.version_number(said), run.version_number(carla_version or "")
    if carla_version is not None and own is None:
        raise CollectError(f"--carla_version is {carla_version!r}, not a number like 0.9.15")
    if number and own and number != own:
        raise CollectError(f"--carla_version is {carla_version}, and the server says {said}; leave the flag out")
    if not number and carla_version is None:
        raise CollectError(
            f"the server says that its version is {said!r}, which does not tell the order of its semantic tags; name "
            "the CARLA that it was built from with --carla_version, 0.9.15 for example"
        )
    return said if carla_version is None else carla_version


def towns_of(client: Any, wanted: Sequence[str]) -> tuple[str, ...]:
    """Those maps of a server, as it names them. Raises CollectError for one that it doesn't have."""
    with _server_errors("before anything was recorded"):
        known = {str(name).rsplit("/", 1)[-1]: str(name) for name in client.get_available_maps()}
    for name in wanted:
        if name.rsplit("/", 1)[-1] not in known:
            raise CollectError(f"the server has no map {name}; it has {', '.join(sorted(known))}")
    return tuple(known[name.rsplit("/", 1)[-1]] for name in wanted)
