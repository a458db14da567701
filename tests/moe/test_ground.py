"""From pixels to the ground, and along a path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from driving_models import CAMERA, MOUNT

from automoe.data.transforms import EvalTransform
from automoe.drive.embedded import rig_camera
from automoe.errors import ConfigError, DataError
from automoe.moe.ground import FARTHEST, PLACE_FEATURES, CameraSpec, Ground, beside_path, place_features
from automoe.world.vehicle import AHEAD

RIG = {"cameras": {"front": {"size": [48, 80], "field_of_view": 90.0, "T_ego_mount": [list(row) for row in MOUNT]}}}


def pixels_of(points: np.ndarray) -> np.ndarray:
    """Where the world's own camera of the rig sees points [N, 2] on the ground: [N, 2]."""
    camera = rig_camera(RIG)
    T_ego_cam = camera.T_ego_cam.copy()
    T_ego_cam[0, 3] -= AHEAD  # from the rear axle to the car's middle
    world = np.column_stack([points, np.zeros(len(points)), np.ones(len(points))])
    seen = (np.linalg.inv(T_ego_cam) @ world.T)[:3]
    return ((camera.intrinsics @ seen)[:2] / seen[2]).T


@pytest.mark.parametrize("size", [(48, 80), (64, 96), (32, 128)])
def test_a_spot_is_where_the_world_s_camera_sees_it(size: tuple[int, int]) -> None:
    """With grey margins, as experts look; (32, 128) has wide ones at both sides."""
    points = np.array([[6.0, 0.0], [10.0, 3.0], [25.0, -8.0], [40.0, 1.0]])
    matrix = EvalTransform(size).matrix(48, 80)
    spots = (pixels_of(points) @ matrix[:, :2].T + matrix[:, 2]) / [size[1], size[0]]
    ground = Ground(CameraSpec.of_rig(RIG), size, matrix)
    torch.testing.assert_close(ground(torch.from_numpy(spots)), torch.from_numpy(points).float(), atol=1e-2, rtol=1e-3)


def test_a_stretched_picture_is_the_whole_picture() -> None:
    points = np.array([[6.0, 0.0], [10.0, 3.0]])
    ground = Ground(CAMERA, (32, 48))
    spots = torch.from_numpy(pixels_of(points) / [80, 48])
    torch.testing.assert_close(ground(spots), torch.from_numpy(points).float(), atol=1e-2, rtol=1e-3)


def test_of_what_is_above_the_horizon_the_direction_is_left() -> None:
    ground = Ground(CAMERA, (48, 80))
    places = ground(torch.tensor([[0.5, 0.0], [1.0, 0.3], [0.5, 0.501]]))
    away = (places - torch.tensor([1.5, 0.0])).norm(dim=-1)
    torch.testing.assert_close(away, torch.full((3,), FARTHEST))
    assert math.degrees(math.atan2(float(places[1, 1]), float(places[1, 0]) - 1.5)) == pytest.approx(-45.0)


def test_a_rig_without_the_camera_is_said() -> None:
    with pytest.raises(ConfigError, match="rig has no front camera"):
        CameraSpec.of_rig({"cameras": {}})


def test_another_camera_is_refused() -> None:
    own = CameraSpec.of_rig(RIG)
    own.must_see(RIG, "runs")
    higher = [[*row[:3], row[3] + (0.2 if place == 2 else 0.0)] for place, row in enumerate(own.T_ego_mount)]
    for changed in ({"size": [96, 160]}, {"field_of_view": 70.0}, {"T_ego_mount": higher}):
        other = {"cameras": {"front": {**RIG["cameras"]["front"], **changed}}}
        with pytest.raises(DataError, match=r"runs: its front camera .* is not the one"):
            own.must_see(other, "runs")


def test_a_path_tells_how_far_along_it_and_how_far_aside_things_are() -> None:
    """A quarter of a circle to the left, of radius 10 m, and straight on beyond it."""
    angle = torch.linspace(0, math.pi / 2, 41)[1:]
    bend = 10.0 * torch.stack([angle.sin(), 1 - angle.cos()], dim=-1)
    path = torch.cat([bend, torch.tensor([[10.0, 10.0 + metre] for metre in range(1, 6)])])
    places = torch.tensor([[3.0, 1.0], [9.0, 10.0], [12.0, 14.5], [10.0, 30.0], [-2.0, 0.5], [float("nan")] * 2])
    along, aside = beside_path(path[None], places[None])[0].unbind(-1)
    quarter = 10.0 * math.pi / 2
    assert aside[:5].tolist() == pytest.approx([10 - math.hypot(3, 9), 1.0, -2.0, 0.0, 0.5], abs=0.03)
    expected = [10.0 * math.atan2(3, 9), quarter, quarter + 4.5, quarter + 20.0, -2.0]
    assert along[:5].tolist() == pytest.approx(expected, abs=0.1)
    assert along[5].isnan()
    assert aside[5].isnan()


def test_no_place_has_no_features() -> None:
    found = place_features(torch.tensor([[3.0, 4.0], [float("nan")] * 2]))
    assert found.shape == (2, PLACE_FEATURES)
    assert found[0].abs().sum() > 0
    assert not found[1].any()


@pytest.mark.parametrize("motion", [(1.2, 0.0, 0.0), (0.8, 0.1, 0.15), (0.5, -0.1, -0.2), (0.0, 0.0, 0.0)])
def test_what_was_seen_is_carried_to_where_the_world_s_camera_sees_it_after_the_car_has_moved(motion) -> None:
    points = np.array([[8.0, 0.0], [12.0, 3.0], [25.0, -8.0], [40.0, 1.0]])
    forward, left, turn = motion
    away = points - [forward, left]
    cos, sin = math.cos(turn), math.sin(turn)
    after = away @ np.array([[cos, -sin], [sin, cos]])  # a turn to the left brings things to the right
    ground = Ground(CAMERA, (48, 80))
    before, expected = (torch.from_numpy(pixels_of(one) / [80, 48]) for one in (points, after))
    torch.testing.assert_close(ground.after(before, motion), expected.float(), atol=1e-3, rtol=1e-3)


def test_what_is_above_the_horizon_turns_with_the_car_and_what_is_passed_stays() -> None:
    ground = Ground(CAMERA, (48, 80))
    high = torch.tensor([[0.5, 0.2]])
    turned = ground.after(high, (0.0, 0.0, math.radians(-10.0)))
    # 90 degrees over the picture's width: a turn to the right brings it to the left, and the camera goes to the right.
    assert float(turned[0, 0]) == pytest.approx(0.5 - 0.5 * math.tan(math.radians(10.0)), abs=5e-3)
    near = torch.tensor([[0.5, 1.0]])
    assert torch.equal(ground.after(near, (10.0, 0.0, 0.0)), near)
