"""The benchmark of driving: its stages are lines that can be typed, done once each, and stop at the first failure."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from automoe.cli import app
from automoe.config import from_dict
from automoe.stages.gating import GatingConfig
from automoe.stages.planning import PlanningConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def driving(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("driving")


def test_a_perfect_plan_is_driven_perfectly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    controllers = importlib.import_module("controllers")
    monkeypatch.setattr(controllers, "VARIED", {"pull": (0.6,)})
    found = controllers.measure(1, 60.0, 1)
    assert list(found) == ["default", "pull 0.6"]
    assert found["pull 0.6"]["config"]["pull"] == 0.6
    for one in found.values():
        assert one["driving_score"] == 100.0
        assert 0.0 < one["beside_rms"] < 0.2
        assert one["speed"] > 1.0


def run(driving: Any, monkeypatch: pytest.MonkeyPatch, work: Path, *more: str) -> None:
    words = ["driving.py", "--work", str(work), "--json", str(work / "found.json"), *more]
    monkeypatch.setattr(sys, "argv", words)
    driving.main()


def test_every_stage_is_run_once_and_what_it_left_is_put_together(
    driving: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines: list[str] = []

    def pretended(name: str, commands: list[str], settings: dict[str, str]) -> float:
        lines.extend(commands)
        if name == "open_loop":
            said = {"experts": ["a", "b", "c"], "top_k": 2, "best single": "b", "best fixed pair": "a+c"}
            (tmp_path / "gate_report.json").write_text(json.dumps(said))
        elif name in ("drive", "arms"):
            path = tmp_path / "drives" / ("all_routes.json" if name == "drive" else "summary.json")
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"checkpoint": str(tmp_path / "best.pth"), "of": name}))
        return 1.6

    monkeypatch.setattr(driving, "run_stage", pretended)
    run(driving, monkeypatch, tmp_path, "--until", "prepare")
    assert list(json.loads((tmp_path / "stages.json").read_text())) == ["experts", "record", "prepare"]
    assert not (tmp_path / "found.json").exists()
    count = len(lines)
    run(driving, monkeypatch, tmp_path, "--until", "drive")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["drives"]["of"] == "drive"
    assert not {"open_loop", "arms"} & set(found)
    run(driving, monkeypatch, tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["stages"]) == list(driving.STAGES)
    assert found["stages"]["drive"]["seconds"] == 2
    assert found["arms"] == {"checkpoint": "$WORK/best.pth", "of": "arms"}
    assert str(tmp_path) not in json.dumps(found)
    assert sum("world export carla" in line for line in lines) == 1
    assert len(lines) > count
    assert "best_single=" in lines[-1]
    assert lines[-1].endswith("best.pth@gate:2,hold=0")
    assert "best.pth@a+c" in lines[-1]
    assert "all_four=" in lines[-1]
    assert "@gate:3" in lines[-1]
    run(driving, monkeypatch, tmp_path)
    assert len(lines) == len(set(lines))
    _check_flags(lines)


def _check_flags(lines: list[str]) -> None:
    """All flags of `automoe` commands are its own, and all scripts are there."""
    for line in lines:
        for part in line.split(" && "):
            for script in re.findall(r"(?:training|scripts)/\w+\.(?:sh|py)", part):
                assert (ROOT / script).is_file(), script
            words = part.split()
            if words[0].endswith("/automoe"):
                app.parse_args(words[1:], exit_on_error=False)  # raises for a flag that it doesn't know


def test_its_configs_are_configs(driving: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(driving, "run_stage", lambda *_: 1.0)
    run(driving, monkeypatch, tmp_path, "--until", "experts", "--gate_steps", "7")
    gate = from_dict(GatingConfig, json.loads((tmp_path / "gate.json").read_text()), "gate")
    assert gate.engine["max_steps"] == 7
    assert from_dict(PlanningConfig, json.loads((tmp_path / "policy.json").read_text()), "policy").engine
    assert json.loads((tmp_path / "detection.json").read_text())["engine"]["max_steps"] == driving.LONGER["detection"]


def test_a_stage_that_fails_ends_it(driving: Any) -> None:
    assert driving.run_stage("fine", ["true", "exit 0"], {}) > 0.0
    with pytest.raises(SystemExit, match="odd stopped with exit code 3"):
        driving.run_stage("odd", ["true", "exit 3"], {})
