"""What is said of a gate is what it does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from carla_runs import write_bend
from driving_models import model

from automoe.data.prepared import PreparedInfo, ensure_prepared
from automoe.engine.distributed import setup
from automoe.errors import CheckpointError
from automoe.moe.checkpoint import TrainedDriver
from automoe.moe.ground import CameraSpec
from automoe.report.sections_gate import read_gate
from automoe.stages.gate_report import arm_table, report_gate, usage_table

ALL = ("detection", "drivable", "segmentation")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("gate")
    for index in (1, 2):
        write_bend(base / "raw", index, frames=12)
    for split in ("train", "val"):
        ensure_prepared(base / "raw", "frames", split, base / "out", options={"val_towns": ["Town02"]}, say=len)
    return base / "out"


def test_every_arm_and_all_usage_is_told(data_root: Path, tmp_path: Path, one_thread: None) -> None:
    rig = PreparedInfo.load(data_root / "frames" / "val").rig
    driver = model(*ALL, top_k=2, camera=CameraSpec.of_rig(rig))
    assert driver.gate is not None
    with torch.no_grad():
        driver.gate.score[-1].bias.copy_(torch.tensor([9.0, 0.0, 5.0]))  # always the first and the last
    with setup("cpu") as dist:
        alone = TrainedDriver(model(camera=CameraSpec.of_rig(rig)).eval(), tmp_path / "y.pth", {}, "")
        said = report_gate(
            TrainedDriver(driver.eval(), tmp_path / "x.pth", {}, ""), data_root, tmp_path / "g.json", dist,
            beside={"no_experts": alone},
        )  # fmt: skip
    assert said == json.loads((tmp_path / "g.json").read_text())
    assert said["use"] == {"detection": 1.0, "drivable": 0.0, "segmentation": 1.0}
    assert said["collapsed"]
    assert said["largest share of one set"] == 1.0
    probabilities = np.exp([9.0, 0.0, 5.0]) / np.exp([9.0, 0.0, 5.0]).sum()
    assert said["entropy"] == pytest.approx(-(probabilities * np.log(probabilities)).sum(), abs=0.05)
    pairs = ["detection+drivable", "detection+segmentation", "drivable+segmentation"]
    arms = ["learned top-1", "learned top-2", "learned top-3", "nobody", *ALL, *pairs, "uniform", "random 2"]
    untold = "learned top-2, weather not told"
    assert list(said["loss"]) == [*arms, untold]
    assert set(said["errors"]) == {*arms, untold, "constant velocity", "no_experts"}
    assert said["beside"] == {"no_experts": str(tmp_path / "y.pth")}
    assert said["errors"]["no_experts"]["path_error"] != said["errors"]["nobody"]["path_error"]
    assert set(said["cost"]) == set(arms)
    # Of the whole frame, and of what runs: a pair costs what its two cost alone, but for what always runs.
    gflops = {name: cost["gflops"] for name, cost in said["cost"].items()}
    assert gflops["learned top-2"] == pytest.approx(gflops["detection+segmentation"])
    assert gflops["nobody"] < gflops["learned top-1"] < gflops["learned top-2"] < gflops["learned top-3"]
    assert all(cost["milliseconds"] > 0.0 for cost in said["cost"].values())
    assert said["loss"][untold] != said["loss"]["learned top-2"]
    # The gate's own choice is that pair, with the same weights.
    assert said["loss"]["learned top-2"] == pytest.approx(said["loss"]["detection+segmentation"], abs=1e-4)
    assert said["oracle pair loss"] <= min(said["loss"][name] for name in pairs) + 1e-6
    assert said["best fixed pair"] in pairs
    # The car goes at 6 m/s round a bend to the left: constant velocity has its speed, and not its way.
    constant = said["errors"]["constant velocity"]
    assert constant["speed_mae"] == pytest.approx(0.0, abs=1e-4)
    assert constant["l2_2s"] == pytest.approx(3.6, abs=0.3)
    assert said["usage"]["command/left"]["moments"] == said["usage"]["light/red"]["moments"] > 0
    assert said["usage"]["speed/usual"]["detection"] == 1.0
    gate = read_gate(tmp_path / "g.json")
    assert gate.errors == said["errors"]
    assert gate.usage == said["usage"]
    text = arm_table(said) + usage_table(said)
    assert "best fixed pair" in text
    assert "collapsed" in text


def test_a_policy_without_experts_has_no_gate_to_look_into(data_root: Path, tmp_path: Path) -> None:
    driver = TrainedDriver(model().eval(), tmp_path / "x.pth", {}, "")
    with setup("cpu") as dist, pytest.raises(CheckpointError, match="no gate to look into"):
        report_gate(driver, data_root, tmp_path / "g.json", dist)
