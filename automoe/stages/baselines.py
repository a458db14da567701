"""What a number must be compared with: the same model untrained, and predictors that never look.

All are scored by the official metrics on the samples that the expert itself was scored on. The result is kept as
`baselines.json` in the run's folder and used again as long as data and model are the same. Blind 3D boxes are in
`baselines_nuscenes`, what is said blindly of single images is here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from automoe.data.dataset import PreparedDataset, PreparedRow
from automoe.data.prepared import PreparedInfo, ensure_prepared
from automoe.data.transforms import EvalTransform
from automoe.engine import checkpoint as checkpoints
from automoe.engine.distributed import Distributed, setup
from automoe.engine.loader import evaluation_loader
from automoe.errors import CheckpointError, DataError
from automoe.experts.evaluation import evaluate_expert
from automoe.experts.expert import ImageExpert
from automoe.experts.inference import TrainedExpert
from automoe.experts.registry import build_expert
from automoe.files import write_text
from automoe.geometry import pairwise_iou
from automoe.metrics.segmentation import SegmentationMetrics
from automoe.stages.baselines_nuscenes import score_typical_places
from automoe.stages.kinds import KINDS, Kind, kind_of
from automoe.taxonomy import DRIVABLE, DRIVABLE_OFFICIAL, IGNORE_INDEX

Scores = dict[str, float | None]

FILE = "baselines.json"
VERSION = 2

BOXES_PER_CLASS = 10
"""How many typical boxes the trivial detector says of each class: 100 in all, the limit of the official metric."""

GRID = (180, 320)
"""Rows and columns of the grid on which the trivial dense predictor counts classes."""

MOST_MASKS = 2000
"""Training masks that are counted, spread evenly over the set: more of them change nothing that can be seen."""

ABOUT = {
    "untrained": "the same model before its first step: ImageNet backbone, random heads",
    "trivial": f"no look at the picture: {BOXES_PER_CLASS} typical boxes of each class from the training set, or the "
    "most frequent class there of each pixel",
    "all direct": "every pixel is called the car's own lane",
    "never background": "every pixel is called the more frequent of the two drivable classes there; the official "
    "metric does not look at pixels that are background",
}
"""One phrase for each baseline's name; `baselines_nuscenes` has its own for the trivial one."""


@dataclass(frozen=True)
class Baselines:
    """scores: official metrics by baseline (`ABOUT` says what each is), on `images` validation samples; the untrained
    model's are of `untrained_images` of them, spread evenly."""

    scores: dict[str, Scores]
    images: int
    untrained_images: int


@dataclass(frozen=True)
class Sets:
    """The data of a run: what it was trained on and what it is scored on. changed: not what the checkpoint names."""

    train: PreparedInfo
    val: PreparedInfo
    changed: bool


def find_sets(payload: Mapping[str, Any], data_root: Path, prepared_dir: Path | None = None) -> Sets:
    """The sets that a checkpoint was trained and scored on: where it says they are, else those of `data_root`.

    Raises DataError where there are none.
    """
    kind, wanted = kind_of(payload, "this"), dict(payload["dataset_fingerprint"])
    recorded = Path(payload["data_root"]).parent
    try:
        train, val = (PreparedInfo.load(recorded / split) for split in ("train", "val"))
        if {"train": train.fingerprint, "val": val.fingerprint} == wanted:
            return Sets(train, val, changed=False)
    except DataError:
        pass  # moved, or trained elsewhere: the data root given counts
    options = kind.preparation(payload["preprocess"])
    train, val = (
        ensure_prepared(data_root, kind.task, split, prepared_dir, options=options) for split in ("train", "val")
    )
    return Sets(train, val, changed={"train": train.fingerprint, "val": val.fingerprint} != wanted)


def baselines(
    checkpoint: Path,
    data_root: Path,
    *,
    prepared_dir: Path | None = None,
    device: str = "auto",
    batch_size: int = 8,
    num_workers: int = 1,
    limit: int | None = None,
    untrained_limit: int | None = None,
    say: Callable[[str], None] = print,
) -> Baselines:
    """The metrics of every baseline of an expert.

    limit: score so many validation samples only, spread evenly, as the run itself did under `--limit`.
    untrained_limit: so many for the untrained model, whose forward passes take nearly all of the time.
    Reads and writes `baselines.json` beside the checkpoint. Raises CheckpointError (the pretrained backbone can't be
    had, say) and DataError.
    """
    checkpoint = Path(checkpoint)
    payload = checkpoints.load(checkpoint)
    if payload.get("expert") not in KINDS:
        raise CheckpointError(f"{checkpoint} is not an expert's checkpoint; give the best.pth of an expert's run.")
    if payload.get("dataset") == "carla":
        raise CheckpointError(f"{checkpoint} was fine-tuned on CARLA; what it is compared with is its source expert.")
    kind, name, preprocess = KINDS[payload["expert"]], payload["expert"], payload["preprocess"]
    sets = find_sets(payload, data_root, prepared_dir)
    key = {
        "version": VERSION,
        "train": sets.train.fingerprint,
        "val": sets.val.fingerprint,
        "limit": limit,
        "model_config": payload["model_config"],
        "size": preprocess["size"],
    }
    if "sweeps" in preprocess:
        key["sweeps"] = preprocess["sweeps"]
    images = min(limit or sets.val.count, sets.val.count)
    untrained_images = min(untrained_limit or images, images)
    kept = _read(checkpoint.parent / FILE, key)
    if kept is not None and kept.untrained_images >= untrained_images:
        return kept
    say(f"Baselines of {name}: the untrained model on {untrained_images}, blind predictors on {images} {kind.unit}")
    with setup(device) as dist:
        expert = untrained_expert(payload, checkpoint, dist.device)
        some = kind.open(expert, sets.val.path, untrained_images)
        found = {"untrained": score_untrained(expert, kind, some, dist, batch_size, num_workers)}
    found |= BLIND[name](expert.model, sets.train, kind.open(expert, sets.val.path, images))
    result = Baselines(found, images, untrained_images)
    write_text(checkpoint.parent / FILE, json.dumps({"key": key, **asdict(result)}, indent=1) + "\n")
    return result


def _read(path: Path, key: dict[str, Any]) -> Baselines | None:
    """The baselines kept at `path` if they are of the same data and model."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(kept, dict) or kept.pop("key", None) != json.loads(json.dumps(key)):
        return None
    return Baselines(**kept)


# --- the untrained model ------------------------------------------------------------------------------------


def untrained_expert(payload: Mapping[str, Any], path: Path, device: torch.device | str = "cpu") -> TrainedExpert:
    """The checkpoint's expert with an ImageNet backbone and random heads, from the run's own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(payload.get("seed") or 0))
        model = build_expert(payload["expert"], payload["model_config"], pretrained=True)
    height, width = payload["preprocess"]["size"]
    return TrainedExpert(model.to(device).eval(), (height, width), torch.device(device), path, dict(payload))


def score_untrained(
    expert: TrainedExpert, kind: Kind, val_set: Any, dist: Distributed, batch_size: int, num_workers: int
) -> Scores:
    """The official metrics of a model as it is."""
    loader = evaluation_loader(val_set, kind.collate, batch_size, dist, num_workers=num_workers)
    return evaluate_expert(expert.model, val_set, loader, dist)


# --- detection: the same boxes for every picture ------------------------------------------------------------


def score_typical_boxes(model: ImageExpert, train: PreparedInfo, val_set: PreparedDataset) -> dict[str, Scores]:
    """The metrics of `typical_boxes`, said of every picture."""
    boxes, scores, labels = typical_boxes(train, len(model.classes))
    metrics = model.make_metrics()
    nothing = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, np.int64)}
    none = {f"heatmap/{key}": torch.from_numpy(value) for key, value in nothing.items()}
    for index in range(len(val_set)):
        row = val_set.row(index)
        raw = boxes * np.array([row.width, row.height, row.width, row.height])
        said = {"boxes": torch.from_numpy(raw), "scores": torch.from_numpy(scores), "labels": torch.from_numpy(labels)}
        model.add_to_metrics(metrics, row.name, said | none, row)
    scores = {key: value for key, value in model.summarise(metrics).items() if not key.startswith("heatmap/")}
    return {"trivial": scores}


def typical_boxes(train: PreparedInfo, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The centres of a k-means over each class's training boxes, and how often each is right.

    Returns boxes float64 [K, 4] (xyxy as shares of the picture), scores [K] (the share of training pictures in which a
    box of that class overlaps it with an IoU of 0.5 or more) and labels int64 [K].
    """
    all_boxes, all_labels, images = read_boxes(train)
    parts = []
    for label in range(num_classes):
        own = all_boxes[all_labels == label]
        if len(own) == 0:
            continue
        centres = k_means(own, BOXES_PER_CLASS)
        overlap = pairwise_iou(torch.from_numpy(centres), torch.from_numpy(own)).numpy()
        hits = np.minimum(1.0, (overlap >= 0.5).sum(axis=1) / max(1, images))
        parts.append((centres, hits, np.full(len(centres), label)))
    if not parts:
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)
    boxes, scores, labels = (np.concatenate(part) for part in zip(*parts))
    return boxes, scores, labels


def read_boxes(info: PreparedInfo) -> tuple[np.ndarray, np.ndarray, int]:
    """Every box of a prepared set that is no ignore region: xyxy as shares [N, 4], labels [N]; and the picture count.

    Only these columns are read: the pictures stay on the disk.
    """
    import datasets

    table: Any = datasets.load_from_disk(str(info.path))
    table = table.select_columns(["boxes", "labels", "ignored", "height", "width"])
    boxes, labels = [np.zeros((0, 4))], [np.zeros(0, np.int64)]
    for batch in table.with_format("arrow").iter(batch_size=4096):
        columns = {name: batch[name].combine_chunks() for name in batch.column_names}
        per_image = np.diff(columns["labels"].offsets.to_numpy())
        size = np.stack([columns[key].to_numpy() for key in ("width", "height", "width", "height")], axis=1)
        flat = columns["boxes"].flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
        kept = ~columns["ignored"].flatten().to_numpy(zero_copy_only=False)
        boxes.append((flat / np.repeat(size, per_image, axis=0))[kept])
        labels.append(columns["labels"].flatten().to_numpy(zero_copy_only=False)[kept])
    return np.concatenate(boxes), np.concatenate(labels), len(table)


def box_counts(info: PreparedInfo) -> list[int]:
    """How many boxes of each class a prepared set has, ignore regions left out."""
    _, labels, _ = read_boxes(info)
    return np.bincount(labels, minlength=len(info.classes)).tolist()


def k_means(points: np.ndarray, count: int, rounds: int = 30, most: int = 20_000) -> np.ndarray:
    """At most `count` centres [K, D] of points [N, D] (Lloyd, started by k-means++), always the same ones."""
    rng = np.random.default_rng(0)
    if len(points) > most:
        points = points[rng.choice(len(points), most, replace=False)]
    centres = points[rng.integers(len(points))][None]
    while len(centres) < count:
        distance = _squared_distances(points, centres).min(axis=1)
        if distance.sum() <= 0:  # fewer different points than centres
            return centres
        centres = np.concatenate([centres, points[rng.choice(len(points), p=distance / distance.sum())][None]])
    for _ in range(rounds):
        nearest = _squared_distances(points, centres).argmin(axis=1)
        members = np.bincount(nearest, minlength=len(centres))
        sums = np.stack([np.bincount(nearest, points[:, d], len(centres)) for d in range(points.shape[1])], axis=1)
        moved = np.where(members[:, None] > 0, sums / np.maximum(members, 1)[:, None], centres)
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return ((points[:, None] - centres[None]) ** 2).sum(axis=2)


# --- dense tasks: the same mask for every picture -----------------------------------------------------------


def score_constant_masks(model: ImageExpert, train: PreparedInfo, val_set: PreparedDataset) -> dict[str, Scores]:
    """The metrics of masks that are the same for every picture: the most frequent class of each pixel, and for
    drivable areas two that show what the official metric does not see."""
    counts = class_frequency(train, len(model.classes))
    grids = {"trivial": most_frequent(counts)}
    if model.kind == "drivable":
        grids["all direct"] = np.full(GRID, DRIVABLE.index("direct"), np.uint8)
        grids["never background"] = most_frequent(counts[: len(DRIVABLE_OFFICIAL)])
    metrics: dict[str, SegmentationMetrics] = {name: model.make_metrics() for name in grids}
    grown: dict[tuple[str, int, int], np.ndarray] = {}
    for index in range(len(val_set)):
        row = val_set.row(index)
        truth = row.mask()
        for name, grid in grids.items():
            key = (name, *truth.shape)
            if key not in grown:
                grown[key] = _at_size(grid, *truth.shape)
            metrics[name].add(row.name, grown[key], truth)
    return {name: model.summarise(metric) for name, metric in metrics.items()}


def class_frequency(train: PreparedInfo, num_classes: int) -> np.ndarray:
    """How often each class stands at each place of the training masks: int64 [C, *GRID]; ignored pixels not."""
    sample = PreparedDataset(train.path, train.task, EvalTransform(GRID), limit=min(MOST_MASKS, train.count))
    counts = np.zeros((IGNORE_INDEX + 1, *GRID), np.int32)
    rows, columns = np.ogrid[: GRID[0], : GRID[1]]
    for index in range(len(sample)):
        row: PreparedRow = sample.row(index)
        counts[_at_size(row.mask(), *GRID), rows, columns] += 1
    return counts[:num_classes].astype(np.int64)


def most_frequent(counts: np.ndarray) -> np.ndarray:
    """The class [*GRID] with most counts [C, *GRID] at each place; where there are none the most frequent of all."""
    overall = int(counts.sum(axis=(1, 2)).argmax())
    return np.where(counts.any(axis=0), counts.argmax(axis=0), overall).astype(np.uint8)


def _at_size(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Class ids at another size: of each new pixel the id under its centre."""
    rows = (np.arange(height) * 2 + 1) * mask.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * mask.shape[1] // (2 * width)
    return mask.take(rows, axis=0).take(columns, axis=1)


BLIND: dict[str, Callable[[Any, PreparedInfo, Any], dict[str, Scores]]] = {
    "detection": score_typical_boxes,
    "drivable": score_constant_masks,
    "segmentation": score_constant_masks,
    "nuscenes": score_typical_places,
}
"""The blind predictors of each kind of expert: from its model, training set and open validation set to scores by name.
"""
