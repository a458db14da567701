"""The report: one file with every number beside its baselines, whatever of the runs is there; its charts and cases."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from bdd100k_tree import write_bdd100k_tree
from trained_experts import RUN, TASKS, Trained, trained  # noqa: F401

from automoe.data.dataset import PreparedRow
from automoe.engine import checkpoint
from automoe.errors import DataError
from automoe.report.cases import (
    BoxCase,
    best_threshold,
    draw_box_case,
    judge_boxes,
    pick,
    precision_recall,
    recall_by_condition,
)
from automoe.report.charts import bar_chart, confusion_chart, line_chart, ticks
from automoe.report.html import write_report
from automoe.report.runs import command_limit


def test_the_report_is_one_file_with_every_number(trained: Trained, tmp_path: Path) -> None:  # noqa: F811
    out = write_report(
        trained.output, trained.data, tmp_path / "r" / "index.html", run_name=RUN, samples=3, device="cpu"
    )
    page = out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["index.html"]
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:image/", "#")) for link in links), "nothing is loaded from elsewhere"
    assert "http" not in page
    for task in TASKS:
        metrics = checkpoint.load(trained.checkpoint(task))["metrics"]
        leading = {"detection": "AP50/car", "drivable": "mIoU_3class", "segmentation": "mIoU"}[task]
        assert f'<p class="big">{metrics[leading]:.1f}</p>' in page
    assert page.count("<th>untrained</th><th>trivial</th>") == 3
    assert page.count('<div class="case">') == 9
    assert page.count('class="tag worst"') == 3
    assert page.count('<div class="card">') == 3
    assert page.count("nuScenes: No nuscenes run at") == 1, "who works with BDD100K alone misses nothing"
    assert page.count("Driving: Nothing was driven under this name") == 1
    assert page.count("<section ") == 3
    assert len(page) < 6e6
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(svg)


def test_what_is_missing_is_said_and_the_rest_is_shown(trained: Trained, tmp_path: Path) -> None:  # noqa: F811
    output = tmp_path / "output"
    shutil.copytree(trained.output, output)
    shutil.rmtree(output / "models" / "checkpoints" / "bdd100k_drivable_expert")
    (output / "models" / "checkpoints" / "bdd100k_segmentation_expert" / RUN / "best.pth").write_bytes(b"not a file")
    shutil.rmtree(output / "models" / "runs")
    page = write_report(output, trained.data, tmp_path / "r.html", run_name=RUN, samples=1, device="cpu").read_text()
    assert "No drivable run at" in page
    assert "best.pth was not loaded" in page
    assert page.count('<p class="big">') == 1


def test_without_its_data_a_run_still_shows_its_numbers(trained: Trained, tmp_path: Path) -> None:  # noqa: F811
    run = "models/checkpoints/bdd100k_drivable_expert/toy"
    payload = checkpoint.load(trained.output / run / "best.pth")
    checkpoint.save(tmp_path / run / "best.pth", {**payload, "data_root": str(tmp_path / "gone" / "train")})
    page = write_report(tmp_path, tmp_path / "nowhere", tmp_path / "r.html", run_name=RUN, device="cpu").read_text()
    assert "the data is not at hand" in page
    assert f'<p class="big">{payload["metrics"]["mIoU_3class"]:.1f}</p>' in page
    other = write_bdd100k_tree(tmp_path / "other", seed=3)
    page = write_report(tmp_path, other, tmp_path / "r.html", run_name=RUN, samples=1, device="cpu").read_text()
    assert "The data has changed since this run was trained" in page


def test_no_run_at_all_is_an_error_that_names_those_there_are(trained: Trained, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(DataError, match="there are runs named toy"):
        write_report(trained.output, trained.data, tmp_path / "r.html", run_name="tny")
    assert not (tmp_path / "r.html").exists()


def row(boxes: list, labels: list[int], ignored: list[bool] | None = None) -> PreparedRow:
    count = len(boxes)
    no = np.zeros(count, bool)
    return PreparedRow(
        name="a.jpg", height=100, width=200, weather="clear", scene="highway", timeofday="night",
        boxes=np.array(boxes, np.float32).reshape(-1, 4), labels=np.array(labels, np.int64),
        ignored=no if ignored is None else np.array(ignored), occluded=no, truncated=no,
        colors=np.full(count, -1), jpeg=b"", mask_png=None,
    )  # fmt: skip


def judged(truth: PreparedRow, boxes: list, scores: list[float], labels: list[int]) -> BoxCase:
    prediction = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
        "labels": np.array(labels, np.int64),
    }
    return judge_boxes(truth, prediction, 10)


def test_each_true_box_is_found_once_and_ignore_regions_cost_nothing() -> None:
    truth = row([[0, 0, 10, 10], [50, 50, 70, 70], [100, 0, 180, 80]], [2, 0, 2], [False, False, True])
    case = judged(
        truth,
        [[1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 70, 70], [120, 20, 130, 30]],
        [0.5, 0.9, 0.8, 0.7],
        [2, 2, 2, 2],
    )
    assert case.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.5])
    assert case.hit.tolist() == [True, False, False, False]  # another class; ignored; the same car again
    assert case.neutral.tolist() == [False, False, True, False]
    assert case.found_at.tolist() == pytest.approx([0.9, -1, -1])
    assert case.errors(0.3) == (1, 2, 1)
    assert case.errors(0.85) == (1, 0, 1)
    assert case.score(0.85) == pytest.approx(200 / 3)


def test_curves_thresholds_and_conditions_of_known_cases() -> None:
    truth = row([[0, 0, 10, 10], [20, 20, 60, 60]], [2, 2])
    case = judged(truth, [[0, 0, 10, 10], [90, 0, 99, 9], [20, 20, 60, 60]], [0.9, 0.6, 0.4], [2, 2, 2])
    points, count = precision_recall([case, case], 2)
    assert count == 4
    assert points[-1] == pytest.approx((100, 200 / 3))
    assert points[1][1] == pytest.approx(100)
    assert precision_recall([case], 5) == ([], 0)
    assert best_threshold([case]) == pytest.approx(0.4, abs=0.011)
    shares = {name: share for name, share, _ in recall_by_condition([case], 0.5)}
    assert shares["small (< 32² px)"] == 100
    assert shares["medium"] == 0
    assert shares["at night"] == 50
    assert shares["occluded"] is None
    assert best_threshold([judged(truth, [], [], [])]) == 0.3


def test_an_image_without_boxes_draws(tmp_path: Path) -> None:
    import simplejpeg

    empty = row([], [])
    jpeg = simplejpeg.encode_jpeg(np.zeros((100, 200, 3), np.uint8))
    case = judged(PreparedRow(**{**empty.__dict__, "jpeg": jpeg}), [], [], [])
    assert [title for title, _ in draw_box_case(case, 0.5)] == ["truth", "outcome"]


def test_best_middling_and_worst_are_different_images() -> None:
    chosen = pick([3, 1, 5, 2, 4, 9, 0], float, 3)  # type: ignore[type-var]
    assert chosen == [("best", 9), ("middling", 3), ("worst", 0)]
    assert [case for _, case in pick([2, 1], float, 6)] == [2, 1]  # type: ignore[type-var]


def test_charts_are_well_formed_and_escape_names() -> None:
    lines = line_chart({"a < b & c": [(0, 1.0), (10, 2.0)], "one": [(5, -1.0)]}, x_title="x", y_title="y")
    bars = bar_chart([("<small>", 40.0, "40 % of 5"), ("none", None, "none")])
    matrix = confusion_chart(np.array([[9, 1, 0, 5], [0, 0, 0, 0], [2, 0, 8, 0]]), ("a", "b", "<c>"))
    for svg in (lines, bars, matrix):
        ElementTree.fromstring(svg)
    assert "a &lt; b &amp; c" in lines
    assert matrix.count("called") == 6  # a row for each class with truth, a column for whatever was said
    assert line_chart({"none": []}, x_title="x", y_title="y") == ""
    assert confusion_chart(np.zeros((2, 3)), ("a", "b")) == ""
    assert "NaN" not in line_chart({"flat": [(1, 0.0)]}, x_title="x", y_title="y")
    assert ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_quick_look_is_recognised_by_its_command() -> None:
    assert command_limit("python train.py --limit 64 --max_steps 5") == 64
    assert command_limit("python train.py --limit=8") == 8
    assert command_limit("python train.py --max_steps 5") is None
