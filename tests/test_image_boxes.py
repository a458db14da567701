"""What 3D boxes cover of a picture, against points on their surfaces."""

from __future__ import annotations

import numpy as np
import pytest

from automoe.image_boxes import NEAREST, image_boxes
from automoe.poses import LOOKING_FORWARD

SIZE = (300, 400)
INTRINSIC = np.array([[200.0, 0.0, 200.0], [0.0, 200.0, 150.0], [0.0, 0.0, 1.0]])


def camera() -> np.ndarray:
    """T_cam_ego of one that looks forward, 2.4 m above the ground."""
    T = np.eye(4)
    T[:3, :3] = LOOKING_FORWARD.T
    T[:3, 3] = -LOOKING_FORWARD.T @ [1.5, 0.0, 2.4]
    return T


def surface(box: np.ndarray, count: int = 160) -> np.ndarray:
    """Points [P, 3] all over a box's surface."""
    grid = np.linspace(-0.5, 0.5, count)
    u, v = (axis.ravel() for axis in np.meshgrid(grid, grid))
    faces = []
    for axis in range(3):
        for side in (-0.5, 0.5):
            face = np.empty((len(u), 3))
            face[:, axis] = side
            face[:, (axis + 1) % 3], face[:, (axis + 2) % 3] = u, v
            faces.append(face)
    local = np.concatenate(faces) * box[3:6]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    turned = np.stack([local[:, 0] * cos - local[:, 1] * sin, local[:, 0] * sin + local[:, 1] * cos, local[:, 2]], 1)
    return turned + box[:3]


@pytest.mark.parametrize(
    "box",
    [
        [15.0, 2.0, 0.8, 4.5, 1.9, 1.6, 0.3],  # ahead
        [3.0, 3.0, 1.5, 8.0, 2.5, 3.0, 0.0],  # a truck beside the car, behind the camera with one end
        [4.0, -5.0, 1.5, 9.0, 2.5, 3.2, 0.4],
        [2.6, 0.5, 0.9, 1.0, 0.8, 1.8, 0.0],  # somebody right before the camera
    ],
)
def test_a_box_covers_what_its_surface_does(box: list[float]) -> None:
    found, _ = image_boxes(np.array([box]), INTRINSIC, camera(), SIZE)
    points = surface(np.array(box)) @ camera()[:3, :3].T + camera()[:3, 3]
    points = points[points[:, 2] > NEAREST]
    pixels = points[:, :2] / points[:, 2:] * 200.0 + [200.0, 150.0]
    inside = pixels[((pixels >= 0) & (pixels <= [400, 300])).all(axis=1)]
    np.testing.assert_allclose(found[0], [*inside.min(axis=0), *inside.max(axis=0)], atol=4.0)


def test_what_is_behind_or_beside_covers_nothing() -> None:
    found, _ = image_boxes(
        np.array([[-10.0, 0.0, 1.0, 4.0, 2.0, 2.0, 0.0], [2.0, 20.0, 1.0, 4.0, 2.0, 2.0, 0.0]]),
        INTRINSIC,
        camera(),
        SIZE,
    )
    assert np.isnan(found).all()
