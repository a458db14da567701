"""3D boxes as a camera sees them: the image boxes that nobody draws by hand."""

from __future__ import annotations

import cv2
import numpy as np

from automoe.poses import box_corners, move_points

NEAREST = 0.1
"""Metres before a camera at which boxes are cut off."""

_EDGES = np.array([(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)])


def image_boxes(
    boxes: np.ndarray, intrinsic: np.ndarray, T_cam_ego: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """3D boxes [N, 7] as a camera's image boxes [N, 4], pixel xyxy clipped to `size` (height, width), NaN where it
    doesn't see them, and the depths of their centres [N], metres.

    Boxes that reach behind the camera are cut off just before it.
    """
    if not len(boxes):
        return np.zeros((0, 4)), np.zeros(0)
    corners = move_points(T_cam_ego, box_corners(boxes).reshape(-1, 3)).reshape(-1, 8, 3)
    return visible_extents(corners, intrinsic, size), move_points(T_cam_ego, boxes[:, :3])[:, 2]


def visible_extents(corners: np.ndarray, intrinsic: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What boxes cover of a picture, pixel xyxy [N, 4] clipped to `size` (height, width), NaN where that is nothing.

    corners: [N, 8, 3], metres in the camera's axes (x right, y down, z forward), in the order of `poses.box_corners`.
    Boxes that reach behind the camera are cut off just before it.
    """
    found = np.full((len(corners), 4), np.nan)
    first, last = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
    gap = last[..., 2:] - first[..., 2:]
    share = (NEAREST - first[..., 2:]) / np.where(np.abs(gap) > 1e-9, gap, 1e-9)
    cut = np.where((share > 0) & (share < 1), first + share * (last - first), np.nan)
    spots = np.concatenate([np.where(corners[..., 2:] >= NEAREST, corners, np.nan), cut], axis=1)
    pixels = spots @ intrinsic.T
    pixels = pixels[..., :2] / pixels[..., 2:]
    before = ~np.isnan(pixels[..., 0]).all(axis=1)
    low, high = np.nanmin(pixels[before], axis=1), np.nanmax(pixels[before], axis=1)
    limits = np.array([size[1], size[0]], float)
    inside = ((low < limits) & (high > 0)).all(axis=1)
    whole = ((low >= 0) & (high <= limits)).all(axis=1)
    rows = np.flatnonzero(before)
    found[rows[whole]] = np.concatenate([low, high], axis=1)[whole]
    for row in rows[inside & ~whole]:
        found[row] = _bounds_in_picture(pixels[row], size)
    return found


def visible_extent(corners: np.ndarray, intrinsic: np.ndarray, size: tuple[int, int]) -> list[float] | None:
    """`visible_extents` of one box, corners [8, 3]; None where it is no pixel wide and high."""
    xyxy = visible_extents(corners[None], intrinsic, size)[0]
    return xyxy.tolist() if (xyxy[2:] - xyxy[:2] > 1.0).all() else None


def _bounds_in_picture(spots: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The bounds [4] of what lies inside the picture of the hull of `spots` [S, 2] (NaN for none), NaN if nothing does.

    Not those of the hull, clipped: a box beside the camera reaches far up and down, but only beyond the margin.
    """
    height, width = size
    spots = spots[~np.isnan(spots[:, 0])]
    hull = cv2.convexHull(spots.astype(np.float32))
    canvas = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    area, shared = cv2.intersectConvexConvex(hull, canvas)
    if area <= 0:
        return np.full(4, np.nan)
    shared = shared.reshape(-1, 2)
    return np.concatenate([shared.min(axis=0), shared.max(axis=0)])
