"""The BDD100K stage: one expert a run, for detection, drivable area or semantic segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cyclopts

from automoe.engine.loop import FitResult
from automoe.stages.image_stage import ImageStage
from automoe.stages.train_expert import TrainFlags, train_expert

DEFAULT_ROOT = "datasets/bdd100k"


@dataclass(frozen=True, kw_only=True)
class Bdd100kFlags(TrainFlags):
    """Train one BDD100K expert."""

    task: Literal["detection", "drivable", "segmentation"] = "detection"
    """Which expert."""
    data_root: Path | None = None
    """BDD100K as downloaded and unzipped, or what `automoe prepare bdd100k` made; datasets/bdd100k if not given."""


def component_of(task: str) -> str:
    """The folder name of a task's configs, checkpoints and runs."""
    return f"bdd100k_{task}_expert"


def stage_of(task: str) -> ImageStage:
    """The stage that trains a task's expert."""
    return ImageStage(task, component_of(task), DEFAULT_ROOT)


def train_bdd100k(flags: Annotated[Bdd100kFlags, cyclopts.Parameter(name="*")] = Bdd100kFlags()) -> FitResult:
    """Train one BDD100K expert (detection, drivable area or semantic segmentation) on one device or, under torchrun,
    on many. Leaves models/checkpoints/bdd100k_<task>_expert/<run_name>/best.pth.
    """
    return train_expert(stage_of(flags.task), flags.data_root, flags)
