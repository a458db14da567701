"""Boxes round the car that never look: each class where, how large and how turned it most often was in training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from automoe.data.nuscenes import to_global
from automoe.data.nuscenes_dataset import NuscenesDataset
from automoe.data.nuscenes_prepared import POINT_DTYPE, NuscenesRow, NuscenesRows
from automoe.data.prepared import PreparedInfo
from automoe.metrics.nuscenes import MAX_BOXES, NuscenesMetrics
from automoe.taxonomy import NUSCENES_DETECTION, NUSCENES_RANGE

Scores = dict[str, float | None]

PLACES_PER_CLASS = MAX_BOXES // len(NUSCENES_DETECTION)
"""How many boxes the trivial predictor says of each class: as many in all as the official metric allows."""

PLACE_METRES = 2.0
"""Side of the square cells in which places are counted."""

MOST_SAMPLES = 4000
"""Training samples that are counted, spread evenly over the set."""

ABOUT_TRIVIAL = (
    f"no look at the sensors: of each class a box in its {PLACES_PER_CLASS} most frequent places round the car, mean "
    "size and heading there in the training set"
)


def truths(rows: NuscenesRows) -> Iterator[NuscenesRow]:
    """Every sample of a set with its boxes but without its pictures and points, which stay on the disk."""
    names = ("token", "scene", "timestamp", "T_world_ego", "boxes", "velocity", "labels", "attributes", "box_points")
    columns = [rows.column(name) for name in (*names, "visibility", "racks")]
    for token, scene, timestamp, pose, boxes, velocity, labels, attributes, points, visibility, racks in zip(*columns):
        yield NuscenesRow(
            token=token,
            scene=scene,
            timestamp=timestamp,
            T_world_ego=np.array(pose, np.float64).reshape(4, 4),
            stored_points=np.zeros(0, POINT_DTYPE),
            turn_points=np.zeros(0, np.int32),
            turn_lag=np.zeros(0, np.float32),
            cameras=(),
            images=(),
            heights=np.zeros(0, np.int32),
            widths=np.zeros(0, np.int32),
            intrinsic=np.zeros((0, 3, 3)),
            T_cam_ego=np.zeros((0, 4, 4)),
            boxes=np.array(boxes, np.float64).reshape(-1, 7),
            velocity=np.array(velocity, np.float64).reshape(-1, 2),
            labels=np.array(labels, np.int64),
            attributes=np.array(attributes, np.int64),
            box_points=np.array(points, np.int64),
            visibility=np.array(visibility, object),
            racks=np.array(racks, np.float64).reshape(-1, 7),
        )


def score_typical_places(model: Any, train: PreparedInfo, val_set: NuscenesDataset) -> dict[str, Scores]:
    """The metrics of `typical_places`, said of every sample."""
    boxes, velocity, scores, labels, attributes = typical_places(train)
    metrics = NuscenesMetrics()
    for row in truths(val_set.rows):
        said = to_global(boxes, velocity, labels, attributes, scores, row.T_world_ego)
        metrics.add(row.token, row.truth(), said, row.T_world_ego[:2, 3], row.racks)
    return {"trivial": dict(metrics.compute().metrics)}


def typical_places(train: PreparedInfo) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A mean box in each of a class's most frequent cells, of the boxes that count, and how frequent they are.

    Returns boxes [K, 7] in the ego frame, velocity [K, 2] m/s along its axes, scores [K] (the share of training samples
    with such a box there), labels int64 [K] and attributes int64 [K] (the class's most frequent one, -1 for none).
    """
    rows = list(truths(NuscenesRows(train.path, min(MOST_SAMPLES, train.count))))
    boxes = np.concatenate([row.boxes for row in rows])
    velocity, labels, attributes, points = (
        np.concatenate([getattr(row, key) for row in rows])
        for key in ("velocity", "labels", "attributes", "box_points")
    )
    sample = np.repeat(np.arange(len(rows)), [len(row.labels) for row in rows])
    limit = np.array([NUSCENES_RANGE[name] for name in NUSCENES_DETECTION])[labels]
    counts = (points > 0) & (np.hypot(boxes[:, 0], boxes[:, 1]) < limit)
    parts: list[tuple[np.ndarray, ...]] = [
        (np.zeros((0, 7)), np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    ]
    for label in np.unique(labels[counts]):
        own = counts & (labels == label)
        mean, speed, frequency = _most_frequent(boxes[own], velocity[own], sample[own])
        known = attributes[own & (attributes >= 0)]
        attribute = int(np.bincount(known).argmax()) if len(known) else -1
        parts.append((mean, speed, frequency / len(rows), np.full(len(mean), label), np.full(len(mean), attribute)))
    found = [np.concatenate(column) for column in zip(*parts)]
    return found[0], found[1], found[2], found[3], found[4]


def _most_frequent(
    boxes: np.ndarray, velocity: np.ndarray, sample: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean box [K, 7] and velocity [K, 2] in the cells with the most samples, and how many those are [K].

    boxes: [N, 7]; velocity: [N, 2], NaN where unknown; sample: int [N].
    """
    cells, cell = np.unique(np.floor(boxes[:, :2] / PLACE_METRES).astype(np.int64), axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    once = np.unique(np.stack([cell, sample], axis=1), axis=0)[:, 0]
    frequency = np.bincount(once, minlength=len(cells))
    best = np.argsort(-frequency, kind="stable")[:PLACES_PER_CLASS]

    def mean(values: np.ndarray) -> np.ndarray:
        """The means [K] of the values that are known; 0 where none is."""
        known = np.isfinite(values)
        total = np.bincount(cell, np.where(known, values, 0.0), len(cells))
        return (total / np.bincount(cell, known, len(cells)).clip(min=1))[best]

    # Angles have no mean; their directions have one.
    yaw = np.arctan2(mean(np.sin(boxes[:, 6])), mean(np.cos(boxes[:, 6])))
    box = np.stack([*(mean(boxes[:, axis]) for axis in range(6)), yaw], axis=1)
    return box, np.stack([mean(velocity[:, axis]) for axis in (0, 1)], axis=1), frequency[best]
