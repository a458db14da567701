"""A stand-in for a CARLA server and its client: it ticks, spawns, and remembers what was left behind.

What the real client builds without a server (transforms, boxes, weather, settings, controls) is of its own types where
it is installed, and of plain look-alikes elsewhere; what only a server can give is of look-alikes everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np


def look_alikes() -> SimpleNamespace:
    """What the collector uses of the client's module, made of plain Python."""

    @dataclass
    class Vector3D:
        x: float = 0.0
        y: float = 0.0
        z: float = 0.0

    class Location(Vector3D):
        pass

    @dataclass
    class Rotation:
        pitch: float = 0.0
        yaw: float = 0.0
        roll: float = 0.0

    @dataclass
    class Transform:
        location: Any = field(default_factory=Location)
        rotation: Any = field(default_factory=Rotation)

    @dataclass
    class BoundingBox:
        location: Any = field(default_factory=Location)
        extent: Any = field(default_factory=Vector3D)
        rotation: Any = field(default_factory=Rotation)

    class TrafficLightState(Enum):
        Red = 0

    @dataclass
    class VehicleControl:
        throttle: float = 0.0
        steer: float = 0.0
        brake: float = 0.0

    @dataclass
    class WorldSettings:
        synchronous_mode: bool = False
        fixed_delta_seconds: float | None = None

    @dataclass
    class WeatherParameters:
        cloudiness: float = 10.0
        precipitation: float = 0.0
        sun_altitude_angle: float = 75.0

    presets = {"ClearNoon": {}, "Default": {"sun_altitude_angle": -1.0}, "HardRainSunset": {"precipitation": 80.0}}
    for name, values in presets.items():
        setattr(WeatherParameters, name, WeatherParameters(**values))
    kinds = (
        BoundingBox, Location, Rotation, TrafficLightState, Transform, Vector3D, VehicleControl, WeatherParameters,
        WorldSettings,
    )  # fmt: skip
    return SimpleNamespace(**{kind.__name__: kind for kind in kinds})


def client_module() -> SimpleNamespace:
    """The same of the real client where it is installed, and of look-alikes elsewhere."""
    plain = look_alikes()
    try:
        import carla
    except ImportError:
        return plain
    return SimpleNamespace(**{name: getattr(carla, name) for name in vars(plain)})


MODULE = client_module()
"""What stands for `import carla`."""

Location, Rotation, Transform, Vector3D = MODULE.Location, MODULE.Rotation, MODULE.Transform, MODULE.Vector3D


def moved(transform: Any, move: Any, yaw: float = 0.0) -> Any:
    """A transform moved along its own axes, then turned to the right by degrees."""
    here, cos, sin = transform.location, *direction(transform.rotation.yaw)
    place = Location(here.x + cos * move.x - sin * move.y, here.y + sin * move.x + cos * move.y, here.z + move.z)
    return Transform(place, Rotation(yaw=transform.rotation.yaw + yaw))


def direction(yaw: float) -> tuple[float, float]:
    """Where something looks that is turned by degrees, x and y in CARLA's axes."""
    return math.cos(math.radians(yaw)), math.sin(math.radians(yaw))


class Blueprint:
    def __init__(self, name: str) -> None:
        self.id, self.attributes = name, {}

    def set_attribute(self, key: str, value: str) -> None:
        assert isinstance(value, str)  # the real one refuses numbers
        self.attributes[key] = value


class Library(list):
    def filter(self, pattern: str) -> list[Blueprint]:
        return [one for one in self if one.id.startswith(pattern.rstrip("*"))]

    def find(self, name: str) -> Blueprint:
        return next(one for one in self if one.id == name)


class Actor:
    """Whoever is spawned. Vehicles drive straight on at 10 m/s; what is attached to one goes with it."""

    def __init__(self, world: World, blueprint: Blueprint, transform: Any, parent: Any) -> None:
        self.world, self.blueprint, self.parent = world, blueprint, parent
        self.transform, self.type_id, self.id = transform, blueprint.id, world.number()
        self.bounding_box = MODULE.BoundingBox(Location(0.2, 0.0, 0.8), Vector3D(2.3, 0.95, 0.8))
        self.callback: Any = None
        self.stopped = self.started = False

    def get_transform(self) -> Any:
        if self.parent is None:
            return moved(self.transform, Vector3D(0.05 * self.speed * self.world.tick_count))
        return moved(self.parent.get_transform(), self.transform.location, self.transform.rotation.yaw)

    @property
    def speed(self) -> float:
        return 10.0 if self.type_id.startswith("vehicle.") else 0.0

    def get_velocity(self) -> Any:
        x, y = direction(self.transform.rotation.yaw)
        return Vector3D(self.speed * x, self.speed * y, 0.0)

    def get_acceleration(self) -> Any:
        return Vector3D(0.1)

    def get_angular_velocity(self) -> Any:
        return Vector3D()

    def get_control(self) -> Any:
        return MODULE.VehicleControl(throttle=0.5, steer=-0.1, brake=0.0)

    def get_speed_limit(self) -> float:
        return 30.0

    def is_at_traffic_light(self) -> bool:
        return self.world.tick_count % 2 == 0

    def get_traffic_light_state(self) -> Any:
        return MODULE.TrafficLightState.Red

    def set_autopilot(self, on: bool, port: int) -> None:
        self.autopilot = (on, port)

    def start(self) -> None:
        self.started = True

    def go_to_location(self, place: Any) -> None:
        assert place is not None

    def listen(self, callback: Any) -> None:
        self.callback = callback

    def stop(self) -> None:
        self.stopped = True

    def destroy(self) -> None:
        self.world.actors.remove(self)
        if self.world.on_destroy:
            self.world.on_destroy(self)

    def say(self, tick: int) -> None:
        width, height = (int(self.blueprint.attributes.get(f"image_size_{axis}", 0)) for axis in "xy")
        if self.type_id == "sensor.lidar.ray_cast":
            data = np.array([[10.0, 2.0, -1.0, 0.9], [20.0, -3.0, -1.0, 0.8]], np.float32).tobytes()
        else:
            pixels = np.zeros((height, width, 4), np.uint8)
            pixels[..., 3] = 255
            pixels[height // 2 :, :, 2] = 1 if "semantic" in self.type_id else 200  # red: the road's tag, or a colour
            data = pixels.tobytes()
        self.callback(
            SimpleNamespace(frame=tick, raw_data=data, width=width, height=height, transform=self.get_transform())
        )


class World:
    """One map. faults: blueprint -> error that spawning it raises. mute: the sensor that says nothing.

    on_tick, on_spawn, on_destroy: called when a tick is made, an actor is there or gone; what they raise, the client
    raises. elsewhere: where vehicles of the traffic come to stand, whatever is asked for.
    """

    def __init__(self, name: str, faults: dict[str, Exception], mute: str | None) -> None:
        self.name, self.faults, self.mute = name, faults, mute
        self.settings = MODULE.WorldSettings()
        self.applied: list[tuple[bool, Any]] = []
        self.actors: list[Actor] = []
        self.tick_count = self._number = self._tries = 0
        self.weather: Any = None
        self.bumps: set[int] = set()
        self.elsewhere: Any = None
        self.on_tick: Callable[[int], None] | None = None
        self.on_spawn: Callable[[Actor], None] | None = None
        self.on_destroy: Callable[[Actor], None] | None = None
        names = ("vehicle.tesla.model3", "vehicle.audi.tt", "vehicle.bh.crossbike", "walker.pedestrian.0001",
                 "controller.ai.walker", "sensor.camera.rgb", "sensor.camera.semantic_segmentation",
                 "sensor.lidar.ray_cast", "sensor.other.collision")  # fmt: skip
        self.library = Library(map(Blueprint, names))

    def number(self) -> int:
        self._number += 1
        return self._number

    def get_settings(self) -> Any:
        copy = MODULE.WorldSettings()
        copy.synchronous_mode = self.settings.synchronous_mode
        copy.fixed_delta_seconds = self.settings.fixed_delta_seconds
        return copy

    def apply_settings(self, settings: Any) -> None:
        self.settings = settings
        self.applied.append((settings.synchronous_mode, settings.fixed_delta_seconds))

    def get_map(self) -> Any:
        spots = [Transform(Location(6.0 * index, 3.5 * (index % 2), 0.0)) for index in range(12)]
        return SimpleNamespace(name=f"Carla/Maps/{self.name}", get_spawn_points=lambda: spots)

    def get_blueprint_library(self) -> Library:
        return Library(Blueprint(one.id) for one in self.library)

    def get_random_location_from_navigation(self) -> Any:
        return Location(30.0, 5.0, 0.0)

    def set_pedestrians_seed(self, seed: int) -> None:
        assert isinstance(seed, int)

    def set_weather(self, weather: Any) -> None:
        self.weather = weather

    def spawn_actor(self, blueprint: Blueprint, transform: Any, attach_to: Any = None) -> Actor:
        if blueprint.id in self.faults:
            raise self.faults[blueprint.id]
        actor = Actor(self, blueprint, transform, attach_to)
        self.actors.append(actor)
        if self.on_spawn:
            self.on_spawn(actor)
        return actor

    def try_spawn_actor(self, blueprint: Blueprint, transform: Any) -> Actor | None:
        self._tries += 1
        if self.elsewhere and blueprint.id.startswith("vehicle."):
            transform = self.elsewhere
        return None if self._tries % 4 == 0 else self.spawn_actor(blueprint, transform)

    def tick(self) -> int:
        self.tick_count += 1
        if self.on_tick:
            self.on_tick(self.tick_count)
        for actor in list(self.actors):
            if actor.type_id == "sensor.other.collision" and actor.callback and self.tick_count in self.bumps:
                other = SimpleNamespace(type_id="static.prop.box", id=99)
                actor.callback(SimpleNamespace(frame=self.tick_count, other_actor=other, normal_impulse=Vector3D(-5.0)))
            looks = actor.type_id.startswith(("sensor.camera", "sensor.lidar"))
            if looks and actor.callback and actor.type_id != self.mute:
                actor.say(self.tick_count)
        return self.tick_count


class Client:
    """A connected client. Every world that it ever loaded is kept, to be looked at afterwards."""

    def __init__(
        self, faults: dict[str, Exception] | None = None, mute: str | None = None, version: str = "0.9.15"
    ) -> None:
        self.faults, self.mute, self.version = faults or {}, mute, version
        self.worlds: list[World] = []
        self.manager = SimpleNamespace(
            synchronous=[], get_port=lambda: 8000, set_synchronous_mode=lambda on: self.manager.synchronous.append(on),
            set_random_device_seed=lambda seed: None,
        )  # fmt: skip
        self.timeouts: list[float] = []

    def load_world(self, name: str) -> World:
        self.worlds.append(World(name.rsplit("/", 1)[-1], self.faults, self.mute))
        return self.worlds[-1]

    def set_timeout(self, seconds: float) -> None:
        self.timeouts.append(seconds)

    def get_world(self) -> World:
        return self.worlds[-1] if self.worlds else self.load_world("Town10HD")

    def get_trafficmanager(self) -> Any:
        return self.manager

    def get_server_version(self) -> str:
        return self.version

    def get_client_version(self) -> str:
        return "0.9.15"

    def get_available_maps(self) -> list[str]:
        return ["/Game/Carla/Maps/Town01", "/Game/Carla/Maps/Town02"]
