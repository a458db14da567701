"""What scoring a checkpoint needs to know of its kind of expert: its data, its table, its official output format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automoe.data import dataset as images
from automoe.data import nuscenes_dataset as samples
from automoe.data.carla_prepared import IMAGE_TASKS, CarlaImages
from automoe.data.carla_prepared import TASK as FRAMES
from automoe.data.nuscenes_prepared import TASK as DETECTION3D
from automoe.engine.distributed import Distributed
from automoe.errors import ConfigError
from automoe.experts.inference import TrainedExpert
from automoe.metrics.score import format_nuscenes_table, format_table
from automoe.stages import bdd100k, carla, nuscenes
from automoe.stages.predictions import BoxWriter, MaskWriter, PredictionWriter, SubmissionWriter

Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class Kind:
    """task: whose prepared sets it reads. default_root: where its data is looked for in the checkout. open: an expert's
    evaluation set from a prepared directory and a limit of samples. unit: what one sample is called, in the plural.
    decimals: of metrics in text. preparation: from a checkpoint's `preprocess` the options of the prepared set
    that it needs."""

    task: str
    default_root: str
    open: Callable[[TrainedExpert, Path, int | None], Any]
    collate: Callable[[list], dict]
    table: Callable[[Metrics], str]
    writer: Callable[[Path, TrainedExpert, Distributed], PredictionWriter]
    unit: str = "images"
    preparation: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda preprocess: {}
    decimals: int = 2


def kind_of(payload: Mapping[str, Any], path: Path | str) -> Kind:
    """The kind of an expert, from its checkpoint's payload; path: the checkpoint, for the message. Raises ConfigError
    for one that has no evaluation set of its own."""
    kinds = CARLA_KINDS if payload.get("dataset") == "carla" else KINDS
    if payload["expert"] not in kinds:
        raise ConfigError(f"{path} is a {payload['expert']} expert; there is no data set to score it on.")
    return kinds[payload["expert"]]


def _open_images(expert: TrainedExpert, path: Path, limit: int | None) -> images.PreparedDataset:
    return images.PreparedDataset(path, expert.model.kind, expert.transform, limit=limit)


def _open_samples(expert: TrainedExpert, path: Path, limit: int | None) -> samples.NuscenesDataset:
    return samples.NuscenesDataset(path, nuscenes.view_of(expert.payload["preprocess"]), limit=limit)


def _image_kind(task: Any) -> Kind:
    writer = BoxWriter if task == "detection" else MaskWriter
    return Kind(
        task, bdd100k.DEFAULT_ROOT, _open_images, images.collate, lambda metrics: format_table(metrics, task), writer
    )


def _open_carla(expert: TrainedExpert, path: Path, limit: int | None) -> CarlaImages:
    return CarlaImages(path, expert.model.kind, expert.transform, limit=limit)


def _carla_kind(kind: str) -> Kind:
    task: Any = "detection" if kind == "nuscenes_2d" else kind
    writer = BoxWriter if task == "detection" else MaskWriter

    def table(metrics: Metrics) -> str:
        return format_table(metrics, task)

    return Kind(FRAMES, carla.DEFAULT_ROOT, _open_carla, images.collate, table, writer, unit="frames")


KINDS: dict[str, Kind] = {
    **{task: _image_kind(task) for task in ("detection", "drivable", "segmentation")},
    "nuscenes": Kind(
        DETECTION3D,
        nuscenes.DEFAULT_ROOT,
        _open_samples,
        samples.collate,
        format_nuscenes_table,
        SubmissionWriter,
        unit="samples",
        preparation=nuscenes.preparation,
        decimals=4,
    ),
}
"""By registered name of the expert."""

CARLA_KINDS: dict[str, Kind] = {kind: _carla_kind(kind) for kind in IMAGE_TASKS}
"""The same for experts that were fine-tuned on CARLA."""
