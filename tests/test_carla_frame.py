"""CARLA's axes and ours: against the real client, real maps and real drives, and against each other."""

from __future__ import annotations

import gzip
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automoe.carla import frame

angles = st.floats(-179.0, 179.0)
places = st.floats(-500.0, 500.0)
MIRROR = np.diag([1.0, -1.0, 1.0, 1.0])


@given(places, places, places, st.floats(-80.0, 80.0), angles, angles)
def test_a_pose_goes_there_and_back(x: float, y: float, z: float, pitch: float, yaw: float, roll: float) -> None:
    location, rotation = {"x": x, "y": y, "z": z}, {"pitch": pitch, "yaw": yaw, "roll": roll}
    said, turned = frame.say_pose(frame.pose(location, rotation))
    assert said == pytest.approx(location)
    assert turned == pytest.approx(rotation, abs=1e-6)


@given(st.floats(-80.0, 80.0), angles, angles)
def test_the_real_client_says_the_same(pitch: float, yaw: float, roll: float) -> None:
    carla = pytest.importorskip("carla", reason="the real client comes with `pip install automoe[carla]`")
    transform = carla.Transform(carla.Location(3.0, -4.0, 5.0), carla.Rotation(pitch=pitch, yaw=yaw, roll=roll))
    ours = frame.pose(frame.location_of(transform.location), frame.rotation_of(transform.rotation))
    theirs = np.array(transform.get_matrix())
    np.testing.assert_allclose(MIRROR @ ours @ MIRROR, theirs, atol=1e-4)
    point = transform.transform(carla.Location(1.0, 2.0, 3.0))
    np.testing.assert_allclose(ours @ [1.0, -2.0, 3.0, 1.0], [point.x, -point.y, point.z, 1.0], atol=1e-3)


def test_right_of_the_car_is_right() -> None:
    """A car that looks north (CARLA's yaw -90) has east on its right; a yaw that grows turns right."""
    T = frame.pose({"x": 0.0, "y": 0.0, "z": 0.0}, {"pitch": 0.0, "yaw": -90.0, "roll": 0.0})
    np.testing.assert_allclose(T[:3, 0], [0, 1, 0], atol=1e-12)  # forward: our y, CARLA's -y
    np.testing.assert_allclose(-T[:3, 1], [1, 0, 0], atol=1e-12)  # right
    assert frame.yaw(10.0) < 0.0  # to the right is negative here
    assert frame.yaw(frame.say_yaw(0.3)) == pytest.approx(0.3)


def test_pitch_lifts_the_nose_and_roll_leans_right() -> None:
    nose = frame.pose(dict.fromkeys("xyz", 0.0), {"pitch": 10.0, "yaw": 0.0, "roll": 0.0}) @ [1, 0, 0, 1]
    assert nose[2] == pytest.approx(np.sin(np.radians(10.0)))
    right = frame.pose(dict.fromkeys("xyz", 0.0), {"pitch": 0.0, "yaw": 0.0, "roll": 10.0}) @ [0, -1, 0, 1]
    assert right[2] == pytest.approx(-np.sin(np.radians(10.0)))


def test_points_keep_their_other_columns() -> None:
    points = np.array([[1.0, 2.0, 3.0, 0.5]], np.float32)
    np.testing.assert_array_equal(frame.flip(points), [[1.0, -2.0, 3.0, 0.5]])
    assert points[0, 1] == 2.0  # what was given is left alone


@pytest.mark.parametrize("name", ["Accident", "ConstructionObstacle", "EnterActorFlow_slow", "HazardAtSideLane"])
def test_real_logs_move_where_they_look(fixtures, name: str) -> None:
    """Integrated in our frame, speed and heading of a real drive lead to its places, and steering right turns right."""
    path = fixtures("carla_ego_logs") / "records" / name / "log.json.gz"
    records = json.loads(gzip.decompress(path.read_bytes()))["records"]
    states = [record["state"] for record in records]
    poses = np.array([frame.pose(state["transform"], state["transform"]) for state in states])
    speed = np.array([state["velocity"]["value"] for state in states])
    velocity = np.array([frame.vector(state["velocity"])[:2] for state in states])
    heading = poses[:, :2, 0] / np.linalg.norm(poses[:, :2, 0], axis=1, keepdims=True)
    fast = speed > 1.0
    assert (np.sum(heading * velocity, axis=1)[fast] > 0.9 * speed[fast]).all()

    led = np.cumsum(heading * speed[:, None] * 0.05, axis=0)  # the logs have 20 records a second
    places = poses[:, :2, 3] - poses[0, :2, 3]
    gone = np.linalg.norm(np.diff(places, axis=0), axis=1).sum()
    assert gone > 150.0
    assert np.linalg.norm(led - places, axis=1).max() < 0.01 * gone
    mirrored = led * [1, -1]
    assert np.linalg.norm(mirrored - places, axis=1).max() > 0.3 * gone  # a wrong sign would be seen

    yaw = np.unwrap(np.arctan2(heading[:, 1], heading[:, 0]))
    steer = np.array([record["control"]["steer"] for record in records])[:-1]
    turning = (np.abs(steer) > 0.1) & (speed[:-1] > 2.0)
    if turning.sum() > 10:
        assert np.corrcoef(steer[turning], np.diff(yaw)[turning])[0, 1] < -0.9


def real_map(fixtures, town: str):
    """One of CARLA's own maps in the real client, and its OpenDRIVE tree."""
    carla = pytest.importorskip("carla", reason="the real client comes with `pip install automoe[carla]`")
    folder = fixtures("carla_maps") / "src/py123d/parser/opendrive/carla_maps"
    text = gzip.decompress((folder / f"{town}.xodr.gz").read_bytes()).decode()
    return carla.Map(town, text), ElementTree.fromstring(text)


@pytest.mark.parametrize("town", ["Town01", "Town02", "Town10HD"])
def test_roads_of_real_maps_lie_where_opendrive_draws_them(fixtures, town: str) -> None:
    """Our frame is OpenDRIVE's: lanes with a positive number are left of the reference line and lead against it."""
    said, tree = real_map(fixtures, town)
    checked = {1: 0, -1: 0}
    for road in tree.iter("road"):
        driving = {int(lane.get("id", "0")) for lane in road.iter("lane") if lane.get("type") == "driving"}
        for piece in road.iter("geometry"):
            s, x, y, heading = (float(piece.get(key, "nan")) for key in ("s", "x", "y", "hdg"))
            for lane in driving:
                waypoint = said.get_waypoint_xodr(int(road.get("id", "-1")), lane, s + 0.01)
                if waypoint is None:
                    continue
                at = waypoint.transform
                T = frame.pose(frame.location_of(at.location), frame.rotation_of(at.rotation))
                ahead = np.array([np.cos(heading), np.sin(heading)])
                offset = T[:2, 3] - [x, y]
                side = 1 if lane > 0 else -1
                assert offset @ ahead == pytest.approx(0.0, abs=0.1)
                assert 0.5 < side * (ahead[0] * offset[1] - ahead[1] * offset[0]) < 30.0
                assert -side * (T[:2, 0] @ ahead) > 0.99
                checked[side] += 1
    assert min(checked.values()) > 20


def test_a_real_recording_drives_on_its_map(fixtures) -> None:
    """A car of CARLA's recorder, in centimetres, keeps to a lane of Town05 and looks where that leads."""
    said, _ = real_map(fixtures, "Town05")
    carla = pytest.importorskip("carla")
    lines = (fixtures("carla_recorder_log") / "parsed/scenario1_replay.txt").read_text()
    told = re.findall(r"Id: 448 Location: \((.+?), (.+?), (.+?)\) Rotation \((.+?), (.+?), (.+?)\)", lines)
    poses = []
    for x, y, z, roll, pitch, yaw in (map(float, one) for one in told):
        location = {"x": x / 100.0, "y": y / 100.0, "z": z / 100.0}
        poses.append(frame.pose(location, {"roll": roll, "pitch": pitch, "yaw": yaw}))
    assert len(poses) == 202
    for T in poses:
        location, _ = frame.say_pose(T)
        at = said.get_waypoint(carla.Location(**location)).transform
        lane = frame.pose(frame.location_of(at.location), frame.rotation_of(at.rotation))
        assert np.linalg.norm(lane[:2, 3] - T[:2, 3]) < 0.6
        assert lane[:2, 0] @ T[:2, 0] > np.cos(np.radians(5.0))

    gone = np.diff([T[:2, 3] for T in poses], axis=0)
    looked = np.array([T[:2, 0] for T in poses[:-1]])
    distance = np.linalg.norm(gone, axis=1)
    assert distance.sum() > 50.0
    assert (np.sum(gone * looked, axis=1)[distance > 0.1] > 0.99 * distance[distance > 0.1]).all()
