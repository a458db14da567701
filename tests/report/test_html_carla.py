"""The report's chapters of experts that were fine-tuned on CARLA: each beside the source it started from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from carla_runs import write_run
from trained_experts import trained as bdd_trained  # noqa: F401 - a fixture
from trained_nuscenes import trained_nuscenes  # noqa: F401 - a fixture

from automoe.data.carla_prepared import IMAGE_TASKS
from automoe.data.prepared import prepare
from automoe.engine import checkpoint
from automoe.errors import CheckpointError
from automoe.report.html import write_report
from automoe.stages.baselines import baselines
from automoe.stages.carla import CarlaFlags, component_of, source_metrics, stage_of
from automoe.stages.train_expert import train_expert

ENGINE = {"epochs": 1, "batch_size": 2, "num_workers": 0, "warmup_steps": 0, "ema_decay": 0.0, "log_steps": 1}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two towns, as public ones are: their boxes say no more than \"vehicle\", their tags know the road."""
    base = tmp_path_factory.mktemp("carla")
    write_run(base / "raw", 0, frames=4, type_id=None)
    write_run(base / "raw", 1, frames=3, town="Town02", type_id=None)
    for split in ("train", "val"):
        prepare(base / "raw", "frames", split, base / "prepared" / "frames" / split, workers=1)
    return base / "prepared" / "frames" / "train"


def fine_tune(output: Path, task: str, data: Path, **more) -> Path:
    config = output / f"{task}.json"
    config.write_text(json.dumps({"size": [64, 96], "engine": ENGINE}))
    flags = CarlaFlags(config=config, run_name="mine", output_root=output, device="cpu", max_steps=2, **more)
    train_expert(stage_of(task), data, flags)
    return output / "models" / "checkpoints" / component_of(task) / "mine" / "best.pth"


def test_every_fine_tuned_expert_stands_beside_its_source(
    bdd_trained,  # noqa: F811
    trained_nuscenes,  # noqa: F811
    prepared: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    for source in (bdd_trained.output, trained_nuscenes.output):
        shutil.copytree(source / "models", output / "models", dirs_exist_ok=True)
    best = {task: fine_tune(output, task, prepared) for task in IMAGE_TASKS}
    page = write_report(
        output, tmp_path / "none", tmp_path / "r.html", run_name="mine", samples=2, device="cpu"
    ).read_text()
    assert page.count('<div class="card">') == 4
    assert page.count("<th>source</th>") == 4
    for task in IMAGE_TASKS:
        section = page[page.index(f'<section id="carla_{task}">') :].split("</section>")[0]
        payload = checkpoint.load(best[task])
        assert f"fine-tuned from</dt><dd>{payload['source']['source']}" in section
        assert section.count('<div class="case">') == 2
        assert "is not at hand" not in section
        leading = {"drivable": "mIoU_3class", "segmentation": "mIoU"}.get(task, "AP50/car")
        own, before = payload["metrics"][leading], source_metrics(best[task].parent)[leading]
        assert own is not None
        assert before is not None
        card = page[page.index(f'<a href="#carla_{task}">') :]
        assert card[: card.index("</tr>", card.index("<tbody>"))].endswith(
            f'<td class="ours">{own:.1f}</td><td>{before:.1f}</td>'
        )
    drivable = page[page.index('<section id="carla_drivable">') :].split("</section>")[0]
    assert "counted together: alternative as direct" in drivable
    boxes = page[page.index('<section id="carla_nuscenes_2d">') :].split("</section>")[0]
    assert "truck as car" in boxes
    assert "construction vehicle" not in boxes.split("</table>")[0]


def test_a_run_from_scratch_has_no_source_to_show(bdd_trained, prepared: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(bdd_trained.output / "models", tmp_path / "models")
    best = fine_tune(tmp_path, "detection", prepared, from_scratch=True, pretrained=False)
    page = write_report(tmp_path, tmp_path, tmp_path / "r.html", run_name="mine", samples=1, device="cpu").read_text()
    assert "Trained from scratch" in page
    assert "<th>source</th>" not in page
    with pytest.raises(CheckpointError, match="compared with is its source expert"):
        baselines(best, prepared, device="cpu")
