"""CARLA recordings as a `RawSource` of the task frames: what of a frame goes into a row of a prepared set.

The columns are told in `carla_prepared.py`, which reads them back.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from automoe.carla import run
from automoe.data import carla
from automoe.data.carla import Run, Step
from automoe.data.carla_hindsight import APART_FROM_TOLD, MapError, Maps, in_hindsight, route_kind
from automoe.data.carla_prepared import TASK, features
from automoe.data.carla_yolo import CarlaYoloSource, find_yolo, is_yolo
from automoe.data.images import encode_mask
from automoe.data.raw_source import Quarantined, folder_listing, quarantine, same_text, text_listing
from automoe.errors import DataError
from automoe.taxonomy import (
    BDD_DETECTION,
    CARLA_TAG_TO_SEMANTIC,
    CARLA_TAGS,
    COARSE_DETECTION,
    COARSE_SEMANTIC,
    DRIVABLE,
    IGNORE_INDEX,
    ROAD_DRIVABLE,
    SEMANTIC,
    TRAFFIC_LIGHT,
    carla_detection_class,
    light_color,
)

JPEG_QUALITY = 95
VAL_SHARE = 0.2
"""Of the towns, or of the runs of a single one, that are kept for validation where nothing says which."""

LEAST_VISIBLE = 20
"""Pixels of a box's class in the tags, at 640 wide, below which what it is of is hidden."""

MOSTLY_HIDDEN = 0.15
"""A box with a smaller share of its class's pixels is one of something mostly hidden: neither truth nor mistake."""

LABELS = ("auto", "coarse")


def find_carla(
    root: Path,
    task: str,
    split: str,
    *,
    cameras: Sequence[str] | None = None,
    val_towns: Sequence[str] | None = None,
    labels: str = "auto",
    hindsight: str | None = None,
    names: Sequence[str] | None = None,
    fold: str | None = None,
) -> CarlaSource | CarlaYoloSource:
    """The source of one split. Raises DataError where there are no runs, or for an impossible option.

    cameras: the front one if not given. val_towns: maps that are kept for validation; see `split_runs` if not given.
    labels: `coarse` tells vehicles from people alone even where runs tell more. hindsight: a folder of the towns' maps,
    to which runs without a route are matched, see `carla_hindsight`. names, fold: of pictures with boxes in
    YOLO's form, see `find_yolo`.
    """
    if is_yolo(root):
        if val_towns or labels != "auto" or hindsight:
            raise DataError(
                "--val_towns, --labels and --hindsight are for runs; pictures with boxes in YOLO's form have --fold"
            )
        return find_yolo(root, task, split, names=names, fold=fold)
    folders = carla.find_runs(root)
    if names is not None or fold is not None:
        raise DataError("--names and --fold are for pictures with boxes in YOLO's form; runs have --val_towns")
    if split not in ("train", "val"):
        raise DataError(f"CARLA runs have the splits train and val, not {split!r}")
    if labels not in LABELS:
        raise DataError(f"labels must be one of {', '.join(LABELS)}, not {labels!r}")
    chosen = tuple(cameras) if cameras else (run.LABELLED,)
    if run.LABELLED not in chosen:
        raise DataError(f"the {run.LABELLED} camera is the one with labels; name it among the cameras")
    maps = None if hindsight is None else Path(hindsight)
    kept = tuple(val_towns) if val_towns else None
    return CarlaSource(root, split, tuple(folders), chosen, kept, labels, maps, task)


def split_runs(runs: Sequence[Run], val_towns: Sequence[str] | None) -> tuple[dict[str, str], str]:
    """Which run is for training and which for validation, by name, and how that was decided.

    By the towns that are named; by what all configs say; by town, a fifth of them for validation; or, where there is a
    single town, by run. Never by frame. Raises DataError where nothing is left for one of the two.
    """
    towns = sorted({one.town for one in runs})
    if val_towns is not None:
        unknown = [town for town in val_towns if town not in towns]
        if unknown:
            raise DataError(f"no run was recorded in {unknown[0]}; there are runs in {', '.join(towns)}")
        chosen, words = {one.name for one in runs if one.town in val_towns}, f"validation in {', '.join(val_towns)}"
    elif all(one.split in ("train", "val") for one in runs):
        chosen, words = {one.name for one in runs if one.split == "val"}, "validation runs as their configs say"
    elif len(towns) > 1:
        kept = _fifth(towns)
        chosen, words = {one.name for one in runs if one.town in kept}, f"validation in {', '.join(sorted(kept))}"
    else:
        kept = _fifth([one.name for one in runs])
        chosen = {one.name for one in runs if one.name in kept}
        words = f"all runs are of {towns[0]}: validation on {', '.join(sorted(kept))}, in a town that was trained in"
    if not 0 < len(chosen) < len(runs):
        raise DataError(
            f"{len(chosen)} of {len(runs)} runs are for validation, and both splits need one; record more, or name "
            "towns with --val_towns"
        )
    return {one.name: "val" if one.name in chosen else "train" for one in runs}, words


def _fifth(names: Sequence[str]) -> set[str]:
    """A fifth of some names, one at least: always the same ones."""
    shuffled = sorted(names, key=lambda name: (zlib.crc32(name.encode()), name))
    return set(shuffled[: max(1, round(VAL_SHARE * len(names)))])


@dataclass(frozen=True)
class CarlaSource:
    """One split of a tree of runs; see `RawSource`. A record is a run and a step of it."""

    root: Path
    split: str
    folders: tuple[Path, ...]
    cameras: tuple[str, ...]
    val_towns: tuple[str, ...] | None
    labels: str
    hindsight: Path | None = None
    task: str = TASK
    dataset: str = "carla"
    unit: str = "frames"
    rows_per_shard: int = 128

    @property
    def options(self) -> dict[str, Any]:
        towns = None if self.val_towns is None else list(self.val_towns)
        maps = None if self.hindsight is None else str(self.hindsight.resolve())
        return {"cameras": list(self.cameras), "val_towns": towns, "labels": self.labels, "hindsight": maps}

    @property
    def place(self) -> Path:
        return self.root

    # --- what there is ---

    @cached_property
    def _read(self) -> tuple[list[Run], list[Quarantined]]:
        """All runs of both splits, and those that can't be used."""
        runs, broken = [], []
        for folder in self.folders:
            try:
                one = carla.read_run(folder, self.root)
                if one.has("tags"):
                    _ = one.version  # a run whose tags nobody can read is no use
                missing = [camera for camera in self.cameras if camera not in one.cameras]
                if missing:
                    raise DataError(f"{folder} has no pictures of the {missing[0]} camera")
            except DataError as error:
                name = folder.relative_to(self.root).as_posix()
                broken.append(quarantine(name, str(error), [folder / "config.json"]))
            else:
                runs.append(one)
        if not runs:
            raise DataError(f"none of the {len(broken)} runs in {self.place} can be used; {broken[0].reason}")
        return runs, broken

    @cached_property
    def _splits(self) -> tuple[dict[str, str], str]:
        return split_runs(self._read[0], self.val_towns)

    @cached_property
    def _matched(self) -> tuple[list[Run], list[str]]:
        """The runs of this split, with routes in hindsight where that is asked for, and why some have none."""
        runs = [one for one in self._read[0] if self._splits[0][one.name] == self.split]
        if self.hindsight is None:
            return runs, []
        maps, found, reasons = Maps(self.hindsight), [], []
        for one in runs:
            try:
                told = any(step.has_route for step in one.steps)
                found.append(one if told else in_hindsight(one, maps))
            except MapError:
                raise
            except DataError as error:
                reasons.append(f"no route in hindsight: {error}")
                found.append(one)
        return found, reasons

    @property
    def _runs(self) -> list[Run]:
        return self._matched[0]

    @cached_property
    def collapse(self) -> dict[str, dict[str, str]]:
        """For each task the classes that these labels don't tell apart, and what stands for them: the same for both
        splits, or scores would not be of what was trained."""
        runs = self._read[0]
        coarse = self.labels == "coarse" or not all(map(_tells_classes, runs))
        old = self.labels == "coarse" or any(one.has("tags") and one.version[0] == "0.9.0" for one in runs)
        # Where lanes are not recorded, the road in the tags is what there is of drivable area.
        road = any(one.has("tags") and not one.has("drivable") for one in runs)
        return {
            "detection": COARSE_DETECTION if coarse else {},
            "segmentation": COARSE_SEMANTIC if old else {},
            "drivable": ROAD_DRIVABLE if road else {},
        }

    def describe(self) -> str:
        return f"{len(self.folders)} runs in {self.place}, cameras {', '.join(self.cameras)}"

    def features(self) -> Any:
        return features()

    def plan(self) -> tuple[list[tuple[Run, Step]], list[Quarantined]]:
        quarantined = list(self._read[1]) if self.split == "train" else []
        records = []
        for one in self._runs:
            hung = {camera: carla.repeated(one, camera) for camera in self.cameras}
            for step in one.steps:
                reasons = [(camera, found[step.name]) for camera, found in hung.items() if step.name in found]
                if reasons:
                    camera, reason = reasons[0]
                    quarantined.append(quarantine(f"{one.name}/{step.name}", reason, [one.image(camera, step)]))
                else:
                    records.append((one, step))
        return records, quarantined

    def notes(self) -> tuple[str, ...]:
        found = [self._splits[1]]
        runs = self._runs
        for part, words in (
            ("tags", "semantic tags"), ("boxes", "boxes"), ("lidar", "LiDAR"), ("drivable", "lanes for drivable area"),
        ):  # fmt: skip
            without = [one.name for one in runs if not one.has(part)]
            if without:
                found.append(f"{len(without)} of {len(runs)} runs have no {words}, {without[0]} the first")
            single = [(one, step) for one in runs if one.has(part) for step in one.steps if not one.has(part, step)]
            if single:
                found.append(f"{len(single)} single frames have no {words}, {self.name(single[0])} the first")
        blind = [one.name for one in runs if one.has("boxes") and not one.has("tags") and not _tells_visible(one)]
        if blind:
            found.append(
                f"{len(blind)} runs have boxes without what is hidden, and no tags to tell: what stands behind walls "
                f"counts as seen, {blind[0]} the first"
            )
        sizes = Counter(tuple(self._size_of(one, run.LABELLED)) for one in runs)
        if len(sizes) > 1:
            found.append(
                "pictures have several sizes: " + ", ".join(f"{w}x{h} in {n} runs" for (h, w), n in sizes.items())
            )
        for one in runs:
            found += one.problems
            if one.has("tags") and one.version[1]:
                found.append(f"{one.name}: {one.version[1]}")
        found += self._matched[1]
        later = [one.name for one in runs if one.hindsight]
        if later:
            found.append(
                f"{len(later)} of {len(runs)} runs have routes in hindsight, matched to the map afterwards, {later[0]} "
                f"the first: {APART_FROM_TOLD}"
            )
        for task, joined in self.collapse.items():
            if joined:
                counts = Counter(joined.values())
                words = ", ".join(f"{name} stands for {count} more classes" for name, count in counts.items())
                found.append(f"the labels don't tell all classes of {task} apart: {words}")
        return tuple(found)

    # --- a record ---

    def name(self, record: tuple[Run, Step]) -> str:
        return f"{record[0].name}/{record[1].name}"

    def files(self, record: tuple[Run, Step]) -> tuple[Path, ...]:
        one, step = record
        found = [one.image(camera, step) for camera in self.cameras]
        if self._sees_aside(one, step):
            found.append(one.drivable(step, "drivable_aside"))
        parts = {"tags": one.tags, "drivable": one.drivable, "boxes": one.boxes, "boxes3d": one.boxes3d}
        return (*found, *(place(step) for part, place in parts.items() if one.has(part, step)))

    def _sees_aside(self, one: Run, step: Step) -> bool:
        """Whether the camera that stands aside is wanted and its lanes are known."""
        return run.SHIFTED in self.cameras and one.has("drivable_aside", step)

    def key(self, record: tuple[Run, Step]) -> bytes:
        one, step = record
        version = one.version[0] if one.has("tags") else None
        told = [one.has(part, step) for part in carla.PARTS]
        return hashlib.sha256(repr((_log_columns(one, step), version, told, self.collapse)).encode()).digest()

    def row(self, record: tuple[Run, Step]) -> tuple[dict[str, Any], list[str]]:
        one, step = record
        images = [carla.read_picture(one.image(camera, step)) for camera in self.cameras]
        front = images[self.cameras.index(run.LABELLED)]
        height, width = front.shape[:2]
        semantic = drivable = None
        if one.has("tags", step):
            semantic = self._semantic(one, step, (height, width))
        if one.has("drivable", step):
            drivable = self._drivable(one.drivable(step), (height, width))
        elif semantic is not None and not one.has("drivable"):
            background, road = DRIVABLE.index("background"), semantic == SEMANTIC.index("road")
            drivable = np.where(road, DRIVABLE.index("direct"), background).astype(np.uint8)
        aside = None
        if self._sees_aside(one, step):
            size = images[self.cameras.index(run.SHIFTED)].shape[:2]
            aside = self._drivable(one.drivable(step, "drivable_aside"), (size[0], size[1]))
        boxed = one.has("boxes", step)
        boxes, rejected = self._boxes(one, step, (height, width), semantic) if boxed else (_NO_BOXES, [])
        row: dict[str, Any] = {
            "name": self.name(record),
            "images": [simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY, colorspace="RGB") for image in images],
            "heights": [image.shape[0] for image in images],
            "widths": [image.shape[1] for image in images],
            "semantic": b"" if semantic is None else encode_mask(semantic),
            "drivable": b"" if drivable is None else encode_mask(drivable),
            "drivable_aside": b"" if aside is None else encode_mask(aside),
            "has_boxes": boxed,
            **_log_columns(one, step),
            **boxes,
            "boxes3d": self._boxes3d(one, step) if one.has("boxes3d", step) else [],
        }
        return row, rejected

    def _semantic(self, one: Run, step: Step, size: tuple[int, int]) -> np.ndarray:
        """trainIds uint8 [H, W]."""
        path, version = one.tags(step), one.version[0]
        tags = carla.read_tags(path, version)
        _check_size(path, tags.shape[:2], size)
        table = [
            IGNORE_INDEX if name is None else SEMANTIC.index(self.collapse["segmentation"].get(name, name))
            for name in (CARLA_TAG_TO_SEMANTIC[tag] for tag in CARLA_TAGS[version])
        ]
        return np.array(table, np.uint8)[tags]

    def _drivable(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        mask = carla.read_png(path)
        _check_size(path, mask.shape[:2], size)
        if mask.ndim != 2 or mask.max(initial=0) >= len(DRIVABLE):
            raise DataError(f"{path} is no mask of the classes 0 to {len(DRIVABLE) - 1}")
        if self.collapse["drivable"]:
            mask = np.where(mask == DRIVABLE.index("alternative"), DRIVABLE.index("direct"), mask).astype(np.uint8)
        return mask

    def _boxes(
        self, one: Run, step: Step, size: tuple[int, int], semantic: np.ndarray | None
    ) -> tuple[dict[str, Any], list[str]]:
        """Boxes of what is visible. Runs that don't say what is hidden are asked by their tags."""
        found: dict[str, list[Any]] = {key: [] for key in _NO_BOXES}
        rejected, limit = [], np.array([size[1], size[0], size[1], size[0]], np.float64)
        for number, box in enumerate(carla.read_boxes(one.boxes(step))):
            where = f"{one.boxes(step)}: box {number}"
            try:
                category = _category(box)
                if category is None:
                    rejected.append(f"{where} is of {box.get('type_id') or box.get('label')!r}, no class to detect")
                    continue
                told = "visible_bbox" in box
                xyxy = box["visible_bbox"] if told else box["bbox"]
                if xyxy is None:
                    continue  # wholly hidden
                values = np.asarray(xyxy, np.float64).reshape(4)
                if not np.isfinite(values).all():
                    raise ValueError("it is not finite")
                values = np.clip(values, 0, limit)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                rejected.append(f"{where} cannot be read ({error})")
                continue
            if values[2] - values[0] < 1.0 or values[3] - values[1] < 1.0:
                continue
            name = self.collapse["detection"].get(category, category)
            ignored = False
            if not told and semantic is not None:
                shown = _share_shown(values, category, semantic)
                if shown is None:
                    continue
                ignored = shown < MOSTLY_HIDDEN
            found["boxes"].append(values.tolist())
            found["labels"].append(BDD_DETECTION.index(name))
            found["ignored"].append(ignored)
            found["occluded"].append(bool(box.get("occluded", False)))
            found["truncated"].append(bool(box.get("truncated", False)))
            found["colors"].append(light_color(box.get("state")) if name == TRAFFIC_LIGHT else -1)
        return found, rejected

    def _boxes3d(self, one: Run, step: Step) -> list[list[float]]:
        """x, y, z, l, w, h, yaw, vx, vy, class of the road users round the ego, in its frame."""
        from automoe.carla import frame

        inward, found = np.linalg.inv(step.ego.T_world_ego), []
        for box in carla.read_boxes(one.boxes3d(step)):
            try:
                category = _category(box)
                if category is None:
                    continue
                T_ego_box = inward @ frame.pose(box["location"], box["rotation"])
                speed = inward[:3, :3] @ frame.vector(box["velocity"])
                extent = [2 * float(box["extent"][axis]) for axis in "xyz"]
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DataError(f"{one.boxes3d(step)} has a box that cannot be read ({error!r})") from error
            yaw = float(np.arctan2(T_ego_box[1, 0], T_ego_box[0, 0]))
            label = float(BDD_DETECTION.index(category))
            said = [*T_ego_box[:3, 3].tolist(), *extent, yaw, float(speed[0]), float(speed[1]), label]
            if not np.isfinite(said).all():
                raise DataError(f"{one.boxes3d(step)} has a box with numbers that are not finite")
            found.append(said)
        return found

    # --- the manifest ---

    def rig(self) -> dict[str, Any]:
        """The cameras and the LiDAR, in our frame, and what the labels tell apart. Raises DataError where runs were
        recorded with different mountings: a policy would drive with one of them."""
        runs = self._read[0]
        first = {camera: (runs[0], carla.camera_mounting(runs[0], camera)) for camera in self.cameras}
        for one in runs:
            for camera, (other, mounting) in first.items():
                own = carla.camera_mounting(one, camera)
                if (own is None) != (mounting is None) or (own and mounting and not _agree(own, mounting)):
                    raise DataError(
                        f"the {camera} camera is mounted otherwise in {one.name} than in {other.name} (place, "
                        "direction or field of view in their config.json); prepare such runs apart"
                    )
        cameras = {}
        for camera, (one, mounting) in first.items():
            if mounting is not None:
                T_ego_mount, field_of_view = mounting
                cameras[camera] = {
                    "size": list(self._size_of(one, camera)),
                    "field_of_view": field_of_view,
                    "T_ego_mount": T_ego_mount.tolist(),
                }
        lidar = next((one for one in runs if one.has("lidar")), None)
        usual = {"x": 0.0, "y": 0.0, "z": run.LIDAR_HEIGHT}
        return {
            "note": "ego: on the ground under the car's middle, x forward, y left, z up; mounts look along their x",
            "cameras": cameras,
            "lidar": None
            if lidar is None
            else {"T_ego_lidar": carla.mounting_of(lidar.sensors.get("lidar", {}), usual).tolist()},
            "collapse": self.collapse,
            "said": bool(runs[0].sensors),
        }

    def _size_of(self, one: Run, camera: str) -> tuple[int, int]:
        """Height and width of a camera's first picture that can be read; 0 where none can."""
        for step in one.steps:
            try:
                return carla.read_picture(one.image(camera, step)).shape[:2]
            except DataError:
                continue  # in quarantine by its own name
        return 0, 0

    def origin(self) -> dict[str, Any]:
        return {"logs": {str(path): text_listing(path) for path in self._logs()}, "files": self._file_listing()}

    def changed(self, origin: Mapping[str, Any]) -> str | None:
        logs = self._logs()
        if set(map(str, logs)) != set(origin["logs"]):
            return f"runs have come to {self.place} or gone"
        for path in logs:
            if not same_text(path, origin["logs"][str(path)]):
                return f"{path} has changed"
        for folder, listing in self._file_listing().items():
            if origin["files"].get(folder) != listing:
                return f"the files in {folder} have changed"
        return None

    def _logs(self) -> list[Path]:
        names = ("config.json", "vehicle_log.json")
        return [folder / name for folder in self.folders for name in names if (folder / name).is_file()]

    def _file_listing(self) -> dict[str, dict[str, Any]]:
        places = [f"images/{camera}" for camera in self.cameras]
        places += [carla.PARTS[part] for part in ("tags", "drivable", "drivable_aside")]
        suffixes = dict.fromkeys(places, ".png") | dict.fromkeys([f"annots/{run.LABELLED}", "boxes3d"], ".json")
        wanted = [(folder / place, suffix) for folder in self.folders for place, suffix in suffixes.items()]
        return {str(place): folder_listing(place, suffix) for place, suffix in wanted}


def _agree(one: tuple[np.ndarray, float], other: tuple[np.ndarray, float]) -> bool:
    return bool(np.allclose(one[0], other[0], atol=1e-3) and abs(one[1] - other[1]) < 0.1)


def _log_columns(one: Run, step: Step) -> dict[str, Any]:
    """What of a row is from the run's config and log."""
    ego = step.ego
    return {
        "run": one.name,
        "town": one.town,
        "frame": step.number,
        "time": step.time,
        "interval": one.stride * one.tick,
        "T_world_ego": ego.T_world_ego.ravel().tolist(),
        "speed": ego.speed,
        "velocity": ego.velocity.tolist(),
        "acceleration": ego.acceleration.tolist(),
        "yaw_rate": ego.yaw_rate,
        "control": list(ego.control),
        "route": route_kind(one, step),
        "command": step.command,
        "targets": step.targets.tolist(),
        "light": step.light,
        "speed_limit": step.speed_limit,
        "target_speed": step.target_speed,
        "shift": list(step.shift),
        **_weather(one.weather),
    }


_VEHICLES = ("car", "truck", "bus", "train", "motorcycle", "bicycle", "rider")
_NO_BOXES: dict[str, Any] = {"boxes": [], "labels": [], "ignored": [], "occluded": [], "truncated": [], "colors": []}


def _tells_classes(one: Run) -> bool:
    """Whether a run's boxes say more than vehicle and pedestrian: by its first frame that has any."""
    return all("class" in box or "type_id" in box for box in _first_boxes(one))


def _tells_visible(one: Run) -> bool:
    """Whether a run's boxes say how much of them is hidden: by its first frame that has any."""
    return all("visible_bbox" in box for box in _first_boxes(one))


def _first_boxes(one: Run) -> list[dict[str, Any]]:
    """The boxes of a run's first frame that has any."""
    for step in one.steps:
        if one.has("boxes", step):
            try:
                boxes = carla.read_boxes(one.boxes(step))
            except DataError:
                continue  # in quarantine by its own name
            if boxes:
                return boxes
    return []


def _category(box: Mapping[str, Any]) -> str | None:
    """The BDD100K class of a box, by its class, its blueprint or its label, whatever it has."""
    if "class" in box:
        return box["class"] if box["class"] in BDD_DETECTION else None
    if "type_id" in box:
        return carla_detection_class(str(box["type_id"]))
    return {"vehicle": "car", "pedestrian": "pedestrian"}.get(box["label"])


def _share_shown(box: np.ndarray, category: str, semantic: np.ndarray) -> float | None:
    """How much of a box the tags of its class fill; None where that is next to nothing.

    Tags know classes and no instances: somebody else of the class before it counts, too.
    """
    x1, y1, x2, y2 = (int(value) for value in (*np.floor(box[:2]), *np.ceil(box[2:])))
    inside = semantic[y1:y2, x1:x2]
    # Whether an ambulance is a car or a truck, blueprints and tags need not agree.
    names = ("person",) if category == "pedestrian" else _VEHICLES
    shown = int(np.isin(inside, [SEMANTIC.index(name) for name in names]).sum())
    return None if shown < LEAST_VISIBLE * (semantic.shape[1] / 640) ** 2 else shown / max(inside.size, 1)


def _check_size(path: Path, size: Sequence[int], wanted: tuple[int, int]) -> None:
    if tuple(size) != wanted:
        raise DataError(f"{path} is {size[1]}x{size[0]} and its picture {wanted[1]}x{wanted[0]}")


def _weather(said: Mapping[str, Any]) -> dict[str, Any]:
    """In BDD100K's words, from CARLA's parameters where the run has no words of its own, undefined where it has
    neither; and the parameters, NaN where it doesn't say."""
    numbers = [said.get(key, math.nan) for key in carla.WEATHER_NUMBERS]
    cloudiness, rain, _, fog, sun = numbers
    weather = timeofday = "undefined"
    if rain > 10.0:
        weather = "rainy"
    elif fog > 30.0:
        weather = "foggy"
    elif not math.isnan(cloudiness):
        weather = "clear" if cloudiness < 20.0 else "partly cloudy" if cloudiness < 60.0 else "overcast"
    if not math.isnan(sun):
        timeofday = "night" if sun < -5.0 else "dawn/dusk" if sun < 12.0 else "daytime"
    return {
        "weather": said.get("weather", weather),
        "timeofday": said.get("timeofday", timeofday),
        "scene": "city street",
        "weather_numbers": numbers,
    }
