"""Traffic that moves: nobody drives through anybody, lights are obeyed, and the same seed gives the same traffic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from automoe.geometry import bev_intersection
from automoe.world import motion, polyline
from automoe.world.furnish import stage_town
from automoe.world.motion import Traffic
from automoe.world.scene import Scene
from automoe.world.surface import KERB_HEIGHT
from automoe.world.town import TownStyle, build_town
from automoe.world.traffic import EGO_BACK, EGO_FRONT, sample_scene

STEP = 0.05
VEHICLES = ("car", "truck", "bus", "train", "motorcycle", "bicycle")


@pytest.fixture(scope="module")
def stage():
    """A small town without trams: a tram is one stiff body, which sticks out of its lane in bends."""
    style = TownStyle(columns=3, rows=2, spacing=90.0, merged_blocks=0, avenues=1.0, curved=0.5, fleet="tests/0")
    return stage_town(build_town("tests-01", style))


def drive(stage, seed: int, seconds: float) -> Iterator[tuple[Traffic, Scene]]:
    traffic = Traffic(sample_scene(stage, np.random.default_rng(seed)), seed)
    for _ in range(round(seconds / STEP)):
        yield traffic, traffic.step(STEP)


def footprints(scene: Scene) -> torch.Tensor:
    """Boxes [N, 7] of all vehicles, the ego last."""
    rows = [
        [a.x, a.y, 0, a.size[0], a.size[1], 1, a.yaw] for a in scene.actors if a.category in VEHICLES
    ]  # fmt: skip
    ego, middle = scene.ego, (EGO_FRONT - EGO_BACK) / 2
    x, y = ego.x + middle * math.cos(ego.yaw), ego.y + middle * math.sin(ego.yaw)
    return torch.tensor([*rows, [x, y, 0, EGO_FRONT + EGO_BACK, 1.9, 1, ego.yaw]], dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nobody_drives_through_anybody(stage, seed: int) -> None:
    begun = footprints(sample_scene(stage, np.random.default_rng(seed)))
    overlap = bev_intersection(begun[:, None], begun[None]).fill_diagonal_(0)
    already = {tuple(pair) for pair in (overlap > 0.05).nonzero().tolist()}
    worst = 0.0
    for number, (_, scene) in enumerate(drive(stage, seed, 15.0)):
        if number % 10 == 0:
            boxes = footprints(scene)
            shared = bev_intersection(boxes[:, None], boxes[None]).fill_diagonal_(0)
            for pair in already:
                shared[pair] = 0
            worst = max(worst, float(shared.max()))
    assert worst < 0.3  # square metres: corners of bodies that turn side by side


def test_traffic_flows_and_the_ego_gets_ahead(stage) -> None:
    moved, speeds = [], []
    for seed in range(3):
        scenes = [scene for _, scene in drive(stage, seed, 20.0)]
        moved.append(polyline.length(np.array([[scene.ego.x, scene.ego.y] for scene in scenes])))
        speeds += [actor.speed for actor in scenes[100].actors if actor.category == "car" and not actor.parked]
    assert np.median(moved) > 30
    assert 1.5 < np.mean(speeds) < 13


@pytest.mark.parametrize("seed", [3, 7])
def test_red_lights_hold_and_speeds_are_kept(stage, seed: int) -> None:
    """No nose passes a stop line whose light has been red for a second, from the first step on."""
    town = stage.town
    signal_of = {lane: signal for signal in town.signals for lane in signal.lanes}
    before: dict[int, str] = {}
    entered = 0
    for traffic, scene in drive(stage, seed, 25.0):
        assert max(actor.speed for actor in scene.actors) < 15
        for vehicle in traffic._vehicles.values():
            lane = town.lanes[traffic._covered(vehicle, vehicle.front - 0.01, vehicle.front)[0][0]]
            if lane.junction is not None and before.get(vehicle.id, lane.id) != lane.id:
                signal = signal_of.get(lane.predecessors[0])
                if signal is not None:
                    entered += 1
                    # The line lies five metres before the junction lane begins.
                    assert any(signal.state(scene.time - back) != "red" for back in (0.0, 1.0, 2.0))
            before[vehicle.id] = lane.id
    assert entered > 0


def test_everything_moves_smoothly(stage) -> None:
    """No jumps, no turning on the spot, no braking beyond what tyres give."""
    earlier: dict[int, tuple[float, float, float, float]] = {}
    for _, scene in drive(stage, 4, 15.0):
        for actor in scene.actors:
            if actor.id in earlier:
                x, y, yaw, speed = earlier[actor.id]
                assert math.hypot(actor.x - x, actor.y - y) < 15.5 * STEP
                if actor.category in VEHICLES:
                    assert abs(float(polyline.wrap_angle(actor.yaw - yaw))) < 0.12
                    assert actor.speed - speed > -6.1 * STEP
            earlier[actor.id] = (actor.x, actor.y, actor.yaw, actor.speed)


def test_people_cross_and_come_back_to_the_kerb(stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "CROSSING_SHARE", 1.0)
    heights: dict[int, list[float]] = {}
    for _, scene in drive(stage, 0, 40.0):
        for actor in scene.actors:
            if actor.category == "pedestrian" and (not heights.get(actor.id) or heights[actor.id][-1] != actor.z):
                heights.setdefault(actor.id, []).append(actor.z)
    assert sum(seen[:3] == [KERB_HEIGHT, 0.0, KERB_HEIGHT] for seen in heights.values()) > 0


def test_nobody_turns_on_the_spot_for_ever(stage) -> None:
    """Whoever walks gets somewhere, wherever on the sidewalk he began."""
    scenes = [scene for _, scene in drive(stage, 8, 4.0)]
    first = {actor.id: actor for actor in scenes[0].actors if actor.category == "pedestrian"}
    turns = dict.fromkeys(first, 0)
    for earlier, later in pairwise(scenes):
        for old, new in zip(earlier.actors, later.actors, strict=True):
            if new.id in turns:
                turns[new.id] += abs(float(polyline.wrap_angle(new.yaw - old.yaw))) > 1.5
    assert first
    assert max(turns.values()) <= 2


def test_the_same_seed_gives_the_same_traffic(stage) -> None:
    ends = [list(drive(stage, 5, 6.0))[-1][1] for _ in range(2)]
    assert ends[0].actors == ends[1].actors
    assert ends[0].ego == ends[1].ego


def test_somebody_else_may_drive_the_ego(stage) -> None:
    start = sample_scene(stage, np.random.default_rng(6))
    traffic = Traffic(start, 6)
    for _ in range(40):
        scene = traffic.step(STEP, ego=start.ego)
    assert replace(scene.ego, station=0.0) == replace(start.ego, station=0.0)
    assert scene.ego.station == pytest.approx(start.ego.station, abs=0.1)
    assert scene.time == pytest.approx(start.time + 2.0)
