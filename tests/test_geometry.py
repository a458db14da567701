"""Boxes: their forms, and their overlaps beside torchvision's and shapely's."""

from __future__ import annotations

import math

import pytest
import shapely
import shapely.affinity
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from automoe import geometry


def some_boxes(count, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator) * torch.tensor([1, 1, 0.4, 0.4]) + 0.01
    return geometry.cxcywh_to_xyxy(boxes * scale)


def footprint(box):
    """A 3D box as a shapely polygon, by other means than ours."""
    x, y, _, length, width, _, yaw = box
    flat = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    turned = shapely.affinity.rotate(flat, yaw, origin=(0, 0), use_radians=True)
    return shapely.affinity.translate(turned, x, y)


def test_forms_go_there_and_back():
    assert geometry.cxcywh_to_xyxy(torch.tensor([5.0, 6, 4, 2])).tolist() == [3, 5, 7, 7]
    boxes = some_boxes(20, 0).reshape(4, 5, 4)
    assert torch.allclose(geometry.cxcywh_to_xyxy(geometry.xyxy_to_cxcywh(boxes)), boxes, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1280.0])
def test_iou_and_giou_equal_torchvisions(scale):
    a, b = some_boxes(30, 1, scale), some_boxes(20, 2, scale)
    assert torch.allclose(geometry.pairwise_iou(a, b), torchvision.ops.box_iou(a, b), atol=1e-6)
    giou = torchvision.ops.generalized_box_iou(a, b)
    assert torch.allclose(geometry.pairwise_giou(a, b), giou, atol=1e-6)
    assert torch.allclose(geometry.paired_giou(a[:20], b), giou.diagonal(), atol=1e-6)
    batched = geometry.pairwise_giou(a.reshape(2, 15, 4), b.reshape(2, 10, 4))
    assert torch.allclose(batched[1], giou[15:, 10:], atol=1e-6)


def test_boxes_without_area_have_finite_overlaps_and_gradients():
    points = torch.zeros(2, 4, requires_grad=True)
    giou = geometry.paired_giou(points, points)
    giou.sum().backward()
    assert geometry.paired_iou(points, points).tolist() == [0, 0]
    assert torch.isfinite(giou).all()
    assert torch.isfinite(points.grad).all()
    assert geometry.pairwise_iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)


def test_half_precision_boxes_are_overlapped_in_float32():
    boxes = some_boxes(4, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert geometry.pairwise_giou(boxes, boxes).dtype == torch.float32
    assert torch.allclose(geometry.paired_giou(boxes, boxes), torch.ones(4))


def test_angles_wrap():
    assert geometry.wrap_angle(torch.tensor([0.0, 2 * math.pi - 0.1, -3 * math.pi / 2])).tolist() == pytest.approx(
        [0, -0.1, math.pi / 2], abs=1e-6
    )


def test_footprint_corners_go_round_from_the_front_left():
    corners = geometry.bev_corners(torch.tensor([10.0, 20, 0, 4, 2, 1.5, math.pi / 2]))
    assert torch.allclose(corners, torch.tensor([[9.0, 22], [9, 18], [11, 18], [11, 22]]), atol=1e-5)


@pytest.mark.parametrize("yaw", [0.0, 0.3, math.pi / 2, math.pi, -2.5])
@pytest.mark.parametrize("at", [0.0, 1000.0])
def test_identical_nested_touching_and_distant_footprints(yaw, at):
    """The special cases of polygon clipping; a kilometre from the origin too."""
    box = torch.tensor([at, at, 0, 4, 2, 1.5, yaw])
    nested = torch.tensor([at, at, 0, 2, 1, 1.5, yaw])
    beside = torch.tensor([at - 2 * math.sin(yaw), at + 2 * math.cos(yaw), 0, 4, 2, 1.5, yaw])
    away = torch.tensor([at + 5, at, 0, 4, 2, 1.5, yaw])
    one = torch.stack([box, nested, box, beside, away])
    other = torch.stack([box, box, nested, box, box])
    found = geometry.bev_intersection(one, other)
    assert found.tolist() == pytest.approx([8, 2, 2, 0, 0], abs=2e-3 if at else 1e-5)
    assert geometry.paired_bev_iou(box, nested).item() == pytest.approx(0.25, abs=1e-4)


number = st.floats(-4, 4, width=32)
size = st.floats(0.0625, 6, width=32)
a_box = st.tuples(number, number, number, size, size, size, st.floats(-7, 7, width=32))


@settings(max_examples=300, deadline=None)
@given(a_box, a_box)
def test_footprint_overlap_equals_shapelys(a, b):
    exact = footprint(a).intersection(footprint(b)).area
    a_tensor, b_tensor = torch.tensor(a), torch.tensor(b)
    assert geometry.bev_intersection(a_tensor, b_tensor).item() == pytest.approx(exact, abs=2e-4)
    assert geometry.bev_intersection(b_tensor, a_tensor).item() == pytest.approx(exact, abs=2e-4)


def test_pairwise_footprints_equal_pairs_and_skip_only_what_is_apart():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([20.0, 20, 1, 5, 3, 2, 7])
    a, b = (torch.rand(2, count, 7, generator=generator) * scale for count in (9, 6))
    pairwise = geometry.pairwise_bev_iou(a, b)
    assert pairwise.shape == (2, 9, 6)
    assert 0 < (pairwise > 0).float().mean() < 0.9
    assert torch.allclose(pairwise, geometry.paired_bev_iou(a[:, :, None], b[:, None]), atol=1e-6)


def test_footprint_overlap_has_a_finite_gradient():
    box = torch.tensor([[0.0, 0, 0, 4, 2, 1.5, 0.0]], requires_grad=True)
    geometry.paired_bev_iou(box, torch.tensor([[0.5, 0.1, 0, 4, 2, 1.5, 0.0]])).sum().backward()
    assert torch.isfinite(box.grad).all()
    assert box.grad[0, 0] > 0
