"""Segmentation metrics: the official cases, a naive confusion matrix, drivable numbers, merging, bad masks."""

from __future__ import annotations

import json
import logging
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from automoe.errors import DataError
from automoe.metrics.segmentation import ConfusionMatrix, SegmentationMetrics, score_segmentation
from automoe.taxonomy import SEMANTIC

MASK_VALUES = st.sampled_from([0, 1, 2, 255])
PRED_VALUES = st.sampled_from([0, 1, 2, 3, 17, 255])


def save(folder: Path, **masks: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in masks.items():
        Image.fromarray(np.asarray(mask, dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


# The official toolkit's own cases


@pytest.fixture(scope="module")
def expected(fixtures: Callable[[str], Path]) -> dict:
    return json.loads((fixtures("official_expected") / "bdd100k_scalabel.json").read_text())


def check(scores: dict[str, float | None], expected: dict) -> None:
    for name, value in expected["summary"].items():
        assert scores[name] == pytest.approx(value, abs=1e-4), name
    for name, value in expected["full"]["IoU"][0].items():
        if scores[f"IoU/{name}"] is None:
            assert value == 0  # the official listing shows classes without truth as 0
        else:
            assert scores[f"IoU/{name}"] == pytest.approx(value, abs=1e-4), name


def test_official_run_length_case(fixtures: Callable[[str], Path], expected: dict) -> None:
    case = fixtures("scalabel_official") / "tests/eval/testcases/sem_seg"
    truth = case / "sem_seg_sample.json"
    check(score_segmentation("segmentation", truth, case / "sem_seg_preds.json"), expected["scalabel_sem_seg"])
    empty = score_segmentation("segmentation", truth, case / "sem_seg_preds_empty.json")
    assert [empty[name] for name in ("mIoU", "mAcc", "fIoU", "pAcc")] == [0, 0, 0, 0]
    assert empty["IoU/wall"] is None


def test_official_mask_cases(fixtures: Callable[[str], Path], expected: dict, caplog: pytest.LogCaptureFixture) -> None:
    case = fixtures("bdd100k_official") / "tests/eval/testcases/seg"
    check(score_segmentation("segmentation", case / "gt", case / "pred"), expected["bdd_seg"])
    with caplog.at_level(logging.WARNING):
        scores = score_segmentation("segmentation", case / "gt+", case / "pred")
    check(scores, expected["bdd_seg_missing_pred"])
    assert "1 of 2 frames have no prediction and count as missed; the first is b" in caplog.text


def test_official_run_length_folders(fixtures: Callable[[str], Path]) -> None:
    """Truth a.jpg and prediction a.png are one frame; a file scored against itself is perfect."""
    case = fixtures("bdd100k_official") / "tests/eval/testcases/rle/seg"
    scores = score_segmentation("segmentation", case / "gt", case / "pred")
    assert scores["mIoU"] == pytest.approx(74.985703, abs=1e-4)
    assert scores["pAcc"] == pytest.approx(97.225031, abs=1e-4)
    perfect = score_segmentation("segmentation", case / "gt", case / "gt")
    assert {value for value in perfect.values() if value is not None} == {100.0}


# The matrix


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_counts_equal_a_naive_loop(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    target = data.draw(arrays(np.uint8, shape, elements=MASK_VALUES))
    pred = data.draw(arrays(np.uint8, shape, elements=PRED_VALUES))
    naive = np.zeros((3, 4), dtype=np.int64)
    for true, guess in zip(target.ravel().tolist(), pred.ravel().tolist()):
        if true != 255:
            naive[true, min(guess, 3)] += 1
    matrix = ConfusionMatrix(3)
    matrix.add(pred, target)
    assert np.array_equal(matrix.counts, naive)
    # Wider integers, as an argmax gives, count alike; a negative prediction is no class.
    wide = ConfusionMatrix(3)
    wide.add(np.where(pred == 255, -1, pred.astype(np.int64)), target.astype(np.int32))
    assert np.array_equal(wide.counts, naive)

    scores = matrix.compute(("a", "b", "c"))
    ious = []
    for index, name in enumerate("abc"):
        of_truth = target == index
        if not of_truth.any():
            assert scores[f"IoU/{name}"] is None
            continue
        guessed = (pred == index) & (target != 255)
        ious.append(100 * (of_truth & guessed).sum() / (of_truth | guessed).sum())
        assert scores[f"IoU/{name}"] == pytest.approx(ious[-1])
    assert scores["mIoU"] == (pytest.approx(np.mean(ious)) if ious else None)
    valid = target != 255
    assert scores["pAcc"] == (pytest.approx(100 * (pred == target)[valid].mean()) if ious else None)


def test_matrices_merge() -> None:
    parts = [ConfusionMatrix(2) for _ in range(2)]
    parts[0].add(np.array([[0, 1]]), np.array([[0, 0]]))
    parts[1].add(np.array([[1, 9]]), np.array([[1, 1]]))
    total = ConfusionMatrix(2)
    total.merge(parts)
    assert total.counts.tolist() == [[1, 1, 0], [0, 1, 1]]


def test_accuracy_is_the_official_one() -> None:
    """The official mAcc divides by the pixels predicted as a class, wherever their truth is not ignored."""
    matrix = ConfusionMatrix(2)
    matrix.add(np.array([[0, 0, 0, 1, 0]]), np.array([[0, 0, 1, 1, 255]]))
    assert matrix.compute(("a", "b"))["mAcc"] == pytest.approx(100 * (2 / 3 + 1) / 2)


def test_masks_that_do_not_fit_are_refused() -> None:
    metrics = SegmentationMetrics("drivable")
    with pytest.raises(DataError, match="a: the true mask holds the value 7, which is neither a class"):
        metrics.add("a", np.zeros((2, 2), np.uint8), np.full((2, 2), 7, np.uint8))
    with pytest.raises(DataError, match="a: the true mask holds the value -1, which is no class"):
        metrics.add("a", np.zeros((2, 2), np.uint8), np.full((2, 2), -1))
    with pytest.raises(DataError, match="a: the predicted mask is 3x2 and the true one 2x2"):
        metrics.add("a", np.zeros((2, 3), np.uint8), np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match="a: the prediction mask holds float32 values"):
        metrics.add("a", np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8))
    assert len(metrics) == 0


# Drivable areas


def test_painting_all_drivable_fools_the_official_numbers_only() -> None:
    target = np.full((10, 10), 2, np.uint8)
    target[:3, :5], target[:3, 5:] = 0, 1
    everything = np.zeros((10, 10), np.uint8)
    everything[:, 5:] = 1
    metrics = SegmentationMetrics("drivable")
    metrics.add("a", everything, target)
    scores = metrics.compute()
    assert scores["mIoU"] == scores["IoU/direct"] == scores["IoU/alternative"] == scores["pAcc"] == 100
    assert scores["IoU_3class/background"] == 0
    assert scores["mIoU_3class"] == pytest.approx(100 * (0.3 + 0.3 + 0) / 3)
    assert "IoU/background" not in scores


def test_drivable_official_numbers_by_hand() -> None:
    target = np.array([[0, 0, 0, 1, 1, 2, 2, 255]])
    pred = np.array([[0, 1, 2, 1, 255, 0, 2, 0]])
    metrics = SegmentationMetrics("drivable")
    metrics.add("a", pred, target)
    scores = metrics.compute()
    # The direct painted on background and the pixel under 255 cost nothing in the official numbers.
    assert scores["IoU/direct"] == pytest.approx(100 / 3)
    assert scores["IoU/alternative"] == pytest.approx(100 / 3)
    assert scores["pAcc"] == pytest.approx(100 * 2 / 5)
    assert scores["IoU_3class/direct"] == pytest.approx(100 / 4)
    assert scores["IoU_3class/background"] == pytest.approx(100 / 3)


def test_drivable_label_files_paint_background(tmp_path: Path) -> None:
    """What a run-length file leaves unpainted is background; a folder of masks on the other side fits it."""
    target = np.full((4, 4), 2)
    target[2:] = 0
    pngs = save(tmp_path / "gt", a=target)
    # Columns of two background and two direct pixels.
    painted = {"category": "direct", "rle": {"size": [4, 4], "counts": [2] * 8}}
    (tmp_path / "pred.json").write_text(json.dumps([{"name": "a.jpg", "labels": [painted]}]))
    (tmp_path / "nothing.json").write_text(json.dumps([{"name": "a.jpg", "labels": []}]))
    assert score_segmentation("drivable", pngs, tmp_path / "pred.json")["mIoU_3class"] == 100
    assert score_segmentation("drivable", tmp_path / "pred.json", pngs)["mIoU_3class"] == 100
    empty = score_segmentation("drivable", pngs, tmp_path / "nothing.json")
    assert empty["IoU_3class/background"] == pytest.approx(50)
    assert empty["mIoU"] == 0


# Several processes


@given(st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_processes_and_order_do_not_matter(processes: int, rng: random.Random) -> None:
    values = np.random.default_rng(5)
    samples = [(f"{i}", values.integers(0, 4, (5, 7)), values.choice([0, 1, 2, 255], (5, 7))) for i in range(9)]
    alone = SegmentationMetrics("drivable")
    for sample in samples:
        alone.add(*sample)
    shuffled = rng.sample(samples, len(samples))
    shuffled += shuffled[: -len(shuffled) % processes]
    states = []
    for rank in range(processes):
        part = SegmentationMetrics("drivable")
        for sample in shuffled[rank::processes]:
            part.add(*sample)
        states.append(pickle.loads(pickle.dumps(part.state())))
    rng.shuffle(states)
    merged = SegmentationMetrics("drivable")
    merged.merge(states)
    assert len(merged) == len(samples)
    assert merged.compute() == alone.compute()


def test_repeated_sample_with_other_values_is_resolved_alike_in_any_order() -> None:
    target = np.array([[0, 1, 2]])
    states = []
    for pred in ([[0, 1, 2]], [[0, 0, 2]]):
        part = SegmentationMetrics("drivable")
        part.add("a", np.array(pred), target)
        states.append(part.state())
    results = []
    for order in (states, states[::-1]):
        merged = SegmentationMetrics("drivable")
        merged.merge(order)
        results.append(merged.compute())
    assert results[0] == results[1]


def test_counts_made_elsewhere_are_taken() -> None:
    metrics = SegmentationMetrics("segmentation")
    counts = np.zeros((19, 20), np.int64)
    counts[SEMANTIC.index("sky"), SEMANTIC.index("sky")] = 5
    metrics.add_counts("a", counts)
    assert metrics.compute()["IoU/sky"] == 100
    with pytest.raises(ValueError, match="counts of shape"):
        metrics.add_counts("b", counts[:, :-1])


# Mask folders


def test_folders_match_by_stem_at_any_depth(tmp_path: Path) -> None:
    mask = np.arange(12).reshape(3, 4)
    save(tmp_path / "gt" / "val", a=mask)
    palette = Image.fromarray(mask.astype(np.uint8), mode="P")
    palette.putpalette(list(range(256)) * 3)
    (tmp_path / "pred").mkdir()
    palette.save(tmp_path / "pred" / "a.png")
    assert score_segmentation("segmentation", tmp_path / "gt", tmp_path / "pred")["mIoU"] == 100


def test_mask_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    truth, pred = save(tmp_path / "gt", a=np.zeros((4, 6))), save(tmp_path / "pred", a=np.zeros((6, 4)))
    with pytest.raises(DataError) as error:
        score_segmentation("segmentation", truth, pred)
    assert str(error.value) == (
        f"{pred / 'a.png'} is 4x6, but its ground truth {truth / 'a.png'} is 6x4; "
        "predictions must have the size of the ground truth."
    )


def test_broken_and_coloured_masks_are_named(tmp_path: Path) -> None:
    truth, pred = save(tmp_path / "gt", a=np.zeros((40, 60))), save(tmp_path / "pred", a=np.eye(40, 60))
    file = pred / "a.png"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"pred/a\.png cannot be read as a picture"):
        score_segmentation("drivable", truth, pred)
    Image.new("RGBA", (60, 40)).save(file)
    with pytest.raises(DataError, match=r"pred/a\.png is a picture of mode RGBA, not a mask of class indices"):
        score_segmentation("drivable", truth, pred)
    save(truth, a=np.full((40, 60), 77))
    save(pred, a=np.zeros((40, 60)))
    with pytest.raises(DataError, match=r"gt/a\.png: the true mask holds the value 77"):
        score_segmentation("drivable", truth, pred)


def test_missing_empty_and_doubled_folders_are_named(tmp_path: Path) -> None:
    truth = save(tmp_path / "gt", a=np.zeros((2, 2)))
    with pytest.raises(DataError, match="nowhere does not exist; give a folder of PNG masks or a label JSON"):
        score_segmentation("drivable", truth, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds neither \.png masks nor \.json label files"):
        score_segmentation("drivable", truth, tmp_path / "empty")
    save(tmp_path / "pred" / "x", a=np.zeros((2, 2)))
    save(tmp_path / "pred" / "y", a=np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"pred/y/a\.png has the name of .*pred/x/a\.png"):
        score_segmentation("drivable", truth, tmp_path / "pred")
    with pytest.raises(DataError, match="None of the 1 predictions has the name"):
        score_segmentation("drivable", truth, save(tmp_path / "other", z=np.zeros((2, 2))))
