"""Stages that train an expert on single images of a prepared set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from automoe.data.dataset import PreparedDataset, collate
from automoe.data.transforms import AugmentConfig, EvalTransform, TrainTransform
from automoe.engine.distributed import Distributed
from automoe.errors import ConfigError
from automoe.stages.train_expert import (
    COARSEST_STRIDE,
    ExpertStage,
    StageConfig,
    StageData,
    TrainFlags,
    load_stage_config,
    prepare_splits,
)


@dataclass(frozen=True, kw_only=True)
class ImageStageConfig(StageConfig):
    """An image expert's config.json: also its input size (height, width) and augmentation."""

    size: tuple[int, int]
    crop: tuple[int, int] | None = None
    """Height and width of the pieces that training cuts out of the input; None trains on the whole input."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        # Otherwise the coarse maps of whole inputs would not lie where those of pieces lie, nor where boxes are said.
        for name, size in (("size", self.size), ("crop", self.crop or self.size)):
            check_size(name, size)
        if self.crop and any(piece > whole for piece, whole in zip(self.crop, self.size)):
            raise ConfigError(f"crop is {list(self.crop)}, larger than the size {list(self.size)} that it is cut from.")

    def train_transform(self) -> TrainTransform:
        """What training does to a picture: pieces of the input, or all of it, under the augmentation."""
        return TrainTransform(self.crop or self.size, self.augment, self.size)


def check_size(name: str, size: tuple[int, int]) -> None:
    """Raise ConfigError for an input size (height, width) that the coarsest feature map doesn't divide."""
    if not all(side > 0 and side % COARSEST_STRIDE == 0 for side in size):
        raise ConfigError(f"{name} is {list(size)}; give multiples of {COARSEST_STRIDE} for height and width.")


def random_start(model: dict[str, Any]) -> dict[str, Any]:
    """An image expert's model config for a start without pretrained weights: it has no statistics to fold."""
    return {**model, "norm": "batch", "frozen_stages": 0}


class ImageStage(ExpertStage[ImageStageConfig]):
    """Training of `kind` on the task of the same name."""

    config_type = ImageStageConfig

    def __init__(self, kind: str, component: str, default_root: str) -> None:
        self.kind, self.component, self.default_root = kind, component, default_root

    def configure(self, flags: TrainFlags) -> ImageStageConfig:
        config = load_stage_config(self.config_type, self.component, flags)
        return config if flags.pretrained else replace(config, model=random_start(config.model))

    def open(self, root: Path, config: ImageStageConfig, flags: TrainFlags, seed: int, dist: Distributed) -> StageData:
        train_info, val_info = prepare_splits(root, self.kind, flags.prepared_dir, dist)
        train = PreparedDataset(train_info.path, self.kind, config.train_transform(), seed=seed, limit=flags.limit)
        val = PreparedDataset(val_info.path, self.kind, EvalTransform(config.size), limit=flags.limit)
        height, width = config.size
        pieces = f" in pieces of {config.crop[1]}x{config.crop[0]}" if config.crop else ""
        meta = {
            "preprocess": {"size": list(config.size), "resize": "letterbox"},
            "rig": {"cameras": 1, "note": "a single front camera of unknown mounting, as BDD100K publishes none"},
            "dataset_fingerprint": {"train": train_info.fingerprint, "val": val_info.fingerprint},
            "data_root": str(train_info.path),
        }
        words = f"{len(train)} images ({len(val)} for validation) at {width}x{height}{pieces}"
        return StageData(train, val, collate, meta, words)

    def postprocess(self) -> dict[str, Any]:
        return {"scores": "sigmoid"} if self.kind == "detection" else {"mask": "argmax at raw size"}
