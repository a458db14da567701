"""Scoring from files: one function for three tasks, the JSON that is written, the table that is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from automoe.errors import WriteError
from automoe.metrics.score import format_table, score_bdd100k, write_metrics_json

FRAME = {
    "name": "a.jpg",
    "labels": [{"category": "car", "box2d": {"x1": 0, "y1": 0, "x2": 50, "y2": 50}, "score": 0.5}],
}


@pytest.fixture
def label_file(tmp_path: Path) -> Path:
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"frames": [FRAME]}))
    return file


def test_three_tasks(tmp_path: Path, label_file: Path) -> None:
    assert score_bdd100k("detection", label_file, label_file)["AP/car"] == pytest.approx(100)
    Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).save(tmp_path / "a.png")
    assert score_bdd100k("drivable", tmp_path, tmp_path)["mIoU_3class"] == 100
    assert score_bdd100k("segmentation", tmp_path, tmp_path)["IoU/road"] == 100


def test_written_json_has_null_for_what_has_no_truth(tmp_path: Path, label_file: Path) -> None:
    metrics = score_bdd100k("detection", label_file, label_file)
    out = tmp_path / "new" / "folder" / "metrics.json"
    write_metrics_json(out, metrics)
    assert json.loads(out.read_text()) == {"metrics": metrics}
    assert '"AP/bus": null' in out.read_text()
    assert [file.name for file in out.parent.iterdir()] == ["metrics.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "metrics.json"
    write_metrics_json(out, {"AP": 1.0})

    def no_space(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", no_space)
    with pytest.raises(WriteError, match=r"disk is full: .*metrics\.json was not written; the earlier"):
        write_metrics_json(out, {"AP": 2.0})
    assert json.loads(out.read_text()) == {"metrics": {"AP": 1.0}}
    assert list(tmp_path.iterdir()) == [out]


def test_table_shows_classes_means_and_the_rest(label_file: Path) -> None:
    lines = format_table(score_bdd100k("detection", label_file, label_file), "detection").splitlines()
    assert lines[0].split() == ["AP", "AP50"]
    assert next(line for line in lines if line.startswith("car")).split() == ["car", "100.00", "100.00"]
    assert next(line for line in lines if line.startswith("bus")).split() == ["bus", "-", "-"]
    assert next(line for line in lines if line.startswith("mean")).split() == ["mean", "100.00", "100.00"]
    assert lines[-1].startswith("AP75 100.00  APs -  APm 100.00")


def test_drivable_table_sets_both_definitions_side_by_side(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).save(tmp_path / "a.png")
    table = format_table(score_bdd100k("drivable", tmp_path, tmp_path), "drivable")
    assert table.splitlines()[0].split() == ["IoU", "IoU_3class"]
    background = next(line for line in table.splitlines() if line.startswith("background"))
    assert background.split() == ["background", "-", "100.00"]


def test_scoring_does_not_load_torch(label_file: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from automoe.metrics.score import score_bdd100k; "
        f"path = Path({str(label_file)!r}); score_bdd100k('detection', path, path); "
        "import automoe.metrics.segmentation; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
