"""The benchmark of sensors: three models a seed, sensors shuffled in the scoring alone, nothing trained twice."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from nuscenes_tree import SCENES, VERSION, write_nuscenes_tree

from automoe.data.nuscenes_dataset import NuscenesDataset, NuscenesView
from automoe.data.nuscenes_prepared import TASK
from automoe.data.prepared import ensure_prepared
from automoe.errors import DataError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    return importlib.import_module("nuscenes_ablation")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two validation scenes of two samples."""
    root = write_nuscenes_tree(tmp_path / "nuscenes", size=(96, 54))
    splits = {"mini_train": ["scene-a"], "mini_val": ["scene-b", "scene-c"]}
    (root / VERSION / "splits.json").write_text(json.dumps(splits))
    return root


def val(data: Path) -> NuscenesDataset:
    return NuscenesDataset(ensure_prepared(data, TASK, "val").path, NuscenesView((64, 96), sweeps=1))


def test_a_row_for_every_model_and_nothing_trained_twice(ablation: ModuleType, data: Path, tmp_path: Path) -> None:
    options = [*("--data_root", str(data), "--output_root", str(tmp_path), "--num_workers", "0"), "--steps", "1"]
    found = ablation.compare(ablation.parse([*options, "--seeds", "0"]))
    assert list(found) == ["camera+LiDAR", "LiDAR only", "camera only", "shuffled LiDAR", "shuffled images"]
    assert all(len(runs) == 1 and runs[0]["mAP"] is not None for runs in found.values())
    assert all((runs[0]["steps"], runs[0]["seed"]) == (1, 0) for runs in found.values())
    checkpoints = sorted(tmp_path.glob("models/checkpoints/nuscenes_expert/*/best.pth"))
    names = [f"tiny{kind}-1-steps-seed-0" for kind in ("", "_camera", "_lidar")]
    assert [path.parent.name for path in checkpoints] == names
    before = [path.stat().st_mtime_ns for path in checkpoints]
    again = ablation.compare(ablation.parse([*options, "--seeds", "0", "--rows", "shuffled images"]))
    assert list(again) == ["shuffled images"]
    assert again["shuffled images"] == found["shuffled images"]
    assert [path.stat().st_mtime_ns for path in checkpoints] == before


@pytest.mark.parametrize("entry", ["points", "image"])
def test_one_sensor_is_shuffled_and_the_rest_stays(ablation: ModuleType, data: Path, entry: str) -> None:
    whole = val(data)
    shuffled = ablation.Shuffled(whole, entry, seed=0)
    scenes = whole.rows.column("scene")
    for index in range(len(whole)):
        item, true, other = shuffled[0, index], whole[0, index], whole[0, int(shuffled.other[index])]
        assert scenes[index] != scenes[int(shuffled.other[index])]
        assert item[entry].equal(other[entry])
        for key in ("points", "image", "T_cam_ego", "boxes", "labels"):
            assert key == entry or item[key].equal(true[key])
        assert item["sample_id"] == true["sample_id"]


def test_one_scene_can_not_be_shuffled(ablation: ModuleType, tmp_path: Path) -> None:
    data = write_nuscenes_tree(tmp_path / "nuscenes", size=(96, 54))
    assert len(SCENES["mini_val"]) == 1
    with pytest.raises(DataError, match="one scene only"):
        ablation.Shuffled(val(data), "image", seed=0)


def test_the_interval_is_student_s(ablation: ModuleType) -> None:
    mean, half = ablation.interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert ablation.interval([0.5]) == (0.5, np.inf)
    found = {"one": [{"mAP": 0.1, "NDS": 0.2, "AP/car": None, "AP/pedestrian": 0.0}]}
    assert "0.100 +- inf" in ablation.table(found)
