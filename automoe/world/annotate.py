"""Labels from rendered frames: 2D boxes with flags, and drivable masks.

Boxes are those of the visible pixels, nothing is guessed behind an occluder. A box spans whole pixels: x1, y1 are the
first column and row, x2, y2 the ends of the last ones (continuous pixel coordinates, as annotation tools write).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from automoe.taxonomy import BDD_DETECTION, DRIVABLE, SEMANTIC
from automoe.world import polyline
from automoe.world.parts import Asset
from automoe.world.scene import Camera, Placement, Scene, world_to_camera
from automoe.world.town import LANE_WIDTH, Lane, Town

if TYPE_CHECKING:
    from automoe.world.renderer import Frame

MIN_SIDE = 4.0
"""Boxes with a shorter side are dropped; pixels at 640 wide, scaled with the width."""
MIN_VISIBLE = 20.0
"""Boxes with fewer visible pixels are dropped; at 640 wide, scaled with the area."""
OCCLUDED_BELOW = 0.94
"""Share of the silhouette inside the picture that must be visible, or the box is flagged as occluded."""
DRIVABLE_AHEAD = 110.0
"""Metres along the lanes, own ones and those beside, beyond which the road counts as background."""
_NEAR = 0.3


@dataclass(frozen=True)
class Box2D:
    """A labelled box; `visible` counts pixels, `silhouette` what they would be without occluders."""

    instance: int
    category: str
    xyxy: tuple[float, float, float, float]
    occluded: bool
    truncated: bool
    visible: int
    silhouette: float
    light_color: str = "NA"


# ---------------------------------------------------------------- boxes


def visible_extents(instance: np.ndarray) -> dict[int, tuple[int, int, int, int, int]]:
    """For each instance id > 0 in a picture: x1, y1, x2, y2 (exclusive ends) and its number of pixels."""
    rows, columns = np.nonzero(instance)
    if not len(rows):
        return {}
    ids = instance[rows, columns]
    order = np.argsort(ids, kind="stable")
    ids, rows, columns = ids[order], rows[order], columns[order]
    first = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
    counts = np.diff(first, append=len(ids))
    x1, x2 = np.minimum.reduceat(columns, first), np.maximum.reduceat(columns, first) + 1
    y1, y2 = np.minimum.reduceat(rows, first), np.maximum.reduceat(rows, first) + 1
    table = np.column_stack([x1, y1, x2, y2, counts])
    return {i: (a, b, c, d, n) for i, (a, b, c, d, n) in zip(ids[first].tolist(), table.tolist(), strict=True)}


def boxes_2d(
    frame: Frame, scene: Scene, camera: Camera, min_side: float = MIN_SIDE, min_visible: float = MIN_VISIBLE
) -> list[Box2D]:
    """All boxes of a frame, by instance id."""
    scale = camera.width / 640
    T_world_cam = scene.T_world_cam(camera)
    actors = {actor.id: actor for actor in scene.actors}
    placements = _placements(scene)
    states = scene.signal_states()
    found = []
    for instance, (x1, y1, x2, y2, count) in visible_extents(frame.instance).items():
        if min(x2 - x1, y2 - y1) < min_side * scale or count < min_visible * scale**2:
            continue
        color = "NA"
        if instance in actors:
            actor = actors[instance]
            asset = scene.stage.assets[actor.asset]
            key = actor.asset
            if actor.mount is not None and asset.rider is not None:
                asset, key = asset.rider, key + ".rider"
            pose, category = (actor.x, actor.y, actor.z, actor.yaw), actor.category
        else:
            placement = placements[instance]
            if scene.stage.assets[placement.asset].category not in BDD_DETECTION:
                continue
            asset, key = scene.stage.assets[placement.asset], placement.asset
            pose, category = (placement.x, placement.y, placement.z, placement.yaw), str(asset.category)
            if placement.signal is not None and _faces(placement, T_world_cam[:3, 3]):
                color = {"green": "G", "yellow": "Y", "red": "R"}[states[placement.signal]]
        silhouette, beyond = _silhouette(asset, key, pose, camera, T_world_cam)
        touches = x1 <= 0 or y1 <= 0 or x2 >= camera.width or y2 >= camera.height
        # A pixel of slack round the outline: rasterisation alone must not make a distant box `occluded`.
        slack = 0.15 * ((x2 - x1) + (y2 - y1))
        occluded = count + slack < OCCLUDED_BELOW * silhouette
        found.append(
            Box2D(
                instance,
                category,
                (float(x1), float(y1), float(x2), float(y2)),
                bool(occluded),
                bool(touches and beyond),
                count,
                float(silhouette),
                color,
            )
        )
    return found


def _placements(scene: Scene) -> dict[int, Placement]:
    return {p.instance: p for p in scene.stage.placements if p.instance}


def _faces(placement: Placement, eye: np.ndarray) -> bool:
    """Whether the front of a sign or signal head is turned towards the eye."""
    toward = eye[:2] - [placement.x, placement.y]
    return bool(toward @ [math.cos(placement.yaw), math.sin(placement.yaw)] > 0.15 * np.hypot(*toward))


def silhouette(asset: Asset, key: str, pose: tuple, camera: Camera, T_world_cam: np.ndarray) -> float:
    """Pixels that an asset at pose (x, y, z, yaw) would cover in a camera's picture if nothing stood before it."""
    x, y, z = pose[:3]
    middle = world_to_camera(T_world_cam, np.array([[x, y, z + asset.size[2] / 2]]))[0]
    if middle[2] < -max(asset.size):
        return 0.0  # behind the camera
    reach = math.hypot(*asset.size) / 2
    half = max(camera.cx, camera.width - camera.cx) / camera.fx
    if middle[2] - reach > _NEAR and (abs(middle[0]) - half * middle[2]) / math.hypot(1, half) > reach:
        return 0.0  # beside the picture
    return _silhouette(asset, key, pose, camera, T_world_cam)[0]


def _silhouette(asset: Asset, key: str, pose: tuple, camera: Camera, T_world_cam: np.ndarray) -> tuple[float, bool]:
    """Pixels that the unoccluded asset would cover inside the picture, and whether it reaches beyond the picture.

    Area of the projected convex hull times the share of the hull that the asset fills from that side, which is
    measured once for each asset and eighth of a turn (`_fill`): within a few percent of a render of its own.
    """
    outline = _outline(asset)
    x, y, z, yaw = pose
    cos, sin = math.cos(yaw), math.sin(yaw)
    world = np.column_stack(
        [
            outline[:, 0] * cos - outline[:, 1] * sin + x,
            outline[:, 0] * sin + outline[:, 1] * cos + y,
            outline[:, 2] + z,
        ]
    )
    points = world_to_camera(T_world_cam, world)
    cut = bool((points[:, 2] < _NEAR).any())
    points[:, 2] = np.maximum(points[:, 2], _NEAR)
    pixels = points[:, :2] / points[:, 2:] * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    hull = cv2.convexHull(pixels.astype(np.float32))
    frame = np.array([[0, 0], [camera.width, 0], [camera.width, camera.height], [0, camera.height]], np.float32)
    inside, _ = cv2.intersectConvexConvex(hull, frame)
    beyond = cut or bool(
        (pixels < -1).any() or (pixels[:, 0] > camera.width + 1).any() or (pixels[:, 1] > camera.height + 1).any()
    )
    eye = T_world_cam[:3, 3]
    azimuth = math.atan2(eye[1] - y, eye[0] - x) - yaw
    return inside * _fill(asset, key, round(azimuth / (math.pi / 4)) % 8), beyond


_OUTLINES: dict[int, tuple[Asset, np.ndarray]] = {}
_FILLS: dict[tuple[int, int], float] = {}
_DIRECTIONS = None


def _boxed_parts(asset: Asset) -> list:
    return [part for part in asset.parts if part.label == asset.category] or list(asset.parts)


def _outline(asset: Asset) -> np.ndarray:
    """The vertices that span the asset's convex hull, nearly: the farthest ones in 162 directions, [N, 3]."""
    known = _OUTLINES.get(id(asset))
    if known is None:
        parts = _boxed_parts(asset) if asset.category in ("traffic sign", "traffic light") else asset.parts
        vertices = np.concatenate([part.vertices for part in parts]).astype(np.float64)
        known = (asset, vertices[np.unique(np.argmax(vertices @ _directions().T, axis=0))])
        _OUTLINES[id(asset)] = known
    return known[1]


def _directions() -> np.ndarray:
    index = np.arange(162) + 0.5
    up = 1 - 2 * index / 162
    around = np.pi * (1 + 5**0.5) * index
    flat = np.sqrt(1 - up**2)
    return np.column_stack([flat * np.cos(around), flat * np.sin(around), up])


def _fill(asset: Asset, key: str, eighth: int) -> float:
    """Share of its convex hull that an asset covers, seen from about eye height at one of eight azimuths."""
    if (id(asset), eighth) not in _FILLS:
        parts = _boxed_parts(asset) if asset.category in ("traffic sign", "traffic light") else asset.parts
        azimuth = eighth * math.pi / 4
        right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
        up = np.array([-0.06 * math.cos(azimuth), -0.06 * math.sin(azimuth), 1.0])
        flat = [np.stack([part.vertices @ right, part.vertices @ up], 1) for part in parts]
        low, high = np.min([f.min(0) for f in flat], 0), np.max([f.max(0) for f in flat], 0)
        scale = 120.0 / max(float((high - low).max()), 1e-3)
        canvas = np.zeros((130, 130), np.uint8)
        every = []
        for points, part in zip(flat, parts, strict=True):
            pixels = (points - low) * scale + 3
            every.append(pixels)
            fixed = np.round(pixels * 16).astype(np.int32)
            for face in part.faces:
                cv2.fillConvexPoly(canvas, fixed[face], 1, cv2.LINE_8, 4)
        hull = np.zeros_like(canvas)
        outline = cv2.convexHull(np.concatenate(every).astype(np.float32))
        cv2.fillConvexPoly(hull, np.round(outline * 16).astype(np.int32), 1, cv2.LINE_8, 4)
        _OUTLINES.setdefault(id(asset), (asset, _outline(asset)))
        _FILLS[id(asset), eighth] = float(canvas.sum() / max(hull.sum(), 1))
    return _FILLS[id(asset), eighth]


# ---------------------------------------------------------------- drivable area


def drivable_mask(frame: Frame, scene: Scene, camera: Camera) -> np.ndarray:
    """uint8 [H, W] of indices in taxonomy.DRIVABLE.

    direct: the ego's own lane ahead, through junctions along its route. alternative: the lanes beside it in the same
    direction. Everything else, the oncoming lanes and whatever covers the road included, is background.
    """
    mask = np.full(frame.depth.shape, DRIVABLE.index("background"), np.uint8)
    own, others = drivable_lanes(scene)
    for lines, name in ((others, "alternative"), (own, "direct")):
        for line in lines:
            paint_ribbon(mask, line, LANE_WIDTH, scene, camera, DRIVABLE.index(name))
    mask[frame.semantic != SEMANTIC.index("road")] = DRIVABLE.index("background")
    return mask


def drivable_lanes(scene: Scene) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Centre lines of the ego's own lanes ahead, and of the lanes beside them."""
    town = scene.stage.town
    own, others = [], []
    left = DRIVABLE_AHEAD
    for index, lane_id in enumerate(scene.ego.route):
        lane = town.lanes[lane_id]
        here = scene.ego.station if index == 0 else 0.0
        start, end = (here - 3.0 if index == 0 else 0.0), min(lane.length, here + left)
        own.append(polyline.cut(lane.centre, start, end))
        for other in _beside(town, lane, scene.ego.route[index - 1] if index else None):
            others.append(
                polyline.cut(other.centre, start * other.length / lane.length, end * other.length / lane.length)
            )
        left -= end - here
        if left <= 0:
            break
    return own, others


def _beside(town: Town, lane: Lane, before: str | None) -> list[Lane]:
    """Lanes in the lane's own direction beside it; inside a junction those that make the same turn."""
    if lane.junction is None:
        found, step = [], lane.left
        while step is not None:
            found.append(town.lanes[step])
            step = town.lanes[step].left
        step = lane.right
        while step is not None:
            found.append(town.lanes[step])
            step = town.lanes[step].right
        return found
    if before is None:
        return []
    entries = [town.lanes[before], *_beside(town, town.lanes[before], None)]
    candidates = [town.lanes[other] for entry in entries for other in entry.successors]
    return [other for other in candidates if other.turn == lane.turn and other.id != lane.id]


def paint_ribbon(mask: np.ndarray, line: np.ndarray, width: float, scene: Scene, camera: Camera, value: int) -> None:
    """Paint a strip of road along a line into a mask, clipped at the camera's near plane."""
    line = polyline.densify(line, 3.0)
    edges = np.stack([polyline.offset(line, width / 2), polyline.offset(line, -width / 2)], 1)
    world = np.concatenate([edges, np.zeros((*edges.shape[:2], 1))], -1)
    points = world_to_camera(scene.T_world_cam(camera), world.reshape(-1, 3)).reshape(-1, 2, 3)
    quads = np.concatenate([points[:-1], points[1:, ::-1]], 1)  # [N, 4, 3], round each piece
    ahead = (quads[..., 2] >= _NEAR).all(1)
    pieces = [quads[i] for i in np.flatnonzero(ahead)]
    pieces += [_clip_near(quads[i]) for i in np.flatnonzero(~ahead & (quads[..., 2] >= _NEAR).any(1))]
    for quad in pieces:
        pixels = quad[:, :2] / quad[:, 2:] * [camera.fx, camera.fy] + [camera.cx, camera.cy] - 0.5
        fixed = np.round(np.clip(pixels, -4000, 8000) * 16).astype(np.int32)
        cv2.fillConvexPoly(mask, fixed, value, cv2.LINE_8, 4)


def _clip_near(polygon: np.ndarray) -> np.ndarray:
    """The part of a camera-frame polygon [N, 3] that lies before the near plane."""
    kept = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if a[2] >= _NEAR:
            kept.append(a)
        if (a[2] >= _NEAR) != (b[2] >= _NEAR):
            kept.append(a + (b - a) * ((_NEAR - a[2]) / (b[2] - a[2])))
    return np.array(kept).reshape(-1, 3)
