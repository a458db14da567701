"""Pictures with boxes in YOLO's form: read, split in blocks, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from automoe.data.carla_prepared import CarlaImages, TimeIndex
from automoe.data.carla_source import find_carla
from automoe.data.prepared import prepare
from automoe.data.transforms import EvalTransform
from automoe.errors import DataError
from automoe.taxonomy import BDD_DETECTION

NAMES = ["car", "truck", "motorbike", "bike", "person"]


def write_set(root: Path, count: int = 10, label: str = "0 0.5 0.5 0.25 0.5\n") -> Path:
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for number in range(count):
        picture = np.full((40, 80, 3), 20 * (number % 10), np.uint8)
        name = f"{100 + 7 * number:06d}"
        (root / "images" / f"{name}.jpg").write_bytes(simplejpeg.encode_jpeg(picture, colorspace="RGB"))
        (root / "labels" / f"{name}.txt").write_text(label)
    return root


def images(root: Path, split: str = "train", **options) -> CarlaImages:
    fold = options.get("fold", "0/5").replace("/", "-")
    out = root.parent / f"prepared-{fold}" / split
    info = prepare(root, "frames", split, out, options={"names": NAMES} | options, workers=1)
    return CarlaImages(info.path, "detection", EvalTransform((32, 64)))


def test_boxes_come_out_in_pixels_with_their_class(tmp_path) -> None:
    label = "0 0.5 0.5 0.25 0.5\n3 0.1 0.2 0.1 0.2\n4 0.9 0.5 0.4 0.5\n\n"
    row = images(write_set(tmp_path / "set", label=label)).row(0)
    np.testing.assert_allclose(row.boxes, [[30, 10, 50, 30], [4, 4, 12, 12], [56, 10, 80, 30]])
    assert [BDD_DETECTION[label] for label in row.labels] == ["car", "bicycle", "pedestrian"]


def test_folds_are_blocks_in_the_order_of_the_frames(tmp_path) -> None:
    root = write_set(tmp_path / "set")
    found = []
    for fold in range(5):
        val = [images(root, "val", fold=f"{fold}/5").row(index).name for index in range(2)]
        train = images(root, "train", fold=f"{fold}/5")
        assert len(train) == 8
        assert not set(val) & {train.row(index).name for index in range(8)}
        found += val
    assert found == sorted(found)
    assert len(set(found)) == 10


def test_a_hash_behind_the_name_does_not_change_the_order(tmp_path) -> None:
    root = write_set(tmp_path / "set")
    for folder, suffix in (("images", "jpg"), ("labels", "txt")):
        for number, path in enumerate(sorted((root / folder).iterdir())):
            path.rename(path.with_name(f"{path.stem}_jpg.rf.{number}f{9 - number}a.{suffix}"))
    assert [images(root, "val").row(index).name[:6] for index in range(2)] == ["000100", "000107"]


def test_there_is_no_time_in_them(tmp_path) -> None:
    data = images(write_set(tmp_path / "set"))
    assert len(TimeIndex.load(data.info.path).windows(1, 1)) == 0


def test_bad_lines_are_left_out_and_named(tmp_path) -> None:
    root = write_set(
        tmp_path / "set",
        label="0 0.5 0.5 0.25 0.5\n9 0.5 0.5 0.1 0.1\n0 nan 0 1 1\n0 0.5\ninf 0 0 1 1\n0 0.5 0.5 inf inf\n",
    )
    data = images(root)
    assert len(data.row(0).boxes) == 1
    assert data.info.rejected_labels == 5 * 8
    assert "line 2 is no box of a known class" in data.info.quarantine()[0].reason


def test_pictures_without_labels_and_broken_pictures(tmp_path) -> None:
    root = write_set(tmp_path / "set")
    (root / "labels" / "000107.txt").unlink()
    broken = root / "images" / "000142.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    data = images(root, "train", fold="4/5")
    assert any("1 of 10 pictures have no label file" in note for note in data.info.notes)
    assert data.info.quarantined == 1
    (root / "labels" / "000114.txt").write_bytes(b"\xff\xfe0 0.5")
    again = images(root, "train", fold="4/5")
    assert any("cannot read the labels" in entry.reason for entry in again.info.quarantine())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"names": None}, "does not say what its class numbers mean"),
        ({"names": ["car", "horse"]}, "'horse' is none of the classes"),
        ({"fold": "5/5"}, "fold must be k/n"),
        ({"fold": "first"}, "fold must be k/n"),
    ],
)
def test_impossible_options_are_named(tmp_path, options: dict, sentence: str) -> None:
    root = write_set(tmp_path / "set")
    with pytest.raises(DataError, match=sentence):
        find_carla(root, "frames", "train", **({"names": NAMES} | options))


def test_the_real_set_is_read(fixtures, tmp_path) -> None:
    root = fixtures("carla_det_yolo")
    info = prepare(root, "frames", "train", tmp_path / "train", options={"names": NAMES}, workers=2)
    val = prepare(root, "frames", "val", tmp_path / "val", options={"names": NAMES}, workers=2)
    assert (info.count, val.count) == (120, 30)
    assert info.quarantined == info.rejected_labels == 0
    data = CarlaImages(info.path, "detection", EvalTransform((96, 128)))
    row = data.row(0)
    assert (row.height, row.width) == (600, 800)
    assert (row.boxes[:, 2:] > row.boxes[:, :2]).all()
    last, first = (CarlaImages(one.path, "detection", EvalTransform((96, 128))) for one in (val, info))
    assert max(last.row(index).name for index in range(30)) < min(first.row(index).name for index in range(120))
