"""`automoe predict`: pictures of any size in, drawings and JSON out; a broken one doesn't stop the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trained_experts import TASKS, Trained, trained  # noqa: F401

from automoe.errors import ConfigError, DataError
from automoe.metrics.scalabel import frame_boxes, read_frames
from automoe.stages import predict
from automoe.stages.predict import predict_images


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A landscape JPEG, an upright PNG with transparency, and a tiny PNG with the JPEG's stem."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, shape in (("wide.jpg", (90, 160, 3)), ("upright.png", (120, 50, 4)), ("wide.png", (9, 31, 3))):
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / name)
    return folder


def test_every_expert_draws_on_one_picture(trained: Trained, pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    summary = predict_images([trained.checkpoint(t) for t in TASKS], pictures, out, threshold=0.0, device="cpu")
    names = {"upright.jpg", "wide.jpg.jpg", "wide.png.jpg"}
    assert {path.name for path in summary.pictures} == names
    assert {path.name for path in out.iterdir()} == names | {"predictions.json"}
    with Image.open(out / "wide.jpg.jpg") as wide, Image.open(out / "upright.jpg") as upright:
        assert wide.width == 160  # the semantic panel below, then its legend
        assert wide.height > 180
        assert upright.width == 100  # the semantic panel beside
    frames = {frame.name: frame for frame in read_frames(out / "predictions.json")}
    boxes = frame_boxes(frames["wide.jpg"], need_scores=True)
    assert len(boxes.labels)
    assert (boxes.boxes_xyxy >= 0).all()
    assert (boxes.boxes_xyxy <= [160, 90, 160, 90]).all()
    said = json.loads((out / "predictions.json").read_text())
    assert set(said["checkpoints"]) == set(TASKS)
    for frame in said["frames"]:
        assert sum(frame["drivable"].values()) == pytest.approx(100, abs=0.1)
        assert sum(frame["segmentation"].values()) == pytest.approx(100, abs=0.1)


def test_a_broken_picture_is_named_at_the_end_and_the_others_are_drawn(
    trained: Trained,  # noqa: F811
    pictures: Path,
    tmp_path: Path,
) -> None:
    (pictures / "broken.jpg").write_bytes((pictures / "wide.jpg").read_bytes()[:400])
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"1 of 4 pictures could not be read.*broken\.jpg"):
        predict_images([trained.checkpoint("drivable")], pictures, out, device="cpu")
    said = json.loads((out / "predictions.json").read_text())
    assert [entry["name"] for entry in said["failed"]] == ["broken.jpg"]
    assert len(said["frames"]) == 3
    assert len(list(out.glob("*.jpg"))) == 3


def test_boxes_below_the_threshold_are_left_out(trained: Trained, pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    predict_images([trained.checkpoint("detection")], pictures / "wide.jpg", tmp_path / "o", threshold=1, device="cpu")
    said = json.loads((tmp_path / "o" / "predictions.json").read_text())
    assert [frame["labels"] for frame in said["frames"]] == [[]]


def test_a_huge_picture_is_drawn_smaller_but_its_boxes_are_in_raw_pixels(
    trained: Trained,  # noqa: F811
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def boxes(out: Path) -> np.ndarray:
        predict_images(
            [trained.checkpoint("detection")], pictures / "wide.jpg", out, threshold=0.0, device="cpu", limit=1
        )
        return frame_boxes(read_frames(out / "predictions.json")[0], need_scores=True).boxes_xyxy

    usual = boxes(tmp_path / "usual")
    monkeypatch.setattr(predict, "LARGEST_SIDE", 80)
    small = boxes(tmp_path / "small")
    with Image.open(tmp_path / "small" / "wide.jpg") as picture:
        assert picture.size == (80, 45)
    assert usual[:, 2].max() == pytest.approx(small[:, 2].max(), abs=8)
    assert small[:, 2].max() > 80


def test_mistakes_are_said_before_anything_is_written(
    trained: Trained,  # noqa: F811
    pictures: Path,
    tmp_path: Path,
) -> None:
    best, out = trained.checkpoint("drivable"), tmp_path / "out"
    with pytest.raises(DataError, match="folder of the pictures themselves"):
        predict_images([best], pictures, pictures)
    with pytest.raises(DataError, match="its folders pictures do"):
        predict_images([best], tmp_path, out)
    with pytest.raises(DataError, match="does not exist"):
        predict_images([best], tmp_path / "nowhere", out)
    with pytest.raises(ConfigError, match="both drivable"):
        predict_images([best, best], pictures, out)
    with pytest.raises(ConfigError, match="threshold"):
        predict_images([best], pictures, out, threshold=30)
    assert not out.exists()
