"""The ground: carriageway, sidewalks with kerbs, terrain and paint as meshes in world coordinates.

Areas are made with shapely from the streets' axes (a union, closed with the corner radius, so that junctions get
round corners), cut into tiles so that a camera needs to draw only what is near, and triangulated.
"""

from __future__ import annotations

import itertools

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon, box
from shapely.geometry.base import BaseGeometry

from automoe.world import polyline
from automoe.world.parts import Material, Part
from automoe.world.town import CORNER_RADIUS, LANE_WIDTH, SIDEWALK_WIDTH, Node, Street, Town

KERB_HEIGHT = 0.14
PAINT_HEIGHT = 0.015
TILE = 70.0
HORIZON = 900.0
"""Terrain reaches this far beyond the town, metres."""

ASPHALT = Material("asphalt", (1, 1, 1, 1), "asphalt", specular=0.05)
PAVING = Material("paving", (1, 1, 1, 1), "sidewalk", specular=0.05)
KERB = Material("kerb", (0.62, 0.61, 0.58, 1), specular=0.05)
GRASS = Material("grass", (1, 1, 1, 1), "grass", specular=0.0)
WHITE_PAINT = Material("paint_white", (0.86, 0.86, 0.84, 1), specular=0.05)
YELLOW_PAINT = Material("paint_yellow", (0.85, 0.66, 0.16, 1), specular=0.05)
RAIL = Material("rail", (0.33, 0.32, 0.31, 1), specular=0.5)
_UV_METRES = {"asphalt": 6.0, "sidewalk": 3.0, "grass": 9.0}


def road_area(town: Town) -> BaseGeometry:
    """Everything between the kerbs."""
    pieces = [_street_area(street, town) for street in town.streets.values()]
    pieces += [_bend_area(node, town) for node in town.nodes if len(node.arms) == 2]
    union = shapely.union_all(pieces)
    closed = union.buffer(CORNER_RADIUS, quad_segs=8).buffer(-CORNER_RADIUS, quad_segs=8)
    return closed.union(union).simplify(0.02)


def sidewalk_area(road: BaseGeometry) -> BaseGeometry:
    """A band of sidewalk round the carriageway."""
    return road.buffer(SIDEWALK_WIDTH, quad_segs=8).difference(road).simplify(0.02)


def build_ground(town: Town) -> tuple[Part, ...]:
    """All ground parts of a town."""
    road = road_area(town)
    walk = sidewalk_area(road)
    west, south, east, north = road.bounds
    whole = box(west - HORIZON, south - HORIZON, east + HORIZON, north + HORIZON)
    near = box(west - 60, south - 60, east + 60, north + 60)
    terrain = near.difference(road).difference(walk)
    parts: list[Part] = []
    for area, height, material, label in (
        (road, 0.0, ASPHALT, "road"),
        (walk, KERB_HEIGHT, PAVING, "sidewalk"),
        (terrain, KERB_HEIGHT - 0.02, GRASS, "terrain"),
    ):
        parts += _tiled(area, height, material, label)
    parts += [part for part in [_flat(whole.difference(near), KERB_HEIGHT - 0.02, GRASS, "terrain")] if part]
    parts += _kerbs(road)
    for material, area in (
        (WHITE_PAINT, _white_paint(town)),
        (YELLOW_PAINT, _yellow_paint(town)),
        (RAIL, _rails(town)),
    ):
        parts += _tiled(area, PAINT_HEIGHT, material, "road")
    return tuple(parts)


# ---------------------------------------------------------------- areas


def _street_area(street: Street, town: Town) -> BaseGeometry:
    """The street up to the middle of its junctions, but not into bends, which have their own area."""
    bends = {node.id for node in town.nodes if len(node.arms) == 2}
    first = street.start - 0.1 if street.nodes[0] in bends else 0.0
    last = street.end + 0.1 if street.nodes[1] in bends else polyline.length(street.axis)
    return LineString(polyline.cut(street.axis, first, last)).buffer(street.half_width, cap_style="flat")


def _bend_area(node: Node, town: Town) -> BaseGeometry:
    first, second = node.arms
    width = max(town.streets[arm.street].half_width for arm in node.arms)
    return LineString(bend_axis(first.point, first.heading, second.point, second.heading)).buffer(
        width, cap_style="flat"
    )


def bend_axis(a: np.ndarray, heading_a: float, b: np.ndarray, heading_b: float) -> np.ndarray:
    """A smooth line from a to b through a bend; headings point away from the bend, along the arms."""
    reach = float(np.hypot(*(b - a))) * 0.39
    inner_a = a - reach * np.array([np.cos(heading_a), np.sin(heading_a)])
    inner_b = b - reach * np.array([np.cos(heading_b), np.sin(heading_b)])
    t = np.linspace(0, 1, 24)[:, None]
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * inner_a + 3 * (1 - t) * t**2 * inner_b + t**3 * b


def _band(line: np.ndarray, left: float, right: float) -> Polygon:
    return Polygon(polyline.ribbon(line, left, right))


def _dashes(line: np.ndarray, left: float, width: float, dash: float, gap: float) -> list[Polygon]:
    total = polyline.length(line)
    starts = np.arange(gap / 2, total - dash, dash + gap)
    pieces = [polyline.cut(line, start, start + dash) for start in starts]
    return [_band(piece, left + width / 2, left - width / 2) for piece in pieces]


def _bends(town: Town) -> list[tuple[Street, np.ndarray]]:
    """For each bend one of its streets and the line through it."""
    found = []
    for node in town.nodes:
        if len(node.arms) == 2:
            first, second = node.arms
            line = bend_axis(first.point, first.heading, second.point, second.heading)
            found.append((town.streets[first.street], polyline.densify(line, 1.0)))
    return found


def _white_paint(town: Town) -> BaseGeometry:
    pieces: list[BaseGeometry] = []
    for street, line in _bends(town):
        for side in (-1, 1):
            for rank in range(1, street.lanes):
                pieces += _dashes(line, side * rank * LANE_WIDTH, 0.13, 3.0, 6.0)
            edge = side * street.lanes * LANE_WIDTH
            pieces.append(_band(line, edge + 0.06, edge - 0.06))
    for street in town.streets.values():
        axis = street.open_axis
        inner = polyline.cut(axis, 5.5, polyline.length(axis) - 5.5)
        for side in (-1, 1):
            for rank in range(1, street.lanes):
                pieces += _dashes(inner, side * rank * LANE_WIDTH, 0.13, 3.0, 6.0)
            edge = side * street.lanes * LANE_WIDTH
            pieces.append(_band(inner, edge + 0.06, edge - 0.06))
            if street.parking:
                pieces += _parking_ticks(street, inner, side)
    for line in town.stop_lines:
        pieces.append(LineString(line.points).buffer(0.22, cap_style="flat"))
    for crosswalk in town.crosswalks:
        pieces += _zebra(crosswalk.polygon)
    return _union(pieces)


def _parking_ticks(street: Street, axis: np.ndarray, side: int) -> list[Polygon]:
    edge = side * (street.lanes * LANE_WIDTH)
    outer = side * (street.half_width - 0.1)
    at = np.arange(8.0, polyline.length(axis) - 8.0, 6.2)
    return [_band(polyline.cut(axis, s, s + 0.1), max(edge, outer), min(edge, outer)) for s in at]


def _zebra(polygon: np.ndarray) -> list[Polygon]:
    """Bars across a crosswalk [4, 2] (far left, far right, near right, near left)."""
    far_left, far_right, near_right, near_left = polygon
    width = float(np.hypot(*(far_right - far_left)))
    bars = []
    for start in np.arange(0.4, width - 0.5, 1.1):
        low, high = start / width, (start + 0.55) / width
        bars.append(
            Polygon([far_left + (far_right - far_left) * low, far_left + (far_right - far_left) * high,
                     near_left + (near_right - near_left) * high, near_left + (near_right - near_left) * low])
        )  # fmt: skip
    return bars


def _yellow_paint(town: Town) -> BaseGeometry:
    pieces: list[BaseGeometry] = []
    for _, line in _bends(town):
        pieces += [_band(line, 0.2, 0.08), _band(line, -0.08, -0.2)]
    for street in town.streets.values():
        axis = street.open_axis
        line = polyline.cut(axis, 5.2, polyline.length(axis) - 5.2)
        if street.lanes > 1 or street.parking:
            pieces += [_band(line, 0.2, 0.08), _band(line, -0.08, -0.2)]
        else:
            pieces += _dashes(line, 0.0, 0.13, 3.0, 4.0)
    return _union(pieces)


def _rails(town: Town) -> BaseGeometry:
    pieces: list[BaseGeometry] = []
    for street in town.streets.values():
        if street.tram:
            for middle in (-LANE_WIDTH / 2, LANE_WIDTH / 2):
                for rail in (middle - 0.72, middle + 0.72):
                    pieces.append(_band(street.axis, rail + 0.05, rail - 0.05))
    return _union(pieces)


def _union(pieces: list[BaseGeometry]) -> BaseGeometry:
    """The union on a millimetre grid, which GEOS always manages."""
    return shapely.union_all([shapely.make_valid(piece) for piece in pieces], grid_size=1e-3)


# ---------------------------------------------------------------- meshes


def _tiled(area: BaseGeometry, height: float, material: Material, label: str) -> list[Part]:
    if area.is_empty:
        return []
    west, south, east, north = area.bounds
    parts = []
    for x in np.arange(west, east, TILE):
        for y in np.arange(south, north, TILE):
            part = _flat(shapely.clip_by_rect(area, x, y, x + TILE, y + TILE), height, material, label)
            if part is not None:
                parts.append(part)
    return parts


def _flat(area: BaseGeometry, height: float, material: Material, label: str) -> Part | None:
    """A horizontal mesh over an area, seen from above; None when there is nothing of it."""
    polygons = [
        piece for piece in shapely.get_parts(area).ravel() if piece.geom_type == "Polygon" and piece.area > 1e-3
    ]
    corners: list[np.ndarray] = []
    for polygon in polygons:
        triangles = shapely.get_parts(shapely.constrained_delaunay_triangles(polygon))
        rings = shapely.get_coordinates(triangles).reshape(-1, 4, 2)[:, :3].copy()
        first, second, third = rings.transpose(1, 0, 2)
        doubled = _cross(second - first, third - first)
        rings[doubled < 0, 1:] = rings[doubled < 0, :0:-1]  # counter-clockwise
        corners.append(rings.reshape(-1, 2))
    if not corners:
        return None
    points, faces = np.unique(np.concatenate(corners).round(4), axis=0, return_inverse=True)
    faces = faces.reshape(-1, 3)
    a, b, c = points[faces[:, 0]], points[faces[:, 1]], points[faces[:, 2]]
    faces = faces[_cross(b - a, c - a) > 1e-5]
    if not len(faces):
        return None
    vertices = np.column_stack([points, np.full(len(points), height)]).astype(np.float32)
    uv = None
    if material.texture is not None:
        uv = (points / _UV_METRES[material.texture]).astype(np.float32)
    return Part(vertices, faces.astype(np.int32), material, label, uv)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products [N] of vectors [N, 2]."""
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _kerbs(road: BaseGeometry) -> list[Part]:
    """Vertical faces between carriageway and sidewalk, facing the carriageway."""
    groups: dict[tuple[int, int], list[np.ndarray]] = {}
    for polygon in shapely.get_parts(road).ravel():
        polygon = shapely.geometry.polygon.orient(polygon)
        for ring in (polygon.exterior, *polygon.interiors):
            points = np.array(ring.segmentize(20.0).coords)[:, :2]
            for a, b in itertools.pairwise(points):
                groups.setdefault((int(a[0] // TILE), int(a[1] // TILE)), []).append(np.stack([a, b]))
    parts = []
    for segments in groups.values():
        a, b = np.stack(segments).transpose(1, 0, 2)
        low, high = np.full(len(a), -0.01), np.full(len(a), KERB_HEIGHT)
        # The road's rings run counter-clockwise, so the road is to the left of a-b and the face looks left.
        corners = [
            np.column_stack([b, low]),
            np.column_stack([a, low]),
            np.column_stack([a, high]),
            np.column_stack([b, high]),
        ]
        vertices = np.stack(corners, 1).reshape(-1, 3).astype(np.float32)
        base = 4 * np.arange(len(a))[:, None]
        faces = np.concatenate([base + np.array([0, 1, 2]), base + np.array([0, 2, 3])]).astype(np.int32)
        parts.append(Part(vertices, faces, KERB, "sidewalk"))
    return parts
