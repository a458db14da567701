"""The chapters of the three BDD100K experts: detection, drivable area, semantic segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from automoe.report.sections_images import image_chapter
from automoe.stages.baselines import ABOUT
from automoe.stages.bdd100k import component_of

TITLES = {"detection": "Object detection", "drivable": "Drivable area", "segmentation": "Semantic segmentation"}


def _world(settings: Mapping[str, Any]) -> str:
    width, height = settings["size"]
    towns = len(settings["train_towns"]), len(settings["val_towns"])
    return (
        f"The pictures are renderings of AutoMoE's embedded world ({width}x{height}, seed {settings['seed']}), "
        f"from {towns[0]} training towns and {towns[1]} other towns for validation. They are not real BDD100K "
        "frames, and no number here says anything about those."
    )


CHAPTERS = tuple(
    image_chapter(task, "BDD100K", component_of(task), title, about=ABOUT, world=_world)
    for task, title in TITLES.items()
)
