"""The doctor for nuScenes trees: what it counts, what it finds wrong, and that its pictures show something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nuscenes_tree import edit_table, write_nuscenes_tree
from PIL import Image

from automoe.data.nuscenes import Nuscenes
from automoe.report.doctor_nuscenes import doctor_nuscenes, draw_sample
from automoe.report.pictures_3d import draw_above
from automoe.taxonomy import NUSCENES_COLORS


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_nuscenes_tree(tmp_path / "nuscenes", size=(160, 90))


def test_a_sound_tree(tree: Path, tmp_path: Path) -> None:
    report = doctor_nuscenes(tree, tmp_path / "out", split="train", samples=1)
    text = report.text()
    assert "mini_train 2 scenes, 4 samples" in text
    assert "train: 4 usable samples, 6 boxes (1.5 a sample), 4 of them scored" in text
    assert "car" in text
    assert report.picture is not None
    assert np.asarray(Image.open(report.picture)).std() > 10


def test_what_is_wrong_is_said_and_the_rest_is_looked_at(tree: Path, tmp_path: Path) -> None:
    samples = Nuscenes(tree).split("train", sweeps=3)
    samples[0].cameras["CAM_FRONT"].path.unlink()
    sweep = samples[1].sweeps[0].path
    sweep.write_bytes(sweep.read_bytes()[:-3])
    edit_table(
        tree, "sample_data", lambda records: [r.update(width=999) for r in records if "scene-b" in r["filename"]]
    )
    report = doctor_nuscenes(tree, tmp_path / "out", split="train")
    problems = "\n".join(report.problems)
    assert "1 samples and 0 sweeps are left out" in problems
    assert "cut short" in problems
    assert "the tables say 999x90" in problems


def test_boxes_and_points_show_in_the_pictures(tree: Path) -> None:
    sample = Nuscenes(tree).split("train")[0]
    assert draw_sample(sample, 160).shape[2] == 3
    empty = draw_above(np.zeros((0, 7)), np.zeros(0, int), NUSCENES_COLORS)
    shown = draw_above(sample.boxes.boxes, sample.boxes.label, NUSCENES_COLORS)
    changed = (shown != empty).any(axis=2)
    # The car is 20 m ahead: above the middle of a picture of 600 pixels for 100 m.
    rows, columns = np.nonzero(changed)
    assert changed.any()
    assert abs(rows.min() - (300 - (20 + 2.25) * 6)) < 4
    assert (columns < 300).any()
