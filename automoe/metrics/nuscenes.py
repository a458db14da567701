"""nuScenes detection metrics: mAP, the five true-positive errors and NDS, as the official devkit computes them.

Definitions (nuscenes-devkit eval/detection, configuration detection_cvpr_2019; Caesar et al., CVPR 2020): a detection
is right if the nearest truth of its class and sample that is still free lies closer than a threshold, seen from above;
AP is taken over recall and precision above 0.1 and averaged over thresholds of 0.5, 1, 2 and 4 m; the errors are those
of right detections at 2 m, averaged over recall; NDS weighs mAP five and each error one. All scores are fractions.

`NuscenesMetrics` accumulates samples while training and merges what several processes gathered; scoring a submission
file ends in the same code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numba
import numpy as np

from automoe.errors import DataError
from automoe.poses import points_inside
from automoe.taxonomy import NUSCENES_DETECTION, NUSCENES_RANGE

DISTANCES: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
TP_DISTANCE = 2.0
MIN_RECALL = 0.1
MIN_PRECISION = 0.1
MAX_BOXES = 500
"""A sample with more predicted boxes is not scored but refused."""

ERRORS: tuple[str, ...] = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
ERROR_NAMES: dict[str, str] = dict(zip(ERRORS, ("ATE", "ASE", "AOE", "AVE", "AAE")))
UNDEFINED: dict[str, tuple[str, ...]] = {
    "traffic_cone": ("attr_err", "vel_err", "orient_err"),
    "barrier": ("attr_err", "vel_err"),
}
"""Errors that mean nothing for a class."""

_RECALL = np.linspace(0, 1, 101)
_FIRST = round(100 * MIN_RECALL) + 1  # the first of these recalls that counts

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Boxes3D:
    """Truth or predictions of one sample or of many, a row a box, in nuScenes' global frame.

    translation: [N, 3] metres, centre. size: [N, 3] metres, width, length, height. yaw: [N] radians. velocity: [N, 2]
    m/s, NaN where unknown. label: int [N], index in NUSCENES_DETECTION. attribute: int [N], index in
    NUSCENES_ATTRIBUTES, -1 for none. score: [N], -1 for truth. points: int [N], LiDAR and radar points inside, -1 for
    predictions.
    """

    translation: np.ndarray
    size: np.ndarray
    yaw: np.ndarray
    velocity: np.ndarray
    label: np.ndarray
    attribute: np.ndarray
    score: np.ndarray
    points: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Any) -> Boxes3D:
        """The boxes of an index array, a mask or a slice."""
        return Boxes3D(*(getattr(self, one.name)[rows] for one in fields(self)))

    @classmethod
    def empty(cls) -> Boxes3D:
        return cls.of([], [], [], [], [], [], [], [])

    @classmethod
    def of(
        cls,
        translation: Any,
        size: Any,
        yaw: Any,
        velocity: Any,
        label: Any,
        attribute: Any,
        score: Any = None,
        points: Any = None,
    ) -> Boxes3D:
        """From whatever numpy reads. score and points are -1 where not given."""
        label = np.asarray(label, np.int64).reshape(-1)
        count = len(label)
        return cls(
            np.asarray(translation, np.float64).reshape(count, 3),
            np.asarray(size, np.float64).reshape(count, 3),
            np.asarray(yaw, np.float64).reshape(count),
            np.asarray(velocity, np.float64).reshape(count, 2),
            label,
            np.asarray(attribute, np.int64).reshape(count),
            np.full(count, -1.0) if score is None else np.asarray(score, np.float64).reshape(count),
            np.full(count, -1) if points is None else np.asarray(points, np.int64).reshape(count),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Boxes3D]) -> Boxes3D:
        if not parts:
            return cls.empty()
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))

    def check(self, where: str) -> None:
        """Raise DataError naming `where` for what the devkit would refuse."""
        for name in ("translation", "size", "yaw", "score"):
            values = getattr(self, name)
            bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            if bad.any():
                raise DataError(f"{where}: box {int(bad.argmax())} has a {name} that is not a number.")
        flat = ~(self.size > 0).all(axis=1)
        if flat.any():
            box = int(flat.argmax())
            raise DataError(f"{where}: box {box} has the size {self.size[box].tolist()}; every side must be positive.")


@dataclass(frozen=True)
class Curve:
    """One class at one distance threshold, at 101 recalls from 0 to 1.

    precision and confidence are 0 beyond the recall that was reached; errors: cumulative means, by name.
    """

    precision: np.ndarray
    confidence: np.ndarray
    errors: dict[str, np.ndarray]

    @property
    def average_precision(self) -> float:
        """Mean of the precision above 0.1 over recalls above 0.1, scaled to 1."""
        above = np.clip(self.precision[_FIRST:] - MIN_PRECISION, 0, None)
        return float(above.mean()) / (1 - MIN_PRECISION)

    def error(self, name: str) -> float:
        """Mean error over recalls from 0.1 to what was reached; 1 where that is not reached."""
        reached = np.flatnonzero(self.confidence)
        last = int(reached[-1]) if len(reached) else 0
        return 1.0 if last < _FIRST else float(self.errors[name][_FIRST : last + 1].mean())


NOTHING_RIGHT = Curve(np.zeros(101), np.zeros(101), {name: np.ones(101) for name in ERRORS})


@dataclass(frozen=True)
class NuscenesScores:
    """Everything that is known about a set of predictions; `metrics` is what people quote."""

    curves: dict[tuple[str, float], Curve]
    metrics: Scores


def filter_boxes(boxes: Boxes3D, ego_xy: np.ndarray, racks: np.ndarray | None = None) -> np.ndarray:
    """Which boxes [N] of one sample are scored: near enough for their class, not empty, in no bicycle rack.

    ego_xy: [2] global metres, at the LiDAR's time. racks: [R, 7] global x, y, z, l, w, h, yaw.
    """
    limit = np.array([NUSCENES_RANGE[name] for name in NUSCENES_DETECTION])
    apart = boxes.translation[:, :2] - ego_xy
    keep = (np.sqrt((apart**2).sum(axis=1)) < limit[boxes.label]) & (boxes.points != 0)
    if racks is not None and len(racks):
        cycles = [NUSCENES_DETECTION.index(name) for name in ("bicycle", "motorcycle")]
        keep &= ~(np.isin(boxes.label, cycles) & points_inside(boxes.translation, racks).any(axis=1))
    return keep


def evaluate(truth: Sequence[Boxes3D], predicted: Sequence[Boxes3D]) -> NuscenesScores:
    """Score predictions, a list entry a sample, after filtering. The order of samples only breaks ties of scores."""
    all_truth, truth_sample = _flatten(truth)
    all_predicted, predicted_sample = _flatten(predicted)
    curves = {}
    for label, name in enumerate(NUSCENES_DETECTION):
        own, theirs = all_truth.label == label, all_predicted.label == label
        for distance in DISTANCES:
            curves[name, distance] = class_curve(
                all_truth[own],
                truth_sample[own],
                all_predicted[theirs],
                predicted_sample[theirs],
                len(truth),
                distance,
                symmetric=name == "barrier",
            )
    return NuscenesScores(curves, summarise(curves))


def class_curve(
    truth: Boxes3D,
    truth_sample: np.ndarray,
    predicted: Boxes3D,
    predicted_sample: np.ndarray,
    samples: int,
    distance: float,
    *,
    symmetric: bool = False,
) -> Curve:
    """The curve of one class. *_sample: int [N], the sample of each box, ascending. symmetric: front is back."""
    if not len(truth):
        return NOTHING_RIGHT
    order = np.lexsort((np.arange(len(predicted)), predicted.score))[::-1]
    predicted, predicted_sample = predicted[order], predicted_sample[order]
    starts = np.searchsorted(truth_sample, np.arange(samples + 1))
    match = _match(
        predicted.translation[:, :2].copy(), predicted_sample, truth.translation[:, :2].copy(), starts, distance
    )
    right = match >= 0
    if not right.any():
        return NOTHING_RIGHT
    hits = np.cumsum(right)
    recall = hits / len(truth)
    precision = hits / np.arange(1, len(right) + 1)
    at_precision = np.interp(_RECALL, recall, precision, right=0)
    at_confidence = np.interp(_RECALL, recall, predicted.score, right=0)
    confidence = predicted.score[right]
    errors = {}
    for name, values in _errors(truth[match[right]], predicted[right], symmetric).items():
        # numpy interpolates over rising numbers; confidences fall.
        means = np.interp(at_confidence[::-1], confidence[::-1], _cumulative_mean(values)[::-1])
        errors[name] = means[::-1]
    return Curve(at_precision, at_confidence, errors)


@numba.njit(cache=True)
def _match(
    predicted_xy: np.ndarray, predicted_sample: np.ndarray, truth_xy: np.ndarray, starts: np.ndarray, distance: float
) -> np.ndarray:  # pragma: no cover - compiled
    """For each prediction, best first, the nearest free truth of its sample if nearer than `distance`, else -1."""
    match = np.full(len(predicted_xy), -1, np.int64)
    free = np.ones(len(truth_xy), np.bool_)
    for row in range(len(predicted_xy)):
        nearest, best = np.inf, -1
        sample = predicted_sample[row]
        for other in range(starts[sample], starts[sample + 1]):
            if free[other]:
                dx = predicted_xy[row, 0] - truth_xy[other, 0]
                dy = predicted_xy[row, 1] - truth_xy[other, 1]
                apart = math.sqrt(dx * dx + dy * dy)
                if apart < nearest:
                    nearest, best = apart, other
        if nearest < distance:
            match[row] = best
            free[best] = False
    return match


def _errors(truth: Boxes3D, predicted: Boxes3D, symmetric: bool) -> dict[str, np.ndarray]:
    """The five errors of right detections beside their truth; NaN where the truth doesn't say."""
    shared = np.minimum(truth.size, predicted.size).prod(axis=1)
    period = np.pi if symmetric else 2 * np.pi
    turn = np.mod(truth.yaw - predicted.yaw + period / 2, period) - period / 2
    wrong = (truth.attribute != predicted.attribute).astype(np.float64)
    return {
        "trans_err": np.linalg.norm(predicted.translation[:, :2] - truth.translation[:, :2], axis=1),
        "scale_err": 1 - shared / (truth.size.prod(axis=1) + predicted.size.prod(axis=1) - shared),
        "orient_err": np.abs(turn),
        "vel_err": np.linalg.norm(predicted.velocity - truth.velocity, axis=1),
        "attr_err": np.where(truth.attribute < 0, np.nan, wrong),
    }


def _cumulative_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the values up to each, NaNs left out: 0 while there are only NaNs, 1 if there is nothing else."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    count = np.cumsum(known)
    return np.divide(np.nancumsum(values), count, out=np.zeros(len(values)), where=count > 0)


def _flatten(samples: Sequence[Boxes3D]) -> tuple[Boxes3D, np.ndarray]:
    return Boxes3D.concatenate(samples), np.repeat(np.arange(len(samples)), [len(one) for one in samples])


def summarise(curves: Mapping[tuple[str, float], Curve]) -> Scores:
    precision = {key: curve.average_precision for key, curve in curves.items()}
    of_class = {name: float(np.mean([precision[name, d] for d in DISTANCES])) for name in NUSCENES_DETECTION}
    errors = {
        (error, name): None if error in UNDEFINED.get(name, ()) else curves[name, TP_DISTANCE].error(error)
        for error in ERRORS
        for name in NUSCENES_DETECTION
    }
    means = {}
    for error in ERRORS:
        defined = [value for name in NUSCENES_DETECTION if (value := errors[error, name]) is not None]
        means[error] = float(np.mean(defined))
    mean_precision = float(np.mean(list(of_class.values())))
    score = (5 * mean_precision + sum(max(0.0, 1 - value) for value in means.values())) / 10
    metrics: Scores = {"mAP": mean_precision, "NDS": score}
    metrics |= {f"m{ERROR_NAMES[error]}": means[error] for error in ERRORS}
    metrics |= {f"AP/{name}": value for name, value in of_class.items()}
    metrics |= {f"AP@{d:g}m/{name}": precision[name, d] for d in DISTANCES for name in NUSCENES_DETECTION}
    metrics |= {f"{ERROR_NAMES[error]}/{name}": errors[error, name] for error, name in errors}
    return metrics


@dataclass(frozen=True)
class _Sample:
    truth: Boxes3D
    predicted: Boxes3D

    def content(self) -> bytes:
        """All values as bytes: an order among different versions of one sample."""
        parts = [getattr(side, one.name) for side in (self.truth, self.predicted) for one in fields(Boxes3D)]
        return b"".join(np.ascontiguousarray(values).tobytes() for values in parts)


class NuscenesMetrics:
    """nuScenes metrics accumulated sample by sample.

    A sample counts once, whichever process adds it and however often; the result depends neither on the order of
    samples nor on the number of processes.
    """

    def __init__(self) -> None:
        self._samples: dict[str, _Sample] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def add(
        self,
        sample_token: str,
        truth: Boxes3D,
        predicted: Boxes3D,
        ego_xy: Any,
        racks: np.ndarray | None = None,
    ) -> None:
        """Add one sample, unfiltered. ego_xy and racks as for `filter_boxes`.

        Raises DataError naming the sample for what the devkit would refuse, more than 500 predictions included.
        """
        where = f"sample {sample_token}"
        if len(predicted) > MAX_BOXES:
            raise DataError(f"{where} has {len(predicted)} predicted boxes; nuScenes allows {MAX_BOXES}.")
        truth.check(f"truth of {where}")
        predicted.check(f"prediction for {where}")
        ego_xy = np.asarray(ego_xy, np.float64).reshape(2)
        sample = _Sample(truth[filter_boxes(truth, ego_xy, racks)], predicted[filter_boxes(predicted, ego_xy, racks)])
        self._put(sample_token, sample)

    def _put(self, token: str, sample: _Sample) -> None:
        known = self._samples.get(token)
        if known is None or sample.content() < known.content():
            self._samples[token] = sample

    def predictions(self) -> dict[str, Boxes3D]:
        """The predicted boxes that count, those within their classes' ranges, by sample token."""
        return {token: self._samples[token].predicted for token in sorted(self._samples)}

    def state(self) -> dict[str, _Sample]:
        """What was added, as plain picklable objects, for `merge` elsewhere."""
        return dict(self._samples)

    def merge(self, states: Iterable[Mapping[str, _Sample]]) -> None:
        """Add the states of other processes; a sample that is already here counts once."""
        for state in states:
            for token, sample in state.items():
                self._put(token, sample)

    def compute(self) -> NuscenesScores:
        """The scores over all samples added. Raises DataError if there are none."""
        if not self._samples:
            raise DataError("there is no sample to score.")
        samples = [self._samples[token] for token in sorted(self._samples)]
        return evaluate([s.truth for s in samples], [s.predicted for s in samples])
