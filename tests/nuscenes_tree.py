"""A tiny nuScenes tree in the official v1.0 layout: three scenes of two samples, an ego that drives at a wall."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from automoe.data.nuscenes import Sample
from automoe.data.nuscenes_tables import CAMERAS
from automoe.poses import invert, move_points

VERSION = "v1.0-mini"
EGO_SPEED = 8.0
START = 1_500_000_000_000_000
NORTH = [math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)]
SCENES = {"mini_train": ["scene-a", "scene-b"], "mini_val": ["scene-c"]}
WALL = 40.0
"""Metres north of where every scene starts."""


def write_nuscenes_tree(root: Path, size: tuple[int, int] = (32, 18)) -> Path:
    """Write the tree with pictures of (width, height) under `root` and return it."""
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("sample", "sample_data", "ego_pose", "scene")}
    tables |= {"sample_annotation": [], "instance": [], "calibrated_sensor": [], "sensor": []}
    tables["category"] = [
        {"token": f"category-{name}", "name": name, "description": ""}
        for name in ("vehicle.car", "human.pedestrian.adult", "static_object.bicycle_rack", "animal")
    ]
    tables["attribute"] = [{"token": "attribute-moving", "name": "vehicle.moving", "description": ""}]
    tables["visibility"] = [{"token": "4", "level": "v80-100", "description": ""}]
    tables["log"] = [{"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": "nowhere"}]
    tables["map"] = [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": ""}]
    _add_rig(tables, size)
    for scene in (name for names in SCENES.values() for name in names):
        _add_scene(root, tables, scene, size)
    folder = root / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(records))
    (folder / "splits.json").write_text(json.dumps(SCENES))
    return root


def edit_table(root: Path, table: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Let `change(records)` edit a table in place."""
    path = root / VERSION / f"{table}.json"
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records))


def append_points(sample: Sample, places: np.ndarray) -> None:
    """More points of a sample's LiDAR at places [N, 3] of the ego frame."""
    lidar = move_points(invert(sample.lidar.T_ego_lidar), places)
    points = np.column_stack([lidar, np.full(len(lidar), 50.0), np.zeros(len(lidar))])
    with sample.lidar.path.open("ab") as file:
        file.write(points.astype(np.float32).tobytes())


def _add_rig(tables: dict[str, list], size: tuple[int, int]) -> None:
    width, height = size
    for place, channel in enumerate((*CAMERAS, "LIDAR_TOP", "RADAR_FRONT")):
        modality = channel.split("_")[0].lower().replace("cam", "camera")
        tables["sensor"].append({"token": f"sensor-{channel}", "channel": channel, "modality": modality})
        yaw = -place * math.pi / 3 if modality == "camera" else -math.pi / 2
        record: dict[str, Any] = {"token": f"rig-{channel}", "sensor_token": f"sensor-{channel}"}
        record |= {"translation": [1.0, 0.0, 1.6], "camera_intrinsic": []}
        # A LiDAR's x is the ego's right; a camera's z is forward, its x right.
        half = yaw / 2
        record["rotation"] = [math.cos(half), 0.0, 0.0, math.sin(half)]
        if modality == "camera":
            turned = _times(record["rotation"], [0.5, -0.5, 0.5, -0.5])
            record |= {
                "rotation": turned,
                "camera_intrinsic": [[20.0, 0, width / 2], [0, 20.0, height / 2], [0, 0, 1.0]],
            }
        tables["calibrated_sensor"].append(record)


def _add_scene(root: Path, tables: dict[str, list], scene: str, size: tuple[int, int]) -> None:
    number = len(tables["scene"])
    start = START + number * 10**9
    token = f"{scene}-token"
    tables["scene"].append({"token": token, "name": scene, "log_token": "log", "nbr_samples": 2, "description": ""})
    for place in (0, 1):
        sample = f"{scene}-sample-{place}"
        time = start + place * 500_000
        tables["sample"].append({"token": sample, "timestamp": time, "scene_token": token, "prev": "", "next": ""})
        for channel in CAMERAS:
            _add_data(root, tables, f"{scene}-{channel}-{place}", channel, sample, time, start, True, size)
        for turn in range(10 if place == 0 else 1):
            name = f"{scene}-LIDAR_TOP-{place}-{turn}"
            _add_data(root, tables, name, "LIDAR_TOP", sample, time + turn * 50_000, start, turn == 0, size)
    for place in (0, 1):
        sample, other = f"{scene}-sample-{place}", f"{scene}-car-{1 - place}"
        links = {"prev": "" if place == 0 else other, "next": other if place == 0 else ""}
        car = {"token": f"{scene}-car-{place}", "instance_token": f"{scene}-car", **links}
        car |= {"translation": [-3.0, 20.0 + 2.0 * place, 1.0], "size": [1.9, 4.5, 1.6], "num_lidar_pts": 7}
        _annotate(tables, sample, {**car, "attribute_tokens": ["attribute-moving"]})
    for kind, x in (("walker", 5.0), ("rack", 8.0), ("dog", 9.0)):
        own = {"token": f"{scene}-{kind}", "instance_token": f"{scene}-{kind}", "prev": "", "next": ""}
        own |= {"translation": [x, 10.0, 1.0], "size": [0.6, 0.7, 1.7], "num_lidar_pts": 0, "attribute_tokens": []}
        _annotate(tables, f"{scene}-sample-0", own)
    kinds = {
        "car": "vehicle.car",
        "walker": "human.pedestrian.adult",
        "rack": "static_object.bicycle_rack",
        "dog": "animal",
    }
    for kind, category in kinds.items():
        tables["instance"].append({"token": f"{scene}-{kind}", "category_token": f"category-{category}"})


def _annotate(tables: dict[str, list], sample: str, record: dict[str, Any]) -> None:
    fixed = {"sample_token": sample, "visibility_token": "4", "rotation": NORTH, "num_radar_pts": 0}
    tables["sample_annotation"].append({**fixed, **record})


def _add_data(
    root: Path,
    tables: dict[str, list],
    token: str,
    channel: str,
    sample: str,
    time: int,
    start: int,
    key: bool,
    size: tuple[int, int],
) -> None:
    camera = channel.startswith("CAM")
    folder = "samples" if key else "sweeps"
    filename = f"{folder}/{channel}/{token}.{'jpg' if camera else 'pcd.bin'}"
    north = EGO_SPEED * (time - start) / 1e6
    tables["ego_pose"].append({"token": token, "timestamp": time, "translation": [0, north, 0], "rotation": NORTH})
    width, height = size if camera else (0, 0)
    record = {"token": token, "sample_token": sample, "ego_pose_token": token, "timestamp": time, "is_key_frame": key}
    record |= {"calibrated_sensor_token": f"rig-{channel}", "filename": filename, "height": height, "width": width}
    tables["sample_data"].append({**record, "fileformat": filename.rsplit(".")[-1], "prev": "", "next": ""})
    path = root / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    if camera:
        path.write_bytes(simplejpeg.encode_jpeg(np.full((height, width, 3), 90, np.uint8), quality=90))
        return
    # The wall in the LiDAR's frame (x right, y forward), and a point of the car's own bonnet.
    across = np.linspace(-3, 3, 7)
    wall = np.stack([across, np.full(7, WALL - north - 1.0), np.zeros(7), np.full(7, 40.0), np.zeros(7)], axis=1)
    np.concatenate([wall, [[0.2, 0.3, -0.5, 9.0, 3.0]]]).astype(np.float32).tofile(path)


def _times(a: list[float], b: list[float]) -> list[float]:
    """The product of two quaternions."""
    w, x, y, z = a
    p, q, r, s = b
    return [
        w * p - x * q - y * r - z * s,
        w * q + x * p + y * s - z * r,
        w * r - x * s + y * p + z * q,
        w * s + x * r - y * q + z * p,
    ]
