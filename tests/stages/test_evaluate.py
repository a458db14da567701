"""`automoe evaluate`: the run's own numbers again, from the checkpoint alone, by one process and by two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trained_experts import TASKS, Trained, trained  # noqa: F401

from automoe.engine import checkpoint
from automoe.errors import DataError
from automoe.metrics.score import score_bdd100k
from automoe.stages.evaluate import evaluate_checkpoint, table
from automoe.stages.kinds import KINDS

TRUTH = {
    "detection": "labels/det_20/det_val.json",
    "drivable": "labels/drivable/masks/val",
    "segmentation": "labels/sem_seg/masks/val",
}


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_gives_the_numbers_of_the_run_and_predictions_score_the_same(
    trained: Trained,  # noqa: F811
    tmp_path: Path,
    task: str,
) -> None:
    best, out = trained.checkpoint(task), tmp_path / ("boxes.json" if task == "detection" else "masks")
    metrics = evaluate_checkpoint(
        best,
        trained.data,
        device="cpu",
        batch_size=2,
        num_workers=0,
        json_out=tmp_path / "metrics.json",
        predictions_out=out,
    )
    assert metrics == pytest.approx(checkpoint.load(best)["metrics"], abs=1e-4)
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == metrics
    scored = score_bdd100k(task, trained.data / TRUTH[task], out)  # pyright: ignore[reportArgumentType]
    assert scored == pytest.approx({key: metrics[key] for key in scored}, abs=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["metrics.json", out.name])


TWO_EVALUATIONS = """
import sys
from pathlib import Path
from automoe.engine.distributed import setup
from automoe.stages.evaluate import evaluate_in
data, out, *checkpoints = map(Path, sys.argv[1:])
with setup("cpu") as dist:
    for number, best in enumerate(checkpoints):
        evaluate_in(dist, best, data, batch_size=2, num_workers=0,
                    json_out=out / f"{number}.json", predictions_out=out / str(number))
"""


def test_two_processes_score_as_one_does(trained: Trained, tmp_path: Path) -> None:  # noqa: F811
    tasks = ("detection", "segmentation")
    script = tmp_path / "evaluate_both.py"
    script.write_text(TWO_EVALUATIONS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    arguments = [str(path) for path in (script, trained.data, tmp_path, *map(trained.checkpoint, tasks))]
    done = subprocess.run(
        [*torchrun, *arguments], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Evaluating") == 2, "one process speaks for both"
    for number, task in enumerate(tasks):
        alone = evaluate_checkpoint(trained.checkpoint(task), trained.data, device="cpu", num_workers=0)
        two = json.loads((tmp_path / f"{number}.json").read_text())["metrics"]
        assert two == pytest.approx(alone, abs=1e-4)
        predicted = tmp_path / str(number)
        if task == "detection":
            predicted = predicted.rename(tmp_path / "boxes.json")
        scored = score_bdd100k(task, trained.data / TRUTH[task], predicted)
        assert scored == pytest.approx({key: two[key] for key in scored}, abs=1e-6)


def test_predicted_masks_replace_earlier_ones_and_nothing_else(
    trained: Trained,  # noqa: F811
    tmp_path: Path,
) -> None:
    out = tmp_path / "masks"
    out.mkdir()
    (out / "stale.png").write_bytes(b"")

    def run() -> None:
        evaluate_checkpoint(
            trained.checkpoint("drivable"), trained.data, device="cpu", num_workers=0, limit=2, predictions_out=out
        )

    run()
    assert len(list(out.iterdir())) == 2
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt"):
        run()
    assert (out / "notes.txt").read_text() == "mine"


def test_detections_do_not_go_where_a_folder_is(trained: Trained, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(DataError, match="one JSON file"):
        evaluate_checkpoint(
            trained.checkpoint("detection"), trained.data, device="cpu", num_workers=0, predictions_out=tmp_path
        )


def test_the_table_shows_the_heatmap_head_apart() -> None:
    text = table({"AP": 10.0, "AP50": 20.0, "AP/car": 5.0, "AP50/car": 7.0, "heatmap/AP": 3.0}, KINDS["detection"])
    classes = [line.split()[0] for line in text.splitlines() if line[:1].isalpha()]
    assert classes[:2] == ["car", "mean"]
    assert "heatmap head alone, without the decoder: AP 3.00" in text
