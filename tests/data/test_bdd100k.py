"""The raw reader: layouts as people have them, and records with their problems named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bdd100k_tree import edit_labels
from PIL import Image

from automoe.data.bdd100k import find_layout, parse_frame, read_class_mask, records
from automoe.data.dataset import PreparedDataset
from automoe.data.prepared import prepare
from automoe.data.transforms import EvalTransform
from automoe.errors import DataError
from automoe.taxonomy import BDD_DETECTION, LIGHT_COLORS

EVERYTHING = {(task, split) for task in ("detection", "drivable", "segmentation") for split in ("train", "val")}


def test_official_layout(tree: Path) -> None:
    layout = find_layout(tree)
    assert set(layout.sources) == EVERYTHING
    assert layout.source("detection", "train").labels == tree / "labels/det_20/det_train.json"
    assert layout.source("segmentation", "val").images == tree / "images/10k/val"
    text = layout.describe()
    assert "images images/100k/train, labels labels/drivable/masks/train" in text


def test_records_carry_boxes_flags_and_attributes(tree: Path) -> None:
    first = next(records(tree, "detection", "train"))
    names = [BDD_DETECTION[label] for label in first.labels]
    assert names == ["car", "pedestrian", "traffic sign", "pedestrian", "motorcycle", "truck"]
    assert first.ignored.tolist() == [False] * 5 + [True]  # the trailer
    assert first.occluded.tolist() == [False, True] * 3
    assert (first.weather, first.scene) == ("clear", "city street")
    assert first.boxes.dtype == np.float32
    assert first.image.is_file()
    assert next(records(tree, "drivable", "val")).mask == tree / "labels/drivable/masks/val/val0000.png"


MOVES: dict[str, list[tuple[str, str]]] = {
    "detection2020": [("labels/det_20", "labels/detection2020")],
    "old combined label file": [
        ("labels/det_20/det_train.json", "labels/bdd100k_labels_images_train.json"),
        ("labels/det_20/det_val.json", "labels/bdd100k_labels_images_val.json"),
    ],
    "masks without their masks folder": [
        ("labels/drivable/masks", "drivable"),
        ("labels/drivable", "gone"),
        ("drivable", "labels/drivable"),
        ("labels/sem_seg/masks", "labels/segmentation"),
    ],
    "trainIds under colormaps": [("labels/sem_seg/masks", "labels/sem_seg/colormaps")],
    "images without images/": [("images/100k", "100k"), ("images/10k", "10k")],
    "two archives side by side": [("images", "a/b/images"), ("labels", "labels_release/c/labels")],
}


@pytest.mark.parametrize("variant", MOVES)
def test_variants(tree: Path, variant: str) -> None:
    for old, new in MOVES[variant]:
        (tree / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tree / old, tree / new)
    assert set(find_layout(tree).sources) == EVERYTHING
    assert len(list(records(tree, "segmentation", "train"))) == 4


@pytest.mark.parametrize("inside", ["..", "images", "labels", "images/100k"])
def test_root_a_level_up_or_down(tree: Path, inside: str) -> None:
    assert set(find_layout(tree / inside).sources) == EVERYTHING


def test_one_json_per_image(tree: Path) -> None:
    """The 2018 release: labels/100k/<split>/<name>.json with frames and objects."""
    folder = tree / "labels/100k/train"
    folder.mkdir(parents=True)
    for frame in json.loads((tree / "labels/det_20/det_train.json").read_text()):
        stem = frame["name"].removesuffix(".jpg")
        old = {"name": stem, "attributes": frame["attributes"], "frames": [{"objects": frame["labels"]}]}
        (folder / f"{stem}.json").write_text(json.dumps(old))
    expected = list(records(tree, "detection", "train"))
    (tree / "labels/det_20/det_train.json").unlink()
    for one, other in zip(expected, records(tree, "detection", "train"), strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_colours_are_of_lights_alone(tree: Path) -> None:
    said = ["G", "red", None, "NA"]

    def change(frames: list[dict]) -> None:
        for label, color in zip(frames[0]["labels"], said):
            label["category"] = "traffic light"
            label["attributes"] = {} if color is None else {"trafficLightColor": color}
        frames[0]["labels"][4]["attributes"] = {"trafficLightColor": "R"}  # a car, whatever it says

    edit_labels(tree, "train", change)
    record = next(records(tree, "detection", "train"))
    green, red, none = (LIGHT_COLORS.index(name) for name in ("green", "red", "none"))
    assert record.colors.tolist() == [green, red, -1, none, -1, -1]
    info = prepare(tree, "detection", "train", tree / "prepared")
    data = PreparedDataset(info.path, "detection", EvalTransform((64, 96)))
    assert data.row(0).colors.tolist() == [green, red, -1, none, -1, -1]
    assert data[0]["colors"].tolist() == data.row(0).colors.tolist()


def test_masks_of_the_2018_release(tree: Path) -> None:
    """0 background, 1 direct, 2 alternative, named *_drivable_id.png: recognised by value and mapped."""
    for path in (tree / "labels/drivable/masks/train").glob("*.png"):
        ids = np.array(Image.open(path))
        Image.fromarray(((ids + 1) % 3).astype(np.uint8)).save(path.with_name(f"{path.stem}_drivable_id.png"))
        path.unlink()
    layout = find_layout(tree)
    source = layout.source("drivable", "train")
    assert source.background_first
    assert "2018 release" in layout.describe()
    record = next(records(tree, "drivable", "train"))
    assert record.mask is not None
    ids = read_class_mask(record.mask.read_bytes(), source, "mask")
    assert (ids[0] == 2).all()
    assert {0, 1, 2} == set(np.unique(ids))


def test_real_colormaps_are_refused_by_their_values(tree: Path) -> None:
    for path in (tree / "labels/sem_seg/masks/train").glob("*.png"):
        ids = np.array(Image.open(path))
        Image.fromarray(np.stack([ids, ids * 3, 255 - ids], axis=-1)).save(path)
    with pytest.raises(DataError, match="holds colours, not class ids"):
        next(records(tree, "segmentation", "train"))


def test_missing_labels_say_where_was_looked(tree: Path) -> None:
    shutil.rmtree(tree / "labels/drivable")
    with pytest.raises(DataError, match=r"no drivable labels .* 'train' .* looked .*labels/drivable/masks/train"):
        next(records(tree, "drivable", "train"))


def test_missing_images_are_named(tree: Path) -> None:
    shutil.rmtree(tree / "images/100k")
    shutil.rmtree(tree / "images/10k")
    with pytest.raises(DataError, match=r"has labels, but images/100k/train .*such as train0000.jpg"):
        next(records(tree, "detection", "train"))


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; point the data root"):
        find_layout(tmp_path / "nowhere")


def test_labels_may_be_null_or_absent_and_frames_wrapped(tree: Path) -> None:
    def change(frames: list[dict]) -> None:
        frames[0]["labels"] = None
        del frames[1]["labels"]
        frames[2]["attributes"] = None

    frames = edit_labels(tree, "train", change)
    (tree / "labels/det_20/det_train.json").write_text(json.dumps({"frames": frames, "config": None}))
    found = list(records(tree, "detection", "train"))
    assert [len(record.labels) for record in found] == [0, 0, 6, 6]
    assert found[2].weather == "undefined"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.update(labels={"a": 1}), "labels is not a list"),
        (lambda frame: frame.update(attributes=["clear"]), "attributes is not an object"),
        (lambda frame: frame["labels"].append(None), "label 6 is not an object"),
        (lambda frame: frame["labels"][0].update(category=["car"]), "label 0: the category is not a word"),
        (lambda frame: frame["labels"][0].update(attributes="occluded"), "label 0: attributes is not an object"),
        (lambda frame: frame["labels"][0].update(category=None), "label 0: the category is not a word but 'None'"),
    ],
)
def test_json_of_another_shape_is_named(tree: Path, change: Callable[[dict], None], words: str) -> None:
    edit_labels(tree, "train", lambda frames: change(frames[1]))
    found = records(tree, "detection", "train")
    next(found)
    with pytest.raises(DataError, match=rf"det_train.json, frame train0001.jpg.*{words}"):
        next(found)


def test_a_light_has_any_colour(tree: Path) -> None:
    edit_labels(tree, "train", lambda f: f[0]["labels"][0]["attributes"].update(trafficLightColor="G"))
    assert len(next(records(tree, "detection", "train")).labels) == 6


def test_unknown_class_names_file_record_and_label(tree: Path) -> None:
    edit_labels(tree, "train", lambda frames: frames[1]["labels"][2].update(category="spaceship"))
    found = records(tree, "detection", "train")
    next(found)
    with pytest.raises(DataError, match=r"det_train.json, frame train0001.jpg, label 2: unknown class 'spaceship'"):
        next(found)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ({"x1": 5, "y1": 5, "x2": 4, "y2": 9}, "inside out"),
        ({"x1": float("nan"), "y1": 5, "x2": 9, "y2": 9}, "not finite"),
        ({"x1": 5, "y1": 5, "x2": 9}, "needs the numbers"),
        (None, "no box2d"),
    ],
)
def test_impossible_boxes_are_left_out_by_name(tree: Path, box: dict | None, reason: str) -> None:
    edit_labels(tree, "train", lambda frames: frames[0]["labels"][0].update(box2d=box))
    record = next(records(tree, "detection", "train"))
    assert len(record.boxes) == 5
    assert len(record.rejected) == 1
    assert reason in record.rejected[0]
    assert "frame train0000.jpg, label 0 (car)" in record.rejected[0]


def test_polygons_of_other_tasks_are_passed_over(tree: Path) -> None:
    lane = {"id": 9, "category": "lane", "poly2d": [{"vertices": []}]}
    edit_labels(tree, "train", lambda frames: frames[0]["labels"].append(lane))
    record = next(records(tree, "detection", "train"))
    assert len(record.boxes) == 6
    assert not record.rejected


def test_truncated_json_says_where_it_breaks(tree: Path) -> None:
    path = tree / "labels/det_20/det_train.json"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"det_train.json is not complete JSON: it breaks after record 3"):
        list(records(tree, "detection", "train"))


def test_unknown_mask_ids_are_named(tree: Path) -> None:
    source = find_layout(tree).source("segmentation", "train")
    path = source.labels / "train0000.png"
    Image.fromarray(np.full((36, 64), 33, np.uint8)).save(path)
    with pytest.raises(DataError, match=r"train0000.png holds class ids that segmentation doesn't have: 33"):
        read_class_mask(path.read_bytes(), source, str(path))


def test_the_real_sample(fixtures: Callable[[str], Path]) -> None:
    root = fixtures("bdd100k_real_images_labels")
    layout = find_layout(root)
    assert set(layout.sources) == {("detection", "train"), ("detection", "val"), ("segmentation", "train")}
    assert "the images of the val labels lie in the folder of train" in layout.describe()
    first, second = records(root, "detection", "train")
    assert [BDD_DETECTION[label] for label in first.labels].count("traffic light") == 2
    assert second.timeofday == "dawn/dusk"
    source = layout.source("segmentation", "train")
    for record in records(root, "segmentation", "train"):
        assert record.mask is not None
        ids = read_class_mask(record.mask.read_bytes(), source, record.name)
        assert ids.shape == (720, 1280)
        assert set(np.unique(ids)) <= {*range(19), 255}


def test_frames_without_a_name_are_refused(tree: Path) -> None:
    source = find_layout(tree).source("detection", "train")
    with pytest.raises(DataError, match="a frame has no name"):
        parse_frame({"labels": []}, source)
