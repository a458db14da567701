"""Sequences: the past is what was, the future is what came, and nothing of it is in an observation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from carla_runs import BEND_RADIUS, BEND_SPEED, BEND_STRIDE, BEND_TICK, write_bend, write_run
from driving_models import model

from automoe.carla.run import SHIFTED, run_name
from automoe.data.images import decode_jpeg
from automoe.data.prepared import PreparedInfo, prepare
from automoe.data.sequences import (
    LIGHTS,
    CarlaSequences,
    Observation,
    SequenceConfig,
    Targets,
    ambient_of,
    batch_observations,
    path_along,
    picture_key,
    shift_pose,
    small_image,
)
from automoe.data.transforms import ColorConfig
from automoe.errors import ConfigError, DataError
from automoe.poses import into_frame


@pytest.fixture(scope="module")
def bends(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bends")
    for index in (1, 2):
        write_bend(root, index, shift=(0.8, 3.0))
    return root


def open_train(root: Path, out: Path, **options: object) -> PreparedInfo:
    return prepare(root, "frames", "train", out, options={"cameras": ["front", SHIFTED], **options})


@pytest.fixture(scope="module")
def info(bends: Path, tmp_path_factory) -> PreparedInfo:
    return open_train(bends, tmp_path_factory.mktemp("prepared") / "train", val_towns=["Town02"])


def test_what_a_driver_wanted_is_the_target_speed_where_a_run_tells(tmp_path: Path) -> None:
    write_bend(tmp_path, 1, wanted=2.5)
    write_bend(tmp_path, 2)
    write_bend(tmp_path, 3)
    options = {"cameras": ["front"], "val_towns": ["Town03"]}
    info = prepare(tmp_path, "frames", "train", tmp_path / "out", options=options)
    data = CarlaSequences(info.path, SequenceConfig())
    speeds = {data.times.words["town"][row]: data.targets(int(row)).speed for row in data.rows}
    assert speeds == {"Town01": pytest.approx(2.5), "Town02": pytest.approx(BEND_SPEED)}
    deaf = CarlaSequences(info.path, SequenceConfig(told_speed=False))
    assert deaf.targets(int(deaf.rows[0])).speed == pytest.approx(BEND_SPEED)


def test_a_bend_to_the_left_is_a_path_to_the_left(info: PreparedInfo) -> None:
    data = CarlaSequences(info.path, SequenceConfig(past=2, path_metres=10))
    item = data[3]
    seen, came = item["observation"], item["targets"]
    along = np.arange(1, 11) / BEND_RADIUS
    np.testing.assert_allclose(came.path, BEND_RADIUS * np.stack([np.sin(along), 1 - np.cos(along)], axis=1), atol=0.03)
    assert came.path_known.all()
    turned = BEND_SPEED * np.array([0.5, 1.0, 1.5, 2.0]) / BEND_RADIUS
    expected = BEND_RADIUS * np.stack([np.sin(turned), 1 - np.cos(turned)], axis=1)
    np.testing.assert_allclose(came.waypoints, expected, atol=0.03)
    assert came.speed == pytest.approx(BEND_SPEED)
    assert LIGHTS[came.light] == "red"
    np.testing.assert_allclose(seen.motion, [[BEND_SPEED, BEND_SPEED / BEND_RADIUS]] * 3, rtol=1e-5)
    assert seen.command == 0
    # The first point of the route is 40 ticks ahead on the circle, whatever the car's heading; there is no second one.
    ahead = BEND_SPEED * BEND_TICK * 40 / BEND_RADIUS
    np.testing.assert_allclose(seen.route[0], BEND_RADIUS * np.array([math.sin(ahead), 1 - math.cos(ahead)]), atol=0.01)
    assert np.isnan(seen.route[1]).all()
    np.testing.assert_allclose(seen.ambient, [0.5, 1.0])


def test_who_stands_aside_has_the_same_way_before_him(info: PreparedInfo) -> None:
    """CARLA's y and yaw are to the right: so it is thought 0.8 m to the right and turned to the right by 3 degrees."""
    straight = CarlaSequences(info.path, SequenceConfig())
    aside = CarlaSequences(info.path, SequenceConfig(), shifted=1.0)
    mine, his = straight[4], aside[(0, 4)]
    assert his["sample_id"] == mine["sample_id"] + " aside"
    assert his["picture"] != mine["picture"]
    turn = math.radians(3.0)
    back = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    for name in ("path", "waypoints"):
        expected = (getattr(mine["targets"], name) + np.array([0.0, 0.8])) @ back.T
        np.testing.assert_allclose(getattr(his["targets"], name), expected, atol=1e-4)
    assert his["targets"].path[0, 1] > mine["targets"].path[0, 1]  # it has to come back to the left
    np.testing.assert_allclose(
        his["observation"].route[0], (mine["observation"].route[0] + [0.0, 0.8]) @ back.T, atol=1e-4
    )
    np.testing.assert_array_equal(his["observation"].motion, mine["observation"].motion)


def test_without_a_cache_each_epoch_sees_a_moment_anew(info: PreparedInfo) -> None:
    """From elsewhere, and in other colours; the same epoch always the same."""
    data = CarlaSequences(info.path, SequenceConfig(), shifted=0.5, fixed=False, colors=ColorConfig(), seed=3)
    views = np.array([[data.moment(index, epoch)[1] for epoch in range(40)] for index in range(len(data))])
    assert ((views.mean(axis=1) > 0.1) & (views.mean(axis=1) < 0.9)).all()
    once, again = data[(5, 0)], data[(5, 0)]
    np.testing.assert_array_equal(once["observation"].image, again["observation"].image)
    epoch = next(epoch for epoch in range(6, 40) if views[0, epoch] == views[0, 5])
    later = data[(epoch, 0)]
    assert later["picture"] == once["picture"]
    assert not np.array_equal(later["observation"].image, once["observation"].image)
    np.testing.assert_array_equal(later["targets"].path, once["targets"].path)


def test_what_is_remembered_is_drawn_from_a_few_versions_of_each_picture(info: PreparedInfo) -> None:
    data = CarlaSequences(info.path, SequenceConfig(), fixed=False, shifted=0.5, colors=ColorConfig(), remembered=3)
    keys = {
        data.look_key(picture_key(data.picture(row, aside)[1]), version): data.look(row, aside, version)
        for row, aside in data.views()
        for version in range(3)
    }
    assert len(keys) == len(data) * 2 * 3
    drawn = [data[(epoch, 0)] for epoch in range(40)]
    assert all(item["observation"].image.size == 0 for item in drawn)
    assert {item["look"] for item in drawn} <= keys.keys()
    assert len({item["look"] for item in drawn}) == 6  # three versions, from the lane and from aside
    plain = next(epoch for epoch, item in enumerate(drawn) if item["look"] == item["picture"])
    row, aside = data.moment(0, plain)
    jpeg = data.picture(row, aside)[1]
    np.testing.assert_array_equal(keys[drawn[plain]["look"]], decode_jpeg(jpeg, "").image)
    again = CarlaSequences(info.path, SequenceConfig(), seed=7, colors=ColorConfig(), remembered=3)
    np.testing.assert_array_equal(again.look(row, aside, 2), data.look(row, aside, 2))
    assert not np.array_equal(data.look(row, aside, 1), data.look(row, aside, 2))
    paler = CarlaSequences(info.path, SequenceConfig(), colors=ColorConfig(saturation=0.9), remembered=3)
    key = picture_key(jpeg)
    assert paler.look_key(key, 0) == data.look_key(key, 0)
    assert paler.look_key(key, 1) != data.look_key(key, 1)


def test_moments_after_which_the_speed_changes_are_known(tmp_path: Path) -> None:
    for index in (1, 2):
        write_bend(tmp_path / "raw", index)
    path = tmp_path / "raw" / run_name(1) / "vehicle_log.json"
    log = json.loads(path.read_text())
    for entry in log:
        if entry["frame"] >= BEND_STRIDE * 12:
            entry["velocity"], entry["speed_kmh"] = {"x": 0.0, "y": 0.0, "z": 0.0}, 0.0
    path.write_text(json.dumps(log))
    options = {"cameras": ["front"], "val_towns": ["Town02"]}
    info = prepare(tmp_path / "raw", "frames", "train", tmp_path / "train", options=options)
    data = CarlaSequences(info.path, SequenceConfig())
    changes = data.speed_changes()
    assert changes.shape == (len(data),)
    ahead = round(1.0 / (BEND_STRIDE * BEND_TICK))
    expected = [BEND_SPEED if 12 - ahead <= row < 12 else 0.0 for row in data.rows]
    np.testing.assert_allclose(changes, expected, atol=1e-5)


def test_which_ones_are_seen_from_aside_is_a_function_of_seed_and_index(info: PreparedInfo) -> None:
    data = CarlaSequences(info.path, SequenceConfig(), shifted=0.5, seed=3)
    names = [data[(0, index)]["sample_id"] for index in range(len(data))]
    assert names == [data[(7, index)]["sample_id"] for index in range(len(data))]
    aside = [data.moment(index)[1] for index in range(len(data))]
    assert aside == ["aside" in name for name in names]
    assert 0.25 < np.mean(aside) < 0.75
    few = CarlaSequences(info.path, SequenceConfig(), shifted=0.5, seed=3, limit=4)
    with pytest.raises(DataError, match="at least 1, not -1"):
        CarlaSequences(info.path, SequenceConfig(), limit=-1)
    assert {few.moment(index) for index in range(len(few))} <= {data.moment(index) for index in range(len(data))}
    other = CarlaSequences(info.path, SequenceConfig(), shifted=0.5, seed=4)
    assert aside != [other.moment(index)[1] for index in range(len(other))]


def test_nothing_of_the_future_is_in_an_observation(bends: Path, info: PreparedInfo, tmp_path: Path) -> None:
    """Everything that a log tells after a frame is changed; what its driver knew stays as it was."""
    config, cut = SequenceConfig(past=2), 10
    other = tmp_path / "other"
    for index in (1, 2):
        write_bend(other, index, shift=(0.8, 3.0))
        path = other / run_name(index) / "vehicle_log.json"
        log = json.loads(path.read_text())
        for entry in log[cut + 1 :]:
            entry["location"] = {"x": entry["location"]["x"] + 3.0, "y": entry["location"]["y"] * 2 + 1, "z": 0.0}
            entry["velocity"], entry["speed_kmh"] = {"x": 0.1, "y": 0.2, "z": 0.0}, 1.0
            entry["control"] = {"throttle": 0.0, "steer": -1.0, "brake": 1.0}
            entry["route"] = {"command": 3, "target_points": [[0.0, 0.0], [1.0, 1.0]]}
            entry["traffic_light"] = {"state": "Green"}
            entry["angular_velocity"] = {"x": 0.0, "y": 0.0, "z": 90.0}
            entry["camera_shift"] = {"y": -0.5, "yaw": -4.0}
            entry["target_speed_kmh"] = 50.0
        path.write_text(json.dumps(log))
        for number in range(BEND_STRIDE * (cut + 1), BEND_STRIDE * 30, BEND_STRIDE):
            for camera in ("front", SHIFTED):
                picture = other / run_name(index) / "images" / camera / f"{number:06d}.png"
                assert picture.is_file()
                cv2.imwrite(str(picture), np.ascontiguousarray(cv2.imread(str(picture))[:, ::-1]))
    changed = CarlaSequences(open_train(other, tmp_path / "train", val_towns=["Town02"]).path, config)
    true = CarlaSequences(info.path, config)
    # The first row of a run is its frame 0. Every frame up to the cut, seen from the front and from aside.
    driver = model("detection", "drivable").eval()
    for row in range(config.past, cut + 1):
        for aside in (False, True):
            mine, his = (_moment(data, row, aside) for data in (true, changed))
            for name in ("time", "image", "motion", "command", "route", "ambient"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(his, name))
            plans = [driver(batch_observations([one], (32, 48))._replace(motion=_present(one))) for one in (mine, his)]
            (plan, routing), (again, same) = plans
            assert all(torch.equal(one, other) for one, other in zip(plan, again, strict=True))
            assert torch.equal(routing.logits, same.logits)
    before, after = true.targets(cut), changed.targets(cut)
    assert not np.allclose(before.path, after.path)
    assert before.speed != after.speed


def _moment(data: CarlaSequences, row: int, aside: bool) -> Observation:
    name, jpeg = data.picture(row, aside)
    return data.observation(row, decode_jpeg(jpeg, name).image, aside)


def _present(one: Observation) -> torch.Tensor:
    return torch.from_numpy(one.motion[None, -1:])


def test_a_speed_that_nobody_measured_is_not_made_up(info: PreparedInfo) -> None:
    data = CarlaSequences(info.path, SequenceConfig(speed_seconds=1.0))
    last = int(data.rows[-1])
    assert data.targets(last).speed == pytest.approx(BEND_SPEED)
    assert math.isnan(data.targets(last + 1).speed)
    assert not data.targets(last + 1).waypoints_known[1:].any()


def test_the_two_types_share_nothing_but_what_is_present() -> None:
    """An observation has no field for a path, a speed to come or a control."""
    names = set(Observation.__dataclass_fields__)
    assert names == {"time", "image", "motion", "command", "route", "ambient"}
    assert not names & set(Targets.__dataclass_fields__)


def test_the_way_of_a_car_that_waits_is_the_way_it_goes_afterwards() -> None:
    waits = np.concatenate([np.zeros((20, 2)) + np.random.default_rng(0).normal(0, 1e-4, (20, 2)), [[6.0, 0.0]]])
    points, known = path_along(waits, 8)
    np.testing.assert_allclose(points[:5, 0], [1, 2, 3, 4, 5], atol=0.02)
    assert known.tolist() == [True] * 6 + [False] * 2
    nothing, known = path_along(np.zeros((1, 2)), 3)
    assert nothing.shape == (3, 2)
    assert not known.any()


def test_a_run_without_route_weather_or_gaps_in_it(tmp_path: Path) -> None:
    """As public runs are: what they don't tell is unknown, not zero."""
    write_run(tmp_path, 0, frames=12, town="Town01", weather=None)
    write_run(tmp_path, 1, frames=12, town="Town02")
    info = prepare(tmp_path, "frames", "train", tmp_path / "out", options={"val_towns": ["Town02"]})
    data = CarlaSequences(info.path, SequenceConfig(), shifted=0.5)
    assert data.shifted == 0.0
    assert not data.has_shifted
    assert len(data) == 8  # the last second has no speed a second later
    seen, came = data[0]["observation"], data[0]["targets"]
    assert seen.command == -1
    assert np.isnan(seen.route).all()
    assert np.isnan(seen.ambient).all()
    assert math.isnan(seen.motion[0, 1])
    assert came.light == -1  # a run without lights tells nothing of them
    batch = batch_observations([seen], (24, 32))
    assert batch.image.shape == (1, 3, 24, 32)
    assert batch.route.isnan().all()


def test_impossible_settings_and_sets_are_named(tmp_path: Path) -> None:
    for wrong in ({"past": -1}, {"path_metres": 1}, {"waypoint_seconds": (0.0,)}, {"speed_seconds": -1.0}):
        with pytest.raises(ConfigError, match="sequence"):
            SequenceConfig(**wrong)
    write_run(tmp_path, 0, frames=3, town="Town01")
    write_run(tmp_path, 1, frames=3, town="Town02")
    info = prepare(tmp_path, "frames", "train", tmp_path / "out", options={"val_towns": ["Town02"]})
    with pytest.raises(DataError, match="5 frames in a row"):
        CarlaSequences(info.path, SequenceConfig())


def test_frames_and_pictures() -> None:
    pose = shift_pose(np.eye(4), 1.0, math.pi / 2)
    np.testing.assert_allclose(into_frame(pose, np.array([[0.0, 3.0]])), [[2.0, 0.0]], atol=1e-9)
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, 40:] = 200
    small = small_image(image, (6, 8))
    assert (small[:, :4] == 0).all()
    assert (small[:, 4:] == 200).all()
    assert ambient_of(90.0, 45.0).tolist() == [1.0, 0.0]
