"""Where cameras sit, and where one sits that is thought aside."""

from __future__ import annotations

import math

import numpy as np

from automoe.carla.run import SHIFTED
from automoe.data.sequences import shift_pose
from automoe.poses import into_frame
from automoe.world.rig import carla_cameras, shifted_camera
from automoe.world.scene import world_to_camera
from automoe.world.vehicle import AHEAD


def test_a_camera_thought_aside_sees_from_there() -> None:
    """The left is +y, and a turn to the left is about the middle of the car, as sequences have it."""
    front = carla_cameras(400, 300)[0]
    assert np.allclose(shifted_camera(front, 0.0, 0.0).T_ego_cam, front.T_ego_cam)
    left = shifted_camera(front, 1.0, 0.0)
    assert left.name == SHIFTED
    np.testing.assert_allclose(left.T_ego_cam[:3, 3] - front.T_ego_cam[:3, 3], [0.0, 1.0, 0.0], atol=1e-9)
    aside, turn = -0.7, math.radians(4.0)
    camera = shifted_camera(front, aside, turn)
    point = np.array([20.0, 3.0, 0.0])  # of the world's ego frame, round the rear axle
    middle = point[:2] - [AHEAD, 0.0]
    there = into_frame(shift_pose(np.eye(4), aside, turn), middle[None])[0]
    moved = np.array([[there[0] + AHEAD, there[1], 0.0]])
    np.testing.assert_allclose(
        world_to_camera(camera.T_ego_cam, point[None]), world_to_camera(front.T_ego_cam, moved), atol=1e-9
    )
