"""Detection metrics of BDD100K: COCO average precision and recall under the official conventions.

Conventions (scalabel eval/detect.py and label/to_coco.py): a box's width is x2 - x1 + 1 and its height
y2 - y1 + 1 in raw pixels, area ranges are COCO's on that area, at most 100 detections count for each image
and class, and crowd boxes and ignored categories are regions in which a detection is neither right nor wrong.
The matching itself is faster-coco-eval's. `DetectionMetrics` accumulates samples while training and merges
what several processes gathered; `score_detection` scores label files with the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from automoe.errors import DataError
from automoe.metrics.scalabel import Frame, frame_boxes, pair_frames
from automoe.taxonomy import BDD_DETECTION

MAX_DETECTIONS: tuple[int, ...] = (1, 10, 100)
_AREAS = ("all", "small", "medium", "large")
_IOU_50, _IOU_75 = 0, 5  # positions in COCO's thresholds 0.50, 0.55, ..., 0.95

Scores = dict[str, float | None]


class SampleDetections(NamedTuple):
    """One sample's truth and predictions as numpy arrays; boxes are raw pixels xyxy."""

    gt_boxes_xyxy: np.ndarray
    gt_labels: np.ndarray
    gt_ignored: np.ndarray
    pred_boxes_xyxy: np.ndarray
    pred_scores: np.ndarray
    pred_labels: np.ndarray

    def content(self) -> bytes:
        """All values as bytes: an order among different versions of one sample."""
        return b"".join(np.ascontiguousarray(values).tobytes() for values in self)


class DetectionMetrics:
    """COCO detection metrics accumulated sample by sample.

    A sample counts once, whichever process adds it and however often (distributed samplers repeat samples to
    fill up); the result does not depend on the order of samples, nor on the number of processes.
    """

    def __init__(self, classes: Sequence[str] = BDD_DETECTION) -> None:
        self.classes = tuple(classes)
        self._samples: dict[str, SampleDetections] = {}
        self._evaluated: _Evaluation | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def add(
        self,
        sample_id: str,
        gt_boxes_xyxy: Any,
        gt_labels: Any,
        gt_ignored: Any,
        pred_boxes_xyxy: Any,
        pred_scores: Any,
        pred_labels: Any,
    ) -> None:
        """Add one sample: boxes [N, 4] in raw pixels xyxy, labels [N] as indices in `classes`, scores [N].

        Anything that numpy can read will do, tensors on the CPU included. Raises DataError with the sample's
        id for a value that is not finite or a label that is not a class, ValueError for shapes that disagree.
        """
        truth = _read_boxes(sample_id, "truth", gt_boxes_xyxy, gt_labels, gt_ignored, bool, self.classes)
        predicted = _read_boxes(
            sample_id, "prediction", pred_boxes_xyxy, pred_labels, pred_scores, np.float64, self.classes
        )
        boxes, labels, scores = predicted
        self._put(sample_id, SampleDetections(*truth, boxes, scores, labels))

    def _put(self, sample_id: str, sample: SampleDetections) -> None:
        known = self._samples.get(sample_id)
        # Two processes may predict a repeated sample with different rounding: any fixed order picks one.
        if known is None or sample.content() < known.content():
            self._samples[sample_id] = sample
            self._evaluated = None

    def state(self) -> dict[str, SampleDetections]:
        """What was added, as plain picklable objects (numpy arrays, no tensors), for `merge` elsewhere."""
        return dict(self._samples)

    def merge(self, states: Iterable[Mapping[str, SampleDetections]]) -> None:
        """Add the states of other processes; a sample that is already here counts once."""
        for state in states:
            for sample_id, sample in state.items():
                self._put(sample_id, sample)

    def truth_counts(self) -> dict[str, int]:
        """Number of true boxes by class, ignore regions left out."""
        counts = np.zeros(len(self.classes), dtype=np.int64)
        for sample in self._samples.values():
            labels = sample.gt_labels[~sample.gt_ignored]
            counts += np.bincount(labels, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist()))

    def compute(self) -> Scores:
        """All metrics in percent under the official names, with AP50/<class> beside AP/<class>.

        None stands for what has no truth: an absent class, or a size that no box has. As in the official
        tool, without a single prediction every metric of annotated classes is 0.
        """
        return self._evaluation().summary(self.classes)

    def ap50_over(self, classes: Iterable[str]) -> float | None:
        """Mean AP50 in percent over those of the given classes that have truth; None where none has."""
        scores = self.compute()
        values = [scores[f"AP50/{name}"] for name in classes]
        present = [value for value in values if value is not None]
        return float(np.mean(present)) if present else None

    def _evaluation(self) -> _Evaluation:
        if self._evaluated is None:
            self._evaluated = _evaluate([self._samples[key] for key in sorted(self._samples)], self.classes)
        return self._evaluated


def _read_boxes(
    sample_id: str, role: str, boxes: Any, labels: Any, extra: Any, extra_type: Any, classes: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checked copies of boxes, labels and flags or scores."""
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    labels = np.array(labels, dtype=np.int64).reshape(-1)
    extra = np.array(extra, dtype=extra_type).reshape(-1)
    if not len(boxes) == len(labels) == len(extra):
        raise ValueError(f"{sample_id}, {role}: {len(boxes)} boxes, {len(labels)} labels, {len(extra)} values")
    if not np.isfinite(boxes).all():
        raise DataError(f"Sample {sample_id}: a {role} box is not finite; look at what made it.")
    if not np.isfinite(extra).all():
        raise DataError(f"Sample {sample_id}: a {role} score is not finite; look at what made it.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise DataError(
            f"Sample {sample_id}: a {role} label is outside of the {len(classes)} classes "
            f"({labels.min()} to {labels.max()} were seen)."
        )
    return boxes, labels, extra


class _Evaluation(NamedTuple):
    """COCO's tables, -1 where there is no truth: precision [10 IoU, 101 recall, class, area, max detections],
    recall [10 IoU, class, area, max detections]."""

    precision: np.ndarray
    recall: np.ndarray

    def summary(self, classes: tuple[str, ...]) -> Scores:
        scores: Scores = {
            "AP": _mean(self.precision[..., 0, -1]),
            "AP50": _mean(self.precision[_IOU_50, ..., 0, -1]),
            "AP75": _mean(self.precision[_IOU_75, ..., 0, -1]),
        }
        for index, area in enumerate(_AREAS[1:], start=1):
            scores[f"AP{area[0]}"] = _mean(self.precision[..., index, -1])
        for index, count in enumerate(MAX_DETECTIONS):
            scores[f"AR{count}"] = _mean(self.recall[..., 0, index])
        for index, area in enumerate(_AREAS[1:], start=1):
            scores[f"AR{area[0]}"] = _mean(self.recall[..., index, -1])
        for index, name in enumerate(classes):
            scores[f"AP/{name}"] = _mean(self.precision[:, :, index, 0, -1])
        for index, name in enumerate(classes):
            scores[f"AP50/{name}"] = _mean(self.precision[_IOU_50, :, index, 0, -1])
        return scores


def _mean(table: np.ndarray) -> float | None:
    """Mean in percent of the entries that have truth."""
    values = table[table > -1]
    return 100.0 * float(values.mean()) if values.size else None


def _evaluate(samples: Sequence[SampleDetections], classes: tuple[str, ...]) -> _Evaluation:
    if not any(len(sample.pred_labels) for sample in samples):
        return _evaluate_nothing(samples, len(classes))
    # Imported here so that reading label files and scoring masks do not load it.
    from faster_coco_eval import COCO, COCOeval_faster

    images = [{"id": index} for index in range(1, len(samples) + 1)]
    categories = [{"id": index, "name": name} for index, name in enumerate(classes, start=1)]
    truth = {"images": images, "categories": categories, "annotations": _truth_annotations(samples)}
    predicted = {"images": images, "categories": categories, "annotations": _pred_annotations(samples)}
    evaluator = COCOeval_faster(COCO(truth), COCO(predicted), iouType="bbox")
    evaluator.params.maxDets = list(MAX_DETECTIONS)
    evaluator.evaluate()
    evaluator.accumulate()
    return _Evaluation(np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"]))


def _evaluate_nothing(samples: Sequence[SampleDetections], num_classes: int) -> _Evaluation:
    """The official answer to no prediction at all: 0 for each class with any annotation, ignored ones too."""
    annotated = np.zeros(num_classes, dtype=bool)
    for sample in samples:
        annotated[sample.gt_labels] = True
    value = np.where(annotated, 0.0, -1.0)[:, None, None]
    shape = (num_classes, len(_AREAS), len(MAX_DETECTIONS))
    return _Evaluation(np.broadcast_to(value, (10, 101, *shape)), np.broadcast_to(value, (10, *shape)))


def _truth_annotations(samples: Sequence[SampleDetections]) -> list[dict[str, Any]]:
    parts = ((s.gt_boxes_xyxy, s.gt_labels, s.gt_ignored.astype(int)) for s in samples)
    return _annotations(parts, "iscrowd")


def _pred_annotations(samples: Sequence[SampleDetections]) -> list[dict[str, Any]]:
    return _annotations(((s.pred_boxes_xyxy, s.pred_labels, s.pred_scores) for s in samples), "score")


def _annotations(parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], key: str) -> list[dict[str, Any]]:
    """COCO's annotations: per sample its boxes [N, 4] xyxy, labels [N], and the values [N] that go under `key`."""
    annotations = []
    for image_id, (boxes_xyxy, labels, values) in enumerate(parts, start=1):
        boxes = _boxes_xywh(boxes_xyxy)
        areas = (boxes[:, 2] * boxes[:, 3]).tolist()
        for box, area, label, value in zip(boxes.tolist(), areas, labels.tolist(), values.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": area,
                    key: value,
                }
            )
    return annotations


def _boxes_xywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """[N, 4] x, y, width, height of boxes whose last pixel is inside: the official + 1."""
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] + 1.0], axis=1)


def score_detection(truth: Sequence[Frame], predicted: Sequence[Frame]) -> Scores:
    """Score predicted frames against true ones (`automoe.metrics.scalabel.read_frames`); see `compute`.

    A frame without prediction counts as empty, a prediction without truth is not scored (both are warned of).
    Raises DataError, naming file and record, for an unknown class, a broken box, a missing or non-finite
    score, or a frame given twice.
    """
    metrics = DetectionMetrics()
    for truth_frame, predicted_frame in pair_frames(truth, predicted):
        gt = frame_boxes(truth_frame, need_scores=False)
        pred = frame_boxes(predicted_frame or replace(truth_frame, labels=[]), need_scores=True)
        # The name comes first: images then stand in the official order, which matters for equal scores.
        sample_id = f"{truth_frame.name} {truth_frame.video or ''}"
        metrics.add(sample_id, gt.boxes_xyxy, gt.labels, gt.ignored, pred.boxes_xyxy, pred.scores, pred.labels)
    return metrics.compute()
