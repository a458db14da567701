"""Recording runs on a CARLA server: `automoe collect`.

The server is driven through the official client, given as an argument (`carla`, its module, and a connected client), so
that everything here can be tested without a server. Whatever happens, actors are destroyed and settings restored: when
something fails, and when a signal ends the recording.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from automoe.carla import frame, observe, run
from automoe.carla.run import Frame, RunWriter, check_free, run_name
from automoe.carla.server import (
    ANSWER_SECONDS,
    LEAVING_SECONDS,
    SENSOR_SECONDS,
    WARM_UP,
    Population,
    Sensor,
    load_town,
    map_name,
    server_errors,
    server_version,
    signals_between_ticks,
    synchronous,
)
from automoe.errors import CollectError

AGAIN = 20
"""Ticks without a contact after which another with the same actor is a new one."""

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
    with signals_between_ticks() as check_signals:
        with server_errors("before anything was recorded"):
            plan = replace(plan, carla_version=server_version(client, plan.carla_version))
            complete = [_is_complete(folder, plan, index, client) for index, folder in enumerate(folders)]
        for index, folder in enumerate(folders):
            check_signals()
            if complete[index]:
                say(f"{folder} is there already")
                continue
            with server_errors(f"while {folder} was recorded"):
                world = load_town(client, plan.town(index))
                with synchronous(world, client) as manager:
                    _Recording(plan, plan.first + index, client, world, manager, carla, say, check_signals).record()
    return folders


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


class _Recording:
    """One run on a world in synchronous mode."""

    def __init__(
        self, plan: CollectPlan, number: int, client: Any, world: Any, manager: Any, carla: Any,
        say: Callable[[str], None], check_signals: Callable[[], None],
    ) -> None:  # fmt: skip
        self.plan, self.client, self.world, self.carla = plan, client, world, carla
        self.folder, self.say = plan.out / run_name(number), say
        self.rng = np.random.default_rng([plan.seed, number])
        self.actors = ExitStack()
        self.people = Population(carla, world, manager, self.actors, check_signals, plan.seed + number)
        self.sensors: dict[str, Sensor] = {}
        self.events: list[dict[str, Any]] = []
        self.first = 0
        """The server's tick of the run's first one."""

    def record(self) -> None:
        with self.actors:
            self.actors.callback(self.client.set_timeout, ANSWER_SECONDS)
            try:
                self._record()
            except (RuntimeError, CollectError):
                self.client.set_timeout(LEAVING_SECONDS)
                raise

    def _record(self) -> None:
        self._populate()
        self._mount()
        for _ in range(WARM_UP):
            self.people.tick()
        writer = RunWriter(self.folder)
        for number in range(self.plan.ticks):
            tick = self.people.tick()
            self.first = tick if number == 0 else self.first
            if number % self.plan.save_every == 0:
                writer.frame(self._frame(number, tick))
        writer.collisions.extend(self._collisions())
        writer.finish(self._config())
        self.say(f"{self.folder}: {len(writer.log)} frames of {self.map_name}, {len(writer.collisions)} collisions")

    @property
    def map_name(self) -> str:
        return map_name(str(self.world.get_map().name))

    # --- who is there ---

    def _populate(self) -> None:
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
        self.ego = self.people.ego(EGO_BLUEPRINTS, self.spot)
        self.ego.set_autopilot(True, self.people.manager.get_port())
        self.people.add_vehicles([spots[index] for index in order[1 : 1 + self.plan.vehicles]], rng)
        self.people.add_walkers(self.plan.walkers, rng)

    # --- what looks ---

    def _mount(self) -> None:
        carla, (width, height) = self.carla, self.plan.size
        camera = {"image_size_x": str(width), "image_size_y": str(height), "fov": f"{run.FIELD_OF_VIEW:g}"}
        for name, mount in run.MOUNTS.items():
            place = carla.Transform(carla.Location(mount.x, mount.y, mount.z), carla.Rotation(yaw=mount.yaw))
            self._sensor(name, "sensor.camera.rgb", place, camera)
            if name == run.LABELLED:
                self._sensor("tags", "sensor.camera.semantic_segmentation", place, camera)
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
        self._sensor("lidar", "sensor.lidar.ray_cast", above, lidar)
        self.people.bumper(self.ego, self._collided)

    def _sensor(self, name: str, kind: str, place: Any, attributes: dict[str, str]) -> None:
        self.sensors[name] = self.people.sensor(name, kind, place, attributes, self.ego)

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
        said = {name: sensor.at(tick, SENSOR_SECONDS) for name, sensor in self.sensors.items()}
        width, height = self.plan.size
        others = [*self.people.vehicles, *self.people.walkers]
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
            vehicles=[one.get_transform() for one in self.people.vehicles],
            walkers=len(self.people.walkers),
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
        spawned = {"vehicles_spawned": len(self.people.vehicles), "walkers_spawned": len(self.people.walkers)}
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
