"""Rigid poses in numpy: quaternions, 4 x 4 transforms, and 3D boxes moved by them. Right-handed, metres, radians.

`T_a_b` maps points of frame b to frame a. A pose of seven numbers is x, y, z and a quaternion w, x, y, z.
"""

from __future__ import annotations

import numpy as np

LOOKING_FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""The axes of a camera that looks forward, x right, y down, z forward, as columns in the ego frame (x forward, y left,
z up)."""


def pinhole(height: int, width: int, field_of_view: float) -> np.ndarray:
    """The intrinsics [3, 3] of a camera whose axis goes through the middle of its picture. field_of_view: horizontal,
    degrees."""
    focal = width / 2 / np.tan(np.radians(field_of_view) / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def rotation_z(angle: float) -> np.ndarray:
    """The matrix that turns by `angle` radians, counter-clockwise seen from above."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def upright(x: float, y: float, z: float, yaw: float) -> np.ndarray:
    """The pose [4, 4] of what stands upright somewhere, its x axis at `yaw` radians to that of the frame it is in."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation_z(yaw), (x, y, z)
    return pose


def rotation_y(angle: float) -> np.ndarray:
    """The matrix that tips +x downwards by `angle` radians (about the y axis)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def rotation_x(angle: float) -> np.ndarray:
    """The matrix that turns by `angle` radians about the x axis (+y towards +z)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def quaternion_matrix(rotation: np.ndarray) -> np.ndarray:
    """Quaternions [..., 4] (w, x, y, z) of any length but zero to rotation matrices [..., 3, 3]."""
    w, x, y, z = np.moveaxis(rotation / np.linalg.norm(rotation, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion_yaw(rotation: np.ndarray) -> np.ndarray:
    """Quaternions [..., 4] (w, x, y, z) of any length to the heading [...] of the x axis, seen from above."""
    w, x, y, z = np.moveaxis(np.asarray(rotation, np.float64), -1, 0)
    return np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z)


def matrix_quaternion(matrix: np.ndarray) -> np.ndarray:
    """A rotation matrix [3, 3] to its quaternion [4] (w, x, y, z), w not negative (Bar-Itzhack, 2000)."""
    m = np.asarray(matrix, np.float64)
    k = np.array(
        [
            [m[0, 0] - m[1, 1] - m[2, 2], 0, 0, 0],
            [m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], 0, 0],
            [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1], 0],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m[0, 0] + m[1, 1] + m[2, 2]],
        ]
    )
    _, vectors = np.linalg.eigh(k)  # reads the lower triangle; the largest eigenvalue comes last
    x, y, z, w = vectors[:, -1]
    quaternion = np.array([w, x, y, z])
    return -quaternion if w < 0 else quaternion


def pose_matrix(pose: np.ndarray) -> np.ndarray:
    """Poses [..., 7] to transforms [..., 4, 4] from the posed frame to the one that the pose is given in."""
    pose = np.asarray(pose, np.float64)
    matrix = np.zeros((*pose.shape[:-1], 4, 4))
    matrix[..., :3, :3] = quaternion_matrix(pose[..., 3:])
    matrix[..., :3, 3] = pose[..., :3]
    matrix[..., 3, 3] = 1
    return matrix


def invert(transform: np.ndarray) -> np.ndarray:
    """The inverse of rigid transforms [..., 4, 4]."""
    rotation = np.swapaxes(transform[..., :3, :3], -1, -2)
    inverse = np.zeros_like(transform)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -(rotation @ transform[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse


def move_points(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [N, 3] by a transform [4, 4]."""
    return points @ transform[:3, :3].T + transform[:3, 3]


def move_boxes(transform: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """3D boxes [N, 7] (x, y, z, l, w, h, yaw) by a transform [4, 4] between frames that stand (nearly) upright.

    The heading is that of the moved x axis, seen from above: what a tilt does to height is left out.
    """
    moved = boxes.copy()
    moved[:, :3] = move_points(transform, boxes[:, :3])
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], axis=1) @ transform[:3, :3].T
    moved[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    return moved


def points_inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether each point [N, 3] lies in each 3D box [M, 7], borders included: bool [N, M]."""
    gap = points[:, None] - boxes[None, :, :3]
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    along = gap[..., 0] * cos + gap[..., 1] * sin
    across = gap[..., 1] * cos - gap[..., 0] * sin
    inside = np.abs(np.stack([along, across, gap[..., 2]], axis=-1)) <= boxes[:, 3:6] / 2
    return np.logical_and.reduce(inside, axis=-1)


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """3D boxes [N, 7] to their corners [N, 8, 3]: four at the bottom, four at the top, each from front left on,
    counter-clockwise."""
    signs = np.array([[x, y, z] for z in (-1, 1) for x, y in ((1, 1), (-1, 1), (-1, -1), (1, -1))]) / 2
    local = signs * boxes[:, None, 3:6]
    cos, sin = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    x, y = local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y, local[..., 2]], axis=-1) + boxes[:, None, :3]


def into_frame(T_world_ego: np.ndarray, points: np.ndarray) -> np.ndarray:
    """World points [N, 2] in the frame of a pose [4, 4], seen from above."""
    cos, sin = T_world_ego[:2, 0] / np.linalg.norm(T_world_ego[:2, 0])
    return (points - T_world_ego[:2, 3]) @ np.array([[cos, -sin], [sin, cos]])
