"""The nuScenes reader: the real key frame, a small tree of our own, and what is wrong with trees."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nuscenes_tree import EGO_SPEED, edit_table, write_nuscenes_tree

from automoe.data import nuscenes_tables
from automoe.data.nuscenes import (
    Nuscenes,
    Sample,
    load_lidar,
    official_splits,
    project,
    read_points,
    to_global,
)
from automoe.data.nuscenes_tables import CAMERAS, read_tables
from automoe.errors import DataError
from automoe.poses import invert, move_boxes, points_inside
from automoe.taxonomy import NUSCENES_DETECTION


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_nuscenes_tree(tmp_path / "nuscenes")


def real_sample(fixtures: Callable[[str], Path]) -> Sample:
    return Nuscenes(fixtures("nuscenes_one_sample_dataroot")).split("train")[0]


def test_the_real_key_frame_lies_where_it_was_computed_to(fixtures: Callable[[str], Path]) -> None:
    """Points in boxes and LiDAR points on pictures, computed independently (shared fixture)."""
    sample = real_sample(fixtures)
    expected = json.loads((fixtures("nuscenes_sample_A") / "geometry_expected.json").read_text())
    raw = read_points(sample.lidar.path)[:, :3].astype(np.float64)
    assert sample.token == expected["token"]
    assert len(raw) == expected["n_points"]
    names = [NUSCENES_DETECTION[label] for label in sample.boxes.label]
    counts = {name: count for name, count in expected["class_counts"].items() if name != "ignored"}
    assert {name: names.count(name) for name in counts} == counts
    # The box of the ignored category is the one that the tables' order leaves out.
    in_lidar = move_boxes(invert(sample.lidar.T_ego_lidar), sample.boxes.boxes)
    found = points_inside(raw, in_lidar).sum(axis=0).tolist()
    wanted = expected["points_in_box"]
    ignored = next(place for place in range(len(wanted)) if found[place : place + 1] != [wanted[place]])
    assert found == wanted[:ignored] + wanted[ignored + 1 :]
    assert len(found) == expected["n_instances"] - 1
    ego = load_lidar(sample)
    assert 0 < len(ego) < len(raw)  # the car's own points are gone
    for channel, camera in sample.cameras.items():
        T_ego_lidar = sample.lidar.T_ego_lidar
        pixels, depth = project(raw @ T_ego_lidar[:3, :3].T + T_ego_lidar[:3, 3], camera)
        height, width = camera.size
        inside = (depth > 1) & (pixels > 0).all(axis=1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
        assert inside.sum() == expected["lidar_points_projected_inside_1600x900_depth_gt_1m"][channel]


def test_predictions_go_back_to_where_the_truth_is(fixtures: Callable[[str], Path]) -> None:
    sample = real_sample(fixtures)
    boxes = sample.boxes
    score = np.ones(len(boxes.label))
    back = to_global(boxes.boxes, boxes.velocity, boxes.label, boxes.attribute, score, sample.T_world_ego)
    np.testing.assert_allclose(back.translation, sample.truth.translation, atol=1e-6)
    np.testing.assert_allclose(back.size, sample.truth.size)
    # The ego tilts by a degree or so: headings come back to within what that does.
    assert np.abs(np.angle(np.exp(1j * (back.yaw - sample.truth.yaw)))).max() < 2e-3


def test_samples_come_in_order_with_their_sensors(tree: Path) -> None:
    dataset = Nuscenes(tree)
    train = dataset.split("train", sweeps=3)
    assert len(train) == 4
    assert str(train.missing) == "all files are there"
    assert [sample.scene for sample in train] == ["scene-a", "scene-a", "scene-b", "scene-b"]
    first, second = train[0], train[1]
    assert set(first.cameras) == set(CAMERAS)
    assert second.timestamp - first.timestamp == 500_000
    assert first.sweeps == ()
    lags = [(second.lidar.timestamp - frame.timestamp) / 1e6 for frame in second.sweeps]
    assert lags == pytest.approx([0.05, 0.10, 0.15])
    assert list(dataset.split("val", cameras=["CAM_FRONT"])[0].cameras) == ["CAM_FRONT"]


def test_sweeps_are_where_they_would_be_now(tree: Path) -> None:
    """A wall that stands still stays one wall, though the ego moved between the turns."""
    points = load_lidar(Nuscenes(tree).split("train", sweeps=10)[1])
    wall = points[points[:, 0] > 5]
    assert set(np.round(wall[:, 5] * 20).astype(int)) == set(range(11))
    assert np.ptp(wall[:, 0]) < 1e-3
    assert EGO_SPEED * 0.5 > 1  # it would be metres thick otherwise


def test_boxes_velocity_and_attributes(tree: Path) -> None:
    sample = Nuscenes(tree).split("train")[0]
    boxes = sample.boxes
    assert [NUSCENES_DETECTION[label] for label in boxes.label] == ["car", "pedestrian"]
    # The ego looks north, the car ahead drives north at 4 m/s: forward in the ego frame.
    np.testing.assert_allclose(boxes.boxes[0], [20, 3, 1, 4.5, 1.9, 1.6, 0], atol=1e-9)
    np.testing.assert_allclose(boxes.velocity[0], [4, 0], atol=1e-6)
    np.testing.assert_allclose(sample.truth.velocity[0], [0, 4], atol=1e-6)
    assert np.isnan(boxes.velocity[1]).all()  # seen once
    assert boxes.attribute.tolist() == [5, -1]
    assert boxes.points.tolist() == [7, 0]
    assert sample.racks.shape == (1, 7)


def test_who_has_not_all_parts_has_fewer_samples(tree: Path) -> None:
    sample = Nuscenes(tree).split("train", sweeps=3)[1]
    sample.cameras["CAM_BACK"].path.unlink()
    sample.sweeps[1].path.unlink()
    fewer = Nuscenes(tree).split("train", sweeps=3)
    assert len(fewer) == 3
    assert (fewer.missing.samples, fewer.missing.sweeps) == (1, 1)
    assert "1 samples and 1 sweeps are left out" in str(fewer.missing)
    assert len(Nuscenes(tree).split("train", cameras=["CAM_FRONT"])) == 4
    lags = [frame.timestamp for frame in Nuscenes(tree).sample(1, sweeps=3).sweeps]
    assert len(lags) == 3  # the next older one stands in
    shutil.rmtree(tree / "samples" / "LIDAR_TOP")
    assert len(Nuscenes(tree).split("train")) == 0


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        (
            "sample_data",
            {"ego_pose_token": "gone"},
            "sample_data.json, record .* ego_pose_token 'gone'",
        ),
        ("sample_data", {"calibrated_sensor_token": "gone"}, "its calibrated_sensor_token 'gone'"),
        ("sample", {"scene_token": "gone"}, "sample.json, record .* scene_token 'gone'"),
        ("sample_annotation", {"instance_token": "gone"}, "its instance_token 'gone'"),
        ("sample_annotation", {"next": "gone"}, "its next 'gone'"),
        ("sample_annotation", {"attribute_tokens": ["gone"]}, "attribute_tokens"),
        (
            "calibrated_sensor",
            {"translation": [1.0, math.nan, 0.0]},
            "calibrated_sensor.json: translation and .* nan",
        ),
        ("calibrated_sensor", {"rotation": [1.0, 0.0]}, "calibrated_sensor.json: translation and rotation of what"),
        ("calibrated_sensor", {"translation": [1.0, None, 0.0]}, "calibrated_sensor.json: translation and .* nan"),
        ("calibrated_sensor", {"rotation": [0, 0, 0, 0]}, "rotation of what record .* all zeros"),
        ("sample_annotation", {"visibility_token": "9"}, "visibility_token '9'"),
        ("sample_data", {"filename": None}, "filename None"),
        ("sample_data", {"timestamp": None}, "timestamp None"),
        ("sample", {"timestamp": None}, "sample.json, record .* timestamp None"),
        (
            "sample_annotation",
            {"size": [1.0, 2.0]},
            r"sample_annotation.json: size of what .* is \[1.0, 2.0\]; .* 3 numb",
        ),
        ("sample_annotation", {"translation": None}, "sample_annotation.json: translation of what"),
        ("ego_pose", {"rotation": [1, 0, None, 0]}, "ego_pose.json: translation and .* nan"),
        ("calibrated_sensor", {"camera_intrinsic": [[1.0]]}, "camera_intrinsic of what record .* 9 numbers"),
        ("category", {"name": "vehicle.spaceship"}, "a category that nuScenes hasn't: 'vehicle.spaceship'"),
    ],
)
def test_damaged_tables_are_named(tree: Path, table: str, change: dict, words: str) -> None:
    edit_table(tree, table, lambda records: records[0].update(change))
    with pytest.raises(DataError, match=words):
        Nuscenes(tree)


def test_a_truncated_table_is_named(tree: Path) -> None:
    path = tree / "v1.0-mini" / "ego_pose.json"
    path.write_text(path.read_text()[:-200])
    with pytest.raises(DataError, match=r"ego_pose.json is not complete JSON: it breaks after record"):
        Nuscenes(tree)
    path.unlink()
    with pytest.raises(DataError, match=r"lacks ego_pose\.json"):
        Nuscenes(tree)


def test_the_order_of_records_matters_only_where_it_says(tree: Path) -> None:
    """Scenes and the boxes of a sample come as in their tables, all else by scene, time and channel."""
    before = read_tables(tree / "v1.0-mini")
    for table in ("sample", "sample_data", "ego_pose", "calibrated_sensor", "instance", "category"):
        edit_table(tree, table, lambda records: records.reverse())
    after = read_tables(tree / "v1.0-mini")
    for name in ("tokens", "timestamps", "scene_of"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    for part in ("recordings", "boxes"):
        for name, column in vars(getattr(before, part)).items():
            np.testing.assert_array_equal(getattr(getattr(after, part), name), column, err_msg=name)
    edit_table(tree, "sample_annotation", lambda records: records.reverse())
    edit_table(tree, "scene", lambda records: records.reverse())
    turned = read_tables(tree / "v1.0-mini")
    assert turned.scenes == before.scenes[::-1]
    first = turned.boxes.instance[turned.boxes.sample == 0].tolist()
    assert first == before.boxes.instance[before.boxes.sample == len(before.tokens) - 2].tolist()[::-1]
    np.testing.assert_allclose(turned.boxes.velocity[turned.boxes.category == "vehicle.car"], [[0.0, 4.0]] * 6)


def test_too_little_memory_is_said(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nuscenes_tables, "MEMORY_LIMIT", "1MB")
    with pytest.raises(DataError, match="takes more than 1MB of memory and the room left in"):
        read_tables(tree / "v1.0-mini")


def test_damaged_points_are_named(tree: Path) -> None:
    path = Nuscenes(tree).split("train")[0].lidar.path
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(DataError, match=r"pcd.bin has \d+ bytes, .* cut short"):
        read_points(path)
    path.write_bytes(np.full(5, np.nan, np.float32).tobytes())
    with pytest.raises(DataError, match="points that are no numbers"):
        read_points(path)


def test_what_is_not_there_is_said(tree: Path) -> None:
    dataset = Nuscenes(tree)
    with pytest.raises(DataError, match="no split 'test'; there are: mini_train, mini_val"):
        dataset.split("test")
    with pytest.raises(DataError, match="no camera 'CAM_TOP'"):
        dataset.split("train", cameras=["CAM_TOP"])
    with pytest.raises(DataError, match="11 sweeps"):
        dataset.split("train", sweeps=11)
    with pytest.raises(DataError, match=r"no version v1.0-trainval; there are: v1.0-mini"):
        Nuscenes(tree, "v1.0-trainval")
    with pytest.raises(DataError, match="there is no folder"):
        Nuscenes(tree / "nowhere")


def test_the_official_splits_have_their_official_sizes() -> None:
    every = [f"scene-{number:04d}" for number in range(1, 1111)]
    assert len(official_splits("v1.0-trainval", every)["val"]) == 150
    mini = official_splits("v1.0-mini", every)
    assert (len(mini["mini_train"]), len(mini["mini_val"])) == (8, 2)
    assert not set(mini["mini_val"]) - set(official_splits("v1.0-trainval", every)["val"])
    assert official_splits("v1.0-embedded", every) == {}
