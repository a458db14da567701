"""A stand-in for a CARLA server and its client: it ticks, spawns, and remembers what was left behind.

Transforms, locations and weather are the real client's types where it is installed, and plain look-alikes elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np


@dataclass
class Vector:
    x: float = 0.0
    y: float = 0.0
    z: float = 0.0


@dataclass
class Rotation:
    pitch: float = 0.0
    yaw: float = 0.0
    roll: float = 0.0


@dataclass
class Transform:
    location: Vector = field(default_factory=Vector)
    rotation: Rotation = field(default_factory=Rotation)


class Weather:
    def __init__(self, **values: float) -> None:
        self.cloudiness = 10.0
        self.__dict__.update(values)


Weather.ClearNoon = Weather(sun_altitude_angle=75.0)  # type: ignore[attr-defined]
Weather.Default = Weather(sun_altitude_angle=-1.0)  # type: ignore[attr-defined]
Weather.HardRainSunset = Weather(precipitation=80.0, sun_altitude_angle=5.0)  # type: ignore[attr-defined]

MODULE = SimpleNamespace(Transform=Transform, Location=Vector, Rotation=Rotation, WeatherParameters=Weather)
"""What stands for `import carla`."""


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
    """Whoever is spawned. Drives straight to the east at 10 m/s."""

    def __init__(self, world: World, blueprint: Blueprint, transform: Any, parent: Any) -> None:
        self.world, self.blueprint, self.parent = world, blueprint, parent
        self.transform, self.type_id, self.id = transform, blueprint.id, world.number()
        self.bounding_box = SimpleNamespace(location=Vector(z=0.8), rotation=Rotation(), extent=Vector(2.3, 0.95, 0.8))
        self.callback: Any = None
        self.stopped = self.started = False

    def get_transform(self) -> Any:
        if self.parent is not None:
            here = self.parent.get_transform()
            # Parents look to the east here, so that mounts only add.
            place = Vector(
                here.location.x + self.transform.location.x,
                here.location.y + self.transform.location.y,
                here.location.z + self.transform.location.z,
            )
            return Transform(place, self.transform.rotation)
        gone = 0.5 * self.world.tick_count if self.type_id.startswith("vehicle.") else 0.0
        start = self.transform.location
        return Transform(Vector(start.x + gone, start.y, start.z), self.transform.rotation)

    def get_velocity(self) -> Vector:
        return Vector(10.0)

    def get_acceleration(self) -> Vector:
        return Vector(0.1)

    def get_angular_velocity(self) -> Vector:
        return Vector()

    def get_control(self) -> Any:
        return SimpleNamespace(throttle=0.5, steer=-0.1, brake=0.0)

    def get_speed_limit(self) -> float:
        return 30.0

    def is_at_traffic_light(self) -> bool:
        return self.world.tick_count % 2 == 0

    def get_traffic_light_state(self) -> str:
        return "carla.TrafficLightState.Red"

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
    """One map. faults: blueprint -> error that spawning it raises. mute: the sensor that says nothing."""

    def __init__(self, name: str, faults: dict[str, Exception], mute: str | None) -> None:
        self.name, self.faults, self.mute = name, faults, mute
        self.settings = SimpleNamespace(synchronous_mode=False, fixed_delta_seconds=None)
        self.applied: list[tuple[bool, Any]] = []
        self.actors: list[Actor] = []
        self.tick_count = self._number = self._tries = 0
        self.weather: Any = None
        self.bumps: set[int] = set()
        names = ("vehicle.tesla.model3", "vehicle.audi.tt", "vehicle.bh.crossbike", "walker.pedestrian.0001",
                 "controller.ai.walker", "sensor.camera.rgb", "sensor.camera.semantic_segmentation",
                 "sensor.lidar.ray_cast", "sensor.other.collision")  # fmt: skip
        self.library = Library(map(Blueprint, names))

    def number(self) -> int:
        self._number += 1
        return self._number

    def get_settings(self) -> Any:
        return SimpleNamespace(**vars(self.settings))

    def apply_settings(self, settings: Any) -> None:
        self.settings = settings
        self.applied.append((settings.synchronous_mode, settings.fixed_delta_seconds))

    def get_map(self) -> Any:
        spots = [Transform(Vector(6.0 * index, 3.5 * (index % 2))) for index in range(12)]
        return SimpleNamespace(name=f"Carla/Maps/{self.name}", get_spawn_points=lambda: spots)

    def get_blueprint_library(self) -> Library:
        return Library(Blueprint(one.id) for one in self.library)

    def get_random_location_from_navigation(self) -> Vector:
        return Vector(30.0, 5.0)

    def set_pedestrians_seed(self, seed: int) -> None:
        assert isinstance(seed, int)

    def set_weather(self, weather: Any) -> None:
        self.weather = weather

    def spawn_actor(self, blueprint: Blueprint, transform: Any, attach_to: Any = None) -> Actor:
        if blueprint.id in self.faults:
            raise self.faults[blueprint.id]
        actor = Actor(self, blueprint, transform, attach_to)
        self.actors.append(actor)
        return actor

    def try_spawn_actor(self, blueprint: Blueprint, transform: Any) -> Actor | None:
        self._tries += 1
        return None if self._tries % 4 == 0 else self.spawn_actor(blueprint, transform)

    def tick(self) -> int:
        self.tick_count += 1
        for actor in list(self.actors):
            if actor.type_id == "sensor.other.collision" and actor.callback and self.tick_count in self.bumps:
                other = SimpleNamespace(type_id="static.prop.box", id=99)
                actor.callback(SimpleNamespace(frame=self.tick_count, other_actor=other, normal_impulse=Vector(-5.0)))
            looks = actor.type_id.startswith(("sensor.camera", "sensor.lidar"))
            if looks and actor.callback and actor.type_id != self.mute:
                actor.say(self.tick_count)
        return self.tick_count


class Client:
    """A connected client. Every world that it ever loaded is kept, to be looked at afterwards."""

    def __init__(self, faults: dict[str, Exception] | None = None, mute: str | None = None) -> None:
        self.faults, self.mute = faults or {}, mute
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
        return "0.9.15"

    def get_available_maps(self) -> list[str]:
        return ["/Game/Carla/Maps/Town01", "/Game/Carla/Maps/Town02"]
