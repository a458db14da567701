"""Pictures: overlays change what they should and nothing else."""

from __future__ import annotations

import numpy as np

from automoe.drawing import contact_sheet, draw_boxes, fit_width, legend, overlay_mask
from automoe.taxonomy import BDD_DETECTION, DETECTION_COLORS


def test_boxes_are_drawn_in_their_class_colour_and_names_stay_outside() -> None:
    image = np.zeros((200, 320, 3), np.uint8)
    boxes = np.array([[100.0, 80, 200, 160], [100, 20, 130, 40]])
    drawn = draw_boxes(
        image, boxes, np.array([2, 9]), np.array([0.91, 0.5]), classes=BDD_DETECTION, colors=DETECTION_COLORS
    )
    assert tuple(drawn[80, 150]) == DETECTION_COLORS[2]
    assert tuple(drawn[30, 100]) == DETECTION_COLORS[9]
    assert not drawn[84:156, 104:196].any()  # the object itself is not covered
    assert not image.any()
    assert drawn[66:79, 100:150].any()  # the name, above its box


def test_crowds_and_edges_are_drawn() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(-10, 130, (40, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    labels = rng.integers(0, 10, 40)
    image = np.full((120, 120, 3), 127, np.uint8)
    broken = np.ones(40, bool)
    assert draw_boxes(image, boxes, labels, classes=BDD_DETECTION, colors=DETECTION_COLORS, dashed=broken).any()
    nothing = draw_boxes(image, boxes[:0], labels[:0], classes=BDD_DETECTION, colors=DETECTION_COLORS)
    np.testing.assert_array_equal(nothing, image)


def test_masks_tint_their_classes_only() -> None:
    image = np.full((2, 4, 3), 100, np.uint8)
    mask = np.array([[0, 1, 2, 255]] * 2, np.uint8)
    tinted = overlay_mask(image, mask, [(200, 0, 0), (0, 200, 0), (9, 9, 9)], alpha=0.5, transparent=(2,))
    assert tinted[0].tolist() == [[150, 50, 50], [50, 150, 50], [100, 100, 100], [100, 100, 100]]


def test_sheets_and_legends_have_the_asked_size() -> None:
    cells = [np.full((36, 64, 3), 50 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(cells, 3, [f"frame {i}" for i in range(5)], cell_width=128, title="five")
    assert sheet.shape == (40 + 2 * (72 + 24) + 3 * 8, 3 * 136 + 8, 3)
    assert legend(BDD_DETECTION, DETECTION_COLORS, 300).shape[1] == 300
    assert fit_width(cells[0], 32).shape == (18, 32, 3)
