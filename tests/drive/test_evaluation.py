"""Driving many routes: what is kept, what is driven anew, and a camera that goes dark on the way."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driving_models import model

from automoe.data.sequences import Observation
from automoe.drive import evaluation
from automoe.drive.agent import ModelAgent
from automoe.drive.closed_loop import Timing, drive_route
from automoe.drive.command import drive_command, drivers_of
from automoe.drive.embedded import EmbeddedSimulator, rig_camera, staged
from automoe.drive.evaluation import (
    BUDGET,
    CONSTANT,
    TEACHER,
    DriveResult,
    DriverSpec,
    behind,
    drive_all,
    drive_once,
    summarise_driver,
    table,
)
from automoe.drive.leaderboard import RouteRecord
from automoe.drive.routes import generated_routes
from automoe.engine import checkpoint
from automoe.errors import CheckpointError, ConfigError, WriteError
from automoe.metrics.intervals import T_975, t_interval
from automoe.moe.checkpoint import TrainedDriver, load_driving_model
from automoe.moe.planner import Plan
from automoe.report.sections_driving import driving_part
from automoe.taxonomy import LIGHT_COLORS
from automoe.world.drive import Drive
from automoe.world.route import plan_route
from automoe.world.traffic import Density

MOUNT = [[1, 0, 0, 1.5], [0, 1, 0, 0], [0, 0, 1, 2.4], [0, 0, 0, 1]]
RIG = {"cameras": {"front": {"size": [60, 80], "field_of_view": 90.0, "T_ego_mount": MOUNT}}}
TOWN = "carla-val-01"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A driving model with random weights."""
    path = tmp_path_factory.mktemp("driver") / "best.pth"
    driver = model("drivable", "detection", top_k=1)
    payload = {
        "component": "gating_network", "model": driver.state_dict(), "model_config": driver.config.plain(), "rig": RIG,
    }  # fmt: skip
    checkpoint.save(path, payload)
    return path


def straight_on(driver: TrainedDriver, speed: float) -> None:
    """Make a model plan to go straight on at a speed, whatever it sees."""
    classes = torch.tensor(driver.model.config.planner.speeds)

    def plan(context: torch.Tensor, *_: Any) -> Plan:
        ahead = torch.stack([torch.arange(1.0, 21.0), torch.zeros(20)], dim=1)[None]
        logits = -20.0 * (classes - speed).abs()[None]
        return Plan(ahead, ahead[:, :4], logits, torch.tensor([speed]), torch.zeros(1, 4))

    driver.model.planner.forward = plan  # type: ignore[method-assign]


def test_a_route_survives_a_camera_that_goes_dark(saved: Path) -> None:
    """It stops while it sees nothing, drives on when it sees again, and the record tells how often."""
    stage, obstacles = staged(TOWN)
    lane = max(stage.town.driving_lanes(), key=lambda lane: lane.length - 50 * abs(np.ptp(np.unwrap(lane.at(
        np.linspace(5.0, lane.length - 5.0, 20))[1]))))  # fmt: skip
    route = plan_route(stage.town, (lane.id,), 5.0, lane.length - 12.0)
    nobody = Density(vehicles=0.001, parked=0.0, pedestrians=0.0, crossing=0.0, at_kerb=0.0)
    driver = load_driving_model(saved)
    straight_on(driver, 6.0)
    drive = Drive(stage, route, 0, density=nobody, obstacles=obstacles)
    simulator = EmbeddedSimulator(drive, "r", rig_camera(RIG), dark=(3.0, 8.0))
    agent, speeds, timing = ModelAgent(driver), {}, Timing()

    def watch(observation: Observation, control: Any) -> None:
        speeds[round(observation.time, 1)] = observation.speed

    record = drive_route(simulator, agent, "r", timing, watch)
    assert agent.trouble == {"dead camera": 50}
    assert speeds[3.0] > 4.0
    assert speeds[7.9] == 0.0
    assert max(speeds[time] for time in speeds if time > 10.0) > 4.0
    assert record.completion == 100.0
    assert not record.crashed
    assert len(timing.agent) == len(speeds)


@pytest.mark.parametrize(("light", "goes"), [("none", True), ("green", True), ("red", False)])
def test_a_car_that_stands_in_doubt_goes_in_the_end(saved: Path, light: str, goes: bool) -> None:
    """A plan that says stand at 60 %, and 4 m/s at the rest, sets off after a while, unless the light is red."""
    driver = load_driving_model(saved)
    classes = driver.model.config.planner.speeds
    shares = torch.tensor([0.6 if speed == 0.0 else 0.4 if speed == 4.0 else 1e-6 for speed in classes])
    colors = torch.tensor([0.9 if color == light else 0.03 for color in LIGHT_COLORS])

    def plan(*_: Any) -> Plan:
        ahead = torch.stack([torch.arange(1.0, 21.0), torch.zeros(20)], dim=1)[None]
        return Plan(ahead, ahead[:, :4], shares.log()[None], torch.tensor([1.6]), colors.log()[None])

    driver.model.planner.forward = plan  # type: ignore[method-assign]
    agent = ModelAgent(driver)
    image, route = np.zeros((60, 80, 3), np.uint8), np.full((2, 2), math.nan, np.float32)
    controls = [
        agent.act(Observation(frame / 10, image, np.zeros((1, 2), np.float32), -1, route, np.zeros(2, np.float32)))
        for frame in range(30)
    ]
    assert all(one.throttle == 0.0 for one in controls[:10])
    assert (controls[-1].throttle > 0.0) == goes
    assert (agent.shown()["target_speed"] == 3.0) == goes


def test_a_dead_speedometer_stops_the_car_too(saved: Path) -> None:
    driver = load_driving_model(saved)
    straight_on(driver, 6.0)
    agent = ModelAgent(driver)
    motion = np.array([[math.nan, math.nan]], np.float32)
    image, route = np.zeros((60, 80, 3), np.uint8), np.full((2, 2), math.nan, np.float32)
    control = agent.act(Observation(0.0, image, motion, -1, route, np.full(2, math.nan, np.float32)))
    assert control.brake > 0.3
    assert control.throttle == 0.0
    assert agent.trouble == {"dead speedometer": 1}


def test_drives_are_kept_until_something_changes(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = generated_routes(1, 60.0, [TOWN])
    driver, out, driven = DriverSpec(TEACHER), tmp_path / "out", []

    def counted(driver: DriverSpec, *rest: Any) -> Any:
        driven.append(driver.name)
        return drive_once(driver, *rest)

    monkeypatch.setattr(evaluation, "drive_once", counted)
    first = drive_all([driver], tasks, [0, 1], out, workers=1)
    assert [result.seed for result in first] == [0, 1]
    assert first[0].scored.driving_score == 100.0
    assert first[0].frames > 0
    assert drive_all([driver], tasks, [0, 1], out, workers=1) == first
    assert len(driven) == 2
    monkeypatch.setattr(evaluation, "code_digest", lambda: "another program")
    drive_all([driver], tasks, [0], out, workers=1)
    assert len(driven) == 3
    assert DriverSpec("a", str(saved)).digest() == DriverSpec("b", str(saved)).digest()
    assert DriverSpec("a", str(saved)).digest() != DriverSpec("a", str(saved), "uniform").digest()


def test_a_router_that_cannot_be_is_refused_before_anything_is_driven(saved: Path) -> None:
    (all_of_them,) = drivers_of(None, None, [f"all={saved}@gate:2"])
    assert (all_of_them.checkpoint, all_of_them.router) == (str(saved), "gate:2")
    with pytest.raises(ConfigError, match="there is no expert 'anybody'"):
        drivers_of(None, None, [f"one={saved}@anybody"])
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        drivers_of(None, None, ["one=a@b.pth"])
    with pytest.raises(ConfigError, match="--router gate:1 is of --checkpoint"):
        drivers_of(None, "gate:1", [f"one={saved}"])


def test_a_checkpoint_that_does_not_drive_is_refused_before_anything_is_driven(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "best.pth", {"expert": "detection", "model": {}})
    with pytest.raises(CheckpointError, match="is no checkpoint that drives"):
        drivers_of(None, None, ["teacher", f"blind={tmp_path / 'best.pth'}"])


@pytest.mark.parametrize("name", ["", "../x", "a/b", "drives", "videos", "a b"])
def test_a_driver_s_name_is_one_of_a_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="can't be named"):
        drivers_of(None, None, [f"{name}=best.pth"])


def test_a_folder_that_takes_no_files_is_said_before_anything_is_driven(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="was not written"):
        drive_command(None, tmp_path / "file" / "out", number=1, length=60.0, seeds=1, beside=["teacher"])


def test_a_world_that_broke_off_counts_as_nothing_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Any) -> Any:
        raise RuntimeError("no more of it")

    def drive() -> dict[str, Any]:
        return drive_command(None, tmp_path, number=1, length=60.0, seeds=1, beside=["teacher"], workers=1)

    with monkeypatch.context() as patched:
        patched.setattr(EmbeddedSimulator, "observe", broken)
        said = drive()["drivers"]["teacher"]
    assert (said["driving_score"], said["broken_off"]) == (0.0, {"Simulation crashed": 1})
    assert "teacher: Simulation crashed in 1 of 1 drives" in capsys.readouterr().out
    assert said["half_width"] is None, "no JSON knows infinity"
    said = drive()["drivers"]["teacher"]
    assert (said["driving_score"], said["broken_off"]) == (100.0, {})


def test_drives_of_other_code_are_said_to_be_driven_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = generated_routes(1, 60.0, [TOWN])
    drive_all([DriverSpec(CONSTANT)], tasks, [0], tmp_path, workers=1)
    assert "anew" not in capsys.readouterr().out
    monkeypatch.setattr(evaluation, "code_digest", lambda: "another program")
    drive_all([DriverSpec(CONSTANT)], tasks, [0], tmp_path, workers=1)
    assert "1 drives under" in capsys.readouterr().out


def test_differences_are_those_of_the_same_drives() -> None:
    def result(driver: str, route: int, seed: int, completion: float) -> DriveResult:
        record = RouteRecord("r", completion, {}, 100.0, 10.0)
        return DriveResult(driver, route, seed, record.to_json(0), 1, 0.1, 0.1, 0, {}, {}, 0.0, "")

    first = [result("a", route, 0, score) for route, score in enumerate((90.0, 50.0, 70.0))]
    other = [result("b", route, 0, score) for route, score in ((2, 60.0), (0, 80.0), (1, 34.0))]
    said = behind(first, other)
    assert said["mean"] == pytest.approx(12.0)
    assert said["half_width"] == pytest.approx(4.303 * math.sqrt(12.0 / 3), rel=1e-3)
    assert behind(first[:1], other[1:2])["half_width"] is None


def test_what_is_written_is_what_was_driven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = drive_command(
        None, tmp_path, routes="generated", number=1, length=60.0, seeds=2, beside=["teacher"], workers=1
    )
    assert said == json.loads((tmp_path / "summary.json").read_bytes())
    teacher = said["drivers"]["teacher"]
    assert teacher["driving_score"] == 100.0
    assert teacher["success_rate"] == 1.0
    results = json.loads((tmp_path / "teacher" / "results.json").read_bytes())
    assert results["_checkpoint"]["progress"] == [2, 2]
    assert "teacher" in capsys.readouterr().out
    part = driving_part(tmp_path, tmp_path / "report.html", "", named=True)
    assert part.tables[0].rows[0].cells[:2] == ["100.0 ± 0.0", "100.0 · 100.0"]


def test_a_drive_that_broke_off_at_once_leaves_the_others_their_milliseconds(tmp_path: Path) -> None:
    task, driver = generated_routes(1, 60.0, [TOWN])[0], DriverSpec(TEACHER)
    (driven,) = drive_all([driver], [task], [0], tmp_path, workers=1)
    broken = replace(driven, seed=1, frames=0, frame_seconds=math.nan, world_seconds=math.nan)
    said = summarise_driver([driven, broken], 1, [0, 1])
    assert said["frame_ms"] == pytest.approx(1000 * driven.frame_seconds)
    nothing = summarise_driver([broken], 1, [1])
    assert nothing["frame_ms"] is None
    assert table({"teacher": nothing}).endswith("     -")


def test_a_frame_over_budget_is_counted() -> None:
    timing = Timing([0.01, BUDGET + 0.01, 0.3], [])
    assert timing.over(BUDGET) == 2


def test_intervals_are_students() -> None:
    from scipy import stats

    np.testing.assert_allclose(T_975, stats.t.ppf(0.975, np.arange(1, 31)), atol=6e-4)
    mean, half = t_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(4.303 * np.std([1, 2, 4], ddof=1) / math.sqrt(3), rel=1e-3)
    assert math.isinf(t_interval([3.0])[1])
    assert replace(DriverSpec("a"), router="uniform").router == "uniform"
