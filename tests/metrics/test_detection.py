"""Detection metrics: the official toolkit's own case, a brute-force evaluator on small scenes, and merging."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automoe.errors import DataError
from automoe.metrics.detection import DetectionMetrics, score_detection
from automoe.metrics.scalabel import read_frames
from automoe.taxonomy import BDD_DETECTION

CAR = BDD_DETECTION.index("car")
PEDESTRIAN = BDD_DETECTION.index("pedestrian")
AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


def add(metrics: DetectionMetrics, sample_id: str, truth: list, predicted: list) -> None:
    """Truth rows are (box, label, ignored), predicted rows (box, score, label)."""
    gt_boxes, gt_labels, gt_ignored = zip(*truth) if truth else ((), (), ())
    boxes, scores, labels = zip(*predicted) if predicted else ((), (), ())
    metrics.add(sample_id, gt_boxes, gt_labels, gt_ignored, boxes, scores, labels)


def score(*samples: tuple[list, list]) -> dict[str, float | None]:
    metrics = DetectionMetrics()
    for index, (truth, predicted) in enumerate(samples):
        add(metrics, f"{index:03d}", truth, predicted)
    return metrics.compute()


# The official toolkit's own case


@pytest.fixture(scope="module")
def official(fixtures: Callable[[str], Path]) -> tuple[Path, Path, dict]:
    cases = fixtures("scalabel_official") / "tests/eval/testcases"
    expected = json.loads((fixtures("official_expected") / "bdd100k_scalabel.json").read_text())
    return cases / "box_track/track_sample_anns.json", cases / "det", expected["scalabel_det"]


def test_official_case(official: tuple[Path, Path, dict]) -> None:
    truth, predictions, expected = official
    scores = score_detection(read_frames(truth), read_frames(predictions / "bbox_predictions.json"))
    assert list(scores)[: len(expected["summary"])] == list(expected["summary"])
    for name, value in expected["summary"].items():
        assert scores[name] == (None if value is None else pytest.approx(value, abs=1e-4)), name
    for name, value in expected["full"]["AP50"][0].items():
        assert scores[f"AP50/{name}"] == (None if value is None else pytest.approx(value, abs=1e-4)), name


def test_official_case_without_predictions(official: tuple[Path, Path, dict]) -> None:
    truth, predictions, expected = official
    scores = score_detection(read_frames(truth), read_frames(predictions / "bbox_predictions_empty.json"))
    for name, value in expected["summary"].items():
        assert scores[name] == (None if value is None else 0.0), name


def test_order_of_frames_does_not_matter(official: tuple[Path, Path, dict]) -> None:
    truth = read_frames(official[0])
    predicted = read_frames(official[1] / "bbox_predictions.json")
    expected = score_detection(truth, predicted)
    random.Random(0).shuffle(truth)
    random.Random(1).shuffle(predicted)
    assert score_detection(truth, predicted) == expected


# Against brute force


def iou_xywh(detection: np.ndarray, truth: np.ndarray, crowd: bool) -> float:
    low = np.maximum(detection[:2], truth[:2])
    high = np.minimum(detection[:2] + detection[2:], truth[:2] + truth[2:])
    overlap = np.prod(np.maximum(high - low, 0))
    area = np.prod(detection[2:])
    return overlap / (area if crowd else area + np.prod(truth[2:]) - overlap)


def xywh(box: tuple) -> np.ndarray:
    return np.array([box[0], box[1], box[2] - box[0] + 1, box[3] - box[1] + 1], dtype=np.float64)


def match_image(truth: list, predicted: list, threshold: float, area: tuple[float, float]) -> tuple[list, int]:
    """COCO's greedy matching in one image and class: [(score, right, counted)], number of true boxes."""
    regions = [(xywh(box), ignored) for box, _, ignored in truth]
    skipped = [ignored or not area[0] <= np.prod(box[2:]) <= area[1] for box, ignored in regions]
    taken = [False] * len(regions)
    results = []
    for box, confidence, _ in sorted(predicted, key=lambda row: -row[1])[:100]:
        detection = xywh(box)
        best = None
        for candidates in ([i for i, skip in enumerate(skipped) if not skip], [i for i, s in enumerate(skipped) if s]):
            for index in candidates:
                truth_box, crowd = regions[index]
                if taken[index] and not crowd:
                    continue
                overlap = iou_xywh(detection, truth_box, crowd)
                if overlap >= threshold and (best is None or overlap >= best[0]):
                    best = (overlap, index)
            if best is not None:
                break
        inside = area[0] <= np.prod(detection[2:]) <= area[1]
        if best is not None:
            taken[best[1]] = True
            results.append((confidence, not skipped[best[1]], not skipped[best[1]]))
        else:
            results.append((confidence, False, inside))
    return results, len(skipped) - sum(skipped)


def naive_ap(samples: list, label: int, threshold: float, area: tuple[float, float]) -> float | None:
    results, positives = [], 0
    for truth, predicted in samples:
        rows, count = match_image(
            [row for row in truth if row[1] == label], [row for row in predicted if row[2] == label], threshold, area
        )
        results += rows
        positives += count
    if positives == 0:
        return None
    counted = [right for _, right, counts in sorted(results, key=lambda row: -row[0]) if counts]
    right = np.cumsum(counted)
    recall = right / positives
    precision = right / np.arange(1, len(counted) + 1)
    # The highest precision at that recall or beyond, at 101 recalls.
    return 100 * float(np.mean([max(precision[recall >= level], default=0.0) for level in np.linspace(0, 1, 101)]))


def naive_scores(samples: list, labels: tuple[int, ...]) -> dict[str, float | None]:
    def mean(values: list) -> float | None:
        present = [value for value in values if value is not None]
        return float(np.mean(present)) if present else None

    thresholds = np.linspace(0.5, 0.95, 10)
    scores = {}
    for suffix, area in AREAS.items():
        scores[f"AP{suffix}"] = mean([naive_ap(samples, k, t, area) for k in labels for t in thresholds])
    scores["AP50"] = mean([naive_ap(samples, k, 0.5, AREAS[""]) for k in labels])
    for k in labels:
        name = BDD_DETECTION[k]
        scores[f"AP/{name}"] = mean([naive_ap(samples, k, t, AREAS[""]) for t in thresholds])
    return scores


@st.composite
def scenes(draw: st.DrawFn) -> list:
    """A few images of a few boxes on a coarse grid, so that boxes meet often; scores are all different."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = iter(rng.permutation(200) / 200)

    def box() -> tuple:
        x, y = rng.integers(0, 12, 2) * 7.3
        w, h = rng.choice([8.0, 24.0, 60.0, 130.0], 2)
        return (x, y, x + w, y + h)

    samples = []
    for _ in range(draw(st.integers(1, 3))):
        truth = [
            (box(), int(rng.choice([PEDESTRIAN, CAR])), bool(rng.random() < 0.25)) for _ in range(rng.integers(0, 6))
        ]
        near = [
            (tuple(np.array(b) + rng.normal(0, 3, 4).round(1) * [1, 1, 0, 0]), next(scores), k)
            for b, k, _ in truth
            if rng.random() < 0.8
        ]
        far = [(box(), next(scores), int(rng.choice([PEDESTRIAN, CAR]))) for _ in range(rng.integers(0, 4))]
        samples.append((truth, near + far))
    return samples


@given(scenes())
@settings(max_examples=60, deadline=None)
def test_equals_brute_force(samples: list) -> None:
    if not any(predicted for _, predicted in samples):
        return  # the official answer without predictions is a rule of its own
    scores = score(*samples)
    for name, value in naive_scores(samples, (PEDESTRIAN, CAR)).items():
        assert scores[name] == (None if value is None else pytest.approx(value, abs=1e-6)), name


# Conventions


def test_perfect_predictions_score_100() -> None:
    scores = score(([((10, 10, 50, 60), CAR, False)], [((10, 10, 50, 60), 0.9, CAR)]))
    assert scores["AP"] == scores["AP/car"] == scores["AR1"] == scores["APm"] == pytest.approx(100)
    assert scores["AP/bus"] is None
    assert scores["APl"] is None


def test_last_pixel_is_inside() -> None:
    """With widths of x2 - x1 + 1 a box of ten pixels shifted by two has IoU 80 / 120, else 63 / 99."""
    assert score(([((0, 0, 9, 9), CAR, False)], [((2, 0, 11, 9), 0.9, CAR)]))["AP/car"] == pytest.approx(40)
    # 31 + 1 pixels square is COCO's border between small and medium, which belongs to both.
    scores = score(([((0, 0, 31, 31), CAR, False)], [((0, 0, 31, 31), 0.9, CAR)]))
    assert scores["APs"] == scores["APm"] == pytest.approx(100)


def test_detections_in_ignore_regions_are_neither_right_nor_wrong() -> None:
    car = ((300, 300, 340, 340), CAR, False)
    inside_crowd = [((10 + 20 * i, 10, 25 + 20 * i, 40), 0.95, CAR) for i in range(5)]
    found = ((300, 300, 340, 340), 0.5, CAR)
    crowd = ((0, 0, 200, 100), CAR, True)
    assert score(([car, crowd], [*inside_crowd, found]))["AP/car"] == pytest.approx(100)
    assert score(([car], [*inside_crowd, found]))["AP/car"] < 20
    # A region of another class excuses nothing, and a class with regions only has no truth.
    other = ((0, 0, 200, 100), PEDESTRIAN, True)
    scores = score(([car, other], [*inside_crowd, found]))
    assert scores["AP/car"] < 20
    assert scores["AP/pedestrian"] is None


def test_ap50_over_classes_and_truth_counts() -> None:
    metrics = DetectionMetrics()
    truth = [((0, 0, 50, 50), CAR, False), ((90, 0, 140, 50), PEDESTRIAN, False), ((200, 0, 240, 50), CAR, True)]
    add(metrics, "a", truth, [((0, 0, 50, 50), 0.9, CAR)])
    assert metrics.truth_counts()["car"] == 1
    assert metrics.truth_counts()["bus"] == 0
    assert metrics.ap50_over(["car"]) == pytest.approx(100)
    assert metrics.ap50_over(["car", "pedestrian", "bus"]) == pytest.approx(50)
    assert metrics.ap50_over(["bus"]) is None


def test_nothing_at_all_has_no_value() -> None:
    assert set(DetectionMetrics().compute().values()) == {None}
    assert set(score(([], [])).values()) == {None}


# Several processes


def random_samples(count: int) -> list[tuple[str, list, list]]:
    rng = np.random.default_rng(3)
    samples = []
    for index in range(count):
        boxes = [(x, y, x + w, y + h) for x, y, w, h in rng.uniform(5, 100, (6, 4))]
        truth = [(box, int(rng.integers(0, 10)), bool(rng.random() < 0.1)) for box in boxes]
        # Scores on a coarse grid: ties between images are where an order could show.
        predicted = [(box, float(rng.integers(1, 5)) / 5, k if rng.random() < 0.7 else 0) for box, k, _ in truth]
        samples.append((f"sample-{index:03d}", truth, predicted))
    return samples


@given(st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_processes_and_order_do_not_matter(processes: int, rng: random.Random) -> None:
    samples = random_samples(12)
    alone = DetectionMetrics()
    for sample in samples:
        add(alone, *sample)
    shuffled = rng.sample(samples, len(samples))
    shuffled += shuffled[: -len(shuffled) % processes]  # a distributed sampler repeats samples to fill up
    states = []
    for rank in range(processes):
        part = DetectionMetrics()
        for sample in shuffled[rank::processes]:
            add(part, *sample)
        states.append(pickle.loads(pickle.dumps(part.state())))
    rng.shuffle(states)
    merged = DetectionMetrics()
    merged.merge(states)
    assert len(merged) == len(samples)
    assert merged.compute() == alone.compute()
    assert merged.truth_counts() == alone.truth_counts()


def test_repeated_sample_with_other_values_is_resolved_alike_in_any_order() -> None:
    truth = [((0, 0, 50, 50), CAR, False)]
    first, second = DetectionMetrics(), DetectionMetrics()
    add(first, "a", truth, [((0, 0, 50, 50), 0.9, CAR)])
    add(second, "a", truth, [((0, 0, 20, 50), 0.9, CAR)])
    results = []
    for states in ([first.state(), second.state()], [second.state(), first.state()]):
        merged = DetectionMetrics()
        merged.merge(states)
        results.append(merged.compute())
    assert results[0] == results[1]


# What is refused


def test_values_that_are_not_finite_name_the_sample() -> None:
    with pytest.raises(DataError, match="Sample frame-7: a prediction score is not finite"):
        add(DetectionMetrics(), "frame-7", [], [((0, 0, 5, 5), float("nan"), CAR)])
    with pytest.raises(DataError, match="Sample frame-7: a truth box is not finite"):
        add(DetectionMetrics(), "frame-7", [((0, 0, float("inf"), 5), CAR, False)], [])


def test_label_outside_of_the_classes_is_refused() -> None:
    with pytest.raises(DataError, match="Sample a: a prediction label is outside of the 10 classes"):
        add(DetectionMetrics(), "a", [], [((0, 0, 5, 5), 0.5, 10)])
