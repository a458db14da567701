"""nuScenes' metrics against the devkit's own cases, and what must hold of them for any input."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automoe.errors import DataError
from automoe.metrics.nuscenes import (
    DISTANCES,
    ERROR_NAMES,
    ERRORS,
    UNDEFINED,
    Boxes3D,
    Curve,
    NuscenesMetrics,
    class_curve,
    evaluate,
    filter_boxes,
    summarise,
)
from automoe.metrics.nuscenes_submission import read_submission, write_submission
from automoe.poses import quaternion_yaw
from automoe.taxonomy import NUSCENES_ATTRIBUTES, NUSCENES_DETECTION

CAR, BARRIER, BICYCLE = (NUSCENES_DETECTION.index(name) for name in ("car", "barrier", "bicycle"))


def boxes_of(records: list[Mapping[str, Any]], name: str) -> Boxes3D:
    """Boxes in the devkit's serialised form, those of one class."""
    own = [box for box in records if box["detection_name"] == name]
    return Boxes3D.of(
        [box["translation"] for box in own],
        [box["size"] for box in own],
        quaternion_yaw(np.array([box["rotation"] for box in own], float).reshape(-1, 4)),
        [box["velocity"] for box in own],
        [NUSCENES_DETECTION.index(name)] * len(own),
        [NUSCENES_ATTRIBUTES.index(box["attribute_name"]) if box["attribute_name"] else -1 for box in own],
        [box["detection_score"] for box in own],
        [box["num_pts"] for box in own],
    )


def curve_of(
    truth: Mapping[str, list], predicted: Mapping[str, list], name: str, distance: float, tokens: list[str]
) -> Curve:
    sides = []
    for side in (truth, predicted):
        parts = [boxes_of(side.get(token, []), name) for token in tokens]
        sides += [Boxes3D.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])]
    return class_curve(*sides, len(tokens), distance, symmetric=name == "barrier")


def test_the_devkits_own_nds(fixtures: Callable[[str], Path]) -> None:
    path = fixtures("official_expected") / "nuscenes_nd_score.json.gz"
    case = json.loads(gzip.decompress(path.read_bytes()))
    curves = {}
    for name, sides in case["cases"].items():
        tokens = list(sides["gt"])
        # The official test says 2 m at every threshold.
        curve = curve_of(sides["gt"], sides["pred"], name, 2.0, tokens)
        curves |= {(name, distance): curve for distance in DISTANCES}
    metrics = summarise(curves)
    assert metrics["NDS"] == pytest.approx(case["expected_nd_score"], abs=1e-9)
    for name, expected in case["mean_dist_aps"].items():
        assert metrics[f"AP/{name}"] == pytest.approx(expected, abs=1e-9)
    for error, expected in case["tp_errors"].items():
        assert metrics[f"m{ERROR_NAMES[error]}"] == pytest.approx(expected, abs=1e-9)
    compared = 0
    for name, errors in case["label_tp_errors"].items():
        for error, expected in errors.items():
            if error not in UNDEFINED.get(name, ()):
                assert metrics[f"{ERROR_NAMES[error]}/{name}"] == pytest.approx(expected, abs=1e-9)
                compared += 1
    assert compared == 50 - 5


def test_the_devkits_simple_cases(fixtures: Callable[[str], Path]) -> None:
    content = json.loads((fixtures("official_expected") / "nuscenes_simple_cases.json").read_text())
    default = content["defaults"]

    def full(box: Mapping[str, Any]) -> dict[str, Any]:
        values = {**default, **box}
        names = {"trans": "translation", "size": "size", "rot": "rotation", "vel": "velocity"}
        record = {long: values[short] for short, long in names.items()}
        record |= {"detection_name": values["name"], "attribute_name": values["attr"]}
        return record | {"detection_score": values["score"], "num_pts": -1}

    for case in content["cases"]:
        truth, predicted = (
            {token: [full(box) for box in boxes] for token, boxes in case[side].items()} for side in ("gts", "preds")
        )
        curve = curve_of(truth, predicted, case["detection_name"], case["dist_th"], list(truth))
        found = curve.average_precision if case["metric"] == "ap" else curve.error(case["metric"])
        assert found == pytest.approx(case["expected"], abs=case["abs_tol"]), case["test"]


def some_boxes(rng: np.random.Generator, count: int, *, scores: bool) -> Boxes3D:
    return Boxes3D.of(
        rng.uniform(-30, 30, (count, 3)),
        rng.uniform(0.3, 5, (count, 3)),
        rng.uniform(-4, 4, count),
        rng.normal(0, 3, (count, 2)),
        rng.integers(0, len(NUSCENES_DETECTION), count),
        rng.integers(-1, len(NUSCENES_ATTRIBUTES), count),
        rng.uniform(0, 1, count) if scores else None,
        None if scores else rng.integers(1, 9, count),
    )


def as_predicted(truth: Boxes3D, rng: np.random.Generator) -> Boxes3D:
    return Boxes3D.of(
        truth.translation, truth.size, truth.yaw, truth.velocity, truth.label, truth.attribute, rng.random(len(truth))
    )


def test_the_truth_as_prediction_is_perfect() -> None:
    rng = np.random.default_rng(0)
    truth = [some_boxes(rng, 40, scores=False) for _ in range(10)]
    metrics = evaluate(truth, [as_predicted(one, rng) for one in truth]).metrics
    assert metrics["mAP"] == pytest.approx(1.0)
    assert metrics["NDS"] == pytest.approx(1.0)
    assert all(metrics[f"m{name}"] == pytest.approx(0.0) for name in ERROR_NAMES.values())


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        ({"translation": [0.6, 0.8, 5.0]}, "ATE", 1.0),  # seen from above: z doesn't count
        ({"yaw": math.pi / 2}, "AOE", math.pi / 2),
        ({"velocity": [3.0, 4.0]}, "AVE", 5.0),
    ],
)
def test_one_fault_is_one_error(change: dict[str, Any], error: str, expected: float) -> None:
    rng = np.random.default_rng(1)
    truth = some_boxes(rng, 12, scores=False)
    truth = Boxes3D.of(
        np.arange(12)[:, None] * [5.0, 0, 0], truth.size, truth.yaw, truth.velocity, [CAR] * 12, [5] * 12
    )
    moved = {name: getattr(truth, name) + np.asarray(value) for name, value in change.items()}
    values = {name: getattr(truth, name) for name in ("translation", "size", "yaw", "velocity")} | moved
    predicted = Boxes3D.of(**values, label=truth.label, attribute=truth.attribute, score=np.linspace(0.1, 1, 12))
    metrics = evaluate([truth], [predicted]).metrics
    assert metrics[f"{error}/car"] == pytest.approx(expected)
    others = [f"{name}/car" for name in ERROR_NAMES.values() if name != error]
    assert [metrics[name] for name in others] == pytest.approx([0.0] * 4, abs=1e-12)


def test_a_barrier_has_no_front() -> None:
    truth = Boxes3D.of([[0, 0, 0]], [[2, 0.5, 1]], [0.3], [[0, 0]], [BARRIER], [-1])
    turned = Boxes3D.of([[0, 0, 0]], [[2, 0.5, 1]], [0.3 + math.pi], [[0, 0]], [BARRIER], [-1], [0.9])
    assert evaluate([truth], [turned]).metrics["AOE/barrier"] == pytest.approx(0.0, abs=1e-9)


def test_what_is_scored() -> None:
    boxes = Boxes3D.of(
        [[49.9, 0, 0], [50.1, 0, 0], [39, 0, 0], [10, 0, 0], [3, 0, 0]],
        np.ones((5, 3)),
        np.zeros(5),
        np.zeros((5, 2)),
        [CAR, CAR, BICYCLE, CAR, BICYCLE],
        [-1] * 5,
        None,
        [1, 1, 1, 0, 1],
    )
    assert filter_boxes(boxes, np.zeros(2)).tolist() == [True, False, True, False, True]
    # A rack that is long across the heading: only the bicycle in it goes.
    rack = np.array([[0, 0, 0, 1.0, 8.0, 2.0, math.pi / 2]])
    assert filter_boxes(boxes, np.zeros(2), rack).tolist() == [True, False, True, False, False]


def test_neither_order_nor_repetition_of_samples_matters() -> None:
    rng = np.random.default_rng(2)
    truth = {str(i): some_boxes(rng, 20, scores=False) for i in range(6)}
    predicted = {token: some_boxes(rng, 60, scores=True) for token in truth}
    whole, first, second = NuscenesMetrics(), NuscenesMetrics(), NuscenesMetrics()
    for token in truth:
        whole.add(token, truth[token], predicted[token], [0, 0])
    for token in reversed(list(truth)):
        (first if int(token) < 4 else second).add(token, truth[token], predicted[token], [0, 0])
    second.add("0", truth["0"], predicted["0"], [0, 0])
    first.merge([second.state()])
    assert len(first) == 6
    assert first.compute().metrics == whole.compute().metrics
    assert 0 < whole.compute().metrics["mAP"] < 1  # type: ignore[operator]


def test_what_the_devkit_refuses_is_refused_by_name() -> None:
    rng = np.random.default_rng(3)
    good = some_boxes(rng, 3, scores=True)
    metrics = NuscenesMetrics()
    with pytest.raises(DataError, match="sample s has 501 predicted boxes"):
        metrics.add("s", good, some_boxes(rng, 501, scores=True), [0, 0])
    flat = Boxes3D.of(good.translation, good.size * [1, 0, 1], good.yaw, good.velocity, good.label, good.attribute)
    with pytest.raises(DataError, match="prediction for sample s: box 0 has the size"):
        metrics.add("s", good, flat, [0, 0])
    with pytest.raises(DataError, match="no sample"):
        metrics.compute()


def test_a_submission_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    boxes = {"a": some_boxes(rng, 5, scores=True), "b": Boxes3D.empty()}
    path = tmp_path / "submission.json"
    write_submission(path, boxes, camera=True, lidar=False)
    found, meta = read_submission(path)
    assert meta == {
        "use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": False
    }  # fmt: skip
    assert list(found) == ["a", "b"]
    assert len(found["b"]) == 0
    np.testing.assert_allclose(found["a"].translation, boxes["a"].translation)
    np.testing.assert_allclose(np.exp(1j * found["a"].yaw), np.exp(1j * boxes["a"].yaw))
    np.testing.assert_array_equal(found["a"].attribute, boxes["a"].attribute)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"translation": [1, 2]}, "box 0: translation is .1, 2.; it must be 3 numbers"),
        ({"translation": [1, 2, math.nan]}, "box 0: translation is .*nan"),
        ({"detection_name": "lorry"}, "box 0: detection_name is 'lorry'; nuScenes knows car, truck"),
        ({"attribute_name": "parked"}, "box 0: attribute_name is 'parked'"),
        ({"detection_score": None}, "box 0: detection_score"),
        ({"size": [1, 2, 0]}, "box 0 has the size"),
        ({"sample_token": "u"}, "box 0: sample_token is 'u'; it must be that of the sample"),
        ({"rotation": [0, 0, 0, 0]}, "box 0: rotation is all zeros"),
    ],
)
def test_a_wrong_submission_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "submission.json"
    write_submission(path, {"t": some_boxes(np.random.default_rng(5), 1, scores=True)}, camera=True, lidar=True)
    content = json.loads(path.read_text())
    content["results"]["t"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"submission\.json, sample t,? ?.*{words.removeprefix('box 0 ')}"):
        read_submission(path)


def test_a_file_that_is_no_submission(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    with pytest.raises(DataError, match=r"cannot read the submission .*No such file"):
        read_submission(path)
    path.write_text('{"results": ')
    with pytest.raises(DataError, match="not complete JSON"):
        read_submission(path)
    path.write_text("[]")
    with pytest.raises(DataError, match='no "results"'):
        read_submission(path)


def test_error_names_are_the_official_ones() -> None:
    assert [ERROR_NAMES[error] for error in ERRORS] == ["ATE", "ASE", "AOE", "AVE", "AAE"]
