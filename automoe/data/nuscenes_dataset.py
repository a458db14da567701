"""A prepared nuScenes set as a map-style `torch` data set: rows in, augmented training items out.

An item is a dictionary, everything in the network's ego frame (the sample's own one, unless augmented):
    points     float32 [P,5] x, y, z, intensity (0 to 255), lag (seconds before the key frame)
    image      uint8 [N,3,H,W] RGB; T_cam_ego float32 [N,4,4]; intrinsic float32 [N,3,3] in network pixels
    transform  float32 [N,2,3]: raw pixel -> network pixel; orig_size: int64 [N,2], height and width of the raw picture
    present    bool [N]: cameras that are there
    boxes      float32 [M,7] x, y, z, l, w, h, yaw; velocity float32 [M,2], NaN where unknown; labels, attributes
               int64 [M]: what can be seen of the truth by the sensors that the item has
    image_targets  for each of the N pictures boxes float32 [K,4], normalised cxcywh, labels int64 [K], ignored bool [K]
    sample_id  the sample's token; index: int
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from automoe.data.images import decode_jpeg
from automoe.data.nuscenes_prepared import HARDLY_VISIBLE, NuscenesRow, NuscenesRows
from automoe.data.prepared import PreparedInfo
from automoe.data.transforms import AugmentConfig, EvalTransform, TrainTransform, fit_scale, move_boxes, warp_image
from automoe.errors import ConfigError, DataError
from automoe.image_boxes import NEAREST, image_boxes
from automoe.poses import move_boxes as move_world_boxes
from automoe.poses import move_points, points_inside
from automoe.taxonomy import NUSCENES_CAMERAS, NUSCENES_DETECTION

PASTED_POINTS = 5
"""LiDAR points that an object must have to be pasted."""

HIDDEN_SHARE = 0.3
"""An object of which something nearer covers more in a picture is not pasted, nor one that would take more than this of
something nearer away."""

PASTED_MARGIN = 0.1
"""Metres round a pasted object's box within which points are its own."""


@dataclass(frozen=True)
class NuscenesView:
    """What of a sample the network is given. size: height and width of each picture. sweeps: LiDAR turns before the key
    frame's."""

    size: tuple[int, int]
    cameras: tuple[str, ...] = NUSCENES_CAMERAS
    lidar: bool = True
    sweeps: int = 4


@dataclass(frozen=True)
class BevAugmentConfig:
    """How far training samples are varied.

    Attributes:
        image: of the pictures; zoom, shift and mirror move the intrinsics with them.
        flip: probability of a mirrored world, left to right.
        rotate: greatest turn of the world, degrees; scale: range of its size; shift: deviation of the ego's place, m.
        cameras: how many of the cameras a training sample has, drawn anew each time; all if not given.
        drop_lidar, drop_cameras: probability that a whole modality is missing, where both are there.
        paste: objects of other samples that are put in, at most, drawn evenly over the classes.
        balance: draw samples with rare classes more often.
    """

    image: AugmentConfig = field(default_factory=lambda: AugmentConfig(scale=(0.95, 1.15), stretch=0.0, blur=0.0))
    flip: float = 0.5
    rotate: float = 22.5
    scale: tuple[float, float] = (0.95, 1.05)
    shift: float = 0.2
    cameras: int | None = None
    drop_lidar: float = 0.1
    drop_cameras: float = 0.1
    paste: int = 4
    balance: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"augment.scale must be two rising positive numbers, not {self.scale}")
        for name in ("flip", "drop_lidar", "drop_cameras"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} must lie between 0 and 1, not {getattr(self, name)}")
        if self.drop_lidar + self.drop_cameras >= 1:
            raise ConfigError("augment.drop_lidar and augment.drop_cameras together must leave some samples whole")
        if self.cameras is not None and self.cameras < 1:
            raise ConfigError(f"augment.cameras must be at least 1, not {self.cameras}")
        if self.paste < 0 or self.shift < 0:
            raise ConfigError("augment.paste and augment.shift must not be negative")


@dataclass
class _Shot:
    """A camera's picture, maybe decoded smaller than it is. scale: decoded pixels per raw one; size: its raw height and
    width; intrinsic in raw pixels."""

    picture: np.ndarray
    scale: float
    size: tuple[int, int]
    intrinsic: np.ndarray
    T_cam_ego: np.ndarray


@dataclass
class _Scene:
    """One sample while it is varied, in its own ego frame. points: [P, 6]. hidden: bool [M], hardly visible boxes."""

    points: np.ndarray
    boxes: np.ndarray
    velocity: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray
    hidden: np.ndarray
    shots: dict[str, _Shot]


class NuscenesDataset(Dataset[dict[str, Any]]):
    """Random access to a prepared nuScenes set, memory-mapped; cheap to send to loader workers.

    A key is an index, or (epoch, index): augmentation is a pure function of (seed, epoch, index). A bare index means
    epoch 0. augment: None for samples as they are. Raises DataError where the directory isn't such a set, or was
    prepared without a camera or with fewer sweeps than asked for.
    """

    def __init__(
        self,
        path: Path | str,
        view: NuscenesView,
        augment: BevAugmentConfig | None = None,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        self.rows = NuscenesRows(path, limit)
        self.view, self.augment, self.seed = view, augment, seed
        self._check()
        self._donors = self._find_donors() if augment and augment.paste and view.lidar else {}

    @property
    def info(self) -> PreparedInfo:
        """The prepared set's account of itself."""
        return self.rows.info

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> NuscenesRow:
        """The stored sample behind an index."""
        return self.rows.row(index)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, epoch, index])
        row, augment = self.row(index), self.augment
        channels, has_cameras, has_lidar = self._choose_sensors(rng)
        scene = self._scene(row, channels)
        if augment is not None and has_lidar:
            self._paste(scene, rng)
        change = _change_of_world(augment, rng) if augment else np.eye(4)
        pictures = self._pictures(scene, np.linalg.inv(change), rng)
        if not has_cameras:
            for target in pictures["image_targets"]:
                target["ignored"][:] = True
        points = scene.points[:, [0, 1, 2, 3, 5]] if has_lidar else np.zeros((0, 5), np.float32)
        points[:, :3] = move_points(change, points[:, :3])
        seen = np.full(len(scene.boxes), has_lidar)
        if has_cameras:
            seen |= _in_a_picture(scene, pictures["intrinsic"].numpy(), self.view.size)
        boxes, velocity = _change_boxes(change, scene.boxes[seen], scene.velocity[seen])
        return pictures | {
            "present": torch.full((len(channels),), has_cameras),
            "points": torch.from_numpy(points.astype(np.float32)),
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "velocity": torch.from_numpy(velocity.astype(np.float32)),
            "labels": torch.from_numpy(scene.labels[seen]),
            "attributes": torch.from_numpy(scene.attributes[seen]),
            "sample_id": row.token,
            "index": index,
        }

    def sample_weights(self) -> np.ndarray:
        """How often each sample should be drawn, float64 [N], so that classes are seen more evenly: the root of its
        rarest class's rarity (the repeat factors of LVIS, Gupta et al., CVPR 2019)."""
        present = np.zeros((len(self), len(NUSCENES_DETECTION)), bool)
        for index, labels in enumerate(self._labels()):
            present[index, labels] = True
        share = np.maximum(present.mean(axis=0), 1 / max(len(self), 1))
        return np.maximum((present / np.sqrt(share)).max(axis=1), 1.0)

    def class_counts(self) -> list[int]:
        """How many boxes of each class there are that have a point."""
        labels = np.concatenate([np.zeros(0, np.int64), *self._labels()])
        return np.bincount(labels, minlength=len(NUSCENES_DETECTION)).tolist()

    def _labels(self) -> list[np.ndarray]:
        """The classes of each sample's boxes that are taught."""
        columns = self.rows.column("labels"), self.rows.column("box_points")
        return [np.array(labels, np.int64)[np.array(points, np.int64) > 0] for labels, points in zip(*columns)]

    # --- the sample as it is ---

    def _check(self) -> None:
        options = self.info.options
        missing = [name for name in self.view.cameras if name not in options["cameras"]]
        if missing:
            raise DataError(
                f"{self.info.path} was prepared without {missing[0]}; prepare it again with every camera that is used"
            )
        if self.view.lidar and self.view.sweeps > options["sweeps"]:
            raise DataError(
                f"{self.info.path} was prepared with {options['sweeps']} sweeps and {self.view.sweeps} are asked for; "
                f"prepare it again with --sweeps {self.view.sweeps}"
            )

    def _choose_sensors(self, rng: np.random.Generator) -> tuple[list[str], bool, bool]:
        """The channels of this item, whether the cameras show anything, and whether the LiDAR does."""
        channels, augment = list(self.view.cameras), self.augment
        if augment is None:
            return channels, bool(channels), self.view.lidar
        if augment.cameras is not None and augment.cameras < len(channels):
            channels = [channels[at] for at in sorted(rng.choice(len(channels), augment.cameras, replace=False))]
        drawn, both = rng.uniform(), bool(channels) and self.view.lidar
        without_lidar = both and drawn < augment.drop_lidar
        without_cameras = both and drawn > 1 - augment.drop_cameras
        return channels, bool(channels) and not without_cameras, self.view.lidar and not without_lidar

    def _scene(self, row: NuscenesRow, channels: list[str]) -> _Scene:
        # The metric knows no objects without a point of LiDAR or radar either.
        seen = row.box_points > 0
        return _Scene(
            row.points(1 + self.view.sweeps) if self.view.lidar else np.zeros((0, 6), np.float32),
            row.boxes[seen],
            row.velocity[seen],
            row.labels[seen],
            row.attributes[seen],
            row.visibility[seen] == HARDLY_VISIBLE,
            {channel: self._shot(row, channel) for channel in channels},
        )

    def _shot(self, row: NuscenesRow, channel: str) -> _Shot:
        """A camera's picture at the smallest size that the network needs."""
        place = row.cameras.index(channel)
        height, width = int(row.heights[place]), int(row.widths[place])
        zoom = self.augment.image.scale[1] if self.augment else 1.0
        where = f"{channel} of sample {row.token} in {self.info.path}"
        needed = zoom * fit_scale(height, width, self.view.size)
        picture, scale = decode_jpeg(row.images[place], where, needed_scale=needed)
        return _Shot(picture, scale, (height, width), row.intrinsic[place], row.T_cam_ego[place])

    # --- the sample varied ---

    def _find_donors(self) -> list[np.ndarray]:
        """For each class that has any, the objects that can be pasted: int64 [N, 2], sample and box."""
        found: dict[int, list[tuple[int, int]]] = {}
        columns = (self.rows.column(name) for name in ("labels", "box_points", "visibility"))
        for index, (labels, points, visibility) in enumerate(zip(*columns)):
            for box, (label, count, seen) in enumerate(zip(labels, points, visibility)):
                if count >= PASTED_POINTS and seen != HARDLY_VISIBLE:
                    found.setdefault(label, []).append((index, box))
        return [np.array(places) for _, places in sorted(found.items())]

    def _paste(self, scene: _Scene, rng: np.random.Generator) -> None:
        """Put objects of other samples where they stood there: their points, and what the cameras saw of them.

        In the same place of the ego frame an object has the same points and, on the same rig, the same pixels. It must
        neither collide with what is there nor stand behind it in a picture.
        """
        assert self.augment is not None
        for _ in range(rng.integers(self.augment.paste + 1) if self._donors else 0):
            of_class = self._donors[rng.integers(len(self._donors))]
            index, box = of_class[rng.integers(len(of_class))]
            self._paste_one(scene, self.row(int(index)), int(box))

    def _paste_one(self, scene: _Scene, donor: NuscenesRow, box: int) -> None:
        own = donor.boxes[box : box + 1]
        apart = np.linalg.norm(scene.boxes[:, :2] - own[:, :2], axis=1)
        if (apart < (np.hypot(*scene.boxes[:, 3:5].T) + np.hypot(*own[0, 3:5])) / 2).any():
            return
        patches = []
        for channel, shot in scene.shots.items():
            target, depth = image_boxes(own, shot.intrinsic, shot.T_cam_ego, shot.size)
            if np.isnan(target).any():
                continue
            if channel not in donor.cameras:
                return  # seen here, and nobody knows how it looks
            given = self._shot(donor, channel)
            source, _ = image_boxes(own, given.intrinsic, given.T_cam_ego, given.size)
            others, depths = image_boxes(scene.boxes, shot.intrinsic, shot.T_cam_ego, shot.size)
            nearer = others[depths < depth[0]]
            if np.isnan(source).any() or (_shared(target[0], nearer) > HIDDEN_SHARE).any():
                return
            patches.append((given, source[0], shot, target[0]))
        larger = own + PASTED_MARGIN * np.array([0, 0, 0, 2, 2, 2, 0])
        points = donor.points(1 + self.view.sweeps)
        points = points[points_inside(points[:, :3], larger)[:, 0]]
        free = ~points_inside(scene.points[:, :3], larger)[:, 0]
        scene.points = np.concatenate([scene.points[free], points])
        for patch in patches:
            _copy_patch(*patch)
        scene.boxes = np.concatenate([scene.boxes, own])
        scene.velocity = np.concatenate([scene.velocity, donor.velocity[box : box + 1]])
        scene.labels = np.append(scene.labels, donor.labels[box])
        scene.attributes = np.append(scene.attributes, donor.attributes[box])
        scene.hidden = np.append(scene.hidden, False)

    def _pictures(self, scene: _Scene, T_ego_changed: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """The pictures at the network's size, their cameras in the changed world, and their image boxes."""
        size, count = self.view.size, len(scene.shots)
        transform = TrainTransform(size, self.augment.image) if self.augment else EvalTransform(size)
        images = np.zeros((count, *size, 3), np.uint8)
        T_cam_ego, intrinsic, targets = np.zeros((count, 4, 4)), np.zeros((count, 3, 3)), []
        matrices = np.zeros((count, 2, 3))
        for number, shot in enumerate(scene.shots.values()):
            matrix = transform.matrix(*shot.size, rng)
            from_decoded = matrix / (shot.scale, shot.scale, 1.0)
            images[number] = transform.recolor(warp_image(shot.picture, from_decoded, size), rng)
            matrices[number] = matrix
            T_cam_ego[number] = shot.T_cam_ego @ T_ego_changed
            intrinsic[number] = np.vstack([matrix, [0, 0, 1]]) @ shot.intrinsic
            boxes, _ = image_boxes(scene.boxes, shot.intrinsic, shot.T_cam_ego, shot.size)
            visible = ~np.isnan(boxes).any(axis=1)
            own = move_boxes(boxes[visible], matrix, transform)
            targets.append(
                {
                    "boxes": torch.from_numpy(own.boxes),
                    "labels": torch.from_numpy(scene.labels[visible][own.kept]),
                    "ignored": torch.from_numpy(scene.hidden[visible][own.kept] | own.too_little),
                }
            )
        sizes = [shot.size for shot in scene.shots.values()]
        return {
            "image": torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
            "T_cam_ego": torch.from_numpy(T_cam_ego.astype(np.float32)),
            "intrinsic": torch.from_numpy(intrinsic.astype(np.float32)),
            "transform": torch.from_numpy(matrices.astype(np.float32)),
            "orig_size": torch.tensor(sizes, dtype=torch.int64).reshape(count, 2),
            "image_targets": targets,
        }


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items to a batch: points [B,P,5], padded with zeros, and point_count int64 [B]; image [B,N,3,H,W], T_cam_ego,
    intrinsic, transform, orig_size and present stacked; image_targets, a list of B * N; and lists of the rest."""
    batch: dict[str, Any] = {
        key: [item[key] for item in items]
        for key in ("sample_id", "index", "boxes", "velocity", "labels", "attributes")
    }
    for key in ("image", "T_cam_ego", "intrinsic", "transform", "orig_size", "present"):
        batch[key] = torch.stack([item[key] for item in items])
    batch["image_targets"] = [target for item in items for target in item["image_targets"]]
    batch["point_count"] = torch.tensor([len(item["points"]) for item in items])
    # One row at least: a batch without any point is a batch all the same.
    batch["points"] = torch.zeros(len(items), max(1, int(batch["point_count"].max())), 5)
    for padded, item in zip(batch["points"], items):
        padded[: len(item["points"])] = item["points"]
    return batch


# --- changes of the world ---


def _change_of_world(augment: BevAugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """A mirror, turn, scaling and shift of the ego frame, [4, 4]: from places as they are to those that are said."""
    angle = np.deg2rad(rng.uniform(-1, 1) * augment.rotate)
    mirrored = rng.uniform() < augment.flip
    size = np.exp(rng.uniform(*np.log(augment.scale)))
    cos, sin = np.cos(angle), np.sin(angle)
    change = np.eye(4)
    change[:3, :3] = (
        size * np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.diag([1, -1 if mirrored else 1, 1])
    )
    change[:3, 3] = rng.normal(size=3) * augment.shift
    return change


def _change_boxes(change: np.ndarray, boxes: np.ndarray, velocity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 7] and velocities [N, 2] in a changed world."""
    moved = move_world_boxes(change, boxes)
    moved[:, 3:6] *= np.cbrt(abs(np.linalg.det(change[:3, :3])))
    return moved, velocity @ change[:2, :2].T


def _in_a_picture(scene: _Scene, intrinsic: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which boxes' centres lie in some picture, and in the piece of it that the network is given: bool [N].

    intrinsic: [cameras, 3, 3] in pixels of `size` (height, width), the network's.
    """
    seen = np.zeros(len(scene.boxes), bool)
    for shot, own in zip(scene.shots.values(), intrinsic, strict=True):
        inside = move_points(shot.T_cam_ego, scene.boxes[:, :3])
        here = inside[:, 2] > NEAREST
        for matrix, (height, width) in ((shot.intrinsic, shot.size), (own, size)):
            places = (inside @ matrix.T)[:, :2] / np.where(here, inside[:, 2], 1.0)[:, None]
            here = here & ((places > 0) & (places < [width, height])).all(axis=1)
        seen |= here
    return seen


def _shared(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What an image box [4] and each of the others [N, 4] have in common, as a share of the one or the other, whichever
    is more: [N], 0 for those that are NaN."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    smaller = np.minimum((box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1))
    return np.nan_to_num((high - low).clip(min=0).prod(axis=1) / np.maximum(smaller, 1e-9))


def _copy_patch(given: _Shot, source: np.ndarray, shot: _Shot, target: np.ndarray) -> None:
    """Copy what a picture shows inside `source` into another one at `target`, both raw pixel xyxy."""
    x1, y1, x2, y2 = _pixels(given, source)
    u1, v1, u2, v2 = _pixels(shot, target)
    if min(x2 - x1, y2 - y1, u2 - u1, v2 - v1) < 1:
        return
    picture = shot.picture if shot.picture.flags.writeable else shot.picture.copy()
    picture[v1:v2, u1:u2] = cv2.resize(given.picture[y1:y2, x1:x2], (u2 - u1, v2 - v1))
    shot.picture = picture


def _pixels(shot: _Shot, box: np.ndarray) -> list[int]:
    """A box in raw pixels as whole pixels of the decoded picture."""
    height, width = shot.picture.shape[:2]
    return (box * shot.scale).round().astype(int).clip(0, [width, height, width, height]).tolist()
