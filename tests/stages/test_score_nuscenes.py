"""`automoe score nuscenes` on a small tree of our own; beside the devkit: `tests/world/test_nuscenes_writer.py`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nuscenes_tree import VERSION, write_nuscenes_tree

from automoe import cli
from automoe.data.nuscenes import Nuscenes
from automoe.errors import DataError
from automoe.metrics.nuscenes import Boxes3D
from automoe.metrics.nuscenes_submission import write_submission
from automoe.stages.score_nuscenes import score_nuscenes


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_nuscenes_tree(tmp_path / "nuscenes")


def perfect(tree: Path, split: str) -> dict[str, Boxes3D]:
    """The truth as predictions."""
    dataset, found = Nuscenes(tree), {}
    for number in dataset.numbers(split):
        truth = dataset.sample(int(number), cameras=()).truth
        score = np.linspace(0.5, 0.9, len(truth))
        velocity = np.nan_to_num(truth.velocity)
        found[str(dataset.tables.tokens[number])] = Boxes3D.of(
            truth.translation, truth.size, truth.yaw, velocity, truth.label, truth.attribute, score
        )
    return found


def test_the_truth_scores_full_marks(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pred, out = tmp_path / "pred.json", tmp_path / "scores.json"
    write_submission(pred, perfect(tree, "train"), camera=True, lidar=True)
    words = ["score", "nuscenes", "--dataroot", str(tree), "--split", "train", "--pred", str(pred), "--json", str(out)]
    cli.app(words)
    metrics = json.loads(out.read_text())["metrics"]
    # Cars alone have truth with points: the other nine classes count as missed, as in the devkit.
    assert metrics["AP/car"] == pytest.approx(1.0)
    assert metrics["mAP"] == pytest.approx(0.1)
    assert metrics["ATE/car"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["AVE/barrier"] is None
    assert "car" in capsys.readouterr().out


def test_a_submission_for_other_samples_is_refused(tree: Path, tmp_path: Path) -> None:
    pred = tmp_path / "pred.json"
    write_submission(pred, perfect(tree, "val"), camera=True, lidar=True)
    with pytest.raises(DataError, match=r"lacks 4 samples of train \(as scene-a-sample-0\) and has 2 samples"):
        score_nuscenes(tree, VERSION, "train", pred)
