"""Runs without a route, on CARLA's own maps: what is told afterwards is the way that was driven, and says so."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from carla_runs import record, scene, write_bend

from automoe.carla.route import CarlaRoute, plan_on_map
from automoe.carla.run import Frame, RunWriter, run_name
from automoe.data import carla as reader
from automoe.data.carla_hindsight import HINDSIGHT, NO_ROUTE, TOLD, MapError, Maps, in_hindsight
from automoe.data.carla_prepared import TimeIndex
from automoe.data.prepared import prepare
from automoe.data.sequences import CarlaSequences, SequenceConfig
from automoe.drive.routes import read_routes
from automoe.engine.distributed import Distributed
from automoe.errors import DataError
from automoe.stages.planning import comparable
from automoe.taxonomy import CARLA_COMMANDS
from automoe.world import polyline

carla: Any = pytest.importorskip("carla", reason="the real client comes with `pip install automoe[carla]`")

MAPS = "carla_maps/src/py123d/parser/opendrive/carla_maps"
LONGEST6 = "carla_routes/carla_garage/leaderboard/data/longest6.xml"
TOWN, STRIDE, TICK, SPEED = "Town01", 5, 0.05, 8.0


@pytest.fixture(scope="module")
def maps(fixtures) -> Maps:
    return Maps(fixtures(MAPS))


@pytest.fixture(scope="module")
def driven(fixtures, maps: Maps) -> CarlaRoute:
    """A way with turns, as it was meant."""
    for route in read_routes(fixtures(LONGEST6)):
        if route.town == TOWN:
            return plan_on_map(carla, maps.of(TOWN), route.points)
    raise AssertionError(f"no route in {TOWN}")


def write_drive(root: Path, route: CarlaRoute, index: int = 0, told: bool = False, aside: float = 0.0) -> Path:
    """A run along a route, so far left of it."""
    writer, rng = RunWriter(root / run_name(index)), np.random.default_rng(0)
    for number in range(0, 40 * STRIDE * 5, STRIDE):
        station = 5.0 + SPEED * TICK * number
        point, heading = polyline.sample(route.line, station, route.along)
        x, y = point + (aside + rng.normal(0, 0.1)) * np.array([-math.sin(heading), math.cos(heading)])
        more: dict[str, Any] = {"route": {"command": 4, "target_points": [[0.0, 0.0]]}} if told else {}
        entry = record(
            number,
            SPEED,
            location={"x": float(x), "y": -float(y), "z": 0.0},
            rotation={"pitch": 0.0, "yaw": -math.degrees(float(heading)), "roll": 0.0},
            velocity={"x": SPEED * math.cos(heading), "y": -SPEED * math.sin(heading), "z": 0.0},
            **more,
        )
        if not told:
            entry.pop("route", None)
        writer.frame(Frame(number, entry, {"front": scene(number)[0]}))
    writer.finish({"map": TOWN, "weather": {}, "save_every_n": STRIDE})
    return root / run_name(index)


def test_the_way_that_was_driven_is_told(driven: CarlaRoute, maps: Maps, tmp_path: Path) -> None:
    run = reader.read_run(write_drive(tmp_path, driven, aside=0.4))
    assert not any(step.has_route for step in run.steps)
    found = in_hindsight(run, maps)
    assert found.hindsight
    agree, near, turns = [], [], set()
    for index, step in enumerate(found.steps):
        station = 5.0 + SPEED * TICK * STRIDE * index
        wanted = driven.command(station)
        agree.append(wanted == CARLA_COMMANDS[step.command])
        turns.add(wanted)
        # Where a turn begins or ends says both; what lies evenly between begins where the matched way does.
        targets = step.targets @ step.ego.T_world_ego[:2, :2].T + step.ego.T_world_ego[:2, 3]
        aside = [abs(polyline.project(driven.line, target)[1]) for target in targets]
        near.append(max(aside) < 0.5)
        # The end of the recording is no target: nobody is told where he will stand.
        assert np.hypot(*step.targets[-1]) > 20.0
    assert len(turns) > 1
    assert np.mean(agree) > 0.95
    assert np.mean(near) > 0.95


def test_what_cannot_be_matched_is_said(driven: CarlaRoute, maps: Maps, tmp_path: Path, fixtures) -> None:
    with pytest.raises(DataError, match="doesn't lie on the map of Town01: waypoint 1 of"):
        in_hindsight(reader.read_run(write_drive(tmp_path / "aside", driven, aside=40.0)), maps)
    other = tmp_path / "maps"
    other.mkdir()
    with pytest.raises(MapError, match="has no map of Town01; put"):
        in_hindsight(reader.read_run(write_drive(tmp_path / "a", driven)), Maps(other))
    whole = bytearray((fixtures(MAPS) / "Town01.xodr.gz").read_bytes())
    whole[2000:2040] = bytes(40)
    for damaged in (b"no gzip", bytes(whole)):
        (other / "Town01.xodr.gz").write_bytes(damaged)
        with pytest.raises(MapError, match="can't be read as an OpenDRIVE map"):
            Maps(other).of("Town01")
    with pytest.raises(DataError, match="there is no folder"):
        Maps(tmp_path / "nowhere")


def test_it_is_labelled_and_not_averaged_with_what_was_told(
    driven: CarlaRoute, fixtures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    write_drive(raw, driven, 0)
    write_drive(raw, driven, 1, told=True)
    write_bend(raw, 2)
    options = {"val_towns": [TOWN], "hindsight": str(fixtures(MAPS))}
    info = prepare(raw, "frames", "val", tmp_path / "val", options=options, workers=1)
    assert set(TimeIndex.load(info.path).words["route"].tolist()) == {HINDSIGHT, TOLD}
    assert any("1 of 2 runs have routes in hindsight" in note for note in info.notes)
    data = CarlaSequences(info.path, SequenceConfig())
    assert set(data.route_kinds) == {HINDSIGHT, TOLD}
    kept = comparable(lambda **more: CarlaSequences(info.path, SequenceConfig(), **more), Distributed())
    assert "are left out" in capsys.readouterr().out
    assert set(kept.route_kinds) == {TOLD}
    assert len(kept) == data.route_kinds[TOLD]
    # Beside moments without any route they stay: nothing there was told.
    alone = tmp_path / "alone"
    write_drive(alone, driven, 0)
    write_drive(alone, driven, 3, aside=40.0)
    write_bend(alone, 2)
    info = prepare(alone, "frames", "val", tmp_path / "alone_val", options=options, workers=1)
    assert any("doesn't lie on the map" in note for note in info.notes)
    kept = comparable(lambda **more: CarlaSequences(info.path, SequenceConfig(), **more), Distributed())
    assert set(kept.route_kinds) == {HINDSIGHT, NO_ROUTE}
    # Without maps there is no route, and nobody makes one up.
    shutil.rmtree(tmp_path / "val")
    info = prepare(raw, "frames", "val", tmp_path / "val", options={"val_towns": [TOWN]}, workers=1)
    assert set(TimeIndex.load(info.path).words["route"].tolist()) == {NO_ROUTE, TOLD}
