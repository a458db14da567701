"""The chapters of the four experts that were fine-tuned on CARLA, each beside the source that it started from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automoe.report.runs import TaskRun
from automoe.report.sections import Compared
from automoe.report.sections_images import image_chapter
from automoe.stages.baselines import Sets
from automoe.stages.carla import component_of, source_metrics

TITLES = {
    "detection": "Object detection on CARLA",
    "drivable": "Drivable area on CARLA",
    "segmentation": "Semantic segmentation on CARLA",
    "nuscenes_2d": "Image boxes of the nuScenes expert on CARLA",
}

ABOUT = {"source": "the expert of the other data set that the fine-tuning started from, on the same CARLA frames"}


def _compare(
    run: TaskRun, sets: Sets, where: Path, prepared_dir: Path | None, device: str, most: int | None
) -> Compared:
    """The source's metrics, which the trainer took before its first step."""
    metrics = source_metrics(run.run_dir)
    if metrics is None:
        return Compared({}, "Trained from scratch: no expert of another data set to compare with.")
    return Compared({"source": metrics})


def _world(settings: Mapping[str, Any]) -> str:
    width, height = settings["size"]
    towns = len(settings["train_towns"]), len(settings["val_towns"])
    return (
        f"The CARLA runs are drives through AutoMoE's embedded world (cameras of {width}x{height}, seed "
        f"{settings['seed']}), in {towns[0]} training towns and {towns[1]} other towns for validation. They are not "
        "recordings of CARLA, and no number here says anything about those."
    )


CHAPTERS = tuple(
    image_chapter(
        task,
        "CARLA",
        component_of(task),
        title,
        about=ABOUT,
        world=_world,
        compare=_compare,
        section=f"carla_{task}",
    )
    for task, title in TITLES.items()
)
