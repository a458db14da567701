"""Trees, bushes and hedges: lumpy crowns under a leafy texture, sparing with triangles."""

# ruff: noqa: RUF005 (vectors are added here, not lists joined)
from __future__ import annotations

import numpy as np

from automoe.world.meshes.primitives import Builder, Soup, Vector, assemble, icosphere, join, loft, tube
from automoe.world.parts import Asset, Material


def _matte(texture: str) -> Material:
    return Material(texture, (1.0, 1.0, 1.0, 1.0), texture, specular=0.0, shininess=0.0)


BARKS = {name: _matte(name) for name in ("bark", "bark_dark", "bark_birch")}
LEAVES = {name: _matte(name) for name in ("foliage", "foliage_dark", "foliage_light", "foliage_autumn", "needles")}

TREE_KINDS = {"round": 0.34, "tall": 0.2, "spreading": 0.2, "birch": 0.12, "conifer": 0.14}
"""Kind -> share."""


def make_tree(rng: np.random.Generator) -> Asset:
    """A street tree; `attributes["variant"]` is its kind. Trunk and crown are vegetation."""
    kind = str(rng.choice(list(TREE_KINDS), p=list(TREE_KINDS.values())))
    builder = Builder("vegetation")
    if kind == "conifer":
        _conifer(rng, builder)
    else:
        _broadleaf(rng, builder, kind)
    return assemble(f"tree_{kind}", builder.parts(), attributes={"variant": kind})


def _blob(rng: np.random.Generator, centre: Vector, radii: Vector, subdivisions: int = 1) -> Soup:
    """A lumpy ball; the texture is wrapped around it about once every two metres."""
    vertices, faces = icosphere(subdivisions)
    lumps = 1 + 0.13 * rng.standard_normal(len(vertices))
    shaped = vertices * np.clip(lumps, 0.72, 1.3)[:, None] * np.asarray(radii)
    corners = shaped[faces]
    scale = 0.45 * max(radii)
    direction = vertices[faces]
    u = np.arctan2(direction[..., 1], direction[..., 0]) / (2 * np.pi)
    # Triangles across the seam go on past 1 instead of running back around the ball.
    u = np.where(u.max(axis=1, keepdims=True) - u > 0.5, u + 1, u)
    uv = np.stack([np.round(5 * scale + 1) * u, -2.2 * scale * direction[..., 2]], axis=-1)
    return Soup(corners + np.asarray(centre), uv)


def _broadleaf(rng: np.random.Generator, builder: Builder, kind: str) -> None:
    height = {"round": rng.uniform(5.0, 8.0), "tall": rng.uniform(8.0, 12.0), "spreading": rng.uniform(6.0, 9.0),
              "birch": rng.uniform(6.5, 10.0)}[kind]  # fmt: skip
    spread = {"round": 0.30, "tall": 0.19, "spreading": 0.42, "birch": 0.2}[kind] * height
    clear = {"round": 0.32, "tall": 0.22, "spreading": 0.34, "birch": 0.3}[kind] * height
    bark = BARKS["bark_birch"] if kind == "birch" else BARKS[str(rng.choice(["bark", "bark_dark"]))]
    autumn = rng.random() < 0.08
    light = "foliage_autumn" if autumn else "foliage_light" if kind == "birch" else "foliage"
    dark = "foliage_autumn" if autumn else "foliage" if kind == "birch" else "foliage_dark"
    lean = rng.normal(0, 0.02 * height, 2)
    thick = 0.022 * height + 0.03
    middle = np.array([*lean, clear + 0.38 * (height - clear)])
    trunk = tube([(0, 0, -0.05), (0.3 * lean[0], 0.3 * lean[1], clear * 0.55), middle],
                 [thick * 1.35, thick, thick * 0.5], 6, caps=(False, False))  # fmt: skip
    builder.add(bark, Soup(trunk.corners, trunk.uv * [2.0, 3.0]), crease=80)
    crown = (height - clear) / 2
    turn = rng.uniform(0, 2 * np.pi)
    lower = [_blob(rng, middle + [0.42 * spread * np.cos(a), 0.42 * spread * np.sin(a), -0.14 * crown],
                   (0.66 * spread, 0.66 * spread, 0.62 * crown)) for a in (turn, turn + 2.3)]  # fmt: skip
    upper = _blob(rng, [*lean, height - 0.66 * crown], (0.74 * spread, 0.74 * spread, 0.68 * crown))
    third = _blob(rng, middle + [0.5 * spread * np.cos(turn + 4.2), 0.5 * spread * np.sin(turn + 4.2), 0.1 * crown],
                  (0.6 * spread, 0.6 * spread, 0.55 * crown), 0)  # fmt: skip
    builder.add(LEAVES[dark], *lower, third, crease=100)
    builder.add(LEAVES[light], upper, crease=100)


def _conifer(rng: np.random.Generator, builder: Builder) -> None:
    """Skirts of drooping branches, each with a ragged hem."""
    height = float(rng.uniform(6.0, 11.0))
    radius = height * float(rng.uniform(0.17, 0.22))
    trunk = tube([(0, 0, -0.05), (0, 0, 0.4 * height)], [0.03 * height, 0.02 * height], 6, caps=(False, False))
    builder.add(BARKS["bark_dark"], Soup(trunk.corners, trunk.uv * [2.0, 2.0]), crease=80)
    layers, sides = 5, 9
    skirts = []
    for layer in range(layers):
        share = layer / layers
        low = 0.24 + 0.70 * share
        high = min(low + 0.32, 1.0)
        reach = radius * (1 - share) ** 0.9 + 0.12
        angle = 2 * np.pi * (np.arange(sides) + rng.random()) / sides
        ragged = reach * rng.uniform(0.8, 1.15, sides)
        hem = np.stack([np.cos(angle) * ragged, np.sin(angle) * ragged,
                        low * height + rng.uniform(-0.02, 0.02, sides) * height], axis=-1)  # fmt: skip
        # The cone is closed by a shallow inner cone, so that a look from below meets needles, not the sky.
        skirts.append(loft(np.stack([hem * [0.02, 0.02, 0] + [0, 0, (low + 0.06) * height], hem,
                                     hem * [0.01, 0.01, 0] + [0, 0, high * height]]), False, False))  # fmt: skip
    soup = join(skirts)
    builder.add(LEAVES["needles"], Soup(soup.corners, soup.uv * [4.0, 2.0]), crease=60)


def make_bush(rng: np.random.Generator) -> Asset:
    """A bush of about a metre."""
    builder = Builder("vegetation")
    radius = float(rng.uniform(0.45, 0.85))
    leaves = LEAVES[
        str(rng.choice(["foliage", "foliage_dark", "foliage_light", "foliage_autumn"], p=[0.4, 0.3, 0.25, 0.05]))
    ]
    side = rng.uniform(0, 2 * np.pi)
    offset = 0.5 * radius * np.array([np.cos(side), np.sin(side), 0.0])
    big = _blob(rng, [0, 0, 0.62 * radius], (radius, radius, 0.72 * radius))
    small = _blob(rng, offset + [0, 0, 0.45 * radius], (0.8 * radius, 0.8 * radius, 0.55 * radius), 0)
    builder.add(leaves, big, small, crease=100)
    return assemble("bush", _above_ground(builder))


def _above_ground(builder: Builder) -> tuple:
    """Parts with what lies under the ground flattened onto it."""
    parts = builder.parts()
    for part in parts:
        np.maximum(part.vertices[:, 2], 0.0, out=part.vertices[:, 2])
    return parts


def make_hedge(rng: np.random.Generator, length: float) -> Asset:
    """A clipped hedge of `length` metres along x, a little uneven on top."""
    builder = Builder("vegetation")
    height, half = float(rng.uniform(0.9, 1.7)), float(rng.uniform(0.3, 0.45))
    count = int(np.clip(round(length / 1.2), 2, 16)) + 1
    leaves = LEAVES[str(rng.choice(["foliage", "foliage_dark"]))]
    sections = []
    for x in np.linspace(-length / 2, length / 2, count):
        top, side = height * rng.uniform(0.94, 1.04), half * rng.uniform(0.93, 1.05, 2)
        ring = [(-side[0], 0.0), (-1.03 * side[0], 0.6 * top), (-0.8 * side[0], top), (0.8 * side[1], top),
                (1.03 * side[1], 0.6 * top), (side[1], 0.0)]  # fmt: skip
        sections.append([(x, y, z) for y, z in ring[::-1]])
    soup = loft(np.array(sections))

    def project(corners: np.ndarray) -> np.ndarray:
        return np.stack([0.6 * corners[..., 0] + 0.6 * np.abs(corners[..., 1]), -0.6 * corners[..., 2]], axis=-1)

    builder.add(leaves, soup.with_uv(project), crease=50)
    return assemble("hedge", builder.parts())
