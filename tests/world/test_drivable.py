"""Which lanes ahead are drivable, and how far."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from automoe.world import annotate, polyline
from automoe.world.annotate import DRIVABLE_AHEAD


def length(line: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())


def test_own_and_neighbouring_lanes_end_at_the_same_distance(small_town):
    found = 0
    for lane in small_town.driving_lanes():
        if lane.left is None and lane.right is None:
            continue
        onward = [lane.id]
        while len(onward) < 8 and small_town.lanes[onward[-1]].successors:
            onward.append(small_town.lanes[onward[-1]].successors[0])
        ego = SimpleNamespace(route=tuple(onward), station=lane.length / 2)
        own, others = annotate.drivable_lanes(SimpleNamespace(stage=SimpleNamespace(town=small_town), ego=ego))
        ahead = sum(small_town.lanes[one].length for one in onward) - ego.station
        # Three metres behind the car belong to its lane too.
        assert abs(sum(map(length, own)) - 3.0 - min(DRIVABLE_AHEAD, ahead)) < 0.5
        end_of_own, end_of_other = own[0][-1], others[0][-1]
        along_own, _ = polyline.project(lane.centre, end_of_own)
        along_other, _ = polyline.project(lane.centre, end_of_other)
        assert abs(along_own - along_other) < 2.0
        # What lies beyond the distance is in no line: each neighbour covers as much of its lane as the own line does.
        assert all(length(line) < DRIVABLE_AHEAD * 1.3 for line in others)
        found += 1
    assert found > 4


def test_a_lane_longer_than_the_distance_is_cut_like_its_neighbours(small_town, monkeypatch):
    lane = max((one for one in small_town.driving_lanes() if one.left or one.right), key=lambda one: one.length)
    monkeypatch.setattr(annotate, "DRIVABLE_AHEAD", lane.length / 2)
    ego = SimpleNamespace(route=(lane.id,), station=1.0)
    own, others = annotate.drivable_lanes(SimpleNamespace(stage=SimpleNamespace(town=small_town), ego=ego))
    assert others
    for line in (*own, *others):
        along, _ = polyline.project(lane.centre, line[-1])
        assert abs(along - (1.0 + lane.length / 2)) < 2.0
