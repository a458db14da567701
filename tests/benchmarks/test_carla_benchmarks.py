"""The benchmarks of driving and of fine-tuning: what they print is what was driven and trained."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from automoe.config import profile_path, read_json
from automoe.metrics.detection import DetectionMetrics
from automoe.stages.carla import stage_of
from automoe.taxonomy import BDD_DETECTION


def load(name: str) -> ModuleType:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    return importlib.import_module(name)


def test_the_teacher_is_judged_on_every_route_with_every_seed(tmp_path: Path, monkeypatch, capsys) -> None:
    teacher = load("teacher")
    words = ["teacher.py", "--routes", "2", "--seeds", "0", "1", "--length", "40", "--workers", "1"]
    words += ["--json", str(tmp_path / "teacher.json"), "--results", str(tmp_path / "results.json")]
    monkeypatch.setattr(sys, "argv", words)
    teacher.main()
    assert "4 drives" in capsys.readouterr().out
    said = json.loads((tmp_path / "teacher.json").read_bytes())
    assert [one["route_id"] for one in said["drives"]] == [
        f"RouteScenario_{route}_rep{seed}" for route in (0, 1) for seed in (0, 1)
    ]
    scores = [one["scores"]["score_composed"] for one in said["drives"]]
    assert said["all"]["driving_score"] == pytest.approx(np.mean(scores), abs=1e-4)
    results = json.loads((tmp_path / "results.json").read_bytes())
    assert results["_checkpoint"]["progress"] == [4, 4]


def test_the_table_has_means_and_intervals_and_one_number_for_the_source() -> None:
    benchmark = load("carla_finetuning")
    arms = {
        "source unchanged": [{"mIoU": 40.0, "pAcc": 80.0}],
        "from scratch": [{"mIoU": value, "pAcc": 85.0} for value in (50.0, 52.0, 54.0)],
        "fine-tuned": [{"mIoU": value, "pAcc": None} for value in (60.0, 60.0, 60.0)],
    }
    lines = benchmark.table({"segmentation": arms}).splitlines()
    shown = ["segmentation", "mIoU", "40.0", "52.0", "+-", "5.0", "60.0", "+-", "0.0"]
    assert lines[1].split() == [*shown, "+20.0", "+-", "0.0", "+8.0", "+-", "5.0"]


@pytest.mark.parametrize("task", ["detection", "drivable", "segmentation", "nuscenes_2d"])
def test_a_fresh_start_has_the_source_profiles_rates_and_all_else_of_the_fine_tuning(task: str, tmp_path: Path) -> None:
    benchmark = load("carla_finetuning")
    stage = stage_of(task)
    own = read_json(benchmark.fresh_start(task, argparse.Namespace(profile="tiny", output_root=tmp_path)))
    tuned = read_json(profile_path(stage.component, "tiny"))
    source = read_json(profile_path(stage.source_component, "tiny"))
    assert own["engine"]["learning_rate"] == source["engine"]["learning_rate"] >= tuned["engine"]["learning_rate"]
    assert (own["layer_decay"], own["hold_backbone_steps"]) == (1.0, 0)
    assert own["backbone_lr_factor"] == source["backbone_lr_factor"]
    changed = ("engine", "layer_decay", "hold_backbone_steps", "backbone_lr_factor")
    assert {key: own[key] for key in own if key not in changed} == {
        key: tuned[key] for key in tuned if key not in changed
    }
    assert own["engine"] | {"learning_rate": 0} == tuned["engine"] | {"learning_rate": 0}


def test_the_bootstrap_draws_neighbours_together() -> None:
    """Of frames that are all right or all wrong by blocks of ten, scores jump; their mean is the share."""
    benchmark = load("carla_real")
    metrics = DetectionMetrics(BDD_DETECTION)
    car, box = BDD_DETECTION.index("car"), np.array([[10.0, 10.0, 50.0, 40.0]])
    for number in range(40):
        said = box if number < 20 else box + 200.0
        metrics.add(f"{number:03d}", box, [car], [False], said, [0.9], [car])
    found = benchmark.bootstrap(metrics.state(), BDD_DETECTION, 60, 0)
    assert min(found) < 30.0
    assert max(found) > 60.0
    same = DetectionMetrics(BDD_DETECTION)
    for number in range(20):
        same.add(f"{number:03d}", box, [car], [False], box, [0.9], [car])
    assert np.ptp(benchmark.bootstrap(same.state(), BDD_DETECTION, 5, 0)) == 0.0
