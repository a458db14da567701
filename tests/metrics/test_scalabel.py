"""Reading label files for scoring: forms that are accepted, the official mapping, and what is refused how."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automoe.errors import DataError
from automoe.metrics.scalabel import decode_rle, frame_boxes, frame_mask, pair_frames, read_frames
from automoe.taxonomy import BDD_DETECTION, SEMANTIC

BOX = {"x1": 10, "y1": 20, "x2": 30, "y2": 60.5}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def frames(tmp_path: Path, *records: dict, name: str = "labels.json") -> list:
    return read_frames(write(tmp_path / name, list(records)))


def test_list_wrapper_and_folder_read_alike(tmp_path: Path) -> None:
    first, second = {"name": "a.jpg", "labels": None}, {"name": "b.jpg"}
    listed = read_frames(write(tmp_path / "list.json", [first, second]))
    wrapped = read_frames(write(tmp_path / "wrapped.json", {"frames": [first, second], "config": None}))
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "1.json", [first])
    write(tmp_path / "folder" / "2.json", {"frames": [second]})
    from_folder = read_frames(tmp_path / "folder")
    for found in (listed, wrapped, from_folder):
        assert [(frame.name, frame.labels) for frame in found] == [("a.jpg", []), ("b.jpg", [])]


def test_official_mapping_and_ignored_boxes(tmp_path: Path) -> None:
    labels = [
        {"category": "car", "box2d": BOX},
        {"category": "car", "box2d": BOX, "attributes": {"crowd": True}},
        {"category": "bus", "box2d": BOX, "attributes": {"ignored": True, "crowd": False}},
        {"category": "other vehicle", "box2d": BOX, "attributes": None},
        {"category": "trailer", "box2d": BOX},
        {"category": "other person", "box2d": BOX},
        {"category": "motor", "box2d": BOX},
        {"category": "lane/road curb", "poly2d": []},
    ]
    (frame,) = frames(tmp_path, {"name": "a.jpg", "labels": labels})
    boxes = frame_boxes(frame, need_scores=False)
    names = [BDD_DETECTION[index] for index in boxes.labels]
    assert names == ["car", "car", "bus", "car", "truck", "pedestrian", "motorcycle"]
    assert boxes.ignored.tolist() == [False, True, True, True, True, True, False]
    assert boxes.boxes_xyxy[0].tolist() == [10, 20, 30, 60.5]


def test_the_real_sample_reads(fixtures: Callable[[str], Path]) -> None:
    path = fixtures("bdd100k_real_images_labels") / "dummy_data/labels/det_20/det_val.json"
    counts = [len(frame_boxes(frame, need_scores=False).labels) for frame in read_frames(path)]
    assert sum(counts) > 10


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"category": "spaceship", "box2d": BOX, "score": 1}, "unknown class 'spaceship'; known are pedestrian"),
        ({"box2d": BOX, "score": 1}, "unknown class None"),
        ({"category": "car", "box2d": {**BOX, "x2": None}, "score": 1}, '"x2" is missing; a number is needed'),
        ({"category": "car", "box2d": {**BOX, "x2": "3"}, "score": 1}, "\"x2\" is '3'; a number is needed"),
        ({"category": "car", "box2d": [1, 2, 3, 4], "score": 1}, '"box2d" is not an object'),
        ({"category": "car", "box2d": BOX}, '"score" is missing; a number is needed'),
        ({"category": "car", "box2d": BOX, "score": float("nan")}, '"score" is nan; a finite number is needed'),
    ],
)
def test_broken_label_is_named(tmp_path: Path, label: dict, message: str) -> None:
    good = {"category": "car", "box2d": BOX, "score": 0.5}
    _, frame = frames(tmp_path, {"name": "a.jpg"}, {"name": "b.jpg", "labels": [good, label]})
    with pytest.raises(DataError) as error:
        frame_boxes(frame, need_scores=True)
    assert str(error.value).startswith(f"{tmp_path / 'labels.json'}, frame 1 (b.jpg), label 1: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"name": "a.jpg", "labels": [{"cat', "is not valid JSON (line 1"),
        ('{"labels": []}', 'neither a list of frames nor an object with a list under "frames"'),
        ('[{"labels": []}]', 'frame 0 has no "name"'),
        ("[3]", "frame 0 is not an object"),
        ('[{"name": "a.jpg", "labels": {}}]', '"labels" is not a list of objects'),
        ('[{"name": "a.jpg", "size": 3}]', '"size" is not an object'),
    ],
)
def test_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "labels.json"
    file.write_text(text)
    with pytest.raises(DataError) as error:
        read_frames(file)
    assert str(file) in str(error.value)
    assert message in str(error.value)


def test_missing_and_empty_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json does not exist"):
        read_frames(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match=r"holds no \.json file"):
        read_frames(tmp_path)


# Pairing


def test_pairs_by_stem_in_the_order_of_the_truth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = frames(tmp_path, {"name": "b.jpg"}, {"name": "a.jpg"}, {"name": "frame.0001"})
    predicted = frames(tmp_path, {"name": "a.png"}, {"name": "b.jpg"}, {"name": "c.jpg"}, name="pred.json")
    with caplog.at_level(logging.WARNING):
        pairs = pair_frames(truth, predicted)
    assert [(true.name, pred and pred.name) for true, pred in pairs] == [
        ("b.jpg", "b.jpg"),
        ("a.jpg", "a.png"),
        ("frame.0001", None),
    ]
    assert "1 of 3 frames have no prediction" in caplog.text
    assert "1 predictions have no ground truth and are not scored; the first is c" in caplog.text


def test_videos_tell_frames_of_one_name_apart(tmp_path: Path) -> None:
    records = [{"name": "1.jpg", "videoName": video} for video in ("x", "y")]
    truth, predicted = frames(tmp_path, *records), frames(tmp_path, *reversed(records))
    assert [(true.video, pred and pred.video) for true, pred in pair_frames(truth, predicted)] == [
        ("x", "x"),
        ("y", "y"),
    ]


def test_frame_predicted_twice_is_refused(tmp_path: Path) -> None:
    truth = frames(tmp_path, {"name": "a.jpg"})
    predicted = frames(tmp_path, {"name": "a.jpg"}, {"name": "a.jpg"}, name="pred.json")
    with pytest.raises(DataError, match=r"pred\.json, frame 1 \(a\.jpg\) appears twice in the predictions"):
        pair_frames(truth, predicted)


def test_predictions_of_another_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="None of the 1 predictions has the name of a ground truth frame"):
        pair_frames(frames(tmp_path, {"name": "a.jpg"}), frames(tmp_path, {"name": "z.jpg"}))
    with pytest.raises(DataError, match="ground truth holds no frames"):
        pair_frames([], [])


# Run-length masks


def pack_runs(runs: list[int]) -> str:
    """COCO's packing, written from its definition: 5 bits a character, low bits first, two's complement."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + (32 if more else 0))
            if not more:
                break
    return text


@given(st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_run_lengths_decode_to_the_mask(height: int, width: int, rng) -> None:
    flat, value = [], rng.random() < 0.5
    while len(flat) < height * width:
        flat += [value] * rng.choice([1, 3, 30, 700])
        value = not value
    mask = np.array(flat[: height * width]).reshape(width, height).T
    column_wise = mask.T.ravel()
    edges = [0, *(np.flatnonzero(np.diff(column_wise)) + 1).tolist(), height * width]
    runs = np.diff(edges).tolist()
    runs = [0, *runs] if column_wise[0] else runs
    for counts in (pack_runs(runs), runs):
        assert np.array_equal(decode_rle({"size": [height, width], "counts": counts}, "x"), mask)


def test_damaged_run_lengths_are_refused() -> None:
    whole = pack_runs([10, 20, 70])
    for counts in (whole[:-1], "", "~~~", "é", [10, 20], [-10, 110], 3, ["a"]):
        with pytest.raises(DataError, match="label 4: the run-length counts do not fill a 10x10 mask"):
            decode_rle({"size": [10, 10], "counts": counts}, "label 4")
    with pytest.raises(DataError, match='"rle" needs "size"'):
        decode_rle({"counts": whole}, "label 4")


def rle(mask: np.ndarray) -> dict:
    """Uncompressed run lengths of a mask: a run of zeros of length 0 or 1, pixel by pixel."""
    flat = np.asarray(mask, dtype=bool).T.ravel()
    edges = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])
    runs = np.diff(edges).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def test_later_labels_cover_earlier_ones(tmp_path: Path) -> None:
    everything, corner = np.ones((4, 6)), np.zeros((4, 6))
    corner[:2, :2] = 1
    labels = [
        {"category": "road", "rle": rle(everything)},
        {"category": "car", "rle": rle(corner)},
        {"category": "ego vehicle", "rle": rle(everything)},
        {"category": "sky", "rle": None},
    ]
    (frame,) = frames(tmp_path, {"name": "a.jpg", "labels": labels})
    mask = frame_mask(frame, SEMANTIC, fill=255, strict=False)
    assert mask is not None
    assert np.array_equal(mask, np.where(corner, SEMANTIC.index("car"), SEMANTIC.index("road")))
    with pytest.raises(DataError, match="label 2: unknown class 'ego vehicle'"):
        frame_mask(frame, SEMANTIC, fill=255, strict=True)


def test_masks_of_two_sizes_in_one_frame_are_refused(tmp_path: Path) -> None:
    labels = [{"category": "road", "rle": rle(np.ones((4, 6)))}, {"category": "car", "rle": rle(np.ones((6, 4)))}]
    (frame,) = frames(tmp_path, {"name": "a.jpg", "labels": labels})
    with pytest.raises(DataError, match="label 1: the mask is 4x6, the frame's others are 6x4"):
        frame_mask(frame, SEMANTIC, fill=255, strict=False)


def test_polygon_only_labels_are_refused(tmp_path: Path) -> None:
    labels = [{"category": "road", "poly2d": [{"vertices": [[0, 0], [1, 0], [1, 1]]}]}]
    (frame,) = frames(tmp_path, {"name": "a.jpg", "labels": labels})
    with pytest.raises(DataError, match='label 0 is a polygon without "rle"'):
        frame_mask(frame, SEMANTIC, fill=255, strict=False)
