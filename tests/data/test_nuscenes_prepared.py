"""Prepared nuScenes: what the raw reader says comes back, broken samples are named, options decide what is stale."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from bdd100k_tree import write_bdd100k_tree
from nuscenes_tree import edit_table, write_nuscenes_tree

from automoe import cli
from automoe.data.nuscenes import Nuscenes, Sample, load_lidar
from automoe.data.nuscenes_prepared import (
    POINT_DTYPE,
    POINT_LIMIT,
    POINT_STEP,
    NuscenesRow,
    NuscenesRows,
    decode_points,
    encode_points,
)
from automoe.data.nuscenes_tables import CAMERAS
from automoe.data.prepared import PreparedInfo, ensure_prepared, prepare
from automoe.errors import DataError
from automoe.taxonomy import NUSCENES_DETECTION


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_nuscenes_tree(tmp_path / "nuscenes")


def silent(_: str) -> None:
    pass


def ensure(tree: Path, **options: object) -> tuple[PreparedInfo, list[str]]:
    """The training set inside the tree, and what was said on the way."""
    said: list[str] = []
    return ensure_prepared(tree, "detection3d", "train", options=options, say=said.append), said


def check_row(row: NuscenesRow, sample: Sample) -> None:
    """A row holds what the raw reader tells of its sample."""
    assert (row.token, row.scene, row.timestamp) == (sample.token, sample.scene, sample.timestamp)
    np.testing.assert_array_equal(row.T_world_ego, sample.T_world_ego)
    raw = load_lidar(sample)
    raw = raw[(np.abs(raw[:, :3]) <= POINT_LIMIT).all(axis=1)]
    points = row.points()
    assert (points.dtype, points.shape) == (np.float32, raw.shape)
    np.testing.assert_allclose(points[:, :3], raw[:, :3], atol=POINT_STEP / 2 + 1e-5)
    np.testing.assert_allclose(points[:, 3:5], raw[:, 3:5], atol=0.5)
    np.testing.assert_allclose(points[:, 5], raw[:, 5], atol=1e-6)
    assert row.cameras == tuple(sample.cameras)
    for place, camera in enumerate(sample.cameras.values()):
        assert row.images[place] == camera.path.read_bytes()
        assert (row.heights[place], row.widths[place]) == camera.size
        assert row.picture(camera.channel).shape == (*camera.size, 3)
        np.testing.assert_array_equal(row.intrinsic[place], camera.intrinsic)
        np.testing.assert_array_equal(row.T_cam_ego[place], camera.T_cam_ego)
    same = {"labels": "label", "attributes": "attribute", "box_points": "points", "visibility": "visibility"}
    for own, theirs in {"boxes": "boxes", "velocity": "velocity", **same}.items():
        np.testing.assert_array_equal(getattr(row, own), getattr(sample.boxes, theirs))
    np.testing.assert_array_equal(row.racks, sample.racks)
    truth = row.truth()
    for name in (one.name for one in fields(truth)):
        np.testing.assert_allclose(getattr(truth, name), getattr(sample.truth, name), atol=1e-6, err_msg=name)


def test_points_in_eight_bytes() -> None:
    assert POINT_DTYPE.itemsize == 8
    near, far = [[1.0, -2.0, 0.0024, 40.6, 31], [0, 0, -3, -4, 5]], [[162.999, -163, 0, 300, 0], [0, 163.1, 0, 9, 0]]
    points = np.array([*near, *far], np.float32)
    back = decode_points(encode_points(points))
    np.testing.assert_allclose(back[:, :3], points[:3, :3], atol=POINT_STEP / 2 + 1e-5)
    np.testing.assert_array_equal(back[:, 3:], [[41, 31], [0, 5], [255, 0]])


def test_rows_hold_what_the_raw_reader_says(tree: Path, tmp_path: Path) -> None:
    # The ego tilts, as real ones do: truth must come back all the same.
    tilted = [0.7, 0.03, -0.02, 0.71]
    edit_table(tree, "ego_pose", lambda records: [record.update(rotation=tilted) for record in records])
    info = prepare(tree, "detection3d", "train", tmp_path / "out", shard_size=3)
    assert (info.dataset, info.unit, info.count, info.boxes, info.quarantined) == ("nuscenes", "samples", 4, 6, 0)
    assert info.summary() == "detection3d train: 4 samples, 6 boxes"
    rows = NuscenesRows(info.path)
    split = Nuscenes(tree).split("train", sweeps=10)
    assert (len(rows), rows.cameras, rows.sweeps) == (len(split), CAMERAS, 10)
    for index in range(len(rows)):
        check_row(rows.row(index), split[index])
    assert rows.row(1).turn_points.tolist() == [7] * 11
    np.testing.assert_allclose(rows.row(1).turn_lag, np.arange(11) / 20, atol=1e-6)
    assert len(rows.row(1).points(turns=4)) == 28
    assert len(rows.row(0).points(turns=4)) == 7  # the first of its scene
    with pytest.raises(DataError, match="has no camera CAM_TOP; it has CAM_FRONT, "):
        rows.row(0).picture("CAM_TOP")
    with pytest.raises(IndexError, match="index 4 of 4 samples"):
        rows.row(4)


def test_rows_are_cheap_to_send_and_read_in_part(tree: Path, tmp_path: Path) -> None:
    info = prepare(tree, "detection3d", "train", tmp_path / "out", shard_size=1)
    rows = NuscenesRows(info.path, limit=2)
    assert [rows.row(index).token for index in range(2)] == ["scene-a-sample-0", "scene-b-sample-1"]
    assert rows.column("token") == ["scene-a-sample-0", "scene-b-sample-1"]
    car, pedestrian = (NUSCENES_DETECTION.index(name) for name in ("car", "pedestrian"))
    assert rows.column("labels") == [[car, pedestrian], [car]]
    sent = pickle.dumps(rows)
    assert len(sent) < 10_000
    assert pickle.loads(sent).row(1).token == "scene-b-sample-1"
    with pytest.raises(DataError, match="at least 1"):
        NuscenesRows(info.path, limit=0)


def test_the_manifest_tells_the_rig(tree: Path, tmp_path: Path) -> None:
    info = prepare(tree, "detection3d", "val", tmp_path / "out", options={"cameras": ("CAM_BACK", "CAM_FRONT")})
    assert info.classes == NUSCENES_DETECTION
    assert info.options == {"version": "v1.0-mini", "sweeps": 10, "cameras": ["CAM_FRONT", "CAM_BACK"]}
    assert "calibration travels with each sample" in info.rig["note"]
    assert list(info.rig["cameras"]) == ["CAM_FRONT", "CAM_BACK"]
    front = info.rig["cameras"]["CAM_FRONT"]
    assert front["size"] == [18, 32]
    assert front["intrinsic"][0] == [20, 0, 16]
    # A camera's z is the ego's x.
    mounted = [[0, 0, 1, 1.0], [-1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1]]
    np.testing.assert_allclose(front["T_ego_cam"], mounted, atol=1e-9)
    np.testing.assert_allclose(np.array(info.rig["lidar"]["T_ego_lidar"])[:3, 3], [1.0, 0.0, 1.6])
    assert NuscenesRows(info.path).row(0).cameras == ("CAM_FRONT", "CAM_BACK")


def test_broken_samples_are_quarantined_and_the_rest_stays(tree: Path, tmp_path: Path) -> None:
    split = Nuscenes(tree).split("train", sweeps=10)
    samples = [split[index] for index in range(len(split))]
    points, sweep = samples[1].lidar.path, samples[3].sweeps[4].path
    points.write_bytes(points.read_bytes()[:-7])
    sweep.write_bytes(np.full(5, np.nan, np.float32).tobytes())
    picture, other = samples[0].cameras["CAM_BACK"].path, samples[2].cameras["CAM_FRONT"].path
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-60])
    other.write_bytes(simplejpeg.encode_jpeg(np.zeros((9, 16, 3), np.uint8)))
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"no usable detection3d train sample in .*; the first of 4: .*readable JPEG"):
        prepare(tree, "detection3d", "train", out)
    picture.write_bytes(whole)
    info = prepare(tree, "detection3d", "train", out)
    why = {entry.name: entry.reason for entry in info.quarantine()}
    assert sorted(why) == sorted(samples[index].token for index in (1, 2, 3))
    assert "cut short" in why[samples[1].token]
    assert "is 16x9, and sample_data.json says 32x18" in why[samples[2].token]
    assert "no numbers" in why[samples[3].token]
    assert (info.count, info.quarantined) == (1, 3)
    assert "3 broken samples and 0 broken boxes were left out" in info.summary()
    assert NuscenesRows(out).row(0).token == samples[0].token
    picture.write_bytes(whole[:-60])
    with pytest.raises(DataError, match="no usable"):  # noticed, and prepared again
        prepare(tree, "detection3d", "train", out)


def test_a_repaired_file_is_taken_in(tree: Path) -> None:
    path = Nuscenes(tree).split("train")[1].lidar.path
    whole = path.read_bytes()
    path.write_bytes(b"\xff" * len(whole))
    assert ensure(tree)[0].count == 3
    path.write_bytes(whole)
    info, said = ensure(tree)
    assert info.count == 4
    assert "scene-a-sample-1 was broken and has changed" in said[0]


def test_damaged_tables_stop_it_with_the_record_s_name(tree: Path, tmp_path: Path) -> None:
    edit_table(tree, "calibrated_sensor", lambda records: records[0].update(translation=[1.0, math.nan, 0.0]))
    with pytest.raises(DataError, match=r"calibrated_sensor.json.* record .*nan"):
        prepare(tree, "detection3d", "train", tmp_path / "out")
    with pytest.raises(DataError, match="not a prepared set"):
        PreparedInfo.load(tmp_path / "out")


def test_who_has_not_all_parts_has_fewer_samples_and_is_told(tree: Path) -> None:
    path = Nuscenes(tree).split("train")[1].cameras["CAM_BACK"].path
    picture = path.read_bytes()
    path.unlink()
    info, said = ensure(tree)
    assert info.count == 3
    assert any("note: 1 samples and 0 sweeps are left out for missing files" in line for line in said)
    assert "1 samples and 0 sweeps" in info.notes[0]
    path.write_bytes(picture)
    info, said = ensure(tree)
    assert (info.count, info.notes) == (4, ())
    assert "samples/CAM_BACK have changed" in said[0]
    for folder in ("samples", "sweeps"):
        shutil.rmtree(tree / folder / "LIDAR_TOP")
    with pytest.raises(DataError, match=r"no usable detection3d train sample .* 4 samples and .* missing files"):
        ensure(tree)


def test_other_options_are_prepared_again_saying_why(tree: Path, tmp_path: Path) -> None:
    info, said = ensure(tree, sweeps=1, cameras=["CAM_FRONT"])
    assert info.path == tree / "automoe_prepared/detection3d/train"
    assert "first use" in said[0]
    assert ensure(tree) == (info, [])
    more, said = ensure(tree, sweeps=2)
    assert "it was prepared with sweeps 1, and 2 is asked for" in said[0]
    assert NuscenesRows(more.path).row(1).turn_points.tolist() == [7] * 3
    assert more.fingerprint != info.fingerprint
    front, said = ensure(tree, cameras=["CAM_BACK"])  # beside what is there: who uses that is served as before
    assert "it was prepared with cameras CAM_FRONT, and CAM_BACK, CAM_FRONT is asked for" in said[0]
    assert NuscenesRows(front.path).cameras == ("CAM_FRONT", "CAM_BACK")
    assert ensure(tree) == (front, [])  # who doesn't mind takes what is there
    assert ensure(tree, sweeps=0, cameras=["CAM_BACK"]) == (front, [])  # and who wants less is served
    shutil.copytree(tree / "v1.0-mini", tree / "v1.0-trainval")
    with pytest.raises(DataError, match="several versions"):
        ensure_prepared(tree, "detection3d", "train", tmp_path / "elsewhere", say=silent)
    assert ensure(tree) == (front, [])  # which of them is known here
    _, said = ensure(tree, version="v1.0-trainval")
    assert "version v1.0-mini, and v1.0-trainval is asked for" in said[0]


def test_a_prepared_directory_is_taken_as_data_root_with_its_options(tree: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", {"sweeps": 1, "cameras": ("CAM_BACK", "CAM_FRONT")}
    train, val = (
        ensure_prepared(tree, "detection3d", split, out, options=options, say=silent) for split in ("train", "val")
    )
    shutil.rmtree(tree)
    for root in (out, train.path):
        assert ensure_prepared(root, "detection3d", "train") == train
        assert ensure_prepared(root, "detection3d", "val", options=options) == val
        with pytest.raises(DataError, match="prepared with sweeps 1, and 5 is asked for; give the raw nuscenes tree"):
            ensure_prepared(root, "detection3d", "val", options={"sweeps": 5})
    said: list[str] = []
    assert ensure_prepared(tree, "detection3d", "val", out, say=said.append) == val
    assert "no folder" in said[0]


def test_another_task_s_set_is_refused(tmp_path: Path) -> None:
    info = prepare(write_bdd100k_tree(tmp_path / "bdd100k"), "detection", "val", tmp_path / "out")
    with pytest.raises(DataError, match="is prepared for detection, not for detection3d"):
        NuscenesRows(info.path)


def test_changed_tables_are_prepared_again_and_copies_are_not(tree: Path) -> None:
    first, _ = ensure(tree)
    os.utime(tree / "v1.0-mini" / "sample.json")
    assert ensure(tree) == (first, [])
    edit_table(tree, "sample_annotation", lambda records: records[0].update(size=[2.0, 4.0, 1.5]))
    second, said = ensure(tree)
    assert "sample_annotation.json has changed" in said[0]
    assert second.fingerprint != first.fingerprint


def test_impossible_wishes_are_sentences(tree: Path, tmp_path: Path) -> None:
    for options, words in (
        ({"sweeps": 11}, "11 sweeps were asked for; give 0 to 10"),
        ({"cameras": ["CAM_TOP"]}, "no camera 'CAM_TOP'"),
        ({"version": "v1.0-test"}, "no version v1.0-test; there are: v1.0-mini"),
    ):
        with pytest.raises(DataError, match=words):
            ensure(tree, **options)
    with pytest.raises(DataError, match="no split 'test'; there are: mini_train, mini_val"):
        prepare(tree, "detection3d", "test", tmp_path / "out")
    with pytest.raises(DataError, match="no task 'detection4d'; tasks are detection, drivable"):
        prepare(tree, "detection4d", "train", tmp_path / "out")
    with pytest.raises(DataError, match="has no folder v1"):
        ensure_prepared(tmp_path, "detection3d", "train")


SLOW_PREPARE = """
import sys, time
from automoe.data import shards, prepared
build = shards.build_shard
def slow(*args):
    time.sleep(0.4)
    return build(*args)
prepared.build_shard = slow
prepared.prepare(sys.argv[1], "detection3d", "train", sys.argv[2], shard_size=1, workers=1)
"""


def test_a_killed_run_is_continued(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", SLOW_PREPARE, str(tree), str(out)])
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.arrow.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.arrow.json")}
    assert 2 <= len(finished) < 4
    said: list[str] = []
    info = prepare(tree, "detection3d", "train", out, shard_size=1, say=said.append)
    assert "an earlier run is continued" in said[0]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert info.fingerprint == prepare(tree, "detection3d", "train", tmp_path / "fresh").fingerprint


def test_the_real_key_frame(fixtures: Callable[[str], Path], tmp_path: Path) -> None:
    root = fixtures("nuscenes_one_sample_dataroot")
    info = prepare(root, "detection3d", "train", tmp_path / "out")
    row = NuscenesRows(info.path).row(0)
    check_row(row, Nuscenes(root).split("train", sweeps=10)[0])
    assert row.turn_lag.tolist() == [0.0]
    assert len(row.boxes) == info.boxes == 68


def test_from_the_command_line(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = f"prepare nuscenes --data_root {tree} --out {out} --sweeps 3 --workers 1 --cameras CAM_FRONT CAM_BACK"
    cli.app(words.split())
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "detection3d train: 4 samples, 6 boxes" in printed
    assert "detection3d val: 2 samples, 3 boxes" in printed
    rows = NuscenesRows(out / "detection3d" / "val")
    assert (rows.cameras, rows.sweeps) == (("CAM_FRONT", "CAM_BACK"), 3)
    cli.app(f"prepare nuscenes --data_root {tree} --split mini_val".split())
    assert (tree / "automoe_prepared/detection3d/mini_val/manifest.json").is_file()
