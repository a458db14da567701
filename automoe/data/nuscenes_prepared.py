"""A prepared nuScenes set: its columns, and its rows read back.

Columns, a row a sample that has its files; the ego frame is that of the sample's LiDAR key frame:

    token, scene      string; timestamp: int64, microseconds
    T_world_ego       16 float64, row by row
    points            POINT_DTYPE in a row, ego frame: the key frame's turn of the LiDAR, then the sweeps', latest first
    turn_points       int32, points of each turn; turn_lag: float32, seconds before the key frame, 0 first
    cameras           strings; images: the JPEGs' bytes as found; heights, widths: int32, pixels
    intrinsic         9 float64 a camera; T_cam_ego: 16 float64 a camera
    boxes             7 float64 a box, ego frame; velocity: 2 float64, along the ego's axes, NaN where unknown
    labels            int64, as are attributes (-1 for none) and box_points; visibility: strings
    racks             7 float64 a bicycle rack, global
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from automoe.data.images import decode_jpeg
from automoe.data.prepared import PreparedInfo, evenly, open_rows
from automoe.errors import DataError
from automoe.image_boxes import image_boxes
from automoe.metrics.nuscenes import Boxes3D
from automoe.poses import invert, move_points

TASK = "detection3d"

HARDLY_VISIBLE = "v0-40"
"""The visibility of objects that are ignored as image boxes."""

POINT_STEP = 0.005
POINT_LIMIT = 163.0
"""Metres: what a coordinate of a stored point is counted in, and the farthest that is kept along each axis."""

POINT_DTYPE = np.dtype([("xyz", "<i2", (3,)), ("intensity", "u1"), ("ring", "u1")])
"""A stored point: eight bytes. A LiDAR is good to 2 cm."""


def encode_points(points: np.ndarray) -> np.ndarray:
    """Points [N, 5] (x, y, z in metres, intensity, ring) as POINT_DTYPE [M]; those beyond POINT_LIMIT are left out."""
    points = points[(np.abs(points[:, :3]) <= POINT_LIMIT).all(axis=1)]
    stored = np.empty(len(points), POINT_DTYPE)
    stored["xyz"] = np.rint(points[:, :3] / POINT_STEP)
    stored["intensity"] = np.clip(np.rint(points[:, 3]), 0, 255)
    stored["ring"] = np.clip(np.rint(points[:, 4]), 0, 255)
    return stored


def decode_points(stored: np.ndarray) -> np.ndarray:
    """POINT_DTYPE [N] as float32 [N, 5]: x, y, z in metres, intensity, ring."""
    points = np.empty((len(stored), 5), np.float32)
    np.multiply(stored["xyz"], np.float32(POINT_STEP), out=points[:, :3])
    points[:, 3] = stored["intensity"]
    points[:, 4] = stored["ring"]
    return points


def features() -> Any:
    """The columns as `datasets.Features`."""
    from datasets import Features, List, Value

    real, whole, size = Value("float64"), Value("int64"), Value("int32")
    columns: dict[str, Any] = {"token": Value("string"), "scene": Value("string"), "timestamp": whole}
    columns |= {"T_world_ego": List(real), "points": Value("binary")}
    columns |= {"turn_points": List(size), "turn_lag": List(Value("float32"))}
    columns |= {"cameras": List(Value("string")), "images": List(Value("binary"))}
    columns |= {"heights": List(size), "widths": List(size)}
    columns |= {"intrinsic": List(List(real)), "T_cam_ego": List(List(real))}
    columns |= {"boxes": List(List(real)), "velocity": List(List(real))}
    columns |= {"labels": List(whole), "attributes": List(whole), "box_points": List(whole)}
    columns |= {"visibility": List(Value("string")), "racks": List(List(real))}
    return Features(columns)


@dataclass(frozen=True)
class NuscenesRow:
    """One sample as stored.

    Attributes:
        timestamp: microseconds. T_world_ego: float64 [4, 4].
        stored_points: POINT_DTYPE [P], all turns' points; turn_points: int32 [T]; turn_lag: float32 [T], seconds.
        cameras: C channels; images: C JPEG files' bytes; heights, widths: int32 [C], pixels.
        intrinsic: float64 [C, 3, 3]. T_cam_ego: float64 [C, 4, 4], from the ego at the LiDAR's time.
        boxes: float64 [N, 7] x, y, z, l, w, h, yaw, ego frame. velocity: float64 [N, 2] m/s, ego axes, NaN where
            unknown. labels, attributes (-1 for none), box_points: int64 [N]. visibility: object [N].
        racks: float64 [R, 7], global.
    """

    token: str
    scene: str
    timestamp: int
    T_world_ego: np.ndarray
    stored_points: np.ndarray
    turn_points: np.ndarray
    turn_lag: np.ndarray
    cameras: tuple[str, ...]
    images: tuple[bytes, ...]
    heights: np.ndarray
    widths: np.ndarray
    intrinsic: np.ndarray
    T_cam_ego: np.ndarray
    boxes: np.ndarray
    velocity: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray
    box_points: np.ndarray
    visibility: np.ndarray
    racks: np.ndarray

    def points(self, turns: int | None = None) -> np.ndarray:
        """float32 [N, 6]: x, y, z in the ego frame, intensity, ring, lag; the key frame's first.

        turns: only that many of the LiDAR's, 1 for the key frame's alone; all that are stored if not given.
        """
        counts = self.turn_points[:turns]
        lag = np.repeat(self.turn_lag[:turns], counts)
        return np.concatenate([decode_points(self.stored_points[: int(counts.sum())]), lag[:, None]], axis=1)

    def truth(self) -> Boxes3D:
        """The boxes in the global frame, as the metric takes them, equal to the raw reader's."""
        centre = move_points(self.T_world_ego, self.boxes[:, :3])
        # The ego tilts a little. A global heading or speed became what is left of it in the ego's ground plane when
        # the box was brought there; this takes exactly that back.
        T_plane = np.linalg.inv(invert(self.T_world_ego)[:2, :2])
        heading = np.stack([np.cos(self.boxes[:, 6]), np.sin(self.boxes[:, 6])], axis=1) @ T_plane.T
        yaw = np.arctan2(heading[:, 1], heading[:, 0])
        size, velocity = self.boxes[:, [4, 3, 5]], self.velocity @ T_plane.T
        return Boxes3D.of(centre, size, yaw, velocity, self.labels, self.attributes, None, self.box_points)

    def image_truth(self, channel: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a camera sees of the boxes that have a LiDAR or radar point: raw pixel xyxy float64 [K, 4], labels int64
        [K], and whether they are hardly visible, bool [K]."""
        place, known = self.cameras.index(channel), self.box_points > 0
        size = (int(self.heights[place]), int(self.widths[place]))
        boxes, _ = image_boxes(self.boxes[known], self.intrinsic[place], self.T_cam_ego[place], size)
        seen = ~np.isnan(boxes).any(axis=1)
        hidden = self.visibility[known][seen] == HARDLY_VISIBLE
        return boxes[seen], self.labels[known][seen], hidden.astype(bool)

    def picture(self, channel: str) -> np.ndarray:
        """A camera's picture, uint8 [H, W, 3] RGB. Raises DataError for a camera that the set hasn't."""
        if channel not in self.cameras:
            raise DataError(f"sample {self.token} has no camera {channel}; it has {', '.join(self.cameras) or 'none'}")
        return decode_jpeg(self.images[self.cameras.index(channel)], f"{channel} of sample {self.token}").image


class NuscenesRows:
    """Random access to the samples of a prepared set, memory-mapped; cheap to send to loader workers.

    path: a directory written by `prepare`. limit: use only that many samples, spread evenly over the set. Raises
    DataError where the directory is no prepared set of detection3d.
    """

    def __init__(self, path: Path | str, limit: int | None = None) -> None:
        self.info = PreparedInfo.load(path)
        if self.info.task != TASK:
            raise DataError(f"{path} is prepared for {self.info.task}, not for {TASK}")
        self._numbers = evenly(self.info.count, limit)
        self._opened: Any = None

    def __len__(self) -> int:
        return len(self._numbers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}  # workers map the files themselves

    @property
    def cameras(self) -> tuple[str, ...]:
        """The channels that every sample has."""
        return tuple(self.info.options["cameras"])

    @property
    def sweeps(self) -> int:
        """How many earlier turns of the LiDAR a sample has, fewer at a scene's start."""
        return self.info.options["sweeps"]

    @property
    def _table(self) -> Any:
        if self._opened is None:
            self._opened = open_rows(self.info.path)
        return self._opened

    def row(self, index: int) -> NuscenesRow:
        """The sample behind an index."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples in {self.info.path}")
        stored = self._table[int(self._numbers[index])]
        whole = {key: np.array(stored[key], np.int64) for key in ("labels", "attributes", "box_points")}
        return NuscenesRow(
            token=stored["token"],
            scene=stored["scene"],
            timestamp=stored["timestamp"],
            T_world_ego=np.array(stored["T_world_ego"]).reshape(4, 4),
            stored_points=np.frombuffer(stored["points"], POINT_DTYPE),
            turn_points=np.array(stored["turn_points"], np.int32),
            turn_lag=np.array(stored["turn_lag"], np.float32),
            cameras=tuple(stored["cameras"]),
            images=tuple(stored["images"]),
            heights=np.array(stored["heights"], np.int32),
            widths=np.array(stored["widths"], np.int32),
            intrinsic=_real(stored["intrinsic"], 3, 3),
            T_cam_ego=_real(stored["T_cam_ego"], 4, 4),
            boxes=_real(stored["boxes"], 7),
            velocity=_real(stored["velocity"], 2),
            visibility=np.array(stored["visibility"], object),
            racks=_real(stored["racks"], 7),
            **whole,
        )

    def column(self, name: str) -> list[Any]:
        """One small column of all samples ("token", "scene", ...) as plain Python; the blobs are not touched."""
        values = self._table.data.column(name).take(self._numbers)
        return values.to_pylist()


def _real(values: Any, *shape: int) -> np.ndarray:
    return np.array(values, np.float64).reshape(-1, *shape)
