"""Towns: sound lane graphs, the same for the same name, with control at the right places."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from automoe.errors import WorldError
from automoe.world import polyline
from automoe.world.bdd100k_writer import TRAIN_TOWNS, VAL_TOWNS
from automoe.world.surface import road_area, sidewalk_area
from automoe.world.town import TownStyle, build_town, check_town


def test_every_town_of_the_bdd_splits_is_sound():
    for name in (*TRAIN_TOWNS, *VAL_TOWNS):
        assert check_town(build_town(name)) == []


def test_a_name_always_gives_the_same_town(small_town):
    again = build_town("tests-01", small_town.style)
    assert again.opendrive == small_town.opendrive
    assert set(again.lanes) == set(small_town.lanes)
    other = build_town("tests-02", small_town.style)
    assert other.opendrive != small_town.opendrive


def test_traffic_drives_on_the_right(small_town):
    for lane in small_town.driving_lanes():
        street = small_town.streets[lane.street]
        point, heading = lane.at(lane.length / 2)
        along, left = polyline.project(street.axis, point)
        _, axis_heading = polyline.sample(street.axis, along)
        with_axis = np.cos(heading - axis_heading) > 0
        assert (left < 0) == with_axis


def test_neighbours_are_parallel_and_one_lane_apart(small_town):
    pairs = [(lane, small_town.lanes[lane.right]) for lane in small_town.driving_lanes() if lane.right]
    assert pairs
    for lane, right in pairs:
        point, heading = lane.at(lane.length / 2)
        other, _ = right.at(right.length / 2)
        to_the_right = np.array([np.sin(heading), -np.cos(heading)])
        assert (other - point) @ to_the_right == pytest.approx(lane.width, abs=0.2)
        assert right.left == lane.id


def test_stop_lines_lie_before_the_crosswalk_on_the_travel_end(small_town):
    assert small_town.stop_lines
    for line in small_town.stop_lines:
        lane = small_town.lanes[line.lanes[0]]
        along, _ = polyline.project(lane.centre, line.points.mean(0))
        walk = next(c for c in small_town.crosswalks if (c.node, c.street) == (line.node, line.street))
        walk_along, _ = polyline.project(lane.centre, walk.polygon.mean(0))
        assert lane.length - 8.0 < along < walk_along < lane.length


def test_crossing_approaches_are_never_green_together(small_town):
    assert small_town.signals
    by_node = {}
    for signal in small_town.signals:
        by_node.setdefault(signal.node, []).append(signal)
    seen = set()
    for time in np.arange(0.0, 80.0, 0.5):
        for signals in by_node.values():
            moving = {signal.group for signal in signals if signal.state(time) != "red"}
            assert len(moving) <= 1
            seen |= {signal.state(time) for signal in signals}
    assert seen == {"red", "yellow", "green"}


def test_lanes_lie_on_the_road_and_sidewalks_beside_it(small_town):
    import shapely

    road = road_area(small_town)
    walk = sidewalk_area(road)
    assert road.intersection(walk).area < 1.0
    for lane in small_town.driving_lanes():
        assert road.buffer(0.1).contains(shapely.LineString(lane.centre))


def test_a_town_that_cannot_be_sound_says_so():
    with pytest.raises(WorldError, match=r"tests-03.*long"):
        build_town("tests-03", TownStyle(columns=2, rows=2, spacing=45.0, merged_blocks=0, avenues=1.0))


def test_the_opendrive_text_reads_back(small_town, tmp_path):
    import roadgen

    path = tmp_path / "town.xodr"
    path.write_text(small_town.opendrive)
    back = roadgen.read_opendrive(str(path))
    assert len(back.road_ids()) >= len(small_town.streets)


def test_lane_ends_meet_their_successors(small_town):
    for lane in small_town.lanes.values():
        for other in lane.successors:
            assert np.hypot(*(small_town.lanes[other].centre[0] - lane.centre[-1])) < 0.5


def test_check_town_finds_a_dead_end(small_town):
    lane = small_town.driving_lanes()[0]
    broken = dataclasses.replace(
        small_town, lanes={**small_town.lanes, lane.id: dataclasses.replace(lane, successors=())}
    )
    assert any("dead end" in problem for problem in check_town(broken))
