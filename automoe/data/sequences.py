"""Driving as sequences: what a driver knows at a moment, and what came of it. Two types, and no way from one to the
other.

An `Observation` holds nothing later than its own time; gate, policy and agents take nothing else. `Targets` hold the
future, to learn from and to score by. Frames: the ego's, on the ground under the car's middle, x forward, y left.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from automoe.carla import run
from automoe.data.carla_prepared import TASK, TimeIndex
from automoe.data.images import decode_jpeg
from automoe.data.prepared import PreparedInfo, evenly, open_rows
from automoe.data.transforms import ColorConfig
from automoe.errors import ConfigError, DataError
from automoe.poses import into_frame
from automoe.taxonomy import LIGHT_COLORS

LIGHTS = LIGHT_COLORS
"""The state of the light that holds the ego, as a class."""

ROUTE_POINTS = 2
"""Of the route, ahead of the car, that a driver is told."""

AMBIENT = ("rain", "darkness")
"""What a car knows of the weather by its own wipers and headlights, each from 0 to 1."""

_EVENING = 12.0
"""Degrees above the horizon below which the sun leaves a car in the dark (the world's `dawn/dusk` and `night`)."""

_HEAVY_RAIN = 60.0
"""CARLA's precipitation at which the wipers run as fast as they do."""


NOTHING_SEEN = np.zeros((0, 0, 3), np.uint8)
"""The picture of an observation without one: of a car without a camera, or whose camera is dead, or where what there is
to see is known already."""


@dataclass(frozen=True)
class SequenceConfig:
    """Which past and which future a sequence has.

    past: frames before the present one whose motion is known. path_metres: points of the future path, one a metre.
    waypoint_seconds: times ahead at which the place is asked for. speed_seconds: time ahead of the target speed, in
    runs that don't tell what their driver wanted to go at, and in all runs with told_speed off.
    """

    past: int = 0
    path_metres: int = 20
    waypoint_seconds: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    speed_seconds: float = 1.0
    told_speed: bool = True

    def __post_init__(self) -> None:
        if self.past < 0 or self.path_metres < 2 or not self.waypoint_seconds:
            raise ConfigError("sequence: past must be 0 or more, path_metres 2 or more, waypoint_seconds not empty.")
        if not all(time > 0 for time in (*self.waypoint_seconds, self.speed_seconds)):
            raise ConfigError("sequence: waypoint_seconds and speed_seconds lie ahead: give numbers above 0.")


@dataclass(frozen=True)
class Observation:
    """What a driver knows at `time` (seconds): present and past.

    image: uint8 [H, W, 3] RGB of the front camera. motion: float32 [P + 1, 2], speed (m/s) and yaw rate (radians a
    second, to the left), the present one last, NaN where unknown. command: a place in CARLA_COMMANDS, -1 unknown.
    route: float32 [ROUTE_POINTS, 2], the next points of the sparse route, NaN where there is none. ambient: float32
    [2], see AMBIENT, NaN where unknown.
    """

    time: float
    image: np.ndarray = field(repr=False)
    motion: np.ndarray
    command: int
    route: np.ndarray
    ambient: np.ndarray

    @property
    def speed(self) -> float:
        """The present one, m/s."""
        return float(self.motion[-1, 0])


@dataclass(frozen=True)
class Targets:
    """What came of a moment.

    path: float32 [M, 2], where the car was after 1, 2, ... metres of its way; path_known: bool [M]. waypoints: float32
    [T, 2], where it was at the asked times; waypoints_known: bool [T]. speed: what its driver wanted to go at, m/s, or
    what he went at at the asked time, NaN if unknown. control: float32 [3], throttle, steer, brake at the present.
    light: a place in LIGHTS, -1 where the run tells of none.
    """

    path: np.ndarray
    path_known: np.ndarray
    waypoints: np.ndarray
    waypoints_known: np.ndarray
    speed: float
    control: np.ndarray
    light: int


class ObservationBatch(NamedTuple):
    """Observations as models take them: image uint8 [B, 3, h, w] at the stem's size ([B, 3, 0, 0] where there is none),
    motion [B, P + 1, 2], command int64 [B], route [B, ROUTE_POINTS, 2], ambient [B, 2]; pictures: whatever stands for
    the B raw pictures where experts look at them, the pictures themselves or the keys of a cache."""

    image: Tensor
    motion: Tensor
    command: Tensor
    route: Tensor
    ambient: Tensor
    pictures: list[Any]


class TargetsBatch(NamedTuple):
    """Targets as losses take them: the fields of `Targets` with B in front."""

    path: Tensor
    path_known: Tensor
    waypoints: Tensor
    waypoints_known: Tensor
    speed: Tensor
    control: Tensor
    light: Tensor


def batch_observations(
    observations: Sequence[Observation], size: tuple[int, int], pictures: Sequence[Any] | None = None
) -> ObservationBatch:
    """Observations of one camera rig for a model whose stem looks at pictures of a size (height, width).

    pictures: what stands for the raw pictures; the pictures themselves if not given.
    """
    return ObservationBatch(
        batch_images([one.image for one in observations], size),
        torch.from_numpy(np.stack([one.motion for one in observations])).float(),
        torch.tensor([one.command for one in observations]),
        torch.from_numpy(np.stack([one.route for one in observations])).float(),
        torch.from_numpy(np.stack([one.ambient for one in observations])).float(),
        [one.image for one in observations] if pictures is None else list(pictures),
    )


def batch_targets(targets: Sequence[Targets]) -> TargetsBatch:
    """Targets of one SequenceConfig."""

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(one, name) for one in targets]))

    return TargetsBatch(
        stack("path"),
        stack("path_known"),
        stack("waypoints"),
        stack("waypoints_known"),
        torch.tensor([one.speed for one in targets]),
        stack("control"),
        torch.tensor([one.light for one in targets]),
    )


def small_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture at a size (height, width), its sides stretched if need be: each pixel the mean of what it covers."""
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)


def batch_images(images: Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
    """Pictures, uint8 [H, W, 3] of any sizes, as a stem takes them: uint8 [B, 3, h, w]; h and w are 0 where there are
    none to be seen."""
    if any(image.size == 0 for image in images):
        return torch.zeros(len(images), 3, 0, 0, dtype=torch.uint8)
    return torch.from_numpy(np.stack([small_image(one, size) for one in images])).permute(0, 3, 1, 2).contiguous()


def ambient_of(precipitation: float, sun_altitude: float) -> np.ndarray:
    """AMBIENT float32 [2] of CARLA's weather parameters."""
    rain = min(max(precipitation / _HEAVY_RAIN, 0.0), 1.0) if math.isfinite(precipitation) else math.nan
    dark = float(sun_altitude < _EVENING) if math.isfinite(sun_altitude) else math.nan
    return np.array([rain, dark], np.float32)


def picture_key(jpeg: bytes) -> bytes:
    """What names a stored picture in a cache: a hash of its bytes."""
    return hashlib.sha256(jpeg).digest()


# --- the future ---


def path_along(track: np.ndarray, metres: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a track [N, 2] is after 1, 2, ... `metres` metres of it: points [M, 2], and which of them it reaches."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(track, axis=0).T))])
    # A standing car moves by nothing or by the noise of its place: of points less than a centimetre apart, the first.
    apart = np.concatenate([[True], np.floor(along[1:] / 0.01) > np.floor(along[:-1] / 0.01)])
    wanted = np.arange(1, metres + 1, dtype=np.float64)
    points = np.stack([np.interp(wanted, along[apart], track[apart, axis]) for axis in (0, 1)], axis=1)
    return points, wanted <= along[-1]


def places_at(track: np.ndarray, time: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a track [N, 2], timed [N], is at the wanted times [T]: points [T, 2], and which of them it has."""
    points = np.stack([np.interp(wanted, time, track[:, axis]) for axis in (0, 1)], axis=1)
    return points, wanted <= time[-1] + 1e-6


def shift_pose(T_world_ego: np.ndarray, aside: float, turn: float) -> np.ndarray:
    """The pose of a car that stands `aside` metres to the left of another and is turned by `turn` radians to the
    left."""
    cos, sin = math.cos(turn), math.sin(turn)
    return T_world_ego @ np.array([[cos, -sin, 0, 0], [sin, cos, 0, aside], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def _at(wanted: float, time: np.ndarray, values: np.ndarray) -> float:
    """What values [N], timed [N], are at a time; NaN after the last one."""
    return float(np.interp(wanted, time, values)) if time[-1] >= wanted - 1e-6 else math.nan


# --- the data set ---


class CarlaSequences(Dataset[dict[str, Any]]):
    """Moments of prepared CARLA runs: an item has `observation`, `targets`, `picture` and `look` (keys in a cache of
    what experts and a frozen stem see), `sample_id` and `index`. It costs one decoded picture, or none where what there
    is to see is `remembered`; all that is future comes from the time index.

    A key is an index, or (epoch, index). In training (shifted above 0), about that share of the moments is seen by the
    camera that stands aside (`carla.run.SHIFTED`): with `fixed` always the same ones for a seed, whatever the limit, so
    that each moment is one picture that frozen experts have to look at, otherwise others in every epoch.

    Raises DataError where the set is none of CARLA frames, or has no sequences.
    """

    def __init__(
        self,
        path: Path | str,
        config: SequenceConfig,
        *,
        shifted: float = 0.0,
        fixed: bool = True,
        colors: ColorConfig | None = None,
        remembered: int | None = None,
        seed: int = 0,
        limit: int | None = None,
        routes: Collection[str] | None = None,
    ) -> None:
        """routes: the kinds of routes (`carla_hindsight.route_kind`) of the moments that are used, all if not given;
        `kinds` are those that there are. colors: how far the observations' pictures are varied. remembered:
        observations have no picture; `look` is the key of one of so many versions of it, drawn anew in every epoch: the
        first is the picture as it is. limit: use only so many moments, spread evenly."""
        self.info = PreparedInfo.load(path)
        if self.info.task != TASK:
            raise DataError(f"{path} is prepared for {self.info.task}, not for {TASK}")
        self.config, self.seed, self.fixed, self.colors = config, seed, fixed, colors
        self.remembered = remembered
        cameras = list(self.info.options["cameras"])
        self._camera = cameras.index(run.LABELLED)
        self._aside = cameras.index(run.SHIFTED) if run.SHIFTED in cameras else None
        self.shifted = shifted if self._aside is not None else 0.0
        self.times = TimeIndex.load(path)
        self._lights = _lights(self.times)
        rows = self._moments()
        self.kinds = tuple(np.unique(self.times.words["route"][rows]).tolist())
        if routes is not None:
            rows = rows[np.isin(self.times.words["route"][rows], list(routes))]
            if not len(rows):
                raise DataError(f"{self.info.path} has no moments whose route is {' or '.join(routes)}")
        aside = np.random.default_rng([seed, 42]).uniform(size=len(rows)) < self.shifted
        picked = evenly(len(rows), limit, "moments")
        self.rows, self._from_aside = rows[picked], aside[picked]
        self._table: Any = open_rows(self.info.path)

    @property
    def has_shifted(self) -> bool:
        """Whether there are pictures of the camera that stands aside."""
        return self._aside is not None

    @property
    def route_kinds(self) -> dict[str, int]:
        """How many of the moments have a route of which kind."""
        kinds, counts = np.unique(self.times.words["route"][self.rows], return_counts=True)
        return dict(zip(kinds.tolist(), counts.tolist()))

    def _moments(self) -> np.ndarray:
        """Rows with the past that is asked for and enough of a future to have a target speed."""
        interval = float(np.median(self.times.columns["interval"])) if len(self.times.run) else math.nan
        future = math.ceil(self.config.speed_seconds / interval - 1e-6) if interval > 0 else 1
        rows = self.times.windows(self.config.past, future)
        speed = self.times.columns["speed"]
        rows = rows[np.isfinite(speed[rows]) & np.isfinite(speed[rows + future])]
        if not len(rows):
            raise DataError(
                f"{self.info.path} has no {self.config.past + 1 + future} frames in a row with a known place and time: "
                "a policy learns from runs that were driven"
            )
        # Where the stretch of sound steps that each row is part of ends.
        ends = np.flatnonzero(~np.concatenate([self.times.sound(), [False]]))
        self._last = ends[np.searchsorted(ends, np.arange(len(self.times.run)))]
        return rows

    def speed_changes(self) -> np.ndarray:
        """By how much the target speed of each moment differs from its own, m/s: [N]."""
        own = self.times.columns["speed"][self.rows]
        return np.abs([self._target_speed(int(row)) for row in self.rows] - own)

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # workers map the files themselves

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row, aside = self.moment(index, epoch)
        name, jpeg = self.picture(row, aside)
        picture = picture_key(jpeg)
        rng, version = np.random.default_rng([self.seed, 43, epoch, index]), 0
        if self.remembered is not None:
            image, version = NOTHING_SEEN, int(rng.integers(self.remembered))
        else:
            image = decode_jpeg(jpeg, f"{name} of {self.info.path}").image
            if self.colors is not None:
                image = self.colors.recolor(image, rng)
        return {
            "observation": self.observation(row, image, aside),
            "targets": self.targets(row, aside),
            "picture": picture,
            "look": self.look_key(picture, version),
            "sample_id": f"{name} aside" if aside else name,
            "index": index,
        }

    def moment(self, index: int, epoch: int = 0) -> tuple[int, bool]:
        """The row of an index, and whether it is seen from aside."""
        if self.fixed or self.shifted == 0.0:
            return int(self.rows[index]), bool(self._from_aside[index])
        rng = np.random.default_rng([self.seed, 42, epoch, index])
        return int(self.rows[index]), bool(rng.uniform() < self.shifted)

    def views(self) -> list[tuple[int, bool]]:
        """All rows with whether they are seen from aside, as moments of any epoch may be."""
        if self.fixed or self.shifted == 0.0:
            return [self.moment(index) for index in range(len(self))]
        return [(int(row), aside) for row in self.rows for aside in (False, True)]

    def look_key(self, picture: bytes, version: int) -> bytes:
        """What names a version of a picture in a cache. picture: its `picture_key`."""
        return picture if version == 0 else hashlib.sha256(picture + repr((self.colors, version)).encode()).digest()

    def look(self, row: int, aside: bool, version: int) -> np.ndarray:
        """A version of a picture, uint8 [H, W, 3]: 0 is as it is, others are in other colours. It is a function of the
        picture, the version and the `colors`."""
        name, jpeg = self.picture(row, aside)
        image = decode_jpeg(jpeg, f"{name} of {self.info.path}").image
        if version == 0 or self.colors is None:
            return image
        return self.colors.recolor(image, np.random.default_rng(list(self.look_key(picture_key(jpeg), version))))

    def picture(self, row: int, aside: bool = False) -> tuple[str, bytes]:
        """The name of a row's frame and the JPEG of its front camera, or of the one that stands aside."""
        if self._table is None:
            self._table = open_rows(self.info.path)
        stored = self._table[row]
        camera = self._aside if aside else self._camera
        assert camera is not None
        return stored["name"], stored["images"][camera]

    def observation(self, row: int, image: np.ndarray, aside: bool = False) -> Observation:
        """What the driver of a row knew, from columns of that row and of those before."""
        columns, before = self.times.columns, slice(row - self.config.past, row + 1)
        route = self.times.targets[row][:ROUTE_POINTS]
        route = np.concatenate([route, np.full((ROUTE_POINTS - len(route), 2), np.nan)])
        if aside:
            route = into_frame(shift_pose(np.eye(4), *columns["shift"][row]), route)
        cloud_rain_wet_fog_sun = columns["weather_numbers"][row]
        return Observation(
            float(columns["time"][row]),
            image,
            np.stack([columns["speed"][before], columns["yaw_rate"][before]], axis=1).astype(np.float32),
            int(columns["command"][row]),
            route.astype(np.float32),
            ambient_of(cloud_rain_wet_fog_sun[1], cloud_rain_wet_fog_sun[4]),
        )

    def targets(self, row: int, aside: bool = False) -> Targets:
        """What came of a row, from the rows after it in the same run."""
        columns, last = self.times.columns, int(self._last[row])
        pose, after = self.times.T_world_ego[row], slice(row, last + 1)
        if aside:
            pose = shift_pose(pose, *columns["shift"][row])
        track = into_frame(pose, self.times.T_world_ego[after, :2, 3])
        time = columns["time"][after] - columns["time"][row]
        path, path_known = path_along(track, self.config.path_metres)
        waypoints, waypoints_known = places_at(track, time, np.array(self.config.waypoint_seconds))
        return Targets(
            path.astype(np.float32),
            path_known,
            waypoints.astype(np.float32),
            waypoints_known,
            self._target_speed(row),
            columns["control"][row].astype(np.float32),
            int(self._lights[row]),
        )

    def _target_speed(self, row: int) -> float:
        columns, after = self.times.columns, slice(row, int(self._last[row]) + 1)
        told = float(columns["target_speed"][row])
        if self.config.told_speed and math.isfinite(told):
            return told
        time = columns["time"][after] - columns["time"][row]
        return _at(self.config.speed_seconds, time, columns["speed"][after])


def _lights(times: TimeIndex) -> np.ndarray:
    """For each row a place in LIGHTS, int64 [N]; -1 in runs that never tell of a light: they don't tell of any."""
    said = times.words["light"]
    places = np.array([LIGHTS.index(light) if light in LIGHTS else 0 for light in said.tolist()], np.int64)
    silent = np.bincount(times.run, said != "", len(times.runs)) == 0
    return np.where(silent[times.run], -1, places)


def collate(items: list[Mapping[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
    """Items of `CarlaSequences` to a batch: observation (ObservationBatch, its pictures being the keys of a cache),
    targets (TargetsBatch), lists of look, sample_id and index. size: of the stem's pictures, height and width."""
    return {
        "observation": batch_observations(
            [item["observation"] for item in items], size, [item["picture"] for item in items]
        ),
        "targets": batch_targets([item["targets"] for item in items]),
        "look": [item["look"] for item in items],
        "sample_id": [item["sample_id"] for item in items],
        "index": [item["index"] for item in items],
    }
