"""The nuScenes section of the report: alone or beside BDD100K's, from the run's own predictions or from new ones."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from trained_experts import Trained, trained  # noqa: F401
from trained_nuscenes import RUN, TrainedNuscenes, trained_nuscenes  # noqa: F401

from automoe.data.prepared import PreparedInfo
from automoe.engine import checkpoint
from automoe.metrics.nuscenes import Boxes3D
from automoe.report import sections_nuscenes
from automoe.report.cases_nuscenes import best_threshold, judge_sample
from automoe.report.html import write_report
from automoe.report.sections_nuscenes import scored_boxes


def copy_of(trained_nuscenes: TrainedNuscenes, output: Path) -> TrainedNuscenes:  # noqa: F811
    """A run that a test may change."""
    shutil.copytree(trained_nuscenes.output, output)
    return TrainedNuscenes(trained_nuscenes.data, output)


def report(run: TrainedNuscenes, out: Path) -> str:
    nowhere = out.parent / "nowhere"
    written = write_report(
        run.output, nowhere, out, nuscenes_root=run.data, run_name=RUN, device="cpu", untrained_limit=5
    )
    return written.read_text()


def test_a_report_of_nuscenes_alone_is_whole(
    trained_nuscenes: TrainedNuscenes,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_need(*_: object) -> None:
        raise AssertionError("the run's own predictions are all that is needed")

    monkeypatch.setattr(sections_nuscenes, "_new_predictions", no_need)
    page = report(trained_nuscenes, tmp_path / "r" / "index.html")
    metrics = checkpoint.load(trained_nuscenes.checkpoint)["metrics"]
    assert page.count('<div class="card">') == page.count("<section ") == 1
    assert f'<p class="big">{metrics["AP/car"]:.3f}</p>' in page
    for key in ("mAP", "NDS"):
        assert f'<tr><td>{key}</td><td class="ours">{metrics[key]:.3f}</td>' in page
    assert f"translation {metrics['mATE']:.3f} m, scale {metrics['mASE']:.3f}" in page
    assert f"AP of cars {metrics['heatmap/AP/car']:.3f}" in page
    assert f"by COCO&#39;s metrics: AP50 {metrics['image/AP50']:.3f}, AP50 of cars" in page
    assert "<th>untrained</th><th>trivial</th>" in page
    assert "Untrained: on 1 of the 2 samples." in page
    assert "by the official metrics, as fractions" in page
    assert page.count("BDD100K: No detection run at") == 1
    row = re.search(r"<tr><td>traffic cone</td>.*?</tr>", page, re.S)
    assert row is not None
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row[0])[-4:] == ["–", "–", "–", "0"]
    assert page.count('<div class="case">') == 2
    assert page.count("data:image/jpeg") == 4
    assert "<dd>6 cameras at 96x64, LiDAR with 2 sweeps before the key frame&#39;s</dd>" in page
    assert " samples/s</dd>" in page
    assert "embedded world" not in page
    assert "http" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(svg)


def test_beside_bdd100k_each_has_its_own_unit_and_data(
    trained: Trained,  # noqa: F811
    trained_nuscenes: TrainedNuscenes,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = copy_of(trained_nuscenes, tmp_path / "output")
    folder = trained.checkpoint("drivable").parent
    shutil.copytree(folder, run.output / "models" / "checkpoints" / folder.parent.name / RUN)
    page = report(run, tmp_path / "r.html")
    assert "BDD100K in percent, nuScenes as fractions" in page
    assert page.count('<p class="big">') == 2
    assert page.count('<div class="card">') == 4  # the two of BDD100K that are missing are missing in their place
    for name, title in (("drivable", "Best and worst images"), ("nuscenes", "Best and worst samples")):
        section = page[page.index(f'<section id="{name}">') :]
        assert title in section[: section.index("</section>")]


@pytest.mark.parametrize("fault", ["missing", "foreign", "another checkpoint's"])
def test_without_its_own_predictions_a_sample_is_predicted(
    trained_nuscenes: TrainedNuscenes,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    run = copy_of(trained_nuscenes, tmp_path / "output")
    submission = run.folder / "submission.json"
    content = json.loads(submission.read_text())
    if fault == "missing":
        submission.unlink()
    elif fault == "foreign":
        content["results"]["no-such-sample"] = []
        submission.write_text(json.dumps(content))
    else:
        payload = checkpoint.load(run.checkpoint)
        checkpoint.save(run.checkpoint, {**payload, "metrics": {**payload["metrics"], "mAP": 0.9}})
    monkeypatch.setattr(sections_nuscenes, "LOOKED_AT", 1)
    page = report(run, tmp_path / "r.html")
    assert "From 1 of 2 validation samples." in page
    assert page.count('<div class="case">') == 1


def test_the_world_and_what_has_gone_are_said(trained_nuscenes: TrainedNuscenes, tmp_path: Path) -> None:  # noqa: F811
    settings = {"size": [96, 54], "seed": 4, "train_towns": ["a", "b"], "val_towns": ["c"]}
    (trained_nuscenes.data / "world.json").write_text(json.dumps({"settings": settings}))
    try:
        page = report(trained_nuscenes, tmp_path / "r.html")
    finally:
        (trained_nuscenes.data / "world.json").unlink()
    assert "cameras of 96x54, seed 4), in 2 training towns and 1 other towns for validation" in page
    assert page.count("not real nuScenes recordings") == 1
    run = copy_of(trained_nuscenes, tmp_path / "output")
    payload = checkpoint.load(run.checkpoint)
    checkpoint.save(run.checkpoint, {**payload, "data_root": str(tmp_path / "gone" / "train")})
    gone = TrainedNuscenes(tmp_path / "gone", run.output)
    page = report(gone, tmp_path / "r.html")
    assert "the data is not at hand" in page
    assert f'<p class="big">{payload["metrics"]["AP/car"]:.3f}</p>' in page


def test_true_boxes_are_counted_as_they_are_scored(trained_nuscenes: TrainedNuscenes) -> None:  # noqa: F811
    payload = checkpoint.load(trained_nuscenes.checkpoint)
    info = PreparedInfo.load(Path(payload["data_root"]).parent / "val")
    assert info.boxes == 3  # a car in each sample, and a walker that no point hit
    assert scored_boxes(info) == [2, *[0] * 9]
    assert scored_boxes(info, 1) == [1, *[0] * 9]


def boxes(places: list[tuple[float, float]], labels: list[int], scores: list[float] | None = None) -> Boxes3D:
    count = len(places)
    centre = [(x, y, 0.0) for x, y in places]
    return Boxes3D.of(centre, np.ones((count, 3)), np.zeros(count), np.zeros((count, 2)), labels, [-1] * count, scores)


def test_each_true_box_is_found_once_by_the_surest_within_two_metres() -> None:
    truth = boxes([(0, 0), (10, 0), (20, 0)], [0, 0, 5])
    predicted = boxes([(0.5, 0), (1, 0), (11.9, 0), (20, 0), (22.1, 0)], [0, 0, 0, 0, 5], [0.5, 0.9, 0.8, 0.7, 0.6])
    case = judge_sample("a", truth, predicted)
    assert case.predicted.score.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert case.hit.tolist() == [True, True, False, False, False]  # another class; too far; found already
    assert case.found_at.tolist() == [0.9, 0.8, -1]
    assert case.errors(0.65) == (2, 1, 1)
    assert case.score(0.65) == pytest.approx(2 / 3)
    assert best_threshold([case]) == pytest.approx(0.8)
    nothing = judge_sample("b", boxes([], []), boxes([], [], []))
    assert nothing.errors(0.3) == (0, 0, 0)
    assert best_threshold([nothing]) == 0.3
