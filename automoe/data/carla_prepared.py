"""Prepared CARLA frames: what a row holds, and random access to rows and to the small columns of all of them.

One set serves all experts and the policy. Columns, in our frame (x forward, y left, z up; metres, radians, m/s), the
ego's origin on the ground under the car's middle:

    name, run, town; frame: CARLA's tick; time: seconds from the run's start; interval: seconds from frame to frame
    images: a JPEG for each of the set's cameras; heights, widths
    semantic, drivable: 8-bit PNG of trainIds and of taxonomy.DRIVABLE; empty where the run has none
    drivable_aside: likewise, of the camera `carla.run.SHIFTED`
    has_boxes; boxes (pixel xyxy of the front camera), labels (BDD100K's), ignored, occluded, truncated, colors
    T_world_ego, speed, velocity and acceleration (world), yaw_rate, control (throttle, steer, brake)
    route (told, hindsight or none, see `carla_hindsight`), command (place in CARLA_COMMANDS, -1 unknown), targets (ego
    frame), light, speed_limit, target_speed
    shift: metres and radians to the left, where the car was thought to stand for the camera `carla.run.SHIFTED`
    weather, timeofday, scene: BDD100K's words; weather_numbers: cloudiness, precipitation, wetness, fog, sun altitude
    boxes3d: x, y, z, l, w, h, yaw, vx, vy, class of road users, ego frame
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from automoe.carla import run
from automoe.data.dataset import ImageDataset, PreparedRow
from automoe.data.prepared import PreparedInfo, open_rows
from automoe.data.transforms import Transform
from automoe.errors import DataError
from automoe.taxonomy import BDD_DETECTION, NUSCENES_DETECTION, NUSCENES_VEHICLES

TASK = "frames"
"""The task under which CARLA runs are prepared."""

IMAGE_TASKS = ("detection", "drivable", "segmentation", "nuscenes_2d")
"""What of a frame an image expert is taught."""

_TO_NUSCENES = np.array(
    [NUSCENES_DETECTION.index(name) if name in NUSCENES_DETECTION else -1 for name in BDD_DETECTION], np.int64
)


def features() -> Any:
    """The columns as `datasets.Features`."""
    from datasets import Features, List, Value

    real, whole, size, text = Value("float64"), Value("int64"), Value("int32"), Value("string")
    columns: dict[str, Any] = {"name": text, "run": text, "town": text, "frame": whole, "time": real}
    columns |= {"interval": real}
    columns |= {"images": List(Value("binary")), "heights": List(size), "widths": List(size)}
    columns |= {
        "semantic": Value("binary"),
        "drivable": Value("binary"),
        "drivable_aside": Value("binary"),
        "has_boxes": Value("bool"),
    }
    columns |= {"T_world_ego": List(real), "speed": real, "velocity": List(real), "acceleration": List(real)}
    columns |= {"yaw_rate": real, "control": List(real), "command": size, "targets": List(List(real))}
    columns |= {"route": text, "light": text, "speed_limit": real, "target_speed": real, "shift": List(real)}
    columns |= {"weather": text, "timeofday": text, "scene": text, "weather_numbers": List(real)}
    columns |= {"boxes": List(List(Value("float32"))), "labels": List(whole), "colors": List(whole)}
    columns |= {flag: List(Value("bool")) for flag in ("ignored", "occluded", "truncated")}
    columns["boxes3d"] = List(List(real))
    return Features(columns)


class CarlaImages(ImageDataset):
    """The front camera's pictures of a prepared CARLA set with the labels of one task, as image experts take them.

    task: one of IMAGE_TASKS; nuscenes_2d has the boxes of detection that nuScenes has a class for. Frames without that
    task's labels are left out. aside: lanes are seen from aside as well, where that is labelled: each such picture is a
    sample of its own. Otherwise a lane is always in the middle, and that is what is learnt. Raises DataError where no
    frame has labels.
    """

    def __init__(
        self,
        path: Path | str,
        task: str,
        transform: Transform,
        seed: int = 0,
        limit: int | None = None,
        *,
        aside: bool = False,
    ) -> None:
        info = PreparedInfo.load(path)
        if info.task != TASK:
            raise DataError(f"{path} is prepared for {info.task}, not for {TASK}")
        table = open_rows(info.path)
        column = {"drivable": "drivable", "segmentation": "semantic"}.get(task, "has_boxes")
        labelled = _filled(table.data.column(column))
        if not labelled.any():
            raise DataError(f"{path} has no frame with labels for {task}: its runs were recorded without them")
        rows, cameras = np.flatnonzero(labelled), list(info.options["cameras"])
        self._front = cameras.index(run.LABELLED)
        self._aside = cameras.index(run.SHIFTED) if run.SHIFTED in cameras else None
        if aside and task == "drivable":
            # Numbers from the count of frames on are those of frames seen from aside.
            rows = np.concatenate([rows, info.count + np.flatnonzero(_filled(table.data.column("drivable_aside")))])
        super().__init__(info, task, rows, transform, seed, limit)

    @property
    def from_aside(self) -> int:
        """How many of the samples are seen from aside."""
        return int((self._rows >= self.info.count).sum())

    @property
    def collapse(self) -> Mapping[str, str]:
        """The classes that the labels don't tell apart, and what stands for them."""
        collapse = self.info.rig["collapse"]
        if self.task != "nuscenes_2d":
            return collapse[self.task]
        # Of nuScenes' vehicles, CARLA's labels know no more where they don't tell BDD100K's apart.
        return {name: "car" for name in NUSCENES_VEHICLES if name != "car"} if collapse["detection"] else {}

    def view(self, number: int) -> PreparedRow:
        if number < self.info.count:
            return super().view(number)
        assert self._aside is not None  # whose masks are there, its pictures are
        stored, camera = self._table[number - self.info.count], self._aside
        return replace(
            self.make_row(stored),
            name=f"{stored['name']} aside",
            height=stored["heights"][camera],
            width=stored["widths"][camera],
            boxes=np.zeros((0, 4), np.float32),
            jpeg=stored["images"][camera],
            mask_png=stored["drivable_aside"],
            **{key: np.zeros(0, bool) for key in ("ignored", "occluded", "truncated")},
            **{key: np.zeros(0, np.int64) for key in ("labels", "colors")},
        )

    def make_row(self, stored: Mapping[str, Any]) -> PreparedRow:
        labels = np.asarray(stored["labels"], np.int64)
        keep = np.ones(len(labels), bool)
        if self.task == "nuscenes_2d":
            labels = _TO_NUSCENES[labels]
            keep = labels >= 0
        flags = {key: np.asarray(stored[key], bool)[keep] for key in ("ignored", "occluded", "truncated")}
        mask = {"drivable": "drivable", "segmentation": "semantic"}.get(self.task)
        return PreparedRow(
            name=stored["name"],
            height=stored["heights"][self._front],
            width=stored["widths"][self._front],
            weather=stored["weather"],
            scene=stored["scene"],
            timeofday=stored["timeofday"],
            boxes=np.asarray(stored["boxes"], np.float32).reshape(-1, 4)[keep],
            labels=labels[keep],
            colors=np.asarray(stored["colors"], np.int64)[keep],
            jpeg=stored["images"][self._front],
            mask_png=stored[mask] if mask else None,
            **flags,
        )


def _filled(column: Any) -> np.ndarray:
    """Which rows of an Arrow column are true or not empty: bool [N]."""
    import pyarrow as pa

    if pa.types.is_boolean(column.type):
        return column.to_numpy(zero_copy_only=False)
    # The bytes lie one value after another: where each begins is all there is to read.
    ends = [np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset :][: len(chunk) + 1] for chunk in column.chunks]
    return np.concatenate([np.diff(one) > 0 for one in ends]) if ends else np.zeros(0, bool)


_SMALL = (
    "time", "interval", "speed", "yaw_rate", "command", "speed_limit", "target_speed", "velocity", "acceleration",
    "control", "shift", "weather_numbers",
)  # fmt: skip
_WORDS = ("town", "route", "light", "weather", "timeofday")


@dataclass(frozen=True)
class TimeIndex:
    """What of all frames is small: enough to know, without touching a picture, which windows of time there are and how
    the car moved in them. Rows of a run follow each other in time.

    run: int64 [N], a place in `runs`; frame: int64 [N]; T_world_ego: float64 [N, 4, 4]; targets: float64 [N, K, 2], ego
    frame, NaN where there are fewer; columns: float64 [N] or [N, ...] for each of the columns time, interval, speed,
    yaw_rate, command, speed_limit, target_speed, velocity, acceleration, control, shift and weather_numbers; words:
    str [N] for each of town, route, light, weather and timeofday.
    """

    runs: tuple[str, ...]
    run: np.ndarray
    frame: np.ndarray
    T_world_ego: np.ndarray
    targets: np.ndarray
    columns: Mapping[str, np.ndarray]
    words: Mapping[str, np.ndarray]

    @classmethod
    def load(cls, path: Path | str) -> TimeIndex:
        """Of a prepared set; some hundred bytes a frame."""
        table = open_rows(PreparedInfo.load(path).path).data
        names = table.column("run").to_pylist()
        runs = tuple(dict.fromkeys(names))
        number = {name: index for index, name in enumerate(runs)}
        ahead = table.column("targets").to_pylist()
        targets = np.full((len(ahead), max(map(len, ahead), default=0), 2), np.nan)
        for row, points in zip(targets, ahead, strict=True):
            row[: len(points)] = np.reshape(points, (-1, 2))
        return cls(
            runs,
            np.array([number[name] for name in names], np.int64),
            np.array(table.column("frame").to_pylist(), np.int64),
            np.array(table.column("T_world_ego").to_pylist(), np.float64).reshape(-1, 4, 4),
            targets,
            {key: np.array(table.column(key).to_pylist(), np.float64) for key in _SMALL},
            {key: np.array(table.column(key).to_pylist(), np.str_) for key in _WORDS},
        )

    def sound(self) -> np.ndarray:
        """Which of the N - 1 steps from row to row are one interval of one run, with known places: bool [N - 1]."""
        time, interval = self.columns["time"], self.columns["interval"]
        known = np.isfinite(self.T_world_ego.sum(axis=(1, 2)))
        # Without a clock there is no step: NaN compares as false.
        step = (np.abs(np.diff(time) - interval[1:]) < 0.1 * interval[1:]) & (np.diff(self.run) == 0)
        return step & known[1:] & known[:-1]

    def windows(self, past: int, future: int) -> np.ndarray:
        """The rows int64 [W] that have `past` frames before and `future` after them in the same run without a gap and
        with a known place."""
        count, known = len(self.run), np.isfinite(self.T_world_ego.sum(axis=(1, 2)))
        # How many steps up to each row are sound: a window is one run of sound steps.
        sound = np.concatenate([[0], np.cumsum(self.sound())])
        rows = np.arange(past, count - future)
        rows = rows[sound[rows + future] - sound[rows - past] == past + future] if len(rows) else rows
        return rows[known[rows]]
