"""nuScenes as people have it on disk: v1.0 mini, trainval, test, or the embedded world's own set. Nothing is written.

Everything about a sample is told in the ego's frame at the time of its LiDAR key frame (x forward, y left, z up);
nuScenes' global poses, width-length-height sizes and quaternions are turned into it here and nowhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from automoe.data.nuscenes_tables import CAMERAS, LIDAR, NuscenesTables, read_tables
from automoe.errors import DataError
from automoe.metrics.nuscenes import Boxes3D
from automoe.poses import invert, move_boxes, move_points, pose_matrix, quaternion_yaw
from automoe.taxonomy import (
    NUSCENES_ATTRIBUTES,
    NUSCENES_BICYCLE_RACK,
    NUSCENES_CATEGORIES,
    NUSCENES_DETECTION,
)

SPLITS_FILE = "splits.json"
MAX_SWEEPS = 10
CLOSE = 1.0
"""Metres from the LiDAR, sideways and ahead, within which points are the car's own."""

POINT_FLOATS = 5  # x, y, z, intensity, ring

# The official validation scenes by number; training scenes are all others of v1.0-trainval.
_VAL = (
    (3, 3), (12, 18), (35, 36), (38, 39), (92, 110), (221, 221), (268, 278), (329, 332), (344, 346), (519, 524),
    (552, 565), (625, 627), (629, 630), (632, 638), (770, 771), (775, 775), (777, 778), (780, 784), (794, 800),
    (802, 802), (904, 917), (919, 931), (962, 963), (966, 969), (971, 972), (1059, 1073),
)  # fmt: skip
_MINI_TRAIN = (61, 553, 655, 757, 796, 1077, 1094, 1100)
_MINI_VAL = (103, 916)


def official_splits(version: str, scenes: Sequence[str]) -> dict[str, list[str]]:
    """The official splits of a version among its `scenes`; empty for a version that is none of the official ones."""
    val = {f"scene-{number:04d}" for first, last in _VAL for number in range(first, last + 1)}
    if version == "v1.0-mini":
        names = {"mini_train": _MINI_TRAIN, "mini_val": _MINI_VAL}
        wanted = {split: {f"scene-{number:04d}" for number in numbers} for split, numbers in names.items()}
        return {split: [name for name in scenes if name in own] for split, own in wanted.items()}
    if version == "v1.0-trainval":
        return {
            "train": [name for name in scenes if name not in val],
            "val": [name for name in scenes if name in val],
        }
    return {"test": list(scenes)} if version == "v1.0-test" else {}


@dataclass(frozen=True)
class LidarFrame:
    """One turn of the LiDAR. T_world_ego and T_ego_lidar: [4, 4]."""

    path: Path
    timestamp: int
    T_world_ego: np.ndarray
    T_ego_lidar: np.ndarray


@dataclass(frozen=True)
class CameraFrame:
    """One picture. size: height, width. intrinsic: [3, 3]. T_cam_ego: [4, 4], from the sample's ego frame (that of the
    LiDAR's time) to the camera at its own time."""

    channel: str
    path: Path
    timestamp: int
    size: tuple[int, int]
    intrinsic: np.ndarray
    T_cam_ego: np.ndarray


@dataclass(frozen=True)
class SampleBoxes:
    """The boxes of one sample that are of a detection class.

    boxes: [N, 7] x, y, z, l, w, h, yaw in the ego frame. velocity: [N, 2] in the ego frame's axes (the world's speed,
    not relative to the ego), NaN where unknown. label: int64 [N]. attribute: int64 [N], -1 for none. points: int64 [N],
    of LiDAR and radar. visibility: object [N], "v0-40" and so on. instance: object [N].
    """

    boxes: np.ndarray
    velocity: np.ndarray
    label: np.ndarray
    attribute: np.ndarray
    points: np.ndarray
    visibility: np.ndarray
    instance: np.ndarray


@dataclass(frozen=True)
class Sample:
    """One key frame: where its sensors' files are and how they stood, and what is annotated.

    sweeps: turns of the LiDAR before the key frame, the latest first. truth: the same boxes as `boxes`, global, as the
    metric takes them. racks: [R, 7] bicycle racks, global.
    """

    token: str
    scene: str
    timestamp: int
    T_world_ego: np.ndarray
    lidar: LidarFrame
    sweeps: tuple[LidarFrame, ...]
    cameras: dict[str, CameraFrame]
    boxes: SampleBoxes
    truth: Boxes3D
    racks: np.ndarray


@dataclass(frozen=True)
class Missing:
    """What a user who has not all parts lacks: samples that can't be used, sweeps that are skipped."""

    samples: int = 0
    sweeps: int = 0
    example: str = ""

    def __str__(self) -> str:
        if not self.samples and not self.sweeps:
            return "all files are there"
        return f"{self.samples} samples and {self.sweeps} sweeps are left out for missing files (as {self.example})"


@dataclass(frozen=True)
class NuscenesSplit:
    """The samples of one split whose files are there, by number. cameras: the channels that each sample has."""

    dataset: Nuscenes = field(repr=False)
    name: str
    cameras: tuple[str, ...]
    sweeps: int
    numbers: np.ndarray
    missing: Missing

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset.sample(int(self.numbers[index]), cameras=self.cameras, sweeps=self.sweeps)


class Nuscenes:
    """A nuScenes tree of one version. Raises DataError for what is missing or damaged in its tables."""

    def __init__(self, root: Path | str, version: str | None = None) -> None:
        """root: the folder that holds `samples/` and `v1.0-...`. version: its name; the only one there if not given."""
        self.root = Path(root)
        self.version = find_version(self.root, version)
        folder = self.root / self.version
        self.tables: NuscenesTables = read_tables(folder)
        frames = self.tables.recordings
        self._key = self._key_frames()
        self._sweeps = np.flatnonzero(frames.channel == LIDAR)
        self._sweep_scene = self.tables.scene_of[frames.sample[self._sweeps]]
        self._box_start = np.searchsorted(self.tables.boxes.sample, np.arange(len(self.tables.tokens) + 1))
        unknown = sorted(set(self.tables.boxes.category) - set(NUSCENES_CATEGORIES))
        if unknown:
            raise DataError(f"{folder / 'category.json'} has a category that nuScenes hasn't: {unknown[0]!r}.")

    def splits(self) -> dict[str, list[str]]:
        """Scene names by split: those of `splits.json` where the version has one, else the official ones."""
        path = self.root / self.version / SPLITS_FILE
        if not path.is_file():
            return official_splits(self.version, self.tables.scenes)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return {str(split): [str(name) for name in names] for split, names in content.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not an object of lists of scene names ({error}).") from error

    def numbers(self, name: str) -> np.ndarray:
        """The numbers of a split's samples, whether their files are there or not, in order of scene and time.

        name: as in `splits()`, or its last part: "val" also stands for mini_val where there is no other val.
        Raises DataError for a name that doesn't exist.
        """
        splits = self.splits()
        found = [own for own in splits if own == name] or [own for own in splits if own.endswith(f"_{name}")]
        if len(found) != 1:
            have = ", ".join(splits) or f"none (write {SPLITS_FILE} beside the tables)"
            raise DataError(f"{self.version} has no split {name!r}; there are: {have}.")
        own = set(splits[found[0]])
        scenes = [scene for scene, scene_name in enumerate(self.tables.scenes) if scene_name in own]
        return np.flatnonzero(np.isin(self.tables.scene_of, scenes))

    def split(self, name: str, *, cameras: Sequence[str] = CAMERAS, sweeps: int = 0) -> NuscenesSplit:
        """The usable samples of a split, in order of scene and time.

        name: see `numbers`. cameras: channels that a sample must have. sweeps: how many earlier turns of the LiDAR, 0
        to 10; fewer at a scene's start. Raises DataError for a name, a camera or a number of sweeps that doesn't exist.
        """
        numbers = self.numbers(name)
        check_sensors(cameras, sweeps)
        usable, lost, example = [], 0, ""
        for number in numbers:
            gone = next((c for c in (LIDAR, *cameras) if not self._present[self._key[c][number]]), None)
            if gone is None:
                usable.append(number)
            else:
                lost, row = lost + 1, self._key[gone][number]
                example = example or (
                    str(self.tables.recordings.filename[row]) if row >= 0 else f"{gone} of sample {number}"
                )
        rows = self._sweeps[np.isin(self._sweep_scene, np.unique(self.tables.scene_of[numbers]))]
        absent = rows[~self._present[rows] & ~self.tables.recordings.key_frame[rows]] if sweeps else rows[:0]
        if len(absent) and not example:
            example = str(self.tables.recordings.filename[absent[0]])
        return NuscenesSplit(
            self, name, tuple(cameras), sweeps, np.array(usable, np.int64), Missing(lost, len(absent), example)
        )

    def sample(self, number: int, *, cameras: Sequence[str] = CAMERAS, sweeps: int = 0) -> Sample:
        """The sample of that number, whether its files are there or not (sweeps without a file are left out)."""
        tables = self.tables
        key = self._recording(LIDAR, number)
        T_world_ego = pose_matrix(tables.recordings.ego[key])
        boxes, truth, racks = self._boxes(number, T_world_ego)
        return Sample(
            token=str(tables.tokens[number]),
            scene=tables.scenes[tables.scene_of[number]],
            timestamp=int(tables.timestamps[number]),
            T_world_ego=T_world_ego,
            lidar=self._lidar(key),
            sweeps=tuple(self._lidar(row) for row in self._earlier(key, sweeps)),
            cameras={channel: self._camera(self._recording(channel, number), T_world_ego) for channel in cameras},
            boxes=boxes,
            truth=truth,
            racks=racks,
        )

    def mounting(self, number: int, channel: str) -> np.ndarray:
        """How a sensor is mounted at a sample's key frame: T_ego_sensor [4, 4]."""
        return pose_matrix(self.tables.recordings.sensor[self._recording(channel, number)])

    def _recording(self, channel: str, number: int) -> int:
        row = int(self._key[channel][number])
        if row < 0:
            token = self.tables.tokens[number]
            raise DataError(f"{self.tables.folder}/sample_data.json has no key frame of {channel} for sample {token}.")
        return row

    def _key_frames(self) -> dict[str, np.ndarray]:
        """By channel the row of each sample's key frame, -1 where there is none."""
        frames, count = self.tables.recordings, len(self.tables.tokens)
        rows = {}
        for channel in (LIDAR, *CAMERAS):
            rows[channel] = np.full(count, -1)
            own = np.flatnonzero(frames.key_frame & (frames.channel == channel))
            rows[channel][frames.sample[own]] = own
        return rows

    @cached_property
    def _present(self) -> np.ndarray:
        """Whether each recording's file is there: bool [N + 1], the last one False. One listing a folder."""
        folders: dict[str, set[str]] = {}
        found = np.zeros(len(self.tables.recordings.filename) + 1, bool)
        for row, name in enumerate(self.tables.recordings.filename):
            folder, _, file = name.rpartition("/")
            if folder not in folders:
                path = self.root / folder
                folders[folder] = set(os.listdir(path)) if path.is_dir() else set()
            found[row] = file in folders[folder]
        return found

    def _earlier(self, key: int, count: int) -> list[int]:
        """Up to `count` LiDAR recordings before `key` in its scene whose files are there, the latest first."""
        place = int(np.searchsorted(self._sweeps, key))
        scene = self._sweep_scene[place]
        found: list[int] = []
        for at in range(place - 1, -1, -1):
            if len(found) == count or self._sweep_scene[at] != scene:
                break
            if self._present[self._sweeps[at]]:
                found.append(int(self._sweeps[at]))
        return found

    def _lidar(self, row: int) -> LidarFrame:
        frames = self.tables.recordings
        return LidarFrame(
            self.root / frames.filename[row],
            int(frames.timestamp[row]),
            pose_matrix(frames.ego[row]),
            pose_matrix(frames.sensor[row]),
        )

    def _camera(self, row: int, T_world_ego: np.ndarray) -> CameraFrame:
        frames = self.tables.recordings
        T_world_cam = pose_matrix(frames.ego[row]) @ pose_matrix(frames.sensor[row])
        return CameraFrame(
            str(frames.channel[row]),
            self.root / frames.filename[row],
            int(frames.timestamp[row]),
            (int(frames.size[row, 0]), int(frames.size[row, 1])),
            frames.intrinsic[row],
            invert(T_world_cam) @ T_world_ego,
        )

    def _boxes(self, number: int, T_world_ego: np.ndarray) -> tuple[SampleBoxes, Boxes3D, np.ndarray]:
        table = self.tables.boxes
        rows = np.arange(self._box_start[number], self._box_start[number + 1])
        racks = rows[table.category[rows] == NUSCENES_BICYCLE_RACK]
        rows = rows[[NUSCENES_CATEGORIES[name] is not None for name in table.category[rows]]]
        label = np.array([NUSCENES_DETECTION.index(NUSCENES_CATEGORIES[name]) for name in table.category[rows]], int)
        attribute = np.array([NUSCENES_ATTRIBUTES.index(n) if n else -1 for n in table.attribute[rows]], int)
        points = table.lidar_points[rows] + table.radar_points[rows]
        yaw = quaternion_yaw(table.rotation[rows])
        truth = Boxes3D.of(
            table.translation[rows], table.size[rows], yaw, table.velocity[rows], label, attribute, None, points
        )
        T_ego_world = invert(T_world_ego)
        turned = T_ego_world[:2, :2] @ table.velocity[rows].T
        boxes = SampleBoxes(
            move_boxes(T_ego_world, seven(truth)),
            turned.T,
            label,
            attribute,
            points,
            table.visibility[rows],
            table.instance[rows],
        )
        rack_yaw = quaternion_yaw(table.rotation[racks])
        return boxes, truth, _seven(table.translation[racks], table.size[racks], rack_yaw)


def check_sensors(cameras: Sequence[str], sweeps: int) -> None:
    """Raise DataError for a camera or a number of sweeps that doesn't exist."""
    strange = [channel for channel in cameras if channel not in CAMERAS]
    if strange:
        raise DataError(f"nuScenes has no camera {strange[0]!r}; it has {', '.join(CAMERAS)}.")
    if not 0 <= sweeps <= MAX_SWEEPS:
        raise DataError(f"{sweeps} sweeps were asked for; give 0 to {MAX_SWEEPS}.")


def seven(boxes: Boxes3D) -> np.ndarray:
    """nuScenes' boxes as [N, 7]: x, y, z, length, width, height, yaw, in the same frame."""
    return _seven(boxes.translation, boxes.size, boxes.yaw)


def _seven(translation: np.ndarray, size: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    return np.concatenate([translation, size[:, [1, 0, 2]], yaw[:, None]], axis=1)


def to_global(
    boxes: np.ndarray,
    velocity: np.ndarray,
    label: np.ndarray,
    attribute: np.ndarray,
    score: np.ndarray,
    T_world_ego: np.ndarray,
) -> Boxes3D:
    """Predicted boxes [N, 7] in a sample's ego frame, and velocities [N, 2] along its axes, as nuScenes has them."""
    moved = move_boxes(T_world_ego, boxes)
    turned = velocity @ T_world_ego[:2, :2].T
    return Boxes3D.of(moved[:, :3], moved[:, [4, 3, 5]], moved[:, 6], turned, label, attribute, score)


# --- LiDAR --------------------------------------------------------------------------------------------------


def read_points(path: Path) -> np.ndarray:
    """A `.pcd.bin`: float32 [N, 5], x, y, z in the LiDAR's frame, intensity (0 to 255), ring.

    Raises DataError for a file that is missing, cut short, or holds numbers that are none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the LiDAR file {path}: {error.strerror}") from error
    if len(data) % (4 * POINT_FLOATS) or not data:
        raise DataError(
            f"{path} has {len(data)} bytes, which are no whole points of {4 * POINT_FLOATS}: it is cut short; "
            "unzip or download it again"
        )
    points = np.frombuffer(data, np.float32).reshape(-1, POINT_FLOATS)
    if not np.isfinite(points).all():
        raise DataError(f"{path} holds points that are no numbers; unzip or download it again")
    return points


def load_lidar(sample: Sample) -> np.ndarray:
    """The key frame's and the sweeps' points, float32 [N, 6]: x, y, z in the sample's ego frame, intensity, ring, lag.

    The ego's own motion between the turns is taken out; lag is how many seconds before the key frame's a turn was
    taken. Points on the car itself are left out. Raises DataError as `read_points`.
    """
    return np.concatenate([load_turn(sample, frame) for frame in (sample.lidar, *sample.sweeps)])


def load_turn(sample: Sample, frame: LidarFrame) -> np.ndarray:
    """One turn's points as `load_lidar` has them; `frame` is one of the sample's."""
    points = read_points(frame.path)
    points = points[(np.abs(points[:, :2]) >= CLOSE).any(axis=1)]
    T_here_lidar = invert(sample.T_world_ego) @ frame.T_world_ego @ frame.T_ego_lidar
    lag = np.full((len(points), 1), (sample.lidar.timestamp - frame.timestamp) / 1e6)
    return np.concatenate([move_points(T_here_lidar, points[:, :3]), points[:, 3:], lag], axis=1).astype(np.float32)


def project(points: np.ndarray, camera: CameraFrame) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] of the sample's ego frame to pixels [N, 2] of a camera and depths [N], metres along its axis.

    Pixels of points that are not before the camera mean nothing.
    """
    inside = move_points(camera.T_cam_ego, points)
    depth = inside[:, 2]
    scaled = inside / np.where(np.abs(depth) > 1e-6, depth, 1e-6)[:, None]
    return (scaled @ camera.intrinsic.T)[:, :2], depth


# --- versions -----------------------------------------------------------------------------------------------


def versions(root: Path) -> list[str]:
    """The versions whose tables lie under a root, by name. Raises DataError where there is no such folder."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    return sorted(path.name for path in root.iterdir() if path.name.startswith("v1.0") and path.is_dir())


def find_version(root: Path, version: str | None = None) -> str:
    """The version of that name under a root, or the only one there. Raises DataError where there is none such."""
    found = versions(root)
    if version is not None:
        if version not in found and not (root / version).is_dir():
            raise DataError(f"{root} has no version {version}; there are: {', '.join(found) or 'none'}.")
        return version
    if len(found) != 1:
        have = f"several versions ({', '.join(found)}): name one" if found else "no folder v1.0-...: unzip the metadata"
        raise DataError(f"{root} has {have}")
    return found[0]
