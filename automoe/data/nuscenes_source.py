"""nuScenes as a `RawSource` of the task detection3d: what of a key frame goes into a row of a prepared set.

The columns are told in `nuscenes_prepared.py`, which reads them back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from automoe.data.images import check_jpeg
from automoe.data.nuscenes import SPLITS_FILE, Nuscenes, NuscenesSplit, Sample, check_sensors, find_version, load_turn
from automoe.data.nuscenes_prepared import encode_points, features
from automoe.data.nuscenes_tables import CAMERAS, LIDAR, TABLES
from automoe.data.raw_source import Quarantined, folder_listing, read_file, same_text, text_listing
from automoe.errors import DataError


def find_nuscenes(
    root: Path,
    task: str,
    split: str,
    *,
    version: str | None = None,
    sweeps: int = 10,
    cameras: Sequence[str] | None = None,
) -> NuscenesSource:
    """The source of one split. Raises DataError where there is no such version, or for an impossible option.

    version: v1.0-mini, say; the only one there if not given. split: see `Nuscenes.numbers`; whether there is one of
    that name shows when the tables are read. sweeps: earlier turns of the LiDAR, 0 to 10. cameras: channels; all six
    if not given.
    """
    chosen = CAMERAS if cameras is None else tuple(cameras)
    check_sensors(chosen, sweeps)
    version = find_version(root, version)
    in_order = tuple(channel for channel in CAMERAS if channel in chosen)
    return NuscenesSource(root, split, version, sweeps, in_order, task)


@dataclass(frozen=True)
class NuscenesSource:
    """One split of a nuScenes tree; see `RawSource`. A record is a sample's number.

    The tables are read when the first sample is asked for, not to tell whether a prepared set is up to date.
    """

    root: Path
    split: str
    version: str
    sweeps: int
    cameras: tuple[str, ...]
    task: str = "detection3d"
    dataset: str = "nuscenes"
    unit: str = "samples"
    rows_per_shard: int = 16  # a real sample with ten sweeps is 4 MB

    @property
    def options(self) -> dict[str, Any]:
        return {"version": self.version, "sweeps": self.sweeps, "cameras": list(self.cameras)}

    @property
    def place(self) -> Path:
        return self.root / self.version

    @cached_property
    def _samples(self) -> NuscenesSplit:
        return Nuscenes(self.root, self.version).split(self.split, cameras=self.cameras, sweeps=self.sweeps)

    def _sample(self, number: int) -> Sample:
        return self._samples.dataset.sample(number, cameras=self.cameras, sweeps=self.sweeps)

    def describe(self) -> str:
        views = f"{len(self.cameras)} cameras" if len(self.cameras) > 1 else ", ".join(self.cameras) or "no camera"
        return f"tables {self.place}, {self.sweeps} sweeps, {views}"

    def features(self) -> Any:
        return features()

    def plan(self) -> tuple[list[int], list[Quarantined]]:
        return self._samples.numbers.tolist(), []

    def notes(self) -> tuple[str, ...]:
        missing = self._samples.missing
        return (str(missing),) if missing.samples or missing.sweeps else ()

    def name(self, record: int) -> str:
        return str(self._samples.dataset.tables.tokens[record])

    def files(self, record: int) -> tuple[Path, ...]:
        sample = self._sample(record)
        turns = (sample.lidar, *sample.sweeps)
        return (*(turn.path for turn in turns), *(camera.path for camera in sample.cameras.values()))

    def key(self, record: int) -> bytes:
        sample = self._sample(record)
        turns, cameras, boxes = (sample.lidar, *sample.sweeps), sample.cameras.values(), sample.boxes
        times = [turn.timestamp for turn in turns]
        sizes = [(camera.channel, camera.size) for camera in cameras]
        words = [sample.token, sample.scene, sample.timestamp, times, sizes, boxes.visibility.tolist()]
        digest = hashlib.sha256(repr(words).encode())
        arrays = [sample.T_world_ego, boxes.boxes, boxes.velocity, boxes.label, boxes.attribute, boxes.points]
        arrays += [sample.racks]
        arrays += [pose for turn in turns for pose in (turn.T_world_ego, turn.T_ego_lidar)]
        arrays += [matrix for camera in cameras for matrix in (camera.intrinsic, camera.T_cam_ego)]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def row(self, record: int) -> tuple[dict[str, Any], list[str]]:
        sample = self._sample(record)
        boxes, cameras = sample.boxes, sample.cameras.values()
        turns = [encode_points(load_turn(sample, turn)[:, :5]) for turn in (sample.lidar, *sample.sweeps)]
        lags = [(sample.lidar.timestamp - turn.timestamp) / 1e6 for turn in (sample.lidar, *sample.sweeps)]
        row: dict[str, Any] = {"token": sample.token, "scene": sample.scene, "timestamp": sample.timestamp}
        row |= {"T_world_ego": sample.T_world_ego.ravel().tolist()}
        row |= {"points": b"".join(turn.tobytes() for turn in turns)}
        row |= {"turn_points": [len(turn) for turn in turns], "turn_lag": lags}
        row |= {"cameras": [camera.channel for camera in cameras]}
        row |= {"images": [_image(camera.path, camera.size) for camera in cameras]}
        row |= {"heights": [camera.size[0] for camera in cameras], "widths": [camera.size[1] for camera in cameras]}
        row |= {"intrinsic": [camera.intrinsic.ravel().tolist() for camera in cameras]}
        row |= {"T_cam_ego": [camera.T_cam_ego.ravel().tolist() for camera in cameras]}
        row |= {"boxes": boxes.boxes.tolist(), "velocity": boxes.velocity.tolist(), "labels": boxes.label.tolist()}
        row |= {"attributes": boxes.attribute.tolist(), "box_points": boxes.points.tolist()}
        row |= {"visibility": boxes.visibility.tolist(), "racks": sample.racks.tolist()}
        return row, []

    def rig(self) -> dict[str, Any]:
        if not len(self._samples):
            return {}
        dataset, number = self._samples.dataset, int(self._samples.numbers[0])
        sample = self._sample(number)
        cameras = {
            channel: {
                "size": list(camera.size),
                "intrinsic": camera.intrinsic.tolist(),
                "T_ego_cam": dataset.mounting(number, channel).tolist(),
            }
            for channel, camera in sample.cameras.items()
        }
        return {
            "note": "of the first sample; calibration travels with each sample",
            "cameras": cameras,
            "lidar": {"channel": LIDAR, "T_ego_lidar": sample.lidar.T_ego_lidar.tolist()},
        }

    def origin(self) -> dict[str, Any]:
        tables = {path.name: text_listing(path) for path in self._table_files() if path.is_file()}
        return {"tables": tables, "files": self._file_listing()}

    def changed(self, origin: Mapping[str, Any]) -> str | None:
        for path in self._table_files():
            before = origin["tables"].get(path.name)
            same = not path.exists() if before is None else same_text(path, before)
            if not same:
                return f"{path} has changed"
        for folder, listing in self._file_listing().items():
            if origin["files"].get(folder) != listing:
                return f"the files in {self.root / folder} have changed"
        return None

    def _table_files(self) -> list[Path]:
        return [self.place / f"{table}.json" for table in TABLES] + [self.place / SPLITS_FILE]

    def _file_listing(self) -> dict[str, dict[str, Any]]:
        folders = {f"samples/{LIDAR}": ".bin"} | {f"samples/{channel}": ".jpg" for channel in self.cameras}
        folders |= {f"sweeps/{LIDAR}": ".bin"} if self.sweeps else {}
        return {folder: folder_listing(self.root / folder, suffix) for folder, suffix in folders.items()}


def _image(path: Path, size: tuple[int, int]) -> bytes:
    """A picture's bytes. Raises DataError where it is broken or of another size than the tables say."""
    data = read_file(path, "image")
    height, width = check_jpeg(data, str(path))
    if (height, width) != size:
        raise DataError(
            f"{path} is {width}x{height}, and sample_data.json says {size[1]}x{size[0]}: boxes would not lie where "
            "they should"
        )
    return data
