"""Segmentation metrics of BDD100K: one global confusion matrix and the official numbers made from it.

Conventions (bdd100k eval/seg.py, scalabel eval/sem_seg.py): 255 in the truth is not looked at; a predicted
value that is no class is wrong wherever the truth is one; classes without truth are left out of the means; a
missing prediction is wrong everywhere. The official "accuracy" of a class divides by the pixels *predicted*
as that class; `mAcc` keeps that definition. For drivable areas the official numbers look at direct and
alternative and skip pixels whose truth is background; the ordinary ones over three classes stand beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from automoe.errors import DataError
from automoe.machine import available_cores
from automoe.metrics.scalabel import Frame, check_names, frame_mask, pair_frames, read_frames
from automoe.taxonomy import DRIVABLE, DRIVABLE_OFFICIAL, IGNORE_INDEX, SEMANTIC

SegmentationTask = Literal["drivable", "segmentation"]
Scores = dict[str, float | None]

_NO_CLASS = 255  # a prediction that is certainly none of the classes


class ConfusionMatrix:
    """Counts of pixels, int64 [num_classes, num_classes + 1]: truth by row, prediction by column.

    The last column holds predictions that are no class.
    """

    def __init__(self, num_classes: int) -> None:
        if not 0 < num_classes < IGNORE_INDEX:
            raise ValueError(f"num_classes is {num_classes}; 1 to {IGNORE_INDEX - 1} fit 8-bit masks")
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes + 1), dtype=np.int64)

    def add(self, pred: Any, target: Any) -> None:
        """Count the pixels of a predicted and a true mask of class indices, of one shape.

        Target pixels of 255 are skipped. Raises DataError for shapes that differ or a target value that is
        neither a class nor 255.
        """
        pred, target = np.asarray(pred), np.asarray(target)
        if pred.shape != target.shape:
            raise DataError(f"the predicted mask is {_size(pred)} and the true one {_size(target)}; sizes must agree.")
        # One pass over all pairs of bytes, from which the few that matter are taken: no pixel is masked.
        pairs = (_as_bytes(target, "truth").astype(np.uint16) << 8) | _as_bytes(pred, "prediction")
        table = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
        strange = np.flatnonzero(table[self.num_classes : IGNORE_INDEX].sum(axis=1))
        if strange.size:
            raise DataError(
                f"the true mask holds the value {self.num_classes + int(strange[0])}, which is neither "
                f"a class (0 to {self.num_classes - 1}) nor {IGNORE_INDEX} (ignore)."
            )
        self.counts[:, :-1] += table[: self.num_classes, : self.num_classes]
        self.counts[:, -1] += table[: self.num_classes, self.num_classes :].sum(axis=1)

    def merge(self, others: Iterable[ConfusionMatrix]) -> None:
        """Add the counts of other matrices."""
        for other in others:
            self.counts += other.counts

    def compute(self, classes: Sequence[str]) -> Scores:
        """mIoU, mAcc, fIoU, pAcc and IoU/<class> in percent; None for classes without truth."""
        if len(classes) != self.num_classes:
            raise ValueError(f"{len(classes)} names for {self.num_classes} classes")
        return _official_scores(self.counts, classes)


def _as_bytes(mask: np.ndarray, role: str) -> np.ndarray:
    """The mask as uint8. Predictions outside of 0-255 are no class; such a truth is refused."""
    if mask.dtype == np.uint8:
        return mask
    if mask.dtype.kind not in "iub":
        raise DataError(f"the {role} mask holds {mask.dtype} values; class indices are whole numbers.")
    outside = (mask < 0) | (mask > 255)
    if role == "truth" and outside.any():
        value = mask[outside].flat[0]
        raise DataError(f"the true mask holds the value {value}, which is no class.")
    return np.where(outside, _NO_CLASS, mask).astype(np.uint8)


def _size(mask: np.ndarray) -> str:
    return f"{mask.shape[1]}x{mask.shape[0]}" if mask.ndim == 2 else f"of shape {mask.shape}"


def _class_iou(counts: np.ndarray) -> np.ndarray:
    """IoU of each class [C]; 0 where a class has no pixel at all."""
    right = np.diag(counts).astype(np.float64)
    union = counts.sum(axis=1) + counts.sum(axis=0)[:-1] - right
    return np.divide(right, union, out=np.zeros_like(right), where=union > 0)


def _official_scores(counts: np.ndarray, classes: Sequence[str]) -> Scores:
    right = np.diag(counts).astype(np.float64)
    truth, predicted = counts.sum(axis=1), counts.sum(axis=0)[:-1]
    present = truth > 0
    iou = _class_iou(counts)
    accuracy = np.divide(right, predicted, out=np.zeros_like(right), where=predicted > 0)
    scores: Scores = dict.fromkeys(("mIoU", "mAcc", "fIoU", "pAcc"))
    if present.any():
        scores["mIoU"] = 100 * float(iou[present].mean())
        scores["mAcc"] = 100 * float(accuracy[present].mean())
        scores["fIoU"] = 100 * float((iou * truth).sum() / truth.sum())
        scores["pAcc"] = 100 * float(right.sum() / truth.sum())
    for name, value, has_truth in zip(classes, iou, present):
        scores[f"IoU/{name}"] = 100 * float(value) if has_truth else None
    return scores


def _drivable_scores(counts: np.ndarray) -> Scores:
    """Official drivable numbers from three-class counts [3, 4], with the ordinary ones beside them."""
    official = len(DRIVABLE_OFFICIAL)
    kept = np.concatenate([counts[:official, :official], counts[:official, official:].sum(1, keepdims=True)], 1)
    scores = _official_scores(kept, DRIVABLE_OFFICIAL)
    ordinary = _official_scores(counts, DRIVABLE)
    scores["mIoU_3class"] = ordinary["mIoU"]
    for name in DRIVABLE:
        scores[f"IoU_3class/{name}"] = ordinary[f"IoU/{name}"]
    return scores


class SegmentationMetrics:
    """Drivable or semantic metrics accumulated sample by sample.

    Each sample's counts are kept by its id, so that a sample counts once whichever process adds it and
    however often; the result does not depend on the order of samples, nor on the number of processes.
    """

    def __init__(self, task: SegmentationTask) -> None:
        if task not in ("drivable", "segmentation"):
            raise ValueError(f"task is {task!r}; 'drivable' or 'segmentation' are possible")
        self.task = task
        self.classes = DRIVABLE if task == "drivable" else SEMANTIC
        self._counts: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, sample_id: str, pred: Any, target: Any) -> None:
        """Add one sample's predicted and true mask [H, W] of class indices (255 in the truth is skipped).

        Anything that numpy can read will do, tensors on the CPU included. Raises DataError with the sample's
        id for masks that do not fit.
        """
        matrix = ConfusionMatrix(len(self.classes))
        try:
            matrix.add(pred, target)
        except DataError as error:
            raise DataError(f"{sample_id}: {error}") from error
        self.add_counts(sample_id, matrix.counts)

    def add_missing(self, sample_id: str, target: Any) -> None:
        """Add a sample that has no prediction: every pixel of it is wrong."""
        target = np.asarray(target)
        self.add(sample_id, np.full(target.shape, _NO_CLASS, dtype=np.uint8), target)

    def add_counts(self, sample_id: str, counts: Any) -> None:
        """Add a sample counted elsewhere, on a GPU say: [C, C + 1] as in `ConfusionMatrix.counts`."""
        counts = np.asarray(counts, dtype=np.int64)
        shape = (len(self.classes), len(self.classes) + 1)
        if counts.shape != shape:
            raise ValueError(f"{sample_id}: counts of shape {counts.shape}, {shape} is needed")
        known = self._counts.get(sample_id)
        # Two processes may predict a repeated sample with different rounding: any fixed order picks one.
        if known is None or counts.tobytes() < known.tobytes():
            self._counts[sample_id] = counts

    def state(self) -> dict[str, np.ndarray]:
        """What was added, as plain picklable objects (numpy arrays, no tensors), for `merge` elsewhere."""
        return dict(self._counts)

    def merge(self, states: Iterable[Mapping[str, np.ndarray]]) -> None:
        """Add the states of other processes; a sample that is already here counts once."""
        for state in states:
            for sample_id, counts in state.items():
                self.add_counts(sample_id, counts)

    def confusion(self) -> np.ndarray:
        """The global counts, int64 [C, C + 1]."""
        start = np.zeros((len(self.classes), len(self.classes) + 1), dtype=np.int64)
        return sum(self._counts.values(), start=start)

    def compute(self) -> Scores:
        """mIoU mAcc fIoU pAcc IoU/<class> in percent, None where there is no truth; for drivable areas these
        are the official two-class numbers, followed by mIoU_3class and IoU_3class/<class>."""
        counts = self.confusion()
        return _drivable_scores(counts) if self.task == "drivable" else _official_scores(counts, self.classes)


@dataclass(frozen=True)
class MaskRecord:
    """A mask that is read when it is needed; `load` gives None where a label file draws nothing and tells no
    size, which then stands for a mask of `fill`."""

    where: str
    load: Callable[[], np.ndarray | None]
    fill: int = IGNORE_INDEX


def score_segmentation(task: SegmentationTask, truth: Path, predicted: Path) -> Scores:
    """Score predicted masks against true ones, each a folder of PNG masks, a run-length label JSON, or a
    folder of those. Masks meet by file stem, are read one at a time by each worker, and must agree in size.

    A mask without prediction counts as all wrong, a prediction without truth is not scored (both are warned
    of). Raises DataError with file and record for whatever can't be read or doesn't fit.
    """
    metrics = SegmentationMetrics(task)
    pairs = _pair_masks(task, Path(truth), Path(predicted))

    def count(name: str) -> tuple[str, np.ndarray]:
        one = SegmentationMetrics(task)
        _score_pair(one, name, *pairs[name])
        return name, one.confusion()

    # Decoding a PNG releases the interpreter lock; a worker holds two masks at most.
    with ThreadPoolExecutor(max_workers=min(8, available_cores())) as workers:
        for name, counts in workers.map(count, pairs):
            metrics.add_counts(name, counts)
    return metrics.compute()


def _score_pair(metrics: SegmentationMetrics, name: str, truth: MaskRecord, predicted: MaskRecord | None) -> None:
    target = truth.load()
    pred = predicted.load() if predicted is not None else None
    if target is None and pred is not None:
        target = np.full(pred.shape, truth.fill, dtype=np.uint8)
    if target is None:
        return  # neither side has a size: not one pixel to look at
    if predicted is None:
        metrics.add_missing(name, target)
        return
    if pred is None:
        pred = np.full(target.shape, predicted.fill, dtype=np.uint8)
    if pred.shape != target.shape:
        raise DataError(
            f"{predicted.where} is {_size(pred)}, but its ground truth {truth.where} is {_size(target)}; "
            "predictions must have the size of the ground truth."
        )
    metrics.add(truth.where, pred, target)


def _pair_masks(
    task: SegmentationTask, truth: Path, predicted: Path
) -> dict[str, tuple[MaskRecord, MaskRecord | None]]:
    if _is_json(truth) and _is_json(predicted):
        return _pair_frame_masks(task, truth, predicted)
    true_masks = _open_masks(task, truth, strict=False)
    predicted_masks = _open_masks(task, predicted, strict=True)
    check_names(true_masks, predicted_masks)
    return {name: (mask, predicted_masks.get(name)) for name, mask in true_masks.items()}


def _is_json(path: Path) -> bool:
    """Whether the path is a label file or a folder of them. Raises DataError where it is nothing to score."""
    if path.is_file():
        if path.suffix == ".json":
            return True
        raise DataError(f"{path} is not a label JSON; give a .json file or a folder of PNG masks.")
    if not path.is_dir():
        raise DataError(f"{path} does not exist; give a folder of PNG masks or a label JSON.")
    if next(path.rglob("*.png"), None) is not None:
        return False
    if next(path.glob("*.json"), None) is not None:
        return True
    raise DataError(f"{path} holds neither .png masks nor .json label files.")


def _pair_frame_masks(
    task: SegmentationTask, truth: Path, predicted: Path
) -> dict[str, tuple[MaskRecord, MaskRecord | None]]:
    pairs = pair_frames(read_frames(truth), read_frames(predicted))
    return {
        f"{frame.video}/{frame.name}": (
            _frame_record(task, frame, strict=False),
            None if pred is None else _frame_record(task, pred, strict=True),
        )
        for frame, pred in pairs
    }


def _frame_record(task: SegmentationTask, frame: Frame, strict: bool) -> MaskRecord:
    # What a drivable label file does not paint is background; in a semantic one it is unlabelled.
    classes = DRIVABLE_OFFICIAL if task == "drivable" else SEMANTIC
    fill = DRIVABLE.index("background") if task == "drivable" else IGNORE_INDEX
    return MaskRecord(frame.where, lambda: frame_mask(frame, classes, fill, strict), fill)


def _open_masks(task: SegmentationTask, path: Path, strict: bool) -> dict[str, MaskRecord]:
    """Masks by stem. Nothing is decoded yet."""
    if _is_json(path):
        frames = read_frames(path)
        entries = [(frame.stem, _frame_record(task, frame, strict)) for frame in frames]
    else:
        files = sorted(path.rglob("*.png"))
        entries = [(file.stem, MaskRecord(str(file), lambda file=file: read_mask(file))) for file in files]
    masks: dict[str, MaskRecord] = {}
    for name, record in entries:
        if name in masks:
            raise DataError(f"{record.where} has the name of {masks[name].where}; each frame may appear once.")
        masks[name] = record
    return masks


def read_mask(file: Path) -> np.ndarray:
    """Read a PNG of class indices as [H, W]: grey of any depth, or palette (the indices count).

    Raises DataError for a file that cannot be decoded or is a colour picture.
    """
    try:
        with Image.open(file) as image:
            image.load()
            mode, mask = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a picture ({error}); write or download it again.") from error
    if mask.ndim != 2:
        raise DataError(
            f"{file} is a picture of mode {mode}, not a mask of class indices; "
            "use the masks and not the pictures coloured for the eye."
        )
    return mask
