"""Preparing: resumable, atomic, nothing lost without a reason, and reused while the source is the same."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import simplejpeg
from bdd100k_tree import edit_labels, write_bdd100k_tree
from PIL import Image

from automoe import files
from automoe.data.prepared import PreparedInfo, ensure_prepared, prepare
from automoe.errors import DataError


def reasons(info: PreparedInfo) -> dict[str, str]:
    return {entry.name: entry.reason for entry in info.quarantine()}


@pytest.mark.parametrize("task", ["detection", "drivable", "segmentation"])
def test_prepared_rows_hold_the_source_untouched(tree: Path, tmp_path: Path, task: str) -> None:
    done: list[tuple[int, int]] = []
    info = prepare(tree, task, "train", tmp_path / "out", shard_size=3, progress=lambda *step: done.append(step))
    assert (info.count, info.quarantined, info.split) == (4, 0, "train")
    assert done[-1] == (4, 4)
    rows = datasets.load_from_disk(str(info.path))
    assert rows["name"][:] == [f"train{i:04d}.jpg" for i in range(4)]
    row = rows[2]
    kind = "10k" if task == "segmentation" else "100k"
    assert row["image"] == (tree / "images" / kind / "train" / row["name"]).read_bytes()
    assert (row["height"], row["width"]) == (36, 64)
    if task == "detection":
        frame = json.loads((tree / "labels/det_20/det_train.json").read_text())[2]
        assert row["boxes"] == [list(label["box2d"].values()) for label in frame["labels"]]
        assert row["ignored"] == [False] * 5 + [True]
        assert info.boxes == 24
    else:
        folder = "drivable" if task == "drivable" else "sem_seg"
        assert row["mask"] == (tree / "labels" / folder / "masks/train/train0002.png").read_bytes()


def test_fingerprint_is_of_the_content_alone(tree: Path, tmp_path: Path) -> None:
    one = prepare(tree, "detection", "train", tmp_path / "one", shard_size=1, workers=2)
    moved = shutil.copytree(tree, tmp_path / "elsewhere")
    other = prepare(moved, "detection", "train", tmp_path / "other", shard_size=4)
    assert one.fingerprint == other.fingerprint
    edit_labels(moved, "train", lambda frames: frames[3]["labels"].pop())
    assert prepare(moved, "detection", "train", tmp_path / "changed").fingerprint != one.fingerprint


def test_sets_of_an_older_program_are_prepared_again(tree: Path) -> None:
    info = ensure_prepared(tree, "detection", "train", say=lambda _: None)
    manifest = json.loads((info.path / "manifest.json").read_text())
    assert (manifest["format"], manifest["format_version"]) == ("automoe-bdd100k", 2)
    for key in ("unit", "options", "rig"):  # the first version's lack them
        del manifest[key]
    (info.path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 1}))
    with pytest.raises(DataError, match="has format version 1, this program reads 2; run `automoe prepare bdd100k`"):
        PreparedInfo.load(info.path)
    said: list[str] = []
    assert ensure_prepared(tree, "detection", "train", say=said.append) == info
    assert said


def test_the_fingerprint_is_that_of_its_formula(tree: Path) -> None:
    info = ensure_prepared(tree, "detection", "train", say=lambda _: None)
    fingerprint = hashlib.sha256(f"2 detection {info.classes}".encode())
    for row in datasets.load_from_disk(str(info.path)):
        digest = hashlib.sha256()
        for value in row.values():  # pyright: ignore[reportAttributeAccessIssue]
            digest.update(value if isinstance(value, bytes) else json.dumps(value).encode())
        fingerprint.update(digest.digest())
    assert fingerprint.hexdigest() == info.fingerprint


def test_broken_records_are_quarantined_by_name_and_the_rest_stays(tree: Path, tmp_path: Path) -> None:
    write_bdd100k_tree(tree, train=9)
    images = tree / "images/100k/train"
    (images / "train0000.jpg").write_bytes((images / "train0000.jpg").read_bytes()[:-200])
    (images / "train0001.jpg").write_bytes(b"not a picture")
    (images / "train0002.jpg").unlink()
    (images / "train0003.jpg").write_bytes(b"")

    def change(frames: list[dict]) -> None:
        frames[4]["labels"][0]["category"] = "spaceship"
        frames[5]["labels"][0]["box2d"].update(x1=400, x2=500)
        frames[6]["labels"][0]["box2d"].update(x1=-7, x2=900)
        frames[7]["name"] = "train0008.jpg"

    edit_labels(tree, "train", change)
    info = prepare(tree, "detection", "train", tmp_path / "out")
    why = reasons(info)
    assert "damaged JPEG" in why["train0000.jpg"]
    assert "not a readable JPEG" in why["train0001.jpg"]
    assert "cannot read the image" in why["train0002.jpg"]
    assert "is empty" in why["train0003.jpg"]
    assert "unknown class 'spaceship'" in why["train0004.jpg"]
    assert "lies outside the 64x36 image" in why["train0005.jpg"]
    assert "occurs a second time" in why["train0008.jpg"]
    assert (info.count, info.quarantined, info.rejected_labels) == (3, 6, 1)
    assert "6 broken images and 1 broken boxes were left out" in info.summary()
    rows = datasets.load_from_disk(str(info.path))
    assert rows["name"][:] == ["train0005.jpg", "train0006.jpg", "train0008.jpg"]
    assert len(rows[0]["labels"]) == 5  # one of six lay outside
    assert rows[1]["boxes"][0][0::2] == [0, 64]  # clipped


def test_broken_masks_are_quarantined_by_name(tree: Path, tmp_path: Path) -> None:
    masks = tree / "labels/sem_seg/masks/train"
    Image.fromarray(np.zeros((18, 32), np.uint8)).save(masks / "train0000.png")
    Image.fromarray(np.full((36, 64), 77, np.uint8)).save(masks / "train0001.png")
    (masks / "train0002.png").write_bytes((masks / "train0003.png").read_bytes()[:60])
    info = prepare(tree, "segmentation", "train", tmp_path / "out")
    why = reasons(info)
    assert "is 32x18 and its image train0000.jpg 64x36" in why["train0000.jpg"]
    assert "doesn't have: 77" in why["train0001.jpg"]
    assert "not a readable mask" in why["train0002.jpg"]
    assert info.count == 1


def test_nothing_usable_is_an_error_that_names_the_first_reason(tree: Path, tmp_path: Path) -> None:
    def change(frames: list[dict]) -> None:
        for frame in frames:
            frame["labels"][0]["category"] = "spaceship"

    edit_labels(tree, "val", change)
    with pytest.raises(DataError, match=r"no usable detection val image .* first of 2: .*class 'spaceship'"):
        prepare(tree, "detection", "val", tmp_path / "out")


def test_truncated_labels_leave_nothing_that_looks_finished(tree: Path, tmp_path: Path) -> None:
    labels = tree / "labels/det_20/det_train.json"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-300])
    with pytest.raises(DataError, match="not complete JSON: it breaks after record 3"):
        prepare(tree, "detection", "train", tmp_path / "out")
    labels.write_bytes(whole)
    assert prepare(tree, "detection", "train", tmp_path / "out").count == 4


def test_full_disk_is_one_sentence_and_the_next_run_goes_on(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sync, calls = tmp_path / "out", os.fsync, []

    def full_after_one_shard(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 2:  # the first shard and its account fit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full_after_one_shard)
    with pytest.raises(DataError, match=r"disk of .*out is full: the 1 finished shards are kept, nothing is half"):
        prepare(tree, "detection", "train", out, shard_size=1, workers=1)
    assert sorted(path.name for path in out.iterdir()) == [
        "data-00000-of-00004.arrow",
        "data-00000-of-00004.arrow.json",
    ]
    monkeypatch.undo()
    kept = (out / "data-00000-of-00004.arrow").stat().st_mtime_ns
    info = prepare(tree, "detection", "train", out, shard_size=1)
    assert info.count == 4
    assert (out / "data-00000-of-00004.arrow").stat().st_mtime_ns == kept


SLOW_PREPARE = """
import sys, time
from automoe.data import shards, prepared
build = shards.build_shard
def slow(*args):
    time.sleep(0.15)
    return build(*args)
prepared.build_shard = slow
prepared.prepare(sys.argv[1], "detection", "train", sys.argv[2], shard_size=1, workers=1)
"""


def test_a_killed_run_is_continued(tree: Path, tmp_path: Path) -> None:
    write_bdd100k_tree(tree, train=40)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", SLOW_PREPARE, str(tree), str(out)])
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.arrow.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(DataError, match="not a prepared set"):
        PreparedInfo.load(out)
    finished = {path: path.stat().st_mtime_ns for path in sorted(out.glob("*.arrow.json"))}
    assert 3 <= len(finished) < 40
    said: list[str] = []
    info = prepare(tree, "detection", "train", out, shard_size=1, say=said.append)
    assert "an earlier run is continued" in said[0]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert info.count == 40
    assert info.fingerprint == prepare(tree, "detection", "train", tmp_path / "fresh").fingerprint


def test_a_damaged_shard_is_noticed(tree: Path, tmp_path: Path) -> None:
    info = prepare(tree, "detection", "train", tmp_path / "out")
    shard = next(info.path.glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(DataError, match="missing or cut short"):
        PreparedInfo.load(info.path)
    assert prepare(tree, "detection", "train", tmp_path / "out").fingerprint == info.fingerprint


def test_first_use_prepares_inside_the_tree_and_says_so(tree: Path) -> None:
    said: list[str] = []
    info = ensure_prepared(tree, "drivable", "val", say=said.append)
    assert info.path == tree / "automoe_prepared/drivable/val"
    assert "first use" in said[0]
    said.clear()
    assert ensure_prepared(tree, "drivable", "val", say=said.append) == info
    assert said == []


def test_a_prepared_directory_is_taken_as_data_root(tree: Path, tmp_path: Path) -> None:
    train = ensure_prepared(tree, "detection", "train", tmp_path / "out", say=lambda _: None)
    val = ensure_prepared(tree, "detection", "val", tmp_path / "out", say=lambda _: None)
    shutil.rmtree(tree)
    for root in (tmp_path / "out", train.path):
        assert ensure_prepared(root, "detection", "train") == train
        assert ensure_prepared(root, "detection", "val") == val
    said: list[str] = []
    assert ensure_prepared(tree, "detection", "val", tmp_path / "out", say=said.append) == val
    assert "no folder" in said[0]


def test_changed_sources_are_prepared_again_saying_why(tree: Path) -> None:
    def again(task: str = "detection") -> tuple[PreparedInfo, list[str]]:
        said: list[str] = []
        return ensure_prepared(tree, task, "train", say=said.append), said

    first, _ = again()
    edit_labels(tree, "train", lambda frames: frames[0]["labels"].pop())
    second, said = again()
    assert second.boxes == first.boxes - 1
    assert "again" in said[0]
    assert "the labels in" in said[0]
    os.utime(tree / "labels/det_20/det_train.json")  # a copy with another time is the same file
    assert again() == (second, [])
    picture = tree / "images/100k/train/train0001.jpg"
    picture.write_bytes(simplejpeg.encode_jpeg(np.zeros((36, 64, 3), np.uint8)))
    third, said = again()
    assert "the images in" in said[0]
    assert third.fingerprint != second.fingerprint


def test_a_repaired_image_is_taken_in(tree: Path) -> None:
    picture = tree / "images/100k/train/train0001.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(b"x" * len(whole))
    assert ensure_prepared(tree, "detection", "train", say=lambda _: None).count == 3
    picture.write_bytes(whole)
    said: list[str] = []
    assert ensure_prepared(tree, "detection", "train", say=said.append).count == 4
    assert "train0001.jpg was broken and has changed" in said[0]


def _prepare_in_process(root: str, queue: multiprocessing.Queue) -> None:
    said: list[str] = []
    info = ensure_prepared(root, "detection", "train", say=said.append)
    queue.put((info.fingerprint, any("preparing" in line for line in said)))


def test_of_several_processes_one_prepares(tree: Path) -> None:
    write_bdd100k_tree(tree, train=30)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_prepare_in_process, args=(str(tree), queue)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({fingerprint for fingerprint, _ in answers}) == 1
    assert sum(prepared for _, prepared in answers) == 1


def test_a_disk_that_fills_at_the_very_end_can_be_gone_on_with(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(datasets.DatasetInfo, "write_to_directory", full)
    with pytest.raises(DataError, match=r"disk of .*out is full: the 1 finished shards are kept"):
        prepare(tree, "detection", "train", tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "out" / ".info.1.tmp").mkdir()  # as a killed process leaves it
    assert prepare(tree, "detection", "train", tmp_path / "out").count == 4
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_what_is_prepared_is_said(tree: Path) -> None:
    said: list[str] = []
    ensure_prepared(tree, "drivable", "val", say=said.append)
    assert f"images {tree}/images/100k/val, labels {tree}/labels/drivable/masks/val" in said


def test_an_unwritable_place_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError, match=r"cannot write the prepared set .*Read-only.* --prepared_dir"):
        ensure_prepared(tree, "detection", "train", say=lambda _: None)


def test_the_real_sample(fixtures: Callable[[str], Path], tmp_path: Path) -> None:
    root = fixtures("bdd100k_real_images_labels")
    detection = prepare(root, "detection", "train", tmp_path / "detection")
    assert (detection.count, detection.boxes, detection.quarantined) == (2, 13, 0)
    segmentation = prepare(root, "segmentation", "train", tmp_path / "segmentation")
    row = datasets.load_from_disk(str(segmentation.path))[0]
    with Image.open(root / "dummy_data/labels/sem_seg/colormaps/train/00a7ef03-00000000.png") as original:
        ids = np.array(original)
    from automoe.data.images import decode_mask

    np.testing.assert_array_equal(decode_mask(row["mask"], row["name"]), ids)
