"""The doctor: what a tree holds, what is wrong with it, and a sheet of overlays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bdd100k_tree import edit_labels, write_bdd100k_tree
from PIL import Image

from automoe.errors import DataError
from automoe.report.doctor import doctor_bdd100k


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_bdd100k_tree(tmp_path / "bdd100k")


def test_a_healthy_tree(tree: Path, tmp_path: Path) -> None:
    report = doctor_bdd100k(tree, tmp_path / "out", samples=6)
    assert report.problems == ()
    assert [(split.task, split.split, split.images) for split in report.splits] == [
        (task, split, images)
        for task in ("detection", "drivable", "segmentation")
        for split, images in (("train", 4), ("val", 2))
    ]
    detection, drivable = report.splits[0], report.splits[2]
    assert detection.classes["pedestrian"] == 8  # "person" counts as pedestrian
    assert detection.classes["truck"] == 0  # the trailer is an ignore region
    assert detection.shares["ignored"] == pytest.approx(1 / 6)
    assert detection.shares["small (under 32x32)"] == 1
    assert detection.sizes == {"64x36": 4}
    assert sum(drivable.classes.values()) == pytest.approx(1)
    assert drivable.mask_ids == (0, 1, 2)
    text = report.text()
    for part in ("images/100k/train", "detection train: 4 images, 20 boxes", "mask ids 0, 1, 2", "No problems found"):
        assert part in text
    assert report.picture is not None
    with Image.open(report.picture) as sheet:
        assert np.array(sheet).std() > 20


def test_problems_are_named(tree: Path, tmp_path: Path) -> None:
    images = tree / "images/100k/train"
    (images / "train0001.jpg").write_bytes((images / "train0001.jpg").read_bytes()[:-150])
    (images / "unlabelled.jpg").write_bytes((images / "train0000.jpg").read_bytes())

    def change(frames: list[dict]) -> None:
        frames[0]["labels"][0]["category"] = "spaceship"
        frames[2]["labels"][0]["box2d"]["x2"] = -5
        frames[3]["labels"][0]["box2d"]["x2"] = 500

    edit_labels(tree, "train", change)
    (tree / "images/100k/val/val0001.jpg").unlink()
    Image.fromarray(np.full((36, 64), 99, np.uint8)).save(tree / "labels/sem_seg/masks/val/val0000.png")
    shutil.rmtree(tree / "labels/drivable/masks/val")
    report = doctor_bdd100k(tree, tmp_path / "out")
    text = "\n".join(report.problems)
    for part in (
        "unknown class 'spaceship'",
        "train0001.jpg is a damaged JPEG",
        "label 0 (car): its box is inside out",
        "frame train0003.jpg: a box reaches beyond the image",
        "val0001.jpg is missing",
        "val0000.png holds class ids that segmentation doesn't have: 99",
        "drivable: training data without validation data",
    ):
        assert part in text
    assert report.splits[0].unlabelled == 1


def test_a_truncated_label_file_does_not_hide_the_rest(tree: Path, tmp_path: Path) -> None:
    path = tree / "labels/det_20/det_train.json"
    path.write_bytes(path.read_bytes()[:-100])
    report = doctor_bdd100k(tree, tmp_path / "out")
    assert any("det_train.json is not complete JSON" in problem for problem in report.problems)
    assert ("segmentation", "val") in {(split.task, split.split) for split in report.splits}


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    report = doctor_bdd100k(tmp_path / "empty", tmp_path / "out")
    assert report.picture is None
    assert "no detection labels" in report.problems[0]
    with pytest.raises(DataError, match="there is no folder"):
        doctor_bdd100k(tmp_path / "nowhere", tmp_path / "out")


def test_the_real_sample(fixtures: Callable[[str], Path], tmp_path: Path) -> None:
    report = doctor_bdd100k(fixtures("bdd100k_real_images_labels"), tmp_path)
    assert any("2 frames are in train and in val" in problem for problem in report.problems)
    assert report.splits[0].classes["traffic sign"] == 6
    assert report.picture is not None
