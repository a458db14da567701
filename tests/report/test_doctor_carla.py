"""The doctor finds what is broken in CARLA recordings, in every part of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from carla_runs import write_two_towns

from automoe.report.doctor_carla import doctor_carla


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_two_towns(tmp_path / "raw")


def problems(root: Path, **options: int) -> str:
    return "\n".join(doctor_carla(root, root.parent / "doctor", **options).problems)


def test_sound_runs_have_no_problems(tree) -> None:
    assert problems(tree) == ""


def test_points_that_cannot_be_read_are_found(tree) -> None:
    path = tree / "run_000" / "lidar" / "000010.npy"
    path.write_bytes(path.read_bytes()[:20])
    assert f"cannot read the points {path}" in problems(tree)


def test_a_broken_picture_of_any_camera_is_found(tree) -> None:
    path = tree / "run_000" / "images" / "front_left" / "000010.png"
    path.write_bytes(b"junk" * 50)
    assert f"{path} is cut short" in problems(tree)


@pytest.mark.parametrize("camera", ["front", "rear"])
def test_a_camera_that_hung_is_found(tree, camera: str) -> None:
    folder = tree / "run_001" / "images" / camera
    (folder / "000015.png").write_bytes((folder / "000010.png").read_bytes())
    assert f"{folder / '000015.png'} is the picture of frame 10 again" in problems(tree)


def test_files_that_are_missing_are_counted(tree) -> None:
    (tree / "run_000" / "lidar" / "000005.npy").unlink()
    (tree / "run_000" / "images" / "rear" / "000020.png").unlink()
    found = problems(tree)
    assert "lidar has no file for 1 of 6 frames, 000005 the first" in found
    assert "rear has no picture for 1 of 6 frames, 000020 the first" in found


def test_the_last_frame_of_every_run_is_opened(tree) -> None:
    """A recorder that is broken off leaves it half written; two samples of twelve frames would miss the first run's."""
    path = tree / "run_000" / "segmentation" / "front" / "000025.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert f"{path} is cut short" in problems(tree, look_at=2)
