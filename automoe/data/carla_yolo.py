"""CARLA pictures with boxes in YOLO's form as a `RawSource` of the task frames: images/ and labels/, a text file each.

A line is a class number and the box's middle, width and height as shares of the picture. There is no log: rows have no
pose, no tags and no time. Frames that stand side by side in a recording look alike, so splits are contiguous blocks of
frame numbers, never frames here and there.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from automoe.carla.run import LABELLED
from automoe.data.carla_prepared import TASK, features
from automoe.data.images import check_jpeg, load_image
from automoe.data.raw_source import Quarantined, file_stamp, read_file
from automoe.errors import DataError
from automoe.taxonomy import BDD_DETECTION, bdd_detection_class

JPEG_QUALITY = 95
SUFFIXES = (".jpg", ".jpeg", ".png")
ALIASES = {"motorbike": "motorcycle", "vehicle": "car", "walker": "pedestrian"}
"""Names of classes in such sets beside those that BDD100K knows."""


def is_yolo(root: Path) -> bool:
    """Whether a folder, or one in it, has images/ and labels/*.txt."""
    return bool(_places(root))


def _places(root: Path) -> list[Path]:
    """The folder itself, or those in it, that have pictures and labels."""
    both = [root] if _has_both(root) else []
    return both or sorted(path for path in root.glob("*") if path.is_dir() and _has_both(path))


def _has_both(place: Path) -> bool:
    return (place / "images").is_dir() and any((place / "labels").glob("*.txt"))


def find_yolo(root: Path, task: str, split: str, *, names: Sequence[str] | None, fold: str | None) -> CarlaYoloSource:
    """The source of one split. names: of the classes, in the order of their numbers; classes.txt beside the pictures if
    not given. fold: "k/n", the k-th of n blocks of frames is for validation; 0/5 if not given. Raises DataError."""
    places = _places(root)
    if len(places) != 1:
        found = ", ".join(place.name for place in places)
        raise DataError(
            f"{root} has {len(places)} folders with images/ and labels/*.txt ({found}); name one as the data root"
        )
    place = places[0]
    if names is None:
        told = place / "classes.txt"
        if not told.is_file():
            raise DataError(
                f"{place} does not say what its class numbers mean; name them in order with --names, or in {told}"
            )
        names = told.read_text().split("\n")
    chosen = [name.strip() for name in names if name.strip()]
    for name in chosen:
        if bdd_detection_class(ALIASES.get(name, name)) is None:
            raise DataError(f"{name!r} is none of the classes {', '.join(BDD_DETECTION)}")
    match = re.fullmatch(r"(\d+)/(\d+)", fold or "0/5")
    if match is None or not int(match[1]) < int(match[2]) or int(match[2]) < 2:
        raise DataError(f"fold must be k/n with k below n and n at least 2, as 0/5, not {fold!r}")
    if split not in ("train", "val"):
        raise DataError(f"CARLA pictures have the splits train and val, not {split!r}")
    return CarlaYoloSource(place, split, tuple(chosen), (int(match[1]), int(match[2])), task)


@dataclass(frozen=True)
class CarlaYoloSource:
    """One split of such a folder; see `RawSource`. A record is a picture's path."""

    root: Path
    split: str
    names: tuple[str, ...]
    fold: tuple[int, int]
    task: str = TASK
    dataset: str = "carla"
    unit: str = "frames"
    rows_per_shard: int = 128

    @property
    def options(self) -> dict[str, Any]:
        return {"cameras": [LABELLED], "names": list(self.names), "fold": "{}/{}".format(*self.fold)}

    @property
    def place(self) -> Path:
        return self.root

    def describe(self) -> str:
        return f"pictures in {self.root / 'images'}, boxes in YOLO's form"

    def features(self) -> Any:
        return features()

    def _pictures(self) -> list[Path]:
        found = [path for path in (self.root / "images").iterdir() if path.suffix.lower() in SUFFIXES]
        return sorted(found, key=lambda path: (frame_number(path), path.name))

    def plan(self) -> tuple[list[Path], list[Quarantined]]:
        pictures = self._pictures()
        labelled = [path for path in pictures if self._label(path).is_file()]
        number, count = self.fold
        block = np.arange(len(labelled)) * count // max(len(labelled), 1)
        kept = [path for path, own in zip(labelled, block) if (own == number) == (self.split == "val")]
        return kept, []

    def _label(self, path: Path) -> Path:
        return self.root / "labels" / f"{path.stem}.txt"

    def notes(self) -> tuple[str, ...]:
        number, count = self.fold
        found = [f"validation on block {number + 1} of {count} of the frames, in their order"]
        pictures = self._pictures()
        without = sum(not self._label(path).is_file() for path in pictures)
        if without:
            found.append(f"{without} of {len(pictures)} pictures have no label file and are not used")
        return tuple(found)

    def name(self, record: Path) -> str:
        return record.name

    def files(self, record: Path) -> tuple[Path, ...]:
        return (record, self._label(record))

    def key(self, record: Path) -> bytes:
        return hashlib.sha256(repr((record.name, self.names)).encode()).digest()

    def row(self, record: Path) -> tuple[dict[str, Any], list[str]]:
        data = read_file(record, "image")
        if record.suffix.lower() != ".png":
            height, width = check_jpeg(data, str(record))
        else:
            picture = load_image(record)
            height, width = picture.shape[:2]
            data = simplejpeg.encode_jpeg(picture, quality=JPEG_QUALITY, colorspace="RGB")
        boxes, labels, ignored, rejected = self._boxes(self._label(record), height, width)
        nothing = [math.nan] * 3
        row: dict[str, Any] = {
            "name": record.name,
            "run": self.root.name,
            "town": "unknown",
            "frame": frame_number(record),
            "time": math.nan,
            "interval": math.nan,
            "images": [data],
            "heights": [height],
            "widths": [width],
            "semantic": b"",
            "drivable": b"",
            "has_boxes": True,
            "T_world_ego": [math.nan] * 16,
            "speed": math.nan,
            "velocity": nothing,
            "acceleration": nothing,
            "yaw_rate": math.nan,
            "control": nothing,
            "command": -1,
            "targets": [],
            "light": "",
            "speed_limit": math.nan,
            "shift": [math.nan, math.nan],
            "weather": "undefined",
            "timeofday": "undefined",
            "scene": "undefined",
            "weather_numbers": [math.nan] * 5,
            "boxes": boxes,
            "labels": labels,
            "ignored": ignored,
            "occluded": [False] * len(boxes),
            "truncated": [False] * len(boxes),
            "colors": [-1] * len(boxes),
            "boxes3d": [],
        }
        return row, rejected

    def _boxes(self, path: Path, height: int, width: int) -> tuple[list[list[float]], list[int], list[bool], list[str]]:
        boxes, labels, ignored, rejected = [], [], [], []
        try:
            lines = path.read_text().splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read the labels {path} ({error})") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                said, x, y, w, h = (float(word) for word in line.split()[:5])
                if not np.isfinite([said, x, y, w, h]).all() or said < 0:
                    raise ValueError("no box in the picture")
                name = self.names[int(said)]
                found = bdd_detection_class(ALIASES.get(name, name))
                assert found is not None
                middle, half = np.array([x, y]), np.array([w, h]) / 2
                corners = np.concatenate([middle - half, middle + half]) * [width, height, width, height]
                corners = np.clip(corners, 0, [width, height, width, height])
                if (corners[2:] - corners[:2] < 1.0).any():
                    raise ValueError("no box in the picture")
            except (ValueError, IndexError) as error:
                rejected.append(f"{path}, line {number} is no box of a known class ({error})")
                continue
            boxes.append(corners.tolist())
            labels.append(found[0])
            ignored.append(found[1])
        return boxes, labels, ignored, rejected

    def rig(self) -> dict[str, Any]:
        collapse: dict[str, dict[str, str]] = {"detection": {}, "segmentation": {}, "drivable": {}}
        note = "a camera of unknown mounting"
        return {"note": note, "cameras": {}, "lidar": None, "collapse": collapse, "said": False}

    def origin(self) -> dict[str, Any]:
        return {"files": self._listing()}

    def changed(self, origin: Mapping[str, Any]) -> str | None:
        return None if origin.get("files") == self._listing() else f"the files in {self.root} have changed"

    def _listing(self) -> str:
        digest = hashlib.sha256()
        for path in self._pictures():
            digest.update(repr((path.name, file_stamp(path), file_stamp(self._label(path)))).encode())
        return digest.hexdigest()


def frame_number(path: Path) -> int:
    """The frame number in a file's name, the last number in it; 0 where there is none. Roboflow's exports hang a hash
    behind the name ("000123_jpg.rf.4f0a..."), which does not count."""
    digits = re.findall(r"\d+", path.stem.split(".rf.")[0])
    return int(digits[-1]) if digits else 0
