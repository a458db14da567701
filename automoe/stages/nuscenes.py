"""The nuScenes stage: a 3D detector from cameras and LiDAR, and the image boxes that are learnt beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import cyclopts

from automoe.config import from_dict
from automoe.data.nuscenes_dataset import BevAugmentConfig, NuscenesDataset, NuscenesView, collate
from automoe.data.nuscenes_prepared import TASK
from automoe.engine.distributed import Distributed
from automoe.engine.loop import FitResult
from automoe.errors import ConfigError
from automoe.experts.nuscenes import NuscenesScoring
from automoe.experts.nuscenes_config import NuscenesConfig
from automoe.metrics.nuscenes_submission import write_submission
from automoe.stages.image_stage import check_size, random_start
from automoe.stages.train_expert import (
    ExpertStage,
    StageConfig,
    StageData,
    TrainFlags,
    load_stage_config,
    prepare_splits,
    train_expert,
)

COMPONENT = "nuscenes_expert"
DEFAULT_ROOT = "datasets/nuscenes"
SUBMISSION = "submission.json"


@dataclass(frozen=True, kw_only=True)
class NuscenesStageConfig(StageConfig):
    """The nuScenes expert's config.json: also each picture's input size (height, width), how many LiDAR turns before
    the key frame's are used, and the augmentation."""

    size: tuple[int, int]
    sweeps: int = 4
    augment: BevAugmentConfig = field(default_factory=BevAugmentConfig)

    def __post_init__(self) -> None:
        check_size("size", self.size)
        if not 0 <= self.sweeps <= 10:
            raise ConfigError(f"sweeps is {self.sweeps}; give 0 to 10.")

    def preparation(self) -> dict[str, Any]:
        """The options of the prepared set that training with this config needs."""
        model = from_dict(NuscenesConfig, self.model, "model")
        return preparation({"sweeps": self.sweeps, "cameras": model.cameras})


@dataclass(frozen=True, kw_only=True)
class NuscenesFlags(TrainFlags):
    """Train the nuScenes expert."""

    data_root: Path | None = None
    """nuScenes as downloaded and unzipped, or what `automoe prepare nuscenes` made; datasets/nuscenes if not given."""
    version: str | None = None
    """v1.0-mini, v1.0-trainval, ...; the only one under the data root if not given."""
    sweeps: int | None = None
    """LiDAR turns before the key frame's, 0 to 10."""
    train_cameras: int | None = None
    """How many of the cameras a training sample has, drawn anew each time; fewer make quicker steps."""
    num_queries: int | None = None
    """Boxes that the 3D decoder may say in a sample."""
    cost_class: float | None = None
    """Weight of the class in matching."""
    cost_bbox: float | None = None
    """Weight of the boxes' L1 distance in matching."""
    cost_giou: float | None = None
    """Weight of the boxes' overlap, seen from above, in matching."""
    bbox_loss_weight: float | None = None
    """Weight of the boxes' L1 distance in the loss."""


MODEL_FLAGS = {
    "num_queries": "num_queries",
    "cost_class": "cost_class",
    "cost_bbox": "cost_bbox",
    "cost_giou": "cost_giou",
    "bbox_loss_weight": "bbox_weight",
}
"""Flags that set a field of the model's config."""


class NuscenesStage(ExpertStage[NuscenesStageConfig]):
    """Training of the nuScenes expert on samples of all its sensors."""

    kind = "nuscenes"
    component = COMPONENT
    default_root = DEFAULT_ROOT
    config_type = NuscenesStageConfig

    def __init__(self) -> None:
        self.sensors = {"camera": True, "lidar": True}

    def configure(self, flags: TrainFlags) -> NuscenesStageConfig:
        assert isinstance(flags, NuscenesFlags)
        config = load_stage_config(self.config_type, self.component, flags)
        given = {key: getattr(flags, name) for name, key in MODEL_FLAGS.items() if getattr(flags, name) is not None}
        model = {**config.model, **given}
        if not flags.pretrained:
            model["image"] = random_start(model.get("image", {}))
        if flags.sweeps is not None:
            config = replace(config, sweeps=flags.sweeps)
        if flags.train_cameras is not None:
            config = replace(config, augment=replace(config.augment, cameras=flags.train_cameras))
        return replace(config, model=model)

    def open(
        self, root: Path, config: NuscenesStageConfig, flags: TrainFlags, seed: int, dist: Distributed
    ) -> StageData:
        assert isinstance(flags, NuscenesFlags)
        model = from_dict(NuscenesConfig, config.model, "model")
        self.sensors = {"camera": bool(model.cameras), "lidar": model.lidar}
        options = config.preparation()
        if flags.version is not None:
            options["version"] = flags.version
        train_info, val_info = prepare_splits(root, TASK, flags.prepared_dir, dist, options)
        view = NuscenesView(config.size, model.cameras, model.lidar, config.sweeps)
        train = NuscenesDataset(train_info.path, view, config.augment, seed=seed, limit=flags.limit)
        val = NuscenesDataset(val_info.path, view, limit=flags.limit)
        meta = {
            "preprocess": {
                "size": list(config.size),
                "resize": "letterbox",
                "cameras": list(model.cameras),
                "lidar": model.lidar,
                "sweeps": config.sweeps,
            },
            "rig": dict(train_info.rig),
            "dataset_fingerprint": {"train": train_info.fingerprint, "val": val_info.fingerprint},
            "data_root": str(train_info.path),
        }
        height, width = config.size
        with_cameras = f"{len(model.cameras)} cameras at {width}x{height}" if model.cameras else "no camera"
        with_lidar = f"LiDAR with {config.sweeps} sweeps" if model.lidar else "no LiDAR"
        words = f"{len(train)} samples ({len(val)} for validation), {with_cameras}, {with_lidar}"
        weights = train.sample_weights() if config.augment.balance else None
        return StageData(train, val, collate, meta, words, weights, {"class_counts": train.class_counts()})

    def postprocess(self) -> dict[str, Any]:
        return {"scores": "sigmoid", "frame": "ego at the LiDAR's time: x forward, y left, z up; metres, m/s, radians"}

    def keep_best(self, metrics: NuscenesScoring, run_dir: Path) -> None:
        """The best checkpoint's predictions on the validation split as a valid submission, within the scored ranges."""
        write_submission(run_dir / SUBMISSION, metrics.final.predictions(), **self.sensors)


def preparation(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """What a prepared set must have for a model that is given so many sweeps and those cameras: see `find_nuscenes`."""
    return {"sweeps": int(preprocess["sweeps"]), "cameras": list(preprocess["cameras"])}


def view_of(preprocess: dict[str, Any]) -> NuscenesView:
    """What a checkpoint's `preprocess` says that its network is given."""
    height, width = preprocess["size"]
    return NuscenesView(
        (height, width), tuple(preprocess["cameras"]), bool(preprocess["lidar"]), int(preprocess["sweeps"])
    )


def train_nuscenes(flags: Annotated[NuscenesFlags, cyclopts.Parameter(name="*")] = NuscenesFlags()) -> FitResult:
    """Train the nuScenes expert (camera and LiDAR) on one device or, under torchrun, on many. Leaves
    models/checkpoints/nuscenes_expert/<run_name>/best.pth and, beside it, its submission.json for the validation split.
    """
    return train_expert(NuscenesStage(), flags.data_root, flags)
