"""Pictures of 3D boxes and LiDAR points: on the cameras' frames, and from above.

All pictures are uint8 [H, W, 3] RGB arrays. Boxes are [N, 7] in the sample's ego frame (x forward, y left, z up).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from automoe.data.nuscenes import CameraFrame, project
from automoe.poses import box_corners

Color = tuple[int, int, int]

NEAREST = 0.3
"""Metres before the camera at which the edges of boxes are cut off."""

FAR = 50.0
"""Metres at which the colours of points end, and to which the view from above reaches."""

ROWS: tuple[tuple[str, ...], ...] = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
"""Where each camera's picture goes on a sheet."""

_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
_PAPER = 24


def draw_camera(
    image: np.ndarray,
    camera: CameraFrame,
    boxes: np.ndarray,
    labels: np.ndarray,
    colors: Sequence[Color],
    points: np.ndarray | None = None,
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """A camera's frame with points coloured by depth and boxes in their class colour; their fronts are filled lightly.

    image may be larger or smaller than the frame was. scores: [N] in 0 to 1, fainter where lower.
    """
    picture = image.copy()
    scale = np.array([image.shape[1] / camera.size[1], image.shape[0] / camera.size[0]])
    if points is not None and len(points):
        pixels, depth = project(points[:, :3].astype(np.float64), camera)
        pixels = pixels * scale
        seen = (depth > NEAREST) & (pixels >= 0).all(axis=1) & (pixels < [image.shape[1], image.shape[0]]).all(axis=1)
        radius = max(1, image.shape[1] // 640)
        for (x, y), color in zip(pixels[seen].astype(int).tolist(), depth_colors(depth[seen]), strict=True):
            cv2.circle(picture, (x, y), radius, color, -1)
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores)
    corners = box_corners(boxes)
    for row in order:
        color = colors[int(labels[row])]
        if scores is not None:
            color = _faint(color, float(scores[row]))
        _draw_wire(picture, corners[row], camera, scale, color)
    return picture


def draw_above(
    boxes: np.ndarray,
    labels: np.ndarray,
    colors: Sequence[Color],
    points: np.ndarray | None = None,
    velocity: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    *,
    side: int = 600,
    reach: float = FAR,
    picture: np.ndarray | None = None,
    light: float = 1.0,
    thickness: int = 1,
) -> np.ndarray:
    """The surroundings from above, forward up: points by height, boxes with a line to their front, velocities as
    arrows of a second. picture: draw onto this one instead of a dark sheet. light: of the points, 0 to 1. thickness: of
    the boxes' lines, pixels."""
    if picture is None:
        picture = np.full((side, side, 3), _PAPER, np.uint8)
    side = len(picture)
    scale = side / (2 * reach)

    def place(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack([side / 2 - y * scale, side / 2 - x * scale], axis=-1)

    if points is not None and len(points):
        spots = place(points[:, 0], points[:, 1]).astype(int)
        inside = ((spots >= 0) & (spots < side)).all(axis=1)
        height = np.clip((points[inside, 2] + 0.5) / 4, 0, 1)
        shade = (70 + 150 * height[:, None] * [0.7, 0.9, 1.0]) * light
        picture[spots[inside, 1], spots[inside, 0]] = shade.astype(np.uint8)
    for radius in range(10, int(reach) + 1, 10):
        cv2.circle(picture, (side // 2, side // 2), int(radius * scale), (52, 52, 52), 1, cv2.LINE_AA)
    corners = box_corners(boxes)[:, :4, :2]
    for row in range(len(boxes)):
        color = colors[int(labels[row])]
        if scores is not None:
            color = _faint(color, float(scores[row]))
        outline = place(corners[row, :, 0], corners[row, :, 1])
        cv2.polylines(picture, [np.round(outline).astype(np.int32)], True, color, thickness, cv2.LINE_AA)
        middle, front = outline.mean(axis=0), outline[[0, 3]].mean(axis=0)
        cv2.line(picture, *_ends(middle, front), color, thickness, cv2.LINE_AA)
        if velocity is not None and np.isfinite(velocity[row]).all() and np.hypot(*velocity[row]) > 0.3:
            tip = place(boxes[row, 0] + velocity[row, 0], boxes[row, 1] + velocity[row, 1])
            cv2.arrowedLine(picture, *_ends(middle, tip), color, 1, cv2.LINE_AA, tipLength=0.25)
    car = place(np.array([3.6, 3.6, -0.9, -0.9]), np.array([0.9, -0.9, -0.9, 0.9]))
    cv2.fillPoly(picture, [np.round(car).astype(np.int32)], (235, 235, 235), cv2.LINE_AA)
    return picture


def camera_sheet(pictures: Mapping[str, np.ndarray], above: np.ndarray | None = None) -> np.ndarray:
    """All cameras as they stand round the car, front row above back row, and the view from above beside them."""
    some = next(iter(pictures.values()))
    empty = np.full_like(some, _PAPER)
    rows = [[pictures.get(name, empty) for name in row] for row in ROWS]
    rows = [row for row, names in zip(rows, ROWS, strict=True) if any(name in pictures for name in names)]
    size = (some.shape[1], some.shape[0])
    sheet = np.concatenate([np.concatenate([cv2.resize(one, size) for one in row], axis=1) for row in rows])
    if above is None:
        return sheet
    height = len(sheet)
    return np.concatenate([sheet, cv2.resize(above, (height, height), interpolation=cv2.INTER_AREA)], axis=1)


def depth_colors(depth: np.ndarray) -> list[Color]:
    """Near is red, far is blue: a colour for each depth in metres."""
    if not len(depth):
        return []
    level = np.clip(255 * (1 - depth / FAR), 0, 255).astype(np.uint8)[:, None]
    table = cv2.applyColorMap(level, cv2.COLORMAP_JET)[:, 0, ::-1]
    return [tuple(row) for row in table.tolist()]


def _draw_wire(picture: np.ndarray, corners: np.ndarray, camera: CameraFrame, scale: np.ndarray, color: Color) -> None:
    """The edges of one box, cut where they come too near to the camera."""
    inside = corners @ camera.T_cam_ego[:3, :3].T + camera.T_cam_ego[:3, 3]
    if (inside[:, 2] < NEAREST).all():
        return
    thickness = max(1, picture.shape[1] // 640)
    for a, b in _EDGES:
        start, end = inside[a], inside[b]
        if start[2] < NEAREST and end[2] < NEAREST:
            continue
        if min(start[2], end[2]) < NEAREST:
            share = (NEAREST - start[2]) / (end[2] - start[2])
            cut = start + share * (end - start)
            start, end = (cut, end) if start[2] < NEAREST else (start, cut)
        pixels = [(camera.intrinsic @ (corner / corner[2]))[:2] * scale for corner in (start, end)]
        if all(np.abs(pixel).max() < 1e5 for pixel in pixels):
            cv2.line(picture, *_ends(*pixels), color, thickness, cv2.LINE_AA)
    # A cross on the front face tells the heading.
    front = inside[[0, 3, 7, 4]]
    if (front[:, 2] > NEAREST).all():
        pixels = (front / front[:, 2:]) @ camera.intrinsic.T
        ends = np.clip(pixels[:, :2] * scale, -1e5, 1e5)
        cv2.line(picture, *_ends(ends[0], ends[2]), color, thickness, cv2.LINE_AA)
        cv2.line(picture, *_ends(ends[1], ends[3]), color, thickness, cv2.LINE_AA)


def _ends(a: np.ndarray, b: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    return (round(float(a[0])), round(float(a[1]))), (round(float(b[0])), round(float(b[1])))


def _faint(color: Color, score: float) -> Color:
    red, green, blue = (round(90 + (value - 90) * min(1.0, 0.35 + score)) for value in color)
    return red, green, blue
