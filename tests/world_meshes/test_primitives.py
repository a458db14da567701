"""Shapes are closed, outward, and welded so that hard edges stay hard."""

from __future__ import annotations

import numpy as np
import pytest

from automoe.poses import rotation_x, rotation_y, rotation_z
from automoe.world.meshes.primitives import (
    Builder,
    Soup,
    assemble,
    box,
    cylinder,
    ellipsoid,
    extrude,
    icosphere,
    lathe,
    loft,
    tube,
)
from automoe.world.parts import Material

PLAIN = Material("plain")


def volume(soup: Soup) -> float:
    a, b, c = soup.corners[:, 0], soup.corners[:, 1], soup.corners[:, 2]
    return float(np.einsum("ti,ti->", a, np.cross(b, c)) / 6)


def open_edges(soup: Soup) -> int:
    """Directed edges without a partner: 0 for a closed surface."""
    corners = np.round(soup.corners, 5) + 0.0
    edges = {(tuple(t[i]), tuple(t[(i + 1) % 3])) for t in corners for i in range(3)}
    return sum((b, a) not in edges for a, b in edges)


@pytest.mark.parametrize(
    ("soup", "expected"),
    [
        (box((1, 2, 3), (1, 2, 3)), 6.0),
        (tube([(0, 0, 0), (0, 0, 2)], [1, 1], 64), 2 * np.pi),
        (tube([(1, 0, 5), (4, 0, 4)], [(1, 0.5), (1, 0.5)], 64), 0.5 * np.pi * 10**0.5),
        (cylinder((0, -1, 0), (0, 1, 0), 1.0, 64), 2 * np.pi),
        (lathe([(1, 0), (1, 1)], 64), np.pi),
        (lathe([(1, 0), (0, 3)], 64), np.pi),
        (ellipsoid((5, 5, 5), (1, 2, 3), 40, 64), 8 * np.pi),
        (extrude([(0, 0), (2, 0), (2, 1), (0, 1)], 3.0), 6.0),
    ],
)
def test_shapes_are_closed_and_hold_their_volume(soup: Soup, expected: float) -> None:
    assert open_edges(soup) == 0
    assert volume(soup) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("turn", [rotation_x(0.7), rotation_y(1.1), rotation_z(2.3)])
def test_moving_and_mirroring_keep_the_inside_inside(turn: np.ndarray) -> None:
    soup = box((0, 0, 0), (1, 2, 3)).turned(turn).moved((4, 5, 6))
    assert volume(soup) == pytest.approx(6)
    assert volume(soup.mirrored_y()) == pytest.approx(6)
    assert volume(soup.flipped()) == pytest.approx(-6)
    np.testing.assert_allclose(soup.mirrored_y().corners[..., 1].mean(), -5)


def test_icosphere_is_round() -> None:
    vertices, faces = icosphere(2)
    assert faces.shape == (320, 3)
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 1)


@pytest.mark.parametrize(
    ("soup", "vertices"),
    [(box((0, 0, 0), (1, 1, 1)), 24), (lathe([(0, -1), (0.8, -0.6), (1, 0), (0.8, 0.6), (0, 1)], 16), 3 * 16 + 2)],
)
def test_hard_edges_split_vertices_and_soft_ones_share_them(soup: Soup, vertices: int) -> None:
    builder = Builder("building")
    builder.add(PLAIN, soup, crease=60)
    (part,) = builder.parts()
    assert len(part.vertices) == vertices
    np.testing.assert_allclose(part.vertices[part.faces], soup.corners, atol=1e-6)


def test_builder_makes_one_part_for_each_material_and_class() -> None:
    builder = Builder("pole")
    other = Material("other", texture="wood")
    builder.add(PLAIN, box((0, 0, 0), (1, 1, 1)))
    builder.add(PLAIN, box((2, 0, 0), (1, 1, 1)), crease=10)
    builder.add(PLAIN, box((4, 0, 0), (1, 1, 1)), label="traffic sign")
    builder.add(other, box((6, 0, 0), (1, 1, 1)))
    parts = builder.parts()
    assert [(p.material.name, p.label, len(p.faces)) for p in parts] == [
        ("plain", "pole", 24), ("plain", "traffic sign", 12), ("other", "pole", 12)]  # fmt: skip
    assert parts[0].uv is None
    assert parts[2].uv is not None


def test_assemble_puts_the_middle_over_the_origin_unless_told_not_to() -> None:
    builder = Builder("pole")
    builder.add(PLAIN, box((5, 1, 3), (2, 4, 2)))
    centred = assemble("thing", builder.parts())
    np.testing.assert_allclose(centred.size, (2, 4, 2))
    assert centred.parts[0].vertices[:, 2].min() == 0
    np.testing.assert_allclose(centred.parts[0].vertices.mean(axis=0), (0, 0, 1), atol=1e-6)
    reaching = assemble("thing", builder.parts(), centred=False)
    np.testing.assert_allclose(reaching.size, (12, 6, 4))


def test_loft_texture_runs_once_around_and_once_along() -> None:
    angle = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(6)], axis=-1)
    soup = loft(np.stack([ring, ring + np.array([0, 0, 1])]), False, False)
    assert (soup.uv.min(), soup.uv.max()) == (0, 1)
    assert soup.uv[soup.corners[..., 2] == 0][:, 1].min() == 1, "v grows downwards"
