"""The folder of one recorded run, as in the public CARLA autopilot recordings, and who writes it.

    run_000/config.json                       what was driven: map, weather, sensors; written last
    run_000/vehicle_log.json                  a record for each frame, in CARLA's axes
    run_000/collisions.json
    run_000/images/<camera>/000000.png        RGB
    run_000/segmentation/front/000000.png     tags in the red channel, as CARLA's raw pictures have them
    run_000/lidar/000000.npy                  float32 [N, 4] x, y, z, intensity, in the sensor's CARLA axes
    run_000/annots/front/000000.json          {"frame", "boxes": [{"bbox", "label", "actor_id", "type_id", ...}]}

and what later stages need beside it, which public runs don't have:

    run_000/drivable/front/000000.png         taxonomy.DRIVABLE; also of front_shifted, where there is that camera
    run_000/boxes3d/000000.json               road users round the ego, in CARLA's axes

File names are frame numbers, six digits. While it is written, a run's folder also holds the file `unfinished`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from automoe.errors import WriteError
from automoe.files import write_bytes, write_errors

CAMERAS = ("front", "front_left", "front_right", "rear")
LABELLED = "front"
"""The camera that has tags, boxes and drivable masks."""

SHIFTED = "front_shifted"
"""What the front camera would see if the car stood somewhat aside and askew: at each frame by another `camera_shift` in
the log, {"y": metres to the right, "yaw": degrees to the right} round the car's origin. It shows a policy what it looks
like to have strayed, which a good driver never does. The embedded world alone writes it."""


@dataclass(frozen=True)
class Mount:
    """Where a camera sits on a public run's car, in CARLA's axes: metres from the car's origin, degrees."""

    x: float
    y: float
    z: float
    yaw: float


MOUNTS: dict[str, Mount] = {
    "front": Mount(1.5, 0.0, 2.4, 0.0),
    "front_left": Mount(1.2, -0.5, 2.2, -45.0),
    "front_right": Mount(1.2, 0.5, 2.2, 45.0),
    "rear": Mount(-1.5, 0.0, 2.4, 180.0),
}
FIELD_OF_VIEW = 90.0
LIDAR_HEIGHT, LIDAR_RANGE, LIDAR_CHANNELS, LIDAR_RATE = 2.5, 80.0, 32, 200_000
"""Metres, metres, rings, points a second: above the car's origin."""

LIDAR_ELEVATION = (-30.0, 10.0)
"""Degrees, of the lowest and the highest ring: CARLA's own."""

SEEN_METRES = 80.0
"""Road users within so many metres of the car have a record in boxes3d."""


TICK = 0.05
SAVE_EVERY = 5
"""Ticks from frame to frame: four frames a second."""


UNFINISHED = "unfinished"
"""The file that says that a writer began a run and has not ended it: such a folder may be emptied and begun anew."""


_VERSION = re.compile(r"v?(\d+(?:\.\d+)+)(?:-.*)?")


def version_number(said: str) -> tuple[int, ...] | None:
    """(0, 9, 15) of "0.9.15" or "0.9.15-3-gb1d5a-dirty"; None where there is no number, as in builds from source that
    say "b1d5a-dirty" alone. It tells which tags a server has."""
    match = _VERSION.fullmatch(said)
    return tuple(int(part) for part in match[1].split(".")) if match else None


def run_name(index: int) -> str:
    """A run's folder."""
    return f"run_{index:03d}"


def check_free(folder: Path) -> None:
    """Raise WriteError where a run can't be begun without the loss of something: of a complete run, or of files that no
    writer of runs left behind. Beside the world.json of an export all runs are the export's."""
    complete = (folder / "config.json").is_file()
    ours = (folder / UNFINISHED).is_file() or (folder.parent / "world.json").is_file()
    if complete or not (ours or _is_empty(folder)):
        holds = "a complete run" if complete else "files, and neither a complete run nor one that was begun here"
        raise WriteError(f"{folder} holds {holds}; name another folder, or remove this one")


def _is_empty(folder: Path) -> bool:
    """Whether nothing is there, or a folder without content."""
    return not any(folder.iterdir()) if folder.is_dir() else not folder.exists()


def rig(width: int, height: int, names: Sequence[str] = CAMERAS, *, lidar: bool = True) -> dict[str, Any]:
    """The sensors as a config has them, in CARLA's axes round the car's origin; names: of the cameras."""
    cameras = {
        name: {
            "type": "sensor.camera.rgb",
            "location": {"x": mount.x, "y": mount.y, "z": mount.z},
            "rotation": {"pitch": 0.0, "yaw": mount.yaw, "roll": 0.0},
            "width": width,
            "height": height,
            "fov": FIELD_OF_VIEW,
        }
        for name, mount in {**MOUNTS, SHIFTED: MOUNTS[LABELLED]}.items()
        if name in names
    }
    if not lidar:
        return cameras
    turning = {
        "type": "sensor.lidar.ray_cast",
        "location": {"x": 0.0, "y": 0.0, "z": LIDAR_HEIGHT},
        "rotation": {"pitch": 0.0, "yaw": 0.0, "roll": 0.0},
        "channels": LIDAR_CHANNELS,
        "range": LIDAR_RANGE,
        "lower_fov": LIDAR_ELEVATION[0],
        "upper_fov": LIDAR_ELEVATION[1],
    }
    return {**cameras, "lidar": turning}


@dataclass(frozen=True)
class Frame:
    """Everything of one saved moment.

    number: of the tick. log: its record of vehicle_log.json. images: camera -> uint8 [H, W, 3] RGB. tags, drivable:
    uint8 [H, W] of the labelled camera; drivable_aside: of SHIFTED. lidar: float32 [N, 4]. boxes, boxes3d: as they are
    written.
    """

    number: int
    log: Mapping[str, Any]
    images: Mapping[str, np.ndarray]
    tags: np.ndarray | None = None
    drivable: np.ndarray | None = None
    drivable_aside: np.ndarray | None = None
    lidar: np.ndarray | None = None
    boxes: Sequence[Mapping[str, Any]] | None = None
    boxes3d: Sequence[Mapping[str, Any]] | None = None


@dataclass
class RunWriter:
    """Writes one run. A run without config.json is not complete: it was broken off, and a new writer begins it anew.

    Raises WriteError where `check_free` does, and where the disk takes no more.
    """

    folder: Path
    log: list[Mapping[str, Any]] = field(default_factory=list)
    collisions: list[Mapping[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_free(self.folder)
        # The mark comes first and stays until last, so that a kill leaves no folder that seems to be somebody else's.
        self._write(UNFINISHED, b"This run is being written, or was broken off; it may be removed.\n")
        with write_errors(self.folder):
            for entry in self.folder.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != UNFINISHED:
                    entry.unlink()

    def frame(self, frame: Frame) -> None:
        """Write the files of a frame and remember its record."""
        name = f"{frame.number:06d}"
        for camera, picture in frame.images.items():
            self._png(f"images/{camera}/{name}.png", picture[..., ::-1])
        if frame.tags is not None:
            raw = np.zeros((*frame.tags.shape, 3), np.uint8)
            raw[..., 2] = frame.tags  # red, in OpenCV's order
            self._png(f"segmentation/{LABELLED}/{name}.png", raw)
        for camera, mask in ((LABELLED, frame.drivable), (SHIFTED, frame.drivable_aside)):
            if mask is not None:
                self._png(f"drivable/{camera}/{name}.png", mask)
        if frame.lidar is not None:
            self._points(f"lidar/{name}.npy", frame.lidar)
        if frame.boxes is not None:
            self._json(f"annots/{LABELLED}/{name}.json", {"frame": frame.number, "boxes": list(frame.boxes)})
        if frame.boxes3d is not None:
            self._json(f"boxes3d/{name}.json", {"frame": frame.number, "boxes": list(frame.boxes3d)})
        self.log.append(frame.log)

    def finish(self, config: Mapping[str, Any]) -> None:
        """Write the logs and, last, the config: with it the run is complete."""
        self._json("vehicle_log.json", self.log, indent=1)
        self._json("collisions.json", self.collisions, indent=1)
        # One rename makes the mark the config: there is never both, nor neither.
        self._json(UNFINISHED, {**config, "quality_metrics": self._quality()}, indent=1)
        with write_errors(self.folder / "config.json"):
            os.replace(self.folder / UNFINISHED, self.folder / "config.json")

    def _quality(self) -> dict[str, float]:
        speeds = [record["speed_kmh"] for record in self.log] or [0.0]
        steers = [record["control"]["steer"] for record in self.log] or [0.0]
        near = [record["traffic_density"]["nearby_vehicles_50m"] for record in self.log] or [0]
        return {
            "avg_speed_kmh": float(np.mean(speeds)),
            "steering_variance": float(np.var(steers)),
            "collision_count": len(self.collisions),
            "avg_nearby_traffic": float(np.mean(near)),
            "frames_collected": len(self.log),
        }

    def _png(self, name: str, picture: np.ndarray) -> None:
        import cv2

        quick = [cv2.IMWRITE_PNG_COMPRESSION, 1]
        self._write(name, cv2.imencode(".png", np.ascontiguousarray(picture), quick)[1].tobytes())

    def _points(self, name: str, points: np.ndarray) -> None:
        from io import BytesIO

        stream = BytesIO()
        np.save(stream, points.astype(np.float32))
        self._write(name, stream.getvalue())

    def _json(self, name: str, content: Any, indent: int | None = None) -> None:
        self._write(name, json.dumps(content, indent=indent).encode())

    def _write(self, name: str, content: bytes) -> None:
        write_bytes(self.folder / name, content, sync=False)
