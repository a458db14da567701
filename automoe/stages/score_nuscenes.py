"""Scoring a nuScenes submission file: what `automoe score nuscenes` does. Needs the tables, no blobs and no model."""

from __future__ import annotations

from pathlib import Path

from automoe.data.nuscenes import Nuscenes
from automoe.errors import DataError
from automoe.metrics.nuscenes import NuscenesScores, evaluate, filter_boxes
from automoe.metrics.nuscenes_submission import read_submission


def score_nuscenes(dataroot: Path, version: str | None, split: str, pred: Path) -> NuscenesScores:
    """Score a submission against a split's truth as the official devkit does.

    Raises DataError where the submission is not for exactly the split's samples, and as the readers do.
    """
    dataset = Nuscenes(dataroot, version)
    predicted, _ = read_submission(pred)
    if not len(dataset.tables.boxes.sample):
        raise DataError(f"{dataset.version} has no annotations to score against: those of test are kept by its server.")
    numbers = {str(dataset.tables.tokens[number]): int(number) for number in dataset.numbers(split)}
    missing = [token for token in numbers if token not in predicted]
    foreign = [token for token in predicted if token not in numbers]
    if missing or foreign:
        what = f"lacks {len(missing)} samples of {split} (as {missing[0]})" if missing else ""
        more = f"has {len(foreign)} samples that {split} hasn't (as {foreign[0]})" if foreign else ""
        raise DataError(
            f"{pred} {' and '.join(filter(None, (what, more)))}; every sample needs a list, if an empty one."
        )
    truths, found = [], []
    for token, boxes in predicted.items():  # the file's order breaks ties of scores, as in the devkit
        sample = dataset.sample(numbers[token], cameras=())
        ego_xy = sample.T_world_ego[:2, 3]
        truths.append(sample.truth[filter_boxes(sample.truth, ego_xy, sample.racks)])
        found.append(boxes[filter_boxes(boxes, ego_xy, sample.racks)])
    return evaluate(truths, found)
