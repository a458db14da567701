"""Every asset keeps the contract of `world.parts`: classes, winding, size, budget and repeatability."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from automoe.taxonomy import BDD_DETECTION, DETECTION_TO_SEMANTIC, SEMANTIC
from automoe.world import meshes
from automoe.world.parts import Asset

Maker = Callable[[np.random.Generator], Asset]


def drawn_size(make: Callable[..., Asset], *ranges: tuple[float, float]) -> Maker:
    """A maker whose measures are drawn from `ranges` first."""
    return lambda rng: make(rng, *(float(rng.uniform(*r)) for r in ranges))


# name -> (maker, detection category, most triangles)
MAKERS: dict[str, tuple[Maker, str | None, int]] = {
    "car": (partial(meshes.make_vehicle, "car"), "car", 700),
    "truck": (partial(meshes.make_vehicle, "truck"), "truck", 700),
    "bus": (partial(meshes.make_vehicle, "bus"), "bus", 700),
    "motorcycle": (partial(meshes.make_two_wheeler, "motorcycle"), "motorcycle", 700),
    "bicycle": (partial(meshes.make_two_wheeler, "bicycle"), "bicycle", 500),
    "train": (meshes.make_train, "train", 900),
    "person": (drawn_size(meshes.make_person, (0, 1)), "pedestrian", 350),
    "building": (drawn_size(meshes.make_building, (6, 40), (6, 30), (3, 60)), None, 200),
    "tree": (meshes.make_tree, None, 300),
    "bush": (meshes.make_bush, None, 120),
    "hedge": (drawn_size(meshes.make_hedge, (2, 20)), None, 240),
    "fence": (drawn_size(meshes.make_fence, (2, 20)), None, 270),
    "wall": (drawn_size(meshes.make_wall, (2, 20)), None, 30),
    "street_lamp": (drawn_size(meshes.make_street_lamp, (0.5, 3)), None, 120),
    "park_lamp": (partial(meshes.make_street_lamp, arm=0), None, 120),
    "pole": (drawn_size(meshes.make_pole, (2, 10)), None, 120),
    "signal_mast": (drawn_size(meshes.make_signal_mast, (0, 8), (3, 7)), None, 120),
    "signal_vehicle": (partial(meshes.make_signal_head, kind="vehicle"), "traffic light", 120),
    "signal_pedestrian": (partial(meshes.make_signal_head, kind="pedestrian"), "traffic light", 120),
    **{f"sign_{k}": (partial(meshes.make_traffic_sign, kind=k), "traffic sign", 120) for k in meshes.SIGN_KINDS},
    "bus_stop": (meshes.make_bus_stop, None, 120),
    "bench": (meshes.make_bench, None, 120),
    "bin": (meshes.make_bin, None, 120),
    "hydrant": (meshes.make_hydrant, None, 120),
    "bollard": (meshes.make_bollard, None, 120),
    "traffic_cone": (meshes.make_traffic_cone, None, 120),
}
SEEDS = range(6)
REACHING = {"building", "street_lamp", "park_lamp", "pole", "signal_mast"}
"""Assets whose foot, not whose middle, stands on the origin."""


@functools.cache
def assets(name: str) -> list[Asset]:
    return [MAKERS[name][0](np.random.default_rng(seed)) for seed in SEEDS]


def with_riders(found: list[Asset]) -> list[Asset]:
    return found + [asset.rider for asset in found if asset.rider is not None]


def triangles(asset: Asset) -> np.ndarray:
    """All corners [T, 3, 3]."""
    return np.concatenate([part.vertices[part.faces] for part in asset.parts])


def signed_volume(corners: np.ndarray) -> float:
    return float(np.einsum("ti,ti->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6)


@pytest.mark.parametrize("name", MAKERS)
def test_parts_are_well_formed(name: str) -> None:
    for asset in with_riders(assets(name)):
        assert asset.parts
        for part in asset.parts:
            assert part.label in SEMANTIC
            assert part.vertices.dtype == np.float32
            assert part.faces.dtype == np.int32
            assert part.vertices.shape[1:] == (3,)
            assert part.faces.shape[1:] == (3,)
            assert np.isfinite(part.vertices).all()
            assert part.faces.min() >= 0
            assert part.faces.max() < len(part.vertices)
            assert all(0 <= c <= 1 for c in part.material.rgba)
            assert part.material.rgba[3] == 1, "glass is opaque: blending is dear in software"
            if part.material.texture is None:
                assert part.uv is None
            else:
                assert part.material.texture in meshes.TEXTURES
                assert part.uv is not None
                assert part.uv.shape == (len(part.vertices), 2)
                assert np.isfinite(part.uv).all()


@pytest.mark.parametrize("name", MAKERS)
def test_category_class_and_budget(name: str) -> None:
    _, category, budget = MAKERS[name]
    for asset in assets(name):
        assert asset.category == category
        assert len(triangles(asset)) <= budget
        if category is not None:
            assert category in BDD_DETECTION
            assert DETECTION_TO_SEMANTIC[category] in {part.label for part in asset.parts}


@pytest.mark.parametrize("name", MAKERS)
def test_size_is_the_box_around_the_vertices(name: str) -> None:
    for asset in assets(name):
        corners = triangles(asset).reshape(-1, 3)
        low, high = corners.min(axis=0), corners.max(axis=0)
        around = 2 * np.maximum(np.abs(low), np.abs(high))
        np.testing.assert_allclose(asset.size[:2], around[:2], atol=1e-4)
        assert asset.size[2] == pytest.approx(high[2] - min(low[2], 0), abs=1e-4)
        assert abs(low[2]) < 0.06, "stands on the ground"
        if asset.category not in (None, "traffic light", "traffic sign"):
            np.testing.assert_allclose(low[:2], -high[:2], atol=1e-4, err_msg="centred over the origin")


@pytest.mark.parametrize("name", MAKERS)
def test_equal_generators_make_equal_assets(name: str) -> None:
    for seed in SEEDS[:2]:
        one, two = assets(name)[seed], MAKERS[name][0](np.random.default_rng(seed))
        assert one.size == two.size
        assert [p.material for p in one.parts] == [p.material for p in two.parts]
        for a, b in zip(one.parts, two.parts):
            np.testing.assert_array_equal(a.vertices, b.vertices)
            np.testing.assert_array_equal(a.faces, b.faces)


@pytest.mark.parametrize("name", ["car", "truck", "bus", "train", "motorcycle", "person", "tree", "hedge", "wall"])
def test_solid_things_face_outwards(name: str) -> None:
    """The volume inside is positive and not more than the box around."""
    for asset in with_riders(assets(name)):
        volume = signed_volume(triangles(asset).astype(np.float64))
        assert 0.02 * np.prod(asset.size) < volume < np.prod(asset.size)


@pytest.mark.parametrize("name", ["car", "bus", "train", "person"])
def test_what_is_seen_from_outside_is_a_front_face(name: str) -> None:
    """Rays towards the asset from all around meet outward faces first."""
    import trimesh

    for asset in assets(name)[:2]:
        mesh = trimesh.Trimesh(*_merged(asset), process=False)
        rng = np.random.default_rng(0)
        around = rng.normal(size=(300, 3)) * [1, 1, 0.4] + [0, 0, 0.2]
        around /= np.linalg.norm(around, axis=1, keepdims=True)
        origins = around * 40 + [0, 0, asset.size[2] / 2]
        targets = (rng.random((300, 3)) - [0.5, 0.5, 0.0]) * asset.size
        directions = targets - origins
        hit = mesh.ray.intersects_first(origins, directions)
        facing = np.einsum("ij,ij->i", mesh.face_normals[hit[hit >= 0]], directions[hit >= 0])
        assert len(facing) > 40
        assert (facing < 0).mean() > 0.97


def _merged(asset: Asset) -> tuple[np.ndarray, np.ndarray]:
    corners = triangles(asset)
    return corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3)


@pytest.mark.parametrize("kind", ["car", "truck", "bus"])
def test_vehicles_have_lamps_at_the_right_ends(kind: str) -> None:
    for asset in assets(kind):
        places = {part.material.name: part.vertices[:, 0].mean() for part in asset.parts}
        assert places["headlight"] > 0.3 * asset.size[0]
        assert places["brakelight"] < -0.3 * asset.size[0]
        assert places["taillight"] < -0.3 * asset.size[0]
        assert "indicator" in places


def test_every_variant_of_vehicle_occurs() -> None:
    found = {
        (kind, meshes.make_vehicle(kind, np.random.default_rng(seed)).attributes["variant"])
        for kind in ("car", "truck", "bus")
        for seed in range(40)
    }
    assert {v for k, v in found if k == "car"} == {"sedan", "hatchback", "suv", "van"}
    assert {v for k, v in found if k == "truck"} == {"pickup", "box", "tanker", "flatbed"}
    assert {v for k, v in found if k == "bus"} == {"city", "school", "coach"}


def test_unknown_kinds_are_refused() -> None:
    rng = np.random.default_rng(0)
    for make in (
        lambda: meshes.make_vehicle("boat", rng),
        lambda: meshes.make_two_wheeler("boat", rng),
        lambda: meshes.make_traffic_sign(rng, "boat"),
        lambda: meshes.make_signal_head(rng, "boat"),
    ):
        with pytest.raises(KeyError):
            make()


@pytest.mark.parametrize("kind", ["motorcycle", "bicycle"])
def test_riders_sit_on_their_two_wheelers(kind: str) -> None:
    for asset in assets(kind):
        assert asset.rider is not None
        assert asset.rider.category == "rider"
        assert {part.label for part in asset.rider.parts} == {"rider"}
        body = triangles(asset.rider).reshape(-1, 3)
        assert 0.05 < body[:, 2].min() < 0.5, "feet off the ground"
        assert 1.4 < body[:, 2].max() < 2.0
        assert np.abs(body[:, :2].mean(axis=0)).max() < 0.35


def test_a_person_keeps_their_looks_through_a_step() -> None:
    phases = [meshes.make_person(np.random.default_rng(7), phase) for phase in (0.0, 0.25, 0.5, 1.0)]
    assert len({tuple(p.material.name for p in person.parts) for person in phases}) == 1
    assert phases[1].size[0] > phases[0].size[0], "legs are apart in the middle of a step"
    np.testing.assert_allclose(phases[0].parts[0].vertices, phases[3].parts[0].vertices, atol=1e-5)


def test_signal_lenses_are_parts_of_their_own_in_the_usual_order() -> None:
    heights = {
        part.material.name: part.vertices[:, 2].mean()
        for part in meshes.make_signal_head(np.random.default_rng(0)).parts
        if part.material.name.startswith("lens_")
    }
    assert heights["lens_green"] < heights["lens_yellow"] < heights["lens_red"]


def test_sign_plates_and_poles_are_told_apart() -> None:
    sign = meshes.make_traffic_sign(np.random.default_rng(0), "stop")
    assert {part.label for part in sign.parts} == {"traffic sign", "pole"}


def test_buildings_fill_their_footprint_and_can_be_lit() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        width, depth, height = rng.uniform(8, 30), rng.uniform(8, 20), rng.uniform(4, 50)
        building = meshes.make_building(rng, width, depth, height)
        assert depth - 1e-3 <= building.size[0] <= depth + 3.0
        assert width - 1e-3 <= building.size[1] <= width + 1.0
        assert building.size[2] >= height - 1e-3
        textures = {part.material.texture for part in building.parts}
        facades = {t for t in textures if t is not None and t.startswith(("facade_", "ground_", "shop_"))}
        assert facades
        assert all(f"{name}_lit" in meshes.TEXTURES for name in facades)


def test_equal_material_names_mean_equal_looks() -> None:
    known = {}
    for name in MAKERS:
        for asset in with_riders(assets(name)):
            for part in asset.parts:
                assert known.setdefault(part.material.name, part.material) == part.material
