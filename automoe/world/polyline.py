"""Plain geometry of polylines on the ground: lengths, points along them, offsets, ribbons.

Polylines are float64 arrays [N, 2] in metres with N >= 2, in the direction of travel.
"""

from __future__ import annotations

import numpy as np


def wrap_angle(angle):
    """The same angle in (-pi, pi]; scalars and arrays."""
    return -((-np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi)


def stations(line: np.ndarray) -> np.ndarray:
    """Distance along the line of each of its points, [N], starting with 0."""
    return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])


def length(line: np.ndarray) -> float:
    """Length of the line in metres."""
    return float(stations(line)[-1])


def sample(line: np.ndarray, distance, along: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Points [..., 2] and headings [...] (radians) at distances along the line, clamped to its ends.

    along: the line's stations, if the caller has them already.
    """
    along = stations(line) if along is None else along
    distance = np.minimum(np.maximum(np.asarray(distance, float), 0.0), along[-1])
    points = np.empty((*distance.shape, 2))
    points[..., 0], points[..., 1] = np.interp(distance, along, line[:, 0]), np.interp(distance, along, line[:, 1])
    segment = np.minimum(along.searchsorted(distance, side="right") - 1, len(line) - 2)  # along[0] is 0: never below it
    delta = line[segment + 1] - line[segment]
    return points, np.arctan2(delta[..., 1], delta[..., 0])


def cut(line: np.ndarray, start: float, end: float) -> np.ndarray:
    """The stretch of the line between two distances (metres); at least two points."""
    along = stations(line)
    start, end = max(start, 0.0), min(end, along[-1])
    inner = line[(along > start + 0.01) & (along < end - 0.01)]
    ends, _ = sample(line, np.array([start, max(end, start + 1e-3)]))
    return np.concatenate([ends[:1], inner, ends[1:]])


def densify(line: np.ndarray, step: float = 1.0) -> np.ndarray:
    """The line resampled so that no piece is longer than step metres."""
    total = length(line)
    return sample(line, np.linspace(0.0, total, max(2, int(np.ceil(total / step)) + 1)))[0]


def normals(line: np.ndarray) -> np.ndarray:
    """Unit normals to the left at each point, [N, 2]."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    return np.stack([-tangent[:, 1], tangent[:, 0]], 1)


def offset(line: np.ndarray, left: float | np.ndarray) -> np.ndarray:
    """The line moved to the left by a number of metres (negative: right), point by point."""
    return line + normals(line) * np.asarray(left).reshape(-1, 1)


def ribbon(line: np.ndarray, left: float, right: float) -> np.ndarray:
    """Polygon [2N, 2] between the offsets `left` and `right` metres to the left of the line."""
    return np.concatenate([offset(line, right), offset(line, left)[::-1]])


def project_within(
    line: np.ndarray, along: np.ndarray, point: np.ndarray, start: float, end: float
) -> tuple[float, float]:
    """`project` onto the stretch between two stations alone: where a line comes back to itself, the wrong leg may be
    nearer. along: the line's stations."""
    first = max(int(np.searchsorted(along, start)) - 1, 0)
    last = min(int(np.searchsorted(along, end)) + 1, len(line))
    first = min(first, last - 2)
    station, aside = project(line[first:last], point)
    return float(along[first]) + station, aside


def project(line: np.ndarray, point: np.ndarray) -> tuple[float, float]:
    """(distance along, distance to the left) of the foot of a point on the line."""
    start, delta = line[:-1], np.diff(line, axis=0)
    squared = np.maximum((delta**2).sum(1), 1e-12)
    fraction = np.clip(((point - start) * delta).sum(1) / squared, 0.0, 1.0)
    foot = start + delta * fraction[:, None]
    nearest = int(np.argmin(((point - foot) ** 2).sum(1)))
    gap = point - foot[nearest]
    cross = delta[nearest, 0] * gap[1] - delta[nearest, 1] * gap[0]
    along = stations(line)[nearest] + fraction[nearest] * np.sqrt(squared[nearest])
    return float(along), float(np.copysign(np.hypot(*gap), cross))
