"""Textures are square RGB pictures, repeatable, and those that cover surfaces tile."""

from __future__ import annotations

import numpy as np
import pytest

from automoe.world.meshes import TEXTURES
from automoe.world.meshes.facades import FACADES
from automoe.world.meshes.textures import GROUND, SURFACES

# One of each drawer: the rest differ by colour and words only.
SAMPLE = ["asphalt", "sidewalk", "concrete", "grass", "soil", "brick_red", "plaster_white", "roof_red", "bark",
          "bark_birch", "foliage", "wood", "chain_link", "gravel_roof", "facade_brick_red", "facade_concrete",
          "facade_glass_blue", "ground_siding_blue", "ground_glass_dark", "shop_red", "facade_plaster_ochre_lit",
          "sign_stop", "sign_yield", "sign_speed_us_35", "sign_speed_round_50", "sign_warning_curve", "sign_parking",
          "sign_direction_green", "sign_no_entry", "sign_one_way", "sign_crossing", "wheel_alloy", "wheel_steel",
          "license_plate", "car_glass", "car_paint", "panels", "destination", "box_parcel"]  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_textures_are_repeatable_square_rgb(name: str) -> None:
    one, two = (TEXTURES[name](np.random.default_rng(3)) for _ in range(2))
    assert one.dtype == np.uint8
    assert one.shape == (len(one), len(one), 3)
    assert 64 <= len(one) <= 512
    np.testing.assert_array_equal(one, two)
    assert one.std() > 1, "not a blank"


@pytest.mark.parametrize("name", ["asphalt", "grass", "soil", "plaster_white", "foliage", "gravel_roof"])
def test_surfaces_tile(name: str) -> None:
    """The step across the picture's edge is no larger than the largest inside it."""
    image = (GROUND | SURFACES)[name](np.random.default_rng(0)).astype(np.float64)
    for axis in (0, 1):
        inside = np.abs(np.diff(image, axis=axis)).mean(axis=(1 - axis, 2)).max()
        across = np.abs(np.take(image, 0, axis=axis) - np.take(image, -1, axis=axis)).mean()
        assert across < 1.1 * inside


def test_every_facade_has_a_night_twin_with_bright_windows_and_dim_walls() -> None:
    assert {name for name in FACADES if not name.endswith("_lit")} == {
        name.removesuffix("_lit") for name in FACADES if name.endswith("_lit")
    }
    names = ("facade_brick_red", "facade_brick_red_lit")
    day, night = (TEXTURES[name](np.random.default_rng(0)).astype(np.float64) for name in names)
    assert night.mean() < 0.6 * day.mean()
    assert np.percentile(night, 99) > 120


def test_a_stop_sign_is_red_with_white_letters() -> None:
    image = TEXTURES["sign_stop"](np.random.default_rng(0)).astype(int)
    red = (image[..., 0] > 150) & (image[..., 1] < 80)
    white = (image.min(axis=-1) > 200)[40:88, 16:112]
    assert red.mean() > 0.5
    assert 0.1 < white.mean() < 0.7
