"""The benchmark of profiles measures what the trainer does, and keeps what it has measured."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from nuscenes_tree import write_nuscenes_tree

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_profile_is_measured_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    profiles = importlib.import_module("nuscenes_profiles")
    data, out = write_nuscenes_tree(tmp_path / "nuscenes", size=(96, 54)), tmp_path / "profiles.json"
    out.write_text(json.dumps({"profiles": {"earlier": {"steps": 3}}}))
    options = ["--data_root", str(data), "--steps", "2", "--samples", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["nuscenes_profiles.py", *options, "--profiles", "tiny_lidar"])
    profiles.main()
    rows = json.loads(out.read_text())["profiles"]
    assert list(rows) == ["earlier", "tiny_lidar"]
    row = rows["tiny_lidar"]
    assert row["steps"] == 2
    assert row["batch_size"] == 1
    assert row["seconds_a_step"] > 0
    assert row["evaluation_seconds_a_sample"] > 0
    assert 0 <= row["data_wait"] < 1
    assert row["peak_gib"] > 0.1
    assert not row["random_weights"]
    assert row["parameters"] > 10_000
