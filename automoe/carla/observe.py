"""What a CARLA client's objects say, as records and arrays of a run: nothing here talks to a server.

Takes the client's own types (carla.Transform, carla.Image, carla.BoundingBox, ...) or anything with their attributes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from automoe.carla import frame
from automoe.carla.run import FIELD_OF_VIEW
from automoe.image_boxes import visible_extent
from automoe.poses import LOOKING_FORWARD, box_corners, move_points


def pose_of(transform: Any) -> np.ndarray:
    """A carla.Transform as T_world_thing [4, 4] of ours."""
    return frame.pose(frame.location_of(transform.location), frame.rotation_of(transform.rotation))


def picture(image: Any) -> np.ndarray:
    """A carla.Image of an RGB camera, BGRA bytes, as uint8 [H, W, 3] RGB."""
    return np.ascontiguousarray(_pixels(image)[..., 2::-1])


def tags(image: Any) -> np.ndarray:
    """A carla.Image of a semantic camera as tags uint8 [H, W]: they stand in its red channel."""
    return np.ascontiguousarray(_pixels(image)[..., 2])


def points(measurement: Any) -> np.ndarray:
    """A carla.LidarMeasurement as float32 [N, 4], in the sensor's CARLA axes, as runs have it."""
    return np.frombuffer(bytes(measurement.raw_data), np.float32).reshape(-1, 4).copy()


def _pixels(image: Any) -> np.ndarray:
    return np.frombuffer(bytes(image.raw_data), np.uint8).reshape(image.height, image.width, 4)


def log_record(
    number: int,
    seconds: float,
    *,
    transform: Any,
    velocity: Any,
    acceleration: Any,
    angular_velocity: Any,
    control: Any,
    vehicles: Sequence[Any],
    walkers: int,
    speed_limit_kmh: float | None = None,
    light: str | None = None,
) -> dict[str, Any]:
    """A record of vehicle_log.json. vehicles: the transforms of all others; light: the state of what holds the ego."""
    here = transform.location
    near = sum(
        math.dist((one.location.x, one.location.y, one.location.z), (here.x, here.y, here.z)) < 50.0 for one in vehicles
    )
    record: dict[str, Any] = {
        "frame": number,
        "timestamp": round(seconds, 3),
        "image_filename": f"{number:06d}.png",
        "location": frame.location_of(transform.location),
        "rotation": frame.rotation_of(transform.rotation),
        "velocity": frame.location_of(velocity),
        "speed_kmh": 3.6 * math.hypot(velocity.x, velocity.y, velocity.z),
        "control": {"throttle": control.throttle, "steer": control.steer, "brake": control.brake},
        "traffic_density": {
            "nearby_vehicles_50m": near,
            "total_npc_vehicles": len(vehicles),
            "total_npc_walkers": walkers,
        },
        "acceleration": frame.location_of(acceleration),
        "angular_velocity": frame.location_of(angular_velocity),
        "traffic_light": None if light is None else {"state": light},
    }
    if speed_limit_kmh is not None:
        record["speed_limit_kmh"] = speed_limit_kmh
    return record


def projected(box: Any, transform: Any, camera: Any, size: tuple[int, int]) -> list[float] | None:
    """The extent in pixels, x1 y1 x2 y2, of an actor's carla.BoundingBox; None where nothing of it is in the picture.

    transform: the actor's, camera: the camera's carla.Transform. size: height and width of the picture.
    """
    height, width = size
    T_world_mount = pose_of(camera)
    local = (_corners(box, transform) - T_world_mount[:3, 3]) @ T_world_mount[:3, :3] @ LOOKING_FORWARD
    focal = width / 2 / math.tan(math.radians(FIELD_OF_VIEW) / 2)
    intrinsic = np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return visible_extent(local, intrinsic, size)


def _corners(box: Any, transform: Any) -> np.ndarray:
    """The eight corners of an actor's box, world, our frame [8, 3], in the order of `poses.box_corners`."""
    extent = [box.extent.x, box.extent.y, box.extent.z]
    own = box_corners(np.array([[0.0, 0.0, 0.0, *(2 * half for half in extent), 0.0]]))[0]
    T_actor_box = frame.pose(frame.location_of(box.location), frame.rotation_of(box.rotation))
    return move_points(pose_of(transform) @ T_actor_box, own)


def boxes(actors: Sequence[Any], camera: Any, size: tuple[int, int]) -> list[dict[str, Any]]:
    """The records of a frame's boxes file: every actor's whole box, hidden or not, as in the public runs.

    actors: with id, type_id, bounding_box and get_transform().
    """
    found = []
    for actor in actors:
        bbox = projected(actor.bounding_box, actor.get_transform(), camera, size)
        if bbox is not None:
            label = "pedestrian" if actor.type_id.startswith("walker.") else "vehicle"
            found.append({"bbox": bbox, "label": label, "actor_id": actor.id, "type_id": actor.type_id})
    return found


def boxes3d(actors: Sequence[Any], here: Any, reach: float) -> list[dict[str, Any]]:
    """The records of a frame's 3D boxes, in CARLA's axes, of actors within `reach` metres of a carla.Location."""
    found = []
    for actor in actors:
        transform, box = actor.get_transform(), actor.bounding_box
        away = math.hypot(transform.location.x - here.x, transform.location.y - here.y)
        if away > reach:
            continue
        T_actor_box = frame.pose(frame.location_of(box.location), frame.rotation_of(box.rotation))
        location, rotation = frame.say_pose(pose_of(transform) @ T_actor_box)
        found.append(
            {
                "actor_id": actor.id,
                "type_id": actor.type_id,
                "location": location,
                "rotation": rotation,
                "extent": frame.location_of(box.extent),
                "velocity": frame.location_of(actor.get_velocity()),
            }
        )
    return found


def weather_record(weather: Any, preset: str) -> dict[str, Any]:
    """A carla.WeatherParameters as a run's config has it."""
    keys = (
        "cloudiness", "precipitation", "precipitation_deposits", "wind_intensity", "sun_azimuth_angle",
        "sun_altitude_angle", "fog_density", "fog_distance", "wetness",
    )  # fmt: skip
    return {"preset": preset, **{key: float(getattr(weather, key, 0.0)) for key in keys}}
