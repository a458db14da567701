"""Writes the embedded world as nuScenes: scenes of moving traffic in the official v1.0 layout.

    samples/CAM_*/NAME.jpg, samples/LIDAR_TOP/NAME.pcd.bin   key frames, 2 Hz
    sweeps/LIDAR_TOP/NAME.pcd.bin                            the LiDAR's turns between them, 20 Hz
    maps/NAME.png                                            a mask of each town's roads
    v1.0-embedded/*.json                                     the official tables, and splits.json
    world.json                                               how it was made, and what is in it
    .scenes/NAME.json                                        the records of one finished scene, for resuming

The version is called v1.0-embedded and its splits embedded_train and embedded_val: the official devkit keeps train and
val for scenes of its own. All sensors of a key frame look at the same moment. A scene is a function of (seed, split,
index) and of the size and length asked for. Global coordinates are the town's, moved so that they are positive, as
map masks need it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from automoe.config import from_dict
from automoe.errors import WorldError
from automoe.poses import matrix_quaternion, move_points, points_inside
from automoe.taxonomy import NUSCENES_ATTRIBUTES, NUSCENES_CATEGORIES, NUSCENES_DETECTION, SEMANTIC
from automoe.world.workers import begin, check_settings, make_pieces, settings_of, write_piece

if TYPE_CHECKING:
    from automoe.world.lidar import LidarCaster, Sweep
    from automoe.world.parts import Asset
    from automoe.world.renderer import Renderer
    from automoe.world.scene import Actor, Camera, Lidar, Scene, StagedTown
    from automoe.world.town import Town

FORMAT_VERSION = 1
VERSION = "v1.0-embedded"
TRAIN_TOWNS: tuple[str, ...] = tuple(f"nuscenes-train-{index:02d}" for index in (3, 5, 6, 8, 9, 10, 13, 17))
VAL_TOWNS: tuple[str, ...] = tuple(f"nuscenes-val-{index:02d}" for index in (4, 5, 7, 9))
"""Towns of all three kinds that have parking strips, where construction sites and trailers are."""

SPLITS = ("train", "val")
JPEG_QUALITY = 90
SWEEP_RATE, KEY_RATE = 20, 2
"""Turns of the LiDAR and key frames a second."""

TURNS = SWEEP_RATE // KEY_RATE
"""Of the LiDAR from key frame to key frame."""

START = 1_600_000_000_000_000
"""Microseconds at which the first scene begins."""

OFFSET = np.array([200.0, 200.0, 0.0])
"""From the town's frame to the global one, metres."""

MAP_RESOLUTION = 0.1
ANNOTATED = 75.0
"""Metres from the ego within which things are annotated, if a sensor sees them."""

RANGE_NOISE = 0.02
VISIBILITY: tuple[tuple[str, float], ...] = (("v0-40", 0.4), ("v40-60", 0.6), ("v60-80", 0.8), ("v80-100", np.inf))

CATEGORY_OF: dict[str, str] = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "construction_vehicle": "vehicle.construction",
    "pedestrian": "human.pedestrian.adult",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "traffic_cone": "movable_object.trafficcone",
    "barrier": "movable_object.barrier",
}
"""The world's categories in nuScenes' words."""

_INTENSITY = {
    "road": 9.0, "sidewalk": 14.0, "building": 22.0, "wall": 20.0, "fence": 16.0, "pole": 34.0, "traffic light": 40.0,
    "traffic sign": 150.0, "vegetation": 12.0, "terrain": 11.0, "person": 16.0, "rider": 16.0, "car": 30.0,
    "truck": 36.0, "bus": 38.0, "train": 36.0, "motorcycle": 22.0, "bicycle": 20.0,
}  # fmt: skip
"""Mean reflected intensity by class, 0 to 255; signs and plates shine."""


@dataclass(frozen=True)
class ScenePlan:
    """What an export makes; written to world.json, and the same in every worker."""

    seed: int
    size: tuple[int, int]
    seconds: float
    train: int
    val: int
    train_towns: tuple[str, ...] = TRAIN_TOWNS
    val_towns: tuple[str, ...] = VAL_TOWNS
    look: str = "nuscenes"
    version: int = FORMAT_VERSION

    def town(self, split: str, index: int) -> str:
        towns = self.train_towns if split == "train" else self.val_towns
        return towns[index % len(towns)]

    def scenes(self) -> list[tuple[str, int]]:
        """Every (split, index), those of one town together."""
        found = [("train", index) for index in range(self.train)] + [("val", index) for index in range(self.val)]
        return sorted(found, key=lambda scene: (scene[0], self.town(*scene), scene[1]))


def scene_name(split: str, index: int) -> str:
    """A scene's name in nuScenes' manner, unlike any official one."""
    return f"scene-{split[0]}{index:04d}"


def export_nuscenes(
    out: Path,
    scenes: int,
    val_scenes: int,
    seed: int,
    *,
    seconds: float = 20.0,
    size: tuple[int, int] = (400, 225),
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Write `scenes` training and `val_scenes` validation scenes, going on where the same call stopped earlier.

    seconds: of each scene, 1 at least. size: width and height of the pictures; 1600 x 900 is the official one.
    progress: called with (scenes done, scenes in all). Returns the content of world.json. Raises WorldError when `out`
    holds an export with other settings, or the world cannot be rendered.
    """
    out = Path(out)
    if scenes < 1 or val_scenes < 1 or seconds < 1:
        raise WorldError("an export needs a training scene, a validation scene, and a second of each at least")
    plan = ScenePlan(seed, (int(size[0]), int(size[1])), float(seconds), scenes, val_scenes)
    check_settings(out, plan, "samples", "samples")
    begin(out, plan)
    waiting = [scene for scene in plan.scenes() if not _sidecar(out, *scene).is_file()]
    make_pieces(
        write_scenes, "automoe.world.nuscenes_writer:work", out, plan, waiting, workers=workers, progress=progress
    )
    return _finish(out, plan)


def work(job: dict[str, Any], on_scene: Callable[[], None]) -> None:
    """A worker's share of an export."""
    plan = from_dict(ScenePlan, job["plan"], "plan")
    write_scenes(Path(job["out"]), plan, [(split, index) for split, index in job["pieces"]], on_scene)


# ---------------------------------------------------------------- one process


def write_scenes(out: Path, plan: ScenePlan, scenes: Sequence[tuple[str, int]], on_scene: Callable[[], None]) -> None:
    """Simulate, render and write scenes one after another; those of one town should stand together."""
    from automoe.world.furnish import stage_town
    from automoe.world.lidar import LidarCaster
    from automoe.world.renderer import Renderer, check_rendering

    check_rendering()
    current, renderer, caster = None, None, None
    try:
        for split, index in scenes:
            town = plan.town(split, index)
            if town != current:
                if renderer is not None:
                    renderer.close()
                stage = stage_town(town)
                if not (out / _mask_name(town)).is_file():
                    write_piece(out / _mask_name(town), map_mask(stage.town))
                renderer, caster, current = Renderer(stage, *plan.size), LidarCaster(stage), town
            assert renderer is not None
            assert caster is not None
            _SceneWriter(out, plan, split, index, renderer, caster).write()
            on_scene()
    finally:
        if renderer is not None:
            renderer.close()


class _SceneWriter:
    """One scene: moves the traffic, writes what the sensors see, and last the scene's records."""

    def __init__(
        self, out: Path, plan: ScenePlan, split: str, index: int, renderer: Renderer, caster: LidarCaster
    ) -> None:
        from automoe.world.rig import nuscenes_cameras, nuscenes_lidar

        self.out, self.plan, self.renderer, self.caster = out, plan, renderer, caster
        self.name = scene_name(split, index)
        self.town = plan.town(split, index)
        self.rng = np.random.default_rng([plan.seed, 300 + SPLITS.index(split), index])
        self.cameras: tuple[Camera, ...] = nuscenes_cameras(*plan.size)
        self.lidar: Lidar = nuscenes_lidar()
        number = index + (0 if split == "train" else 100_000)
        self.start = START + number * 3_600_000_000
        self.records: dict[str, list[dict[str, Any]]] = {
            key: [] for key in ("sample", "sample_data", "ego_pose", "sample_annotation", "calibrated_sensor")
        }

    def token(self, *what: object) -> str:
        """A token that is the same in every export with this seed."""
        return _token(self.plan.seed, self.name, *what)

    def write(self) -> None:
        from automoe.world.motion import Traffic
        from automoe.world.traffic import draw_nuscenes_density, sample_scene

        conditions = draw_conditions(self.rng)
        begin = sample_scene(self.renderer.stage, self.rng, conditions, draw_nuscenes_density(self.rng))
        traffic = Traffic(begin, int(self.rng.integers(2**31)))
        for _ in range(SWEEP_RATE):
            scene = traffic.step(1 / SWEEP_RATE)  # a second to settle: nobody stands where he was drawn
        self._rig()
        for step in range((round(self.plan.seconds * KEY_RATE) - 1) * TURNS + 1):
            if step:
                scene = traffic.step(1 / SWEEP_RATE)
            key = -(-step // TURNS)  # a recording belongs to the sample that it precedes
            points = self._lidar_turn(scene, step, key)
            if step % TURNS == 0:
                self._key_frame(scene, points, step, key)
        self._link()
        description = ", ".join([conditions.time_of_day, conditions.weather, self.renderer.stage.town.style.kind])
        record = {"name": self.name, "town": self.town, "description": description, "records": self.records}
        write_piece(_sidecar_of(self.out, self.name), json.dumps(record).encode())

    # ------------------------------------------------------------ sensors

    def _rig(self) -> None:
        for camera in self.cameras:
            self._mount(camera.name, camera.T_ego_cam, camera.intrinsics.tolist())
        self._mount(self.lidar.name, self.lidar.T_ego_lidar, [])

    def _mount(self, channel: str, transform: np.ndarray, intrinsic: list) -> None:
        self.records["calibrated_sensor"].append(
            {
                "token": self.token("rig", channel),
                "sensor_token": _token("sensor", channel),
                "translation": transform[:3, 3].tolist(),
                "rotation": matrix_quaternion(transform[:3, :3]).tolist(),
                "camera_intrinsic": intrinsic,
            }
        )

    def _lidar_turn(self, scene: Scene, step: int, key: int) -> np.ndarray:
        points = lidar_points(self.caster.sweep(scene, self.lidar), self.rng)
        folder = "samples" if step % TURNS == 0 else "sweeps"
        path = self._data(scene, self.lidar.name, folder, "pcd.bin", step, key, (0, 0))
        write_piece(path, points.tobytes())
        return points

    def _data(
        self, scene: Scene, channel: str, folder: str, suffix: str, step: int, key: int, size: tuple[int, int]
    ) -> Path:
        """The records of one recording; returns where its file goes."""
        time = self.start + step * 1_000_000 // SWEEP_RATE
        token = self.token("data", channel, step)
        filename = f"{folder}/{channel}/{self.name}-{self.plan.seed}__{channel}__{time}.{suffix}"
        self.records["ego_pose"].append({"token": token, "timestamp": time, **_pose(scene.ego.T_world_ego)})
        self.records["sample_data"].append(
            {
                "token": token,
                "sample_token": self.token("sample", key),
                "ego_pose_token": token,
                "calibrated_sensor_token": self.token("rig", channel),
                "timestamp": time,
                "fileformat": suffix.split(".")[0],
                "is_key_frame": folder == "samples",
                "height": size[1],
                "width": size[0],
                "filename": filename,
                "prev": "",
                "next": "",
            }
        )
        return self.out / filename

    # ------------------------------------------------------------ key frames

    def _key_frame(self, scene: Scene, points: np.ndarray, step: int, key: int) -> None:
        import simplejpeg

        from automoe.world.look import LOOKS, glow_table, scene_light, shade

        self.records["sample"].append(
            {
                "token": self.token("sample", key),
                "timestamp": self.start + step * 1_000_000 // SWEEP_RATE,
                "prev": "",
                "next": "",
                "scene_token": self.token("scene"),
            }
        )
        seen = np.zeros(scene.stage.first_actor_id + len(scene.actors), np.int64)
        light, look = scene_light(scene.conditions), LOOKS[self.plan.look]
        self.renderer.place(scene)
        glow = glow_table(self.renderer, scene)
        for camera in self.cameras:
            frame = self.renderer.render(scene, camera, light)
            picture = shade(frame, scene, camera, self.renderer, look, self.rng, glow)
            path = self._data(scene, camera.name, "samples", "jpg", step, key, self.plan.size)
            jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=JPEG_QUALITY, colorspace="RGB")
            write_piece(path, jpeg)
            seen += np.bincount(frame.instance.ravel(), minlength=len(seen))
        self._annotate(scene, points, seen, key)

    def _annotate(self, scene: Scene, points: np.ndarray, seen: np.ndarray, key: int) -> None:
        """One annotation for each thing that the LiDAR hit or a camera saw. seen: pixels of each instance."""
        things = list_things(scene)
        if not things:
            return
        boxes = np.array([thing.box for thing in things])
        ego = scene.ego
        near = np.flatnonzero(np.hypot(boxes[:, 0] - ego.x, boxes[:, 1] - ego.y) < ANNOTATED)
        T_world_lidar = ego.T_world_ego @ self.lidar.T_ego_lidar
        counts = count_points(move_points(T_world_lidar, points[:, :3].astype(np.float64)), boxes[near])
        for index, count in zip(near.tolist(), counts, strict=True):
            thing = things[index]
            pixels = int(sum(seen[instance] for instance in thing.instances))
            if count == 0 and pixels < 12:
                continue
            level = visibility_level(thing, pixels, self.cameras, scene)
            x, y, z, length, width, height, yaw = thing.box
            attribute = [_token("attribute", thing.attribute)] if thing.attribute else []
            self.records["sample_annotation"].append(
                {
                    "token": self.token("box", key, thing.instances[0]),
                    "sample_token": self.token("sample", key),
                    "instance_token": self.token("instance", thing.instances[0]),
                    "visibility_token": str(level + 1),
                    "attribute_tokens": attribute,
                    "translation": (np.array([x, y, z]) + OFFSET).tolist(),
                    "size": [width, length, height],
                    "rotation": [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))],
                    "prev": "",
                    "next": "",
                    "num_lidar_pts": int(count),
                    "num_radar_pts": 0,
                    "category": thing.category,
                }
            )

    def _link(self) -> None:
        """prev and next: of samples, of each sensor's recordings, of each thing's annotations."""
        _chain(self.records["sample"])
        channels: dict[str, list[dict[str, Any]]] = {}
        for record in self.records["sample_data"]:
            channels.setdefault(record["calibrated_sensor_token"], []).append(record)
        instances: dict[str, list[dict[str, Any]]] = {}
        for record in self.records["sample_annotation"]:
            instances.setdefault(record["instance_token"], []).append(record)
        for records in (*channels.values(), *instances.values()):
            _chain(records)


def draw_conditions(rng: np.random.Generator) -> Any:
    """Weather and time of day with about nuScenes' shares: 12 % night, 20 % rain."""
    from automoe.world.scene import Conditions

    night = bool(rng.random() < 0.12)
    if rng.random() < 0.2:
        weather = "rainy"
    else:
        weather = str(rng.choice(["clear", "partly cloudy", "overcast"], p=[0.45, 0.25, 0.3]))
    if night and weather == "partly cloudy":
        weather = "clear"
    elevation = -0.4 if night else float(rng.uniform(0.4, 1.1))
    return Conditions(weather, "night" if night else "daytime", float(rng.uniform(0, 2 * np.pi)), elevation)


def lidar_points(sweep: Sweep, rng: np.random.Generator) -> np.ndarray:
    """A sweep as nuScenes stores it: float32 [N, 5], x, y, z, intensity, ring; with the noise of ranges."""
    noise, speckle = rng.standard_normal((2, len(sweep.points)), np.float32)
    found = np.empty((len(sweep.points), 5), np.float32)
    found[:, :3] = sweep.points * (1 + np.float32(RANGE_NOISE) * noise / np.maximum(sweep.distance, 1e-6))[:, None]
    mean = np.array([_INTENSITY.get(name, 10.0) for name in SEMANTIC], np.float32)[sweep.semantic]
    shine = mean * np.exp(np.float32(0.45) * speckle - sweep.distance / np.float32(120.0))
    found[:, 3] = np.clip(np.round(shine), 0, 255)
    found[:, 4] = sweep.ring
    return found


def count_points(points: np.ndarray, boxes: np.ndarray) -> list[int]:
    """How many points [N, 3] each box [M, 7] holds; looks only at the points near each, as most are in none."""
    points = points[np.argsort(points[:, 0])]
    reach = np.hypot(boxes[:, 3], boxes[:, 4]) / 2 + 0.1
    first = np.searchsorted(points[:, 0], boxes[:, 0] - reach)
    last = np.searchsorted(points[:, 0], boxes[:, 0] + reach)
    counts = []
    for box, far, start, end in zip(boxes, reach, first, last, strict=True):
        strip = points[start:end]
        strip = strip[np.abs(strip[:, 1] - box[1]) < far]
        counts.append(int(points_inside(strip, box[None]).sum()) if len(strip) else 0)
    return counts


@dataclass(frozen=True)
class Thing:
    """Something that gets a box: a road user (a cycle with its rider), a cone, a barrier, a machine.

    instances: its ids in pictures and sweeps, the first names it. box: x, y, z, l, w, h, yaw in the world.
    """

    instances: tuple[int, ...]
    category: str
    box: tuple[float, float, float, float, float, float, float]
    attribute: str | None
    asset: str
    z: float


def list_things(scene: Scene) -> list[Thing]:
    """All road users and placed things of nuScenes' classes, trams and signs not."""
    riders = {actor.mount: actor for actor in scene.actors if actor.category == "rider"}
    found = [
        _road_user(actor, riders.get(actor.id), scene.stage.assets[actor.asset])
        for actor in scene.actors
        if actor.category in CATEGORY_OF
    ]
    return found + list(_placed_things(scene.stage))


def _road_user(actor: Actor, rider: Actor | None, asset: Asset) -> Thing:
    length, width, height = actor.size
    instances: tuple[int, ...] = (actor.id,)
    if rider is not None:
        length, width, height = (max(own, other) for own, other in zip(actor.size, rider.size, strict=True))
        instances = (actor.id, rider.id)
    box = (actor.x, actor.y, actor.z + height / 2, length, width, height, actor.yaw)
    return Thing(instances, actor.category, box, _attribute(actor, rider, asset), actor.asset, actor.z)


def _attribute(actor: Actor, rider: Actor | None, asset: Asset) -> str | None:
    if asset.attributes.get("posture") == "sitting":
        return "pedestrian.sitting_lying_down"
    if actor.category == "pedestrian":
        return "pedestrian.moving" if actor.speed > 0.2 else "pedestrian.standing"
    if actor.category in ("bicycle", "motorcycle"):
        return "cycle.with_rider" if rider is not None else "cycle.without_rider"
    if actor.parked:
        return "vehicle.parked"
    return "vehicle.moving" if actor.speed > 0.2 else "vehicle.stopped"


def _placed_things(stage: StagedTown) -> list[Thing]:
    found = []
    for placement in stage.placements:
        asset = stage.assets[placement.asset]
        if placement.instance and asset.category in CATEGORY_OF:
            category = str(asset.category)
            length, width, height = asset.size
            box = (placement.x, placement.y, placement.z + height / 2, length, width, height, placement.yaw)
            attribute = "vehicle.parked" if category == "construction_vehicle" else None
            found.append(Thing((placement.instance,), category, box, attribute, placement.asset, placement.z))
    return found


def visibility_level(thing: Thing, pixels: int, cameras: Sequence[Camera], scene: Scene) -> int:
    """0 to 3: how much of its silhouette over all cameras is seen, in nuScenes' four bins."""
    from automoe.world.annotate import silhouette

    if pixels == 0:
        return 0
    asset = scene.stage.assets[thing.asset]
    pose = (thing.box[0], thing.box[1], thing.z, thing.box[6])
    shapes = [(asset, thing.asset)]
    if len(thing.instances) > 1 and asset.rider is not None:
        shapes.append((asset.rider, f"{thing.asset}.rider"))
    whole = sum(
        silhouette(shape, key, pose, camera, scene.T_world_cam(camera)) for shape, key in shapes for camera in cameras
    )
    share = pixels / whole if whole > 0 else 0.0
    return next(level for level, (_, limit) in enumerate(VISIBILITY) if share < limit)


# ---------------------------------------------------------------- beginning and end


def _finish(out: Path, plan: ScenePlan) -> dict:
    """Join the scenes' records into the official tables and write world.json."""
    tables: dict[str, list[dict[str, Any]]] = {
        name: [] for name in (
            "scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sample_annotation", "instance", "log",
        )
    }  # fmt: skip
    splits: dict[str, list[str]] = {f"embedded_{split}": [] for split in SPLITS}
    statistics: dict[str, Any] = {}
    for split, count in (("train", plan.train), ("val", plan.val)):
        boxes = []
        for index in range(count):
            record = json.loads(_sidecar(out, split, index).read_bytes())
            splits[f"embedded_{split}"].append(record["name"])
            boxes += _add_scene(tables, plan, record)
        statistics[split] = describe(boxes, tables, splits[f"embedded_{split}"])
    tables |= _fixed_tables(plan)
    for town in sorted({record["location"] for record in tables["log"]}):
        logs = [record["token"] for record in tables["log"] if record["location"] == town]
        record = {"token": _token("map", town), "log_tokens": logs, "category": "semantic_prior"}
        tables["map"].append(record | {"filename": _mask_name(town)})
    for name, records in tables.items():
        write_piece(out / VERSION / f"{name}.json", json.dumps(records).encode())
    write_piece(out / VERSION / "splits.json", json.dumps(splits, indent=1).encode())
    world = {"settings": settings_of(plan), "complete": True, "scenes": {"train": plan.train, "val": plan.val}}
    world |= statistics
    write_piece(out / "world.json", json.dumps(world, indent=1).encode())
    return world


def _add_scene(tables: dict[str, list], plan: ScenePlan, record: dict[str, Any]) -> list[dict[str, Any]]:
    """One scene's records into the tables; returns its annotations with the distance from the ego."""
    records = record["records"]
    name = record["name"]
    samples = records["sample"]
    token = _token(plan.seed, name, "scene")
    log = _token(plan.seed, name, "log")
    tables["log"].append(
        {
            "token": log,
            "logfile": f"{name}-{plan.seed}",
            "vehicle": "embedded",
            "date_captured": "2020-09-13",
            "location": record["town"],
        }
    )
    tables["scene"].append(
        {
            "token": token,
            "log_token": log,
            "nbr_samples": len(samples),
            "first_sample_token": samples[0]["token"],
            "last_sample_token": samples[-1]["token"],
            "name": name,
            "description": record["description"],
        }
    )
    for key in ("sample", "sample_data", "ego_pose", "calibrated_sensor"):
        tables[key] += records[key]
    ego = {pose["token"]: pose["translation"] for pose in records["ego_pose"]}
    where = {
        data["sample_token"]: ego[data["token"]]
        for data in records["sample_data"]
        if data["is_key_frame"] and "LIDAR" in data["filename"]
    }
    instances: dict[str, list[dict[str, Any]]] = {}
    described = []
    for box in records["sample_annotation"]:
        category = box.pop("category")
        instances.setdefault(box["instance_token"], []).append(box | {"category": category})
        tables["sample_annotation"].append(box)
        x, y, _ = where[box["sample_token"]]
        far = float(np.hypot(box["translation"][0] - x, box["translation"][1] - y))
        described.append({"category": category, "distance": far, "points": box["num_lidar_pts"]})
    for instance, boxes in instances.items():
        tables["instance"].append(
            {
                "token": instance,
                "category_token": _token("category", CATEGORY_OF[boxes[0]["category"]]),
                "nbr_annotations": len(boxes),
                "first_annotation_token": boxes[0]["token"],
                "last_annotation_token": boxes[-1]["token"],
            }
        )
    return described


def _fixed_tables(plan: ScenePlan) -> dict[str, list[dict[str, Any]]]:
    from automoe.world.rig import NUSCENES_MOUNTS

    channels = [(channel, "camera") for channel in NUSCENES_MOUNTS] + [("LIDAR_TOP", "lidar")]
    return {
        "sensor": [
            {"token": _token("sensor", channel), "channel": channel, "modality": kind} for channel, kind in channels
        ],
        "category": [
            {"token": _token("category", name), "name": name, "description": "", "index": number}
            for number, name in enumerate(NUSCENES_CATEGORIES)
        ],
        "attribute": [
            {"token": _token("attribute", name), "name": name, "description": ""} for name in NUSCENES_ATTRIBUTES
        ],
        "visibility": [
            {"token": str(number + 1), "level": level, "description": f"visibility of whole object ({level[1:]} %)"}
            for number, (level, _) in enumerate(VISIBILITY)
        ],
        "map": [],
    }


def describe(boxes: Sequence[dict[str, Any]], tables: dict[str, list], names: Sequence[str]) -> dict[str, Any]:
    """Counts of a split: what makes it hard or easy."""
    counts = Counter(box["category"] for box in boxes)
    scenes = [scene for scene in tables["scene"] if scene["name"] in set(names)]
    samples = sum(scene["nbr_samples"] for scene in scenes)
    bins = np.histogram([box["distance"] for box in boxes], [0, 10, 20, 30, 40, 50, 1000])[0].tolist()
    points = np.array([box["points"] for box in boxes] or [0])
    return {
        "scenes": len(scenes),
        "samples": samples,
        "boxes": len(boxes),
        "boxes_per_sample": round(len(boxes) / max(samples, 1), 2),
        "boxes_per_category": {name: counts.get(name, 0) for name in NUSCENES_DETECTION},
        "boxes_per_distance": dict(zip(("0-10", "10-20", "20-30", "30-40", "40-50", "50+"), bins, strict=True)),
        "share_without_points": round(float((points == 0).mean()), 4),
        "median_points": float(np.median(points)),
        "descriptions": dict(Counter(scene["description"] for scene in scenes)),
    }


def map_mask(town: Town) -> bytes:
    """A PNG of a town's roads, white on black, ten pixels a metre, north up, from the global origin on."""
    import cv2
    import shapely

    from automoe.world.surface import road_area

    road = road_area(town)
    _, _, east, north = road.bounds
    width, height = (int((side + margin + 60.0) / MAP_RESOLUTION) for side, margin in zip((east, north), OFFSET[:2]))
    canvas = np.zeros((height, width), np.uint8)
    for polygon in shapely.get_parts(road):
        for ring, value in ((polygon.exterior, 255), *((hole, 0) for hole in polygon.interiors)):
            points = (shapely.get_coordinates(ring) + OFFSET[:2]) / MAP_RESOLUTION
            cv2.fillPoly(canvas, [np.round([0, height] + points * [1, -1]).astype(np.int32)], value)
    return cv2.imencode(".png", canvas)[1].tobytes()


# ---------------------------------------------------------------- records


def _token(*what: object) -> str:
    return hashlib.md5("/".join(map(str, what)).encode(), usedforsecurity=False).hexdigest()


def _mask_name(town: str) -> str:
    return f"maps/{_token('map', town)}.png"


def _pose(T_world_ego: np.ndarray) -> dict[str, list[float]]:
    return {
        "translation": (T_world_ego[:3, 3] + OFFSET).tolist(),
        "rotation": matrix_quaternion(T_world_ego[:3, :3]).tolist(),
    }


def _chain(records: list[dict[str, Any]]) -> None:
    for earlier, later in pairwise(records):
        earlier["next"], later["prev"] = later["token"], earlier["token"]


def _sidecar(out: Path, split: str, index: int) -> Path:
    return _sidecar_of(out, scene_name(split, index))


def _sidecar_of(out: Path, name: str) -> Path:
    return out / ".scenes" / f"{name}.json"
