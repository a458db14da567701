"""A CARLA server in synchronous mode, and what is put into its world: whatever happens, it all goes again.

The server is driven through the official client, given as an argument (`carla`, its module, and a connected client), so
that everything here can be tested without a server.
"""

from __future__ import annotations

import importlib
import queue
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from automoe.carla import run
from automoe.errors import CollectError
from automoe.stopping import StopSignals

ANSWER_SECONDS = 20.0
"""That a server may take to answer."""

LEAVING_SECONDS = 1.0
"""The same for each actor that is destroyed after a failure: a server that has gone would keep us for half an hour."""

LOAD_SECONDS = 120.0
"""That a map may take to load."""

SENSOR_SECONDS = 10.0
"""Until a sensor that says nothing of a tick is known to be silent."""

WARM_UP = 20
"""Ticks before the first frame: cars drop onto the road, cameras find their exposure."""


# --- the server ---


def connect(
    host: str, port: int, seconds: float = ANSWER_SECONDS, carla_version: str | None = None, *, tags: bool = True
) -> tuple[Any, Any]:
    """The official client, connected, and its module.

    tags: whether the order of semantic tags matters, and with it the server's version. Raises CollectError where there
    is no client or no server, and where nobody says which version it is, neither the server nor `carla_version`.
    """
    try:
        carla: Any = importlib.import_module("carla")
    except ImportError as error:
        raise CollectError("the CARLA client is not installed; install it with `pip install automoe[carla]`") from error
    client = carla.Client(host, port)
    client.set_timeout(seconds)
    try:
        server, own = client.get_server_version(), client.get_client_version()
        if tags:
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


@contextmanager
def server_errors(when: str, kept: str = "complete runs are kept") -> Iterator[None]:
    """Turn what the client raises when its server fails or doesn't answer into a CollectError. kept: what a repeated
    command finds."""
    try:
        yield
    except RuntimeError as error:
        raise CollectError(
            f"the CARLA server failed or stopped answering {when} ({error}); see whether it still runs, start it anew, "
            f"and repeat the command: {kept}"
        ) from error


@contextmanager
def signals_between_ticks() -> Iterator[Callable[[], None]]:
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


# --- its map ---


def map_name(said: str) -> str:
    """A map's name without its folder: Town01 of "/Game/Carla/Maps/Town01"."""
    return said.rsplit("/", 1)[-1]


def towns_of(client: Any, wanted: Sequence[str]) -> tuple[str, ...]:
    """Those maps of a server, as it names them. Raises CollectError for one that it doesn't have."""
    with server_errors("before anything was recorded"):
        known = {map_name(str(name)): str(name) for name in client.get_available_maps()}
    for name in wanted:
        if map_name(name) not in known:
            raise CollectError(f"the server has no map {name}; it has {', '.join(sorted(known))}")
    return tuple(known[map_name(name)] for name in wanted)


def load_town(client: Any, town: str | None) -> Any:
    """A server's world with a map loaded anew, or as it is for None. Raises CollectError where it can't be loaded."""
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


# --- what is put into the world ---


class Sensor:
    """A sensor and what it said, by tick."""

    def __init__(self, actor: Any, name: str) -> None:
        self.actor, self.name = actor, name
        self._said: queue.Queue[Any] = queue.Queue()
        actor.listen(self._said.put)

    def at(self, tick: int, seconds: float = SENSOR_SECONDS) -> Any:
        """What it said of a tick; what it said of earlier ones is forgotten. Raises CollectError if it says nothing for
        so many seconds."""
        while True:
            try:
                data = self._said.get(timeout=seconds)
            except queue.Empty as error:
                raise CollectError(
                    f"the sensor {self.name} said nothing of tick {tick} for {seconds:.0f} s; is the server "
                    "busy, or gone?"
                ) from error
            if data.frame == tick:
                return data
            if data.frame > tick:
                raise CollectError(f"the sensor {self.name} skipped tick {tick}; is another client ticking the server?")


class Population:
    """Actors in a world in synchronous mode, spawned one by one; `actors`, closed, destroys them in reverse order.

    check_signals: called after every tick, to raise what a signal asks for. seed: of the traffic manager and of
    pedestrians' ways.
    """

    def __init__(
        self, carla: Any, world: Any, manager: Any, actors: ExitStack, check_signals: Callable[[], None], seed: int
    ) -> None:
        self.carla, self.world, self.manager, self.actors = carla, world, manager, actors
        self.check_signals = check_signals
        manager.set_random_device_seed(seed)
        world.set_pedestrians_seed(seed)
        self.library = world.get_blueprint_library()
        self.vehicles: list[Any] = []
        self.walkers: list[Any] = []

    def tick(self) -> int:
        """The number of the tick that was made. Raises what a signal asks for that came meanwhile."""
        tick = self.world.tick()
        self.check_signals()
        return tick

    def spawn(self, blueprint: Any, transform: Any, name: str, parent: Any = None) -> Any:
        """An actor. Raises CollectError where there is no room for it."""
        try:
            actor = self.world.spawn_actor(blueprint, transform, attach_to=parent)
        except RuntimeError as error:
            raise CollectError(
                f"{name} could not be spawned ({error}); is the map full of somebody else's actors?"
            ) from error
        self.actors.callback(actor.destroy)
        return actor

    def ego(self, names: Sequence[str], transform: Any) -> Any:
        """The car that is driven, the first of some blueprints that the server has. Raises CollectError without."""
        known = {blueprint.id: blueprint for blueprint in self.library.filter("vehicle.*")}
        found = next((known[name] for name in names if name in known), None)
        if found is None:
            raise CollectError(f"the server has none of {', '.join(names)}")
        found.set_attribute("role_name", "hero")
        return self.spawn(found, transform, "the ego")

    def sensor(self, name: str, kind: str, place: Any, attributes: Mapping[str, str], parent: Any) -> Sensor:
        """A sensor on a car, listened to."""
        blueprint = self.library.find(kind)
        for key, value in attributes.items():
            blueprint.set_attribute(key, value)
        actor = self.spawn(blueprint, place, f"the sensor {name}", parent)
        sensor = Sensor(actor, name)
        self.actors.callback(actor.stop)
        return sensor

    def bumper(self, parent: Any, collided: Callable[[Any], None]) -> None:
        """A collision sensor on a car, that calls with every event."""
        blueprint = self.library.find("sensor.other.collision")
        actor = self.spawn(blueprint, self.carla.Transform(), "the collision sensor", parent)
        actor.listen(collided)
        self.actors.callback(actor.stop)

    def add_vehicles(self, spots: Sequence[Any], rng: np.random.Generator) -> None:
        """Other cars under the traffic manager, one at each transform where there is room."""
        kinds = list(self.library.filter("vehicle.*"))
        for spot in spots:
            other = self.world.try_spawn_actor(kinds[int(rng.integers(len(kinds)))], spot)
            if other is not None:
                self.actors.callback(other.destroy)
                other.set_autopilot(True, self.manager.get_port())
                self.vehicles.append(other)

    def add_walkers(self, count: int, rng: np.random.Generator) -> None:
        """Walkers who go somewhere, each with the controller that makes him; as many as find a place."""
        kinds = list(self.library.filter("walker.pedestrian.*"))
        for _ in range(count if kinds else 0):
            place = self.world.get_random_location_from_navigation()
            if place is None:
                continue
            kind = kinds[int(rng.integers(len(kinds)))]
            walker = self.world.try_spawn_actor(kind, self.carla.Transform(place))
            if walker is None:
                continue
            self.actors.callback(walker.destroy)
            mind = self.library.find("controller.ai.walker")
            controller = self.spawn(mind, self.carla.Transform(), "a walker's controller", walker)
            self.tick()
            controller.start()
            self.actors.callback(controller.stop)
            aim = self.world.get_random_location_from_navigation()
            if aim is not None:
                controller.go_to_location(aim)
            self.walkers.append(walker)
