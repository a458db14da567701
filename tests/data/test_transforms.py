"""One affine for image, boxes and masks: exact, invertible, and the same for all three."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automoe.data.transforms import (
    PADDING_GREY,
    AugmentConfig,
    EvalTransform,
    TrainTransform,
    mirror,
    move_boxes,
    warp_boxes,
    warp_image,
    warp_mask,
)
from automoe.errors import ConfigError

RAW = (90, 160)
SIZE = (48, 80)
IDENTITY = np.array([[1.0, 0, 0], [0, 1, 0]])


def paint(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask with id 1 on each pixel whose centre lies in one of the boxes, in pixel edges."""
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
    mask = np.zeros(size, np.uint8)
    for x1, y1, x2, y2 in boxes:
        mask[np.ix_((y >= y1) & (y < y2), (x >= x1) & (x < x2))] = 1
    return mask


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_mask_painted_from_boxes_moves_like_the_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, RAW[::-1], (3, 2, 2)), axis=1)
    boxes = corners.reshape(3, 4).astype(np.float64)
    matrix = TrainTransform(SIZE).matrix(*RAW, rng)
    moved_mask = warp_mask(paint(boxes, RAW), matrix, SIZE)
    painted = paint(warp_boxes(boxes, matrix), SIZE)
    known = moved_mask != 255
    # Exact, but for centres that fall on an edge to the last bit of a float.
    assert (moved_mask[known] != painted[known]).sum() <= 1
    whole_image = paint(warp_boxes(np.array([[0, 0, RAW[1], RAW[0]]]), matrix), SIZE)
    assert (known != whole_image.astype(bool)).sum() <= 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_image_moves_like_the_mask(seed: int) -> None:
    """A picture painted from a box and moved is at least half white exactly where the moved mask is set."""
    rng = np.random.default_rng(seed)
    mask = paint(np.array([[20, 15, 120, 70]]), RAW)
    matrix = TrainTransform(SIZE).matrix(*RAW, rng)
    image = warp_image(np.repeat(mask[..., None] * 255, 3, axis=2), matrix, SIZE)
    moved = warp_mask(mask, matrix, SIZE)
    assert ((image[..., 0] > 127) != (moved == 1))[moved != 255].mean() < 0.02
    assert (image[moved == 255] == PADDING_GREY).all()


def test_identity_and_mirror_are_exact() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*RAW, 3), np.uint8)
    mask = rng.integers(0, 19, RAW, np.uint8)
    flip = mirror(IDENTITY, RAW[1])
    np.testing.assert_array_equal(warp_image(image, IDENTITY, RAW), image)
    np.testing.assert_array_equal(warp_image(image, flip, RAW), image[:, ::-1])
    np.testing.assert_array_equal(warp_mask(mask, flip, RAW), mask[:, ::-1])
    np.testing.assert_array_equal(warp_boxes(np.array([[10, 5, 30, 25]]), flip), [[130, 5, 150, 25]])


def test_mirrored_twice_is_the_identity() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*RAW, 3), np.uint8)
    flip = mirror(IDENTITY, RAW[1])
    np.testing.assert_array_equal(mirror(flip, RAW[1]), IDENTITY)
    np.testing.assert_array_equal(warp_image(warp_image(image, flip, RAW), flip, RAW), image)


@pytest.mark.parametrize("seed", range(5))
def test_masks_keep_only_their_ids_and_ignore(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array([0, 7, 18], np.uint8), RAW)
    moved = warp_mask(mask, TrainTransform(SIZE, AugmentConfig(scale=(0.5, 2.0))).matrix(*RAW, rng), SIZE)
    assert set(np.unique(moved)) <= {0, 7, 18, 255}


def test_eval_shows_the_whole_image_centred() -> None:
    matrix = EvalTransform(SIZE).matrix(*RAW)  # 16:9 into 5:3: scale 0.5, one row of padding above, two below
    np.testing.assert_array_equal(matrix, [[0.5, 0, 0], [0, 0.5, 1]])
    np.testing.assert_array_equal(warp_boxes(np.array([[0, 0, 160, 90]]), matrix), [[0, 1, 80, 46]])
    padded = warp_mask(np.zeros(RAW, np.uint8), matrix, SIZE) == 255
    assert padded.all(axis=1).tolist() == [True] + [False] * 45 + [True] * 2


def test_boxes_come_back_through_the_inverse() -> None:
    rng = np.random.default_rng(2)
    matrix = TrainTransform(SIZE, AugmentConfig(scale=(0.5, 0.9))).matrix(*RAW, rng)
    boxes = np.array([[10.25, 5, 60, 40], [0, 0, 160, 90]])
    moved = move_boxes(boxes, matrix, TrainTransform(SIZE)).boxes * np.array([80, 48, 80, 48])
    xyxy = np.concatenate([moved[:, :2] - moved[:, 2:] / 2, moved[:, :2] + moved[:, 2:] / 2], axis=1)
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    np.testing.assert_allclose(warp_boxes(xyxy, inverse), boxes, atol=1e-4)


def test_cropped_and_tiny_boxes_are_ignored_not_lost() -> None:
    transform = TrainTransform((100, 100), AugmentConfig(min_visible=0.25, min_pixels=2))
    boxes = np.array(
        [
            [10, 10, 50, 50],  # whole
            [-30, 0, 10, 10],  # a quarter left: positive
            [-31, 0, 9, 10],  # less: ignored
            [-30, 0, -1, 10],  # nothing left: gone
            [100, 0, 120, 10],  # touches the edge from outside: gone
            [60, 60, 61, 61],  # one pixel: ignored
            [70, 70, 70, 80],  # no width: ignored
        ]
    )
    moved = move_boxes(boxes, IDENTITY, transform)
    assert moved.kept.tolist() == [True, True, True, False, False, True, True]
    assert moved.too_little.tolist() == [False, False, True, True, True]
    np.testing.assert_allclose(moved.boxes[1], [0.05, 0.05, 0.1, 0.1])
    evaluated = move_boxes(boxes, IDENTITY, EvalTransform((100, 100)))
    assert not evaluated.too_little.any()


def test_no_boxes_are_fine() -> None:
    moved = move_boxes(np.zeros((0, 4), np.float32), IDENTITY, TrainTransform(SIZE))
    assert moved.boxes.shape == (0, 4)
    assert moved.kept.shape == (0,)


def test_zoom_stays_in_its_range() -> None:
    config = AugmentConfig(scale=(0.8, 1.6), stretch=0.1)
    drawn = [TrainTransform(SIZE, config).matrix(*RAW, np.random.default_rng(i)) for i in range(300)]
    zooms = np.array([np.sqrt(abs(m[0, 0]) * m[1, 1]) / 0.5 for m in drawn])
    ratios = np.array([abs(m[0, 0]) / m[1, 1] for m in drawn])
    assert 0.8 <= zooms.min() < 0.85
    assert 1.5 < zooms.max() <= 1.6
    assert 1 / 1.1 - 1e-9 <= ratios.min() < ratios.max() <= 1.1 + 1e-9
    assert 0.4 < np.mean([m[0, 0] < 0 for m in drawn]) < 0.6


def test_a_crop_is_a_piece_at_the_scale_of_the_whole() -> None:
    config, piece = AugmentConfig(scale=(1.0, 1.0), stretch=0.0, flip=0.0), (SIZE[0] // 2, SIZE[1] // 2)
    transform = TrainTransform(piece, config, full=SIZE)
    drawn = [transform.matrix(*RAW, np.random.default_rng(i)) for i in range(200)]
    whole = TrainTransform(SIZE, config).matrix(*RAW, np.random.default_rng(0))
    assert all(np.allclose(m[:, :2], whole[:, :2]) for m in drawn)
    # No piece shows anything beyond the picture, and together they reach all of its corners.
    corners = np.array([[(0 - m[0, 2]) / m[0, 0], (0 - m[1, 2]) / m[1, 1]] for m in drawn])
    far = corners + np.array(piece[::-1]) / np.diag(whole[:, :2])
    assert corners.min() >= -1e-9
    assert (far <= np.array(RAW[::-1]) + 1e-9).all()
    assert (corners.min(axis=0) < 3).all()
    assert (far.max(axis=0) > np.array(RAW[::-1]) - 3).all()


def test_colours_vary_within_reason_and_can_be_turned_off() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(40, 200, (*SIZE, 3), np.uint8)
    still = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0, gamma=0, blur=0)
    same = TrainTransform(SIZE, still).recolor(image, rng).astype(int)
    assert np.abs(same - image).max() <= 1
    changed = [TrainTransform(SIZE).recolor(image, np.random.default_rng(i)).astype(int) for i in range(20)]
    shifts = np.array([abs(c - image).mean() for c in changed])
    assert shifts.min() > 0.5
    assert shifts.max() < 90


@pytest.mark.parametrize(("field", "value"), [("scale", (2.0, 1.0)), ("flip", 1.5)])
def test_impossible_settings_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"augment\.{field}"):
        AugmentConfig(**{field: value})
