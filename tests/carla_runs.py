"""Small CARLA runs, drawn and not rendered, for tests of what reads them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from automoe.carla.run import CAMERAS, SHIFTED, Frame, RunWriter, run_name
from automoe.taxonomy import CARLA_TAGS

HEIGHT, WIDTH = 48, 64
ROAD, CAR, SKY = "road", "car", "sky"


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture [H, W, 3] and its tags by name [H, W]: sky above, road below, a car that wanders."""
    names = np.full((HEIGHT, WIDTH), SKY, object)
    names[HEIGHT // 2 :] = ROAD
    left = 4 + number % 40
    names[26:40, left : left + 16] = CAR
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for name, colour in ((SKY, (120, 170, 230)), (ROAD, (90, 90, 95)), (CAR, (190, 30, 30))):
        picture[names == name] = colour
    return picture + np.random.default_rng(number).integers(0, 8, picture.shape, dtype=np.uint8), names


def tags_of(names: np.ndarray, version: str = "0.9.14") -> np.ndarray:
    """Tags uint8 [H, W] of one of CARLA_TAGS' versions."""
    known = CARLA_TAGS[version]
    own = {name: known.index("vehicle" if name == CAR and "vehicle" in known else name) for name in (SKY, ROAD, CAR)}
    return np.vectorize(own.get)(names).astype(np.uint8)


def record(number: int, speed: float = 5.0, **more: Any) -> dict[str, Any]:
    """A record of a log: straight to the east, five ticks from frame to frame."""
    return {
        "frame": number,
        "timestamp": 1000.0 + number,  # public runs write the clock on the wall
        "image_filename": f"{number:06d}.png",
        "location": {"x": speed * 0.05 * number, "y": 10.0, "z": 0.0},
        "rotation": {"pitch": 0.0, "yaw": 0.0, "roll": 0.0},
        "velocity": {"x": speed, "y": 0.0, "z": 0.0},
        "speed_kmh": 3.6 * speed,
        "control": {"throttle": 0.3, "steer": 0.1, "brake": 0.0},
        "traffic_density": {"nearby_vehicles_50m": 1, "total_npc_vehicles": 2, "total_npc_walkers": 0},
        **more,
    }


def box(number: int, **more: Any) -> dict[str, Any]:
    """The wandering car's box as public runs have it."""
    left = 4 + number % 40
    return {"bbox": [left, 26.0, left + 16.0, 40.0], "label": "vehicle", "actor_id": 7, **more}


def write_run(
    root: Path,
    index: int,
    *,
    frames: int = 6,
    town: str = "Town01",
    version: str | None = "0.9.15",
    tags: str | None = "0.9.14",
    boxes: bool = True,
    lidar: bool = True,
    type_id: str | None = "vehicle.audi.tt",
    **config: Any,
) -> Path:
    """A run with the parts that are asked for; returns its folder."""
    writer = RunWriter(root / run_name(index))
    for number in range(0, 5 * frames, 5):
        picture, names = scene(number)
        own = {"type_id": type_id} if type_id else {}
        writer.frame(
            Frame(
                number,
                record(number),
                dict.fromkeys(CAMERAS, picture),
                tags=tags_of(names, tags) if tags else None,
                lidar=np.array([[10.0, 2.0, -1.0, 0.9]], np.float32) if lidar else None,
                boxes=[box(number, **own)] if boxes else None,
            )
        )
    said = {} if version is None else {"carla_version": version}
    weather = {"cloudiness": 80.0, "precipitation": 0.0, "wetness": 0.0, "fog_density": 0.0, "sun_altitude_angle": 40.0}
    writer.finish({"run_id": run_name(index), "map": f"Carla/Maps/{town}", "weather": weather, **said, **config})
    return root / run_name(index)


def write_two_towns(root: Path) -> Path:
    """Two towns, one run each; returns their root."""
    write_run(root, 0, town="Town01")
    write_run(root, 1, town="Town02")
    return root


BEND_TICK, BEND_STRIDE, BEND_SPEED, BEND_RADIUS = 0.05, 5, 6.0, 20.0


def bend(number: int, **more: Any) -> dict[str, Any]:
    """A record of a car that drives a circle to the left from the origin, in CARLA's axes."""
    angle = BEND_SPEED * BEND_TICK * number / BEND_RADIUS
    x, y = BEND_RADIUS * math.sin(angle), BEND_RADIUS * (1 - math.cos(angle))
    far = BEND_SPEED * BEND_TICK * (number + 40) / BEND_RADIUS
    target = [BEND_RADIUS * math.sin(far), -BEND_RADIUS * (1 - math.cos(far))]
    return record(
        number,
        BEND_SPEED,
        location={"x": x, "y": -y, "z": 0.0},
        rotation={"pitch": 0.0, "yaw": -math.degrees(angle), "roll": 0.0},
        velocity={"x": BEND_SPEED * math.cos(angle), "y": -BEND_SPEED * math.sin(angle), "z": 0.0},
        angular_velocity={"x": 0.0, "y": 0.0, "z": -math.degrees(BEND_SPEED / BEND_RADIUS)},
        route={"command": 1, "target_points": [target]},
        traffic_light={"id": "a", "state": "Red"},
        **more,
    )


def write_bend(
    root: Path, index: int, frames: int = 30, shift: tuple[float, float] | None = None, wanted: float | None = None
) -> Path:
    writer = RunWriter(root / run_name(index))
    for number in range(0, BEND_STRIDE * frames, BEND_STRIDE):
        picture, _ = scene(number)
        images = {"front": picture} if shift is None else {"front": picture, SHIFTED: picture[::-1]}
        more: dict[str, Any] = {} if shift is None else {"camera_shift": {"y": shift[0], "yaw": shift[1]}}
        more |= {} if wanted is None else {"target_speed_kmh": 3.6 * wanted}
        writer.frame(Frame(number, bend(number, **more), images))
    weather = {"precipitation": 30.0, "sun_altitude_angle": -10.0}
    writer.finish({"map": f"Town0{index}", "weather": weather, "save_every_n": BEND_STRIDE})
    return root / run_name(index)
