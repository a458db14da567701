"""Single images under the loupe: what was right and wrong on each of a sample, and the pictures that show it.

Two kinds of evidence with one shape: `BoxCase` for detection and `MaskCase` for the dense experts. The official metrics
are not computed here; an image's own score only orders the images from best to worst.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from automoe.data.dataset import ImageDataset, PreparedRow
from automoe.drawing import draw_boxes, fit_width, overlay_mask
from automoe.experts.inference import TrainedExpert
from automoe.geometry import box_area, pairwise_iou
from automoe.metrics.segmentation import ConfusionMatrix
from automoe.taxonomy import (
    BDD_DETECTION,
    DETECTION_COLORS,
    DRIVABLE,
    DRIVABLE_COLORS,
    IGNORE_INDEX,
    SEMANTIC_COLORS,
)

Color = tuple[int, int, int]

RIGHT_COLOR: Color = (0, 190, 150)
FALSE_COLOR: Color = (255, 80, 60)
MISSED_COLOR: Color = (255, 215, 0)
"""Detections that are right, detections of nothing, and objects that were not found."""

ENOUGH_IOU = 0.5
BOX_WIDTH, MASK_WIDTH = 560, 400
BATCH = 8


@dataclass(frozen=True)
class BoxCase:
    """One image's detections K against its true boxes N.

    Attributes:
        boxes [K, 4] raw pixels, scores [K], labels [K]: best first. hit bool [K]: right at IoU 0.5, each truth once.
        neutral bool [K]: on an ignore region, neither right nor wrong.
        found_at: [N] score of the detection that found each true box, -1 where none did.
    """

    row: PreparedRow
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    hit: np.ndarray
    neutral: np.ndarray
    found_at: np.ndarray

    def errors(self, threshold: float) -> tuple[int, int, int]:
        """Right detections, detections of nothing and missed objects at a score threshold."""
        sure = self.scores >= threshold
        right = int((sure & self.hit).sum())
        false = int((sure & ~self.hit & ~self.neutral).sum())
        return right, false, int(((self.found_at < threshold) & ~self.row.ignored).sum())

    def score(self, threshold: float) -> float:
        """F1 of this image in percent."""
        right, false, missed = self.errors(threshold)
        return 100 * 2 * right / max(1, 2 * right + false + missed)


@dataclass(frozen=True)
class MaskCase:
    """One image's predicted mask uint8 [h, w], its true one, and the counts of true by predicted class [C, C + 1]."""

    row: PreparedRow
    truth: np.ndarray
    mask: np.ndarray
    counts: np.ndarray

    def score(self) -> float:
        """Mean IoU in percent over the classes that this image has."""
        right, true = np.diag(self.counts), self.counts.sum(axis=1)
        union = true + self.counts.sum(axis=0)[:-1] - right
        present = true > 0
        return 100 * float((right[present] / union[present]).mean()) if present.any() else 0.0

    def wrong(self) -> float:
        """Share of the labelled pixels, in percent, whose class is wrong."""
        return 100 * (1 - float(np.diag(self.counts).sum()) / max(1, int(self.counts.sum())))


Case = TypeVar("Case")


def look_at(
    expert: TrainedExpert, dataset: ImageDataset, progress: Callable[[int, int], None] | None = None
) -> list[BoxCase] | list[MaskCase]:
    """Predict every image of `dataset` and compare it with the truth; all cases of one kind."""
    cases: list = []
    for first in range(0, len(dataset), BATCH):
        rows = [dataset.row(index) for index in range(first, min(first + BATCH, len(dataset)))]
        predictions = expert.predict([row.image() for row in rows])
        for row, prediction in zip(rows, predictions, strict=True):
            arrays = {key: value.numpy() for key, value in prediction.items()}
            judge = judge_boxes if "boxes" in arrays else judge_mask
            cases.append(judge(row, arrays, len(expert.model.classes)))
        if progress:
            progress(len(cases), len(dataset))
    return cases


def judge_boxes(row: PreparedRow, prediction: dict[str, np.ndarray], num_classes: int) -> BoxCase:
    """COCO's matching at IoU 0.5: by falling score, each detection takes the best free true box of its class."""
    order = np.argsort(-prediction["scores"], kind="stable")
    boxes, scores, labels = (prediction[key][order] for key in ("boxes", "scores", "labels"))
    predicted, true = torch.from_numpy(boxes).double(), torch.from_numpy(row.boxes).double()
    iou = pairwise_iou(predicted, true).numpy()
    low = torch.maximum(predicted[:, None, :2], true[None, :, :2])
    high = torch.minimum(predicted[:, None, 2:], true[None, :, 2:])
    covered = ((high - low).clamp(min=0).prod(-1) / box_area(predicted)[:, None].clamp(min=1e-9)).numpy()
    hit, neutral, found_at = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool), np.full(len(row.boxes), -1.0)
    for place in range(len(boxes)):
        same = row.labels == labels[place]
        free = np.where(same & ~row.ignored & (found_at < 0), iou[place], 0.0)
        if free.size and free.max() >= ENOUGH_IOU:
            hit[place] = True
            found_at[free.argmax()] = scores[place]
        elif (same & row.ignored & (covered[place] >= ENOUGH_IOU)).any():
            neutral[place] = True
    return BoxCase(row, boxes, scores, labels, hit, neutral, found_at)


def judge_mask(row: PreparedRow, prediction: dict[str, np.ndarray], num_classes: int) -> MaskCase:
    """The image's confusion counts."""
    matrix, truth = ConfusionMatrix(num_classes), row.mask()
    matrix.add(prediction["mask"], truth)
    return MaskCase(row, truth, prediction["mask"], matrix.counts)


def best_threshold(cases: Sequence[BoxCase]) -> float:
    """The score threshold with the best F1 over all cases, to two digits: where pictures and counts are fairest."""
    scores, hit = _sorted_outcomes(cases)
    return best_f1(scores, hit, sum(int((~case.row.ignored).sum()) for case in cases))


def best_f1(scores: np.ndarray, hit: np.ndarray, truth: int) -> float:
    """The threshold, to two digits, with the best F1 for so many true boxes. scores, hit: [K], highest score first."""
    if not len(scores) or not hit.any():
        return 0.3
    right = np.cumsum(hit)
    f1 = 2 * right / (np.arange(1, len(hit) + 1) + truth)
    return float(np.floor(100 * scores[f1.argmax()]) / 100)


def precision_recall(cases: Sequence[BoxCase], label: int) -> tuple[list[tuple[float, float]], int]:
    """(recall, precision) in percent of one class at IoU 0.5, thinned to what a chart can show; and its true boxes.

    Precision is made to fall with recall, as in average precision.
    """
    truth = sum(int(((case.row.labels == label) & ~case.row.ignored).sum()) for case in cases)
    _, hit = _sorted_outcomes(cases, label)
    if truth == 0 or not hit.any():
        return [], truth
    right = np.cumsum(hit)
    precision = 100 * right / np.arange(1, len(hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    recall = 100 * right / truth
    steps = np.flatnonzero(hit)
    steps = steps[np.linspace(0, len(steps) - 1, min(len(steps), 80)).round().astype(int)]
    points = [(float(recall[i]), float(envelope[i])) for i in steps]
    return [(0.0, points[0][1]), *points], truth


def _sorted_outcomes(cases: Sequence[BoxCase], label: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores, highest first, and whether each was right, of all detections that count."""
    kept = [~case.neutral & ((case.labels == label) if label is not None else True) for case in cases]
    scores = np.concatenate([case.scores[keep] for case, keep in zip(cases, kept)] or [np.zeros(0)])
    hit = np.concatenate([case.hit[keep] for case, keep in zip(cases, kept)] or [np.zeros(0, bool)])
    order = np.argsort(-scores, kind="stable")
    return scores[order], hit[order]


def recall_by_condition(cases: Sequence[BoxCase], threshold: float) -> list[tuple[str, float | None, str]]:
    """(condition, share of its true boxes that were found, "found of all"): size, occlusion, truncation, daytime."""
    rows = [case.row for case in cases]
    counted = np.concatenate([~row.ignored for row in rows])
    found = np.concatenate([case.found_at >= threshold for case in cases])[counted]
    # The official metric counts the last pixel in: hence the 1.
    sides = np.concatenate([(row.boxes[:, 2:] - row.boxes[:, :2] + 1) for row in rows])
    area = sides.prod(axis=1)[counted]
    occluded, truncated = (
        np.concatenate([getattr(r, key) for r in rows])[counted] for key in ("occluded", "truncated")
    )
    night = np.concatenate([np.full(len(row.boxes), row.timeofday == "night") for row in rows])[counted]
    conditions = {
        "small (< 32² px)": area < 32**2,
        "medium": (area >= 32**2) & (area < 96**2),
        "large (≥ 96² px)": area >= 96**2,
        "fully visible": ~occluded & ~truncated,
        "occluded": occluded,
        "cut by the frame": truncated,
        "at night": night,
        "at other times": ~night,
    }
    out = []
    for name, chosen in conditions.items():
        all_of_them, those_found = int(chosen.sum()), int(found[chosen].sum())
        share = 100 * those_found / all_of_them if all_of_them else None
        out.append((name, share, "none" if share is None else f"{share:.0f} % of {all_of_them}"))
    return out


def pick(cases: Sequence[Case], score: Callable[[Case], float], count: int) -> list[tuple[str, Case]]:
    """The best, the middling and the worst cases, in equal parts as far as possible, each image once."""
    ordered = sorted(cases, key=score, reverse=True)
    if len(ordered) <= count:
        return [("", case) for case in ordered]
    best, worst = count // 3, -(-count // 3)
    middle = count - best - worst
    start = (len(ordered) - middle) // 2
    chosen = [("best", case) for case in ordered[:best]]
    chosen += [("middling", case) for case in ordered[start : start + middle]]
    return chosen + [("worst", case) for case in ordered[len(ordered) - worst :]]


def draw_box_case(
    case: BoxCase, threshold: float, classes: Sequence[str] = BDD_DETECTION, colors: Sequence[Color] = DETECTION_COLORS
) -> list[tuple[str, np.ndarray]]:
    """Truth (ignore regions dashed) and outcome, as captioned pictures."""
    image = fit_width(case.row.image(), BOX_WIDTH)
    scale = image.shape[1] / case.row.width
    truth = draw_boxes(
        image,
        case.row.boxes * scale,
        case.row.labels,
        classes=classes,
        colors=colors,
        dashed=case.row.ignored,
    )
    # Three sets of class names, one a colour: what is right, what is false, what was missed.
    names, count = (*classes, *classes, *classes), len(classes)
    outcomes = [color for color in (RIGHT_COLOR, FALSE_COLOR, MISSED_COLOR) for _ in range(count)]
    missed = (case.found_at < threshold) & ~case.row.ignored
    outcome = draw_boxes(
        image,
        case.row.boxes[missed] * scale,
        case.row.labels[missed] + 2 * count,
        classes=names,
        colors=outcomes,
        dashed=np.ones(int(missed.sum()), bool),
    )
    sure = (case.scores >= threshold) & ~case.neutral
    labels = case.labels[sure] + np.where(case.hit[sure], 0, count)
    outcome = draw_boxes(outcome, case.boxes[sure] * scale, labels, case.scores[sure], classes=names, colors=outcomes)
    return [("truth", truth), ("outcome", outcome)]


def draw_mask_case(case: MaskCase, kind: str) -> list[tuple[str, np.ndarray]]:
    """Truth, prediction and, on grey, the pixels that are wrong."""
    image = fit_width(case.row.image(), MASK_WIDTH)
    height, width = image.shape[:2]
    rows = (np.arange(height) * 2 + 1) * case.truth.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * case.truth.shape[1] // (2 * width)
    truth, mask = (m[rows][:, columns] for m in (case.truth, case.mask))
    colors, transparent, alpha = (SEMANTIC_COLORS, [], 0.65)
    if kind == "drivable":
        colors, transparent, alpha = (DRIVABLE_COLORS, [DRIVABLE.index("background")], 0.5)
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    wrong = np.where((mask != truth) & (truth != IGNORE_INDEX), 0, IGNORE_INDEX).astype(np.uint8)
    return [
        ("truth", overlay_mask(image, truth, colors, alpha, transparent)),
        ("prediction", overlay_mask(image, mask, colors, alpha, transparent)),
        ("wrong pixels", overlay_mask(grey, wrong, [FALSE_COLOR], 0.75)),
    ]
