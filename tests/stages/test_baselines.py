"""Baselines: blind predictors that are perfect where nothing changes, the untrained model, and the cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bdd100k_tree import edit_labels, write_bdd100k_tree
from trained_experts import Trained, trained  # noqa: F401
from trained_nuscenes import TrainedNuscenes, trained_nuscenes  # noqa: F401

from automoe.data.dataset import PreparedDataset
from automoe.data.prepared import ensure_prepared
from automoe.data.transforms import EvalTransform
from automoe.engine import checkpoint
from automoe.experts.registry import build_expert
from automoe.stages.baselines import (
    ABOUT,
    Baselines,
    baselines,
    find_sets,
    k_means,
    most_frequent,
    score_typical_boxes,
    typical_boxes,
    untrained_expert,
)
from automoe.stages.baselines_nuscenes import typical_places
from automoe.taxonomy import NUSCENES_ATTRIBUTES


def test_drivable_baselines_and_what_they_show(trained: Trained) -> None:  # noqa: F811
    # Every frame of the tree has the same drivable areas, direct and alternative of one size.
    found = baselines(trained.checkpoint("drivable"), trained.data, device="cpu", num_workers=0).scores
    assert set(found) == set(ABOUT)
    assert found["trivial"]["mIoU_3class"] == pytest.approx(100)
    assert found["all direct"]["mIoU"] == pytest.approx(25)
    # The official metric takes background for free.
    assert found["never background"]["mIoU"] == pytest.approx(100)
    assert found["never background"]["mIoU_3class"] < 50  # type: ignore[operator]
    assert found["untrained"]["mIoU_3class"] is not None
    assert found["untrained"].keys() == found["trivial"].keys()


def test_baselines_are_kept_until_the_data_changes(trained: Trained, tmp_path: Path) -> None:  # noqa: F811
    best = tmp_path / "best.pth"
    best.write_bytes(trained.checkpoint("segmentation").read_bytes())

    def run(**options: int) -> Baselines:
        return baselines(best, trained.data, device="cpu", num_workers=0, **options)  # type: ignore[arg-type]

    first = run(untrained_limit=2)
    assert (first.images, first.untrained_images) == (5, 2)
    kept = json.loads((tmp_path / "baselines.json").read_text())
    assert kept["scores"] == first.scores
    kept["scores"]["trivial"]["mIoU"] = -1.0
    (tmp_path / "baselines.json").write_text(json.dumps(kept))
    assert run(untrained_limit=2).scores["trivial"]["mIoU"] == -1.0
    assert run().untrained_images == 5  # two were too few
    assert run(untrained_limit=2).untrained_images == 5
    assert run(limit=3).images == 3
    (tmp_path / "baselines.json").write_text("{")
    assert run(untrained_limit=2).scores == first.scores


def test_nuscenes_baselines_are_official_and_kept(trained_nuscenes: TrainedNuscenes, tmp_path: Path) -> None:  # noqa: F811
    best = tmp_path / "best.pth"
    best.write_bytes(trained_nuscenes.checkpoint.read_bytes())

    def run(**options: int) -> Baselines:
        return baselines(best, trained_nuscenes.data, device="cpu", num_workers=0, **options)  # type: ignore[arg-type]

    found = run(untrained_limit=1)
    assert (found.images, found.untrained_images) == (2, 1)
    assert set(found.scores) == {"untrained", "trivial"}
    assert found.scores["untrained"].keys() >= found.scores["trivial"].keys() >= {"NDS", "mAP", "AP/car"}
    # All scenes are alike: what is said of every sample is right in some.
    assert 0.1 < found.scores["trivial"]["AP/car"] < 1  # type: ignore[operator]
    assert found.scores["trivial"]["AP/bus"] == 0
    kept = json.loads(best.with_name("baselines.json").read_text())
    assert kept["key"]["sweeps"] == 2
    kept["scores"]["trivial"]["mAP"] = -1.0
    best.with_name("baselines.json").write_text(json.dumps(kept))
    assert run(untrained_limit=1).scores["trivial"]["mAP"] == -1.0


def test_typical_places_are_where_boxes_were(trained_nuscenes: TrainedNuscenes) -> None:  # noqa: F811
    train = ensure_prepared(trained_nuscenes.data, "detection3d", "train")
    boxes, velocity, scores, labels, attributes = typical_places(train)
    order = np.argsort(boxes[:, 0])
    # Two scenes with a car each, 3 m to the left, that was 20 m ahead, then 18; who holds no point is not counted.
    assert boxes[order][:, :6] == pytest.approx(np.array([[18, 3, 1, 4.5, 1.9, 1.6], [20, 3, 1, 4.5, 1.9, 1.6]]))
    assert np.cos(boxes[:, 6]) == pytest.approx(1)
    assert velocity == pytest.approx(np.array([[4.0, 0.0], [4.0, 0.0]]))
    assert scores.tolist() == [0.5, 0.5]
    assert labels.tolist() == [0, 0]
    assert [NUSCENES_ATTRIBUTES[one] for one in attributes] == ["vehicle.moving", "vehicle.moving"]


def test_sets_are_found_where_the_checkpoint_says(trained: Trained, tmp_path: Path) -> None:  # noqa: F811
    payload = checkpoint.load(trained.checkpoint("detection"))
    assert not find_sets(payload, tmp_path / "nowhere").changed
    other = write_bdd100k_tree(tmp_path / "other", seed=7)
    moved = {**payload, "data_root": str(tmp_path / "gone" / "train")}
    assert not find_sets(moved, trained.data).changed
    assert find_sets(moved, other).changed


def test_typical_boxes_are_right_where_every_picture_is_alike(tmp_path: Path) -> None:
    tree = write_bdd100k_tree(tmp_path / "tree", train=3, val=2)
    cars = [(2, 3, 20, 18), (30, 5, 60, 30)]

    def same(frames: list[dict]) -> None:
        for frame in frames:
            boxes = [dict(zip(("x1", "y1", "x2", "y2"), map(float, car))) for car in cars]
            frame["labels"] = [{"id": "0", "category": "car", "box2d": box} for box in boxes]

    for split in ("train", "val"):
        edit_labels(tree, split, same)
    train, val = (ensure_prepared(tree, "detection", split) for split in ("train", "val"))
    boxes, scores, labels = typical_boxes(train, 10)
    assert sorted((boxes * [64, 36, 64, 36]).round(3).tolist()) == [list(map(float, car)) for car in cars]
    assert scores.tolist() == [1.0, 1.0]
    assert labels.tolist() == [2, 2]
    model = build_expert("detection", {"dim": 16, "norm": "batch", "num_queries": 5}, pretrained=False)
    val_set = PreparedDataset(val.path, "detection", EvalTransform((64, 96)))
    metrics = score_typical_boxes(model, train, val_set)["trivial"]
    assert metrics["AP"] == pytest.approx(100)
    assert metrics["AP50/car"] == pytest.approx(100)
    assert not [key for key in metrics if key.startswith("heatmap/")]


def test_k_means_finds_clusters_and_stops_at_the_number_of_different_points() -> None:
    rng = np.random.default_rng(3)
    centres = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    points = np.concatenate([c + rng.normal(0, 0.1, (50, 2)) for c in centres])
    found = k_means(points, 3)
    assert np.abs(found[np.lexsort(found.T.round())] - centres[np.lexsort(centres.T)]).max() < 0.1
    assert len(k_means(np.ones((7, 2)), 3)) == 1


def test_a_place_without_counts_takes_the_most_frequent_class() -> None:
    counts = np.zeros((3, 1, 3), int)
    counts[:, 0] = [[0, 4, 0], [1, 0, 0], [0, 3, 0]]
    assert most_frequent(counts).tolist() == [[1, 0, 0]]


def test_the_untrained_model_is_the_same_each_time_and_leaves_randomness_alone(trained: Trained) -> None:  # noqa: F811
    import torch

    payload = checkpoint.load(trained.checkpoint("drivable"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = untrained_expert(payload, trained.checkpoint("drivable")).model.state_dict()
    assert torch.equal(torch.rand(3), expected)
    other = untrained_expert(payload, trained.checkpoint("drivable")).model.state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(not torch.equal(one[key], payload["model"][key]) for key in one)
