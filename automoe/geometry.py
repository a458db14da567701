"""Boxes and their overlaps, as plain functions on tensors: the one place where a box changes its form.

Image boxes are `cxcywh` (centre and size) or `xyxy` (two corners), in pixels or normalised, as the caller likes.
3D boxes are seven numbers (x, y, z, l, w, h, yaw): centre in metres, length along the heading, width, height, and
the heading in radians, counter-clockwise from the x axis. Everything is computed in float32 at least, whatever
autocast says, and works on leading batch dimensions. No model, no matching and no data set lives here.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "bev_corners",
    "bev_intersection",
    "box_area",
    "cxcywh_to_xyxy",
    "paired_bev_iou",
    "paired_giou",
    "paired_iou",
    "pairwise_bev_iou",
    "pairwise_giou",
    "pairwise_iou",
    "wrap_angle",
    "xyxy_to_cxcywh",
]

# Two boxes without area have an IoU of 0/0; this floor makes it 0. It is far below any area a box can have,
# in pixels or normalised, and far above the smallest float32.
_SMALLEST_AREA = 1e-20


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] centre and size -> [..., 4] corners (x1, y1, x2, y2)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] corners (x1, y1, x2, y2) -> [..., 4] centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """[..., 4] corners -> [...] area; 0 where a corner pair is the wrong way round."""
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def paired_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union of boxes that stand beside each other: [..., 4] and [..., 4] -> [...]."""
    intersection, union = _intersection_and_union(_float(a_xyxy), _float(b_xyxy))
    return intersection / union


def paired_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1] (Rezatofighi et al., CVPR 2019) of boxes beside each other: [..., 4] -> [...]."""
    a, b = _float(a_xyxy), _float(b_xyxy)
    intersection, union = _intersection_and_union(a, b)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull_area = (hull[..., 0] * hull[..., 1]).clamp(min=_SMALLEST_AREA)
    return intersection / union - (hull_area - union) / hull_area


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """IoU of each box with each: [..., N, 4] and [..., M, 4] -> [..., N, M]."""
    return paired_iou(a_xyxy[..., :, None, :], b_xyxy[..., None, :, :])


def pairwise_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Generalised IoU of each box with each: [..., N, 4] and [..., M, 4] -> [..., N, M]."""
    return paired_giou(a_xyxy[..., :, None, :], b_xyxy[..., None, :, :])


def wrap_angle(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi), in radians."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi


def bev_corners(boxes: Tensor) -> Tensor:
    """3D boxes [..., 7] -> the corners of their footprints [..., 4, 2] in metres, counter-clockwise.

    The first corner is front left, as seen along the heading.
    """
    signs = boxes.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    along, across = (signs * boxes[..., None, 3:5]).unbind(-1)
    cos, sin = boxes[..., 6, None].cos(), boxes[..., 6, None].sin()
    return boxes[..., None, :2] + torch.stack([along * cos - across * sin, along * sin + across * cos], dim=-1)


def bev_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Exact area in m² that the footprints of two 3D boxes share: [..., 7] and [..., 7] (broadcast) -> [...].

    In the frame of `b`, which is then an upright rectangle, the area is the sum over the four edges of `a` of
    the signed integral of the edge's height, with x and y cut to the rectangle. Unlike collecting and sorting
    the corners of the intersection this has no special case: identical, touching and nested boxes are all
    continuous limits, and nothing depends on the order of almost equal angles.
    """
    a, b = _float(a), _float(b)
    half_l, half_w = b[..., 3, None] / 2, b[..., 4, None] / 2
    corner_x, corner_y = _footprint_in_frame_of(a, b)
    x0, y0 = corner_x, corner_y
    x1, y1 = corner_x.roll(-1, dims=-1), corner_y.roll(-1, dims=-1)

    # Cut each edge to |x| <= half_l. A vertical edge has no width and so no integral; its slope is never used.
    left, right = _cut(x0, half_l), _cut(x1, half_l)
    run = torch.where((x1 - x0).abs() > 1e-9, x1 - x0, torch.ones_like(x0))
    y_left = torch.lerp(y0, y1, ((left - x0) / run).clamp(0, 1))
    y_right = torch.lerp(y0, y1, ((right - x0) / run).clamp(0, 1))
    heights = _mean_of_cut_line(y_left, y_right, half_w)
    # The corners run counter-clockwise: the lower edges go right, the upper ones left, hence the sign.
    return ((left - right) * heights).sum(-1).clamp(min=0)


def paired_bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the footprints of 3D boxes beside each other: [..., 7] and [..., 7] (broadcast) -> [...]."""
    intersection = bev_intersection(a, b)
    area_a, area_b = (box[..., 3].float() * box[..., 4].float() for box in (a, b))
    return intersection / (area_a + area_b - intersection).clamp(min=_SMALLEST_AREA)


def pairwise_bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each footprint with each: [..., N, 7] and [..., M, 7] -> [..., N, M].

    On the CPU only pairs whose circumscribed circles meet are worked out: in a street scene few do. On a GPU
    finding them would make the host wait, and working out all of them is cheap.
    """
    a, b = a[..., :, None, :], b[..., None, :, :]
    if a.device.type != "cpu" or a.requires_grad or b.requires_grad:
        return paired_bev_iou(a, b)
    reach = (a[..., 3:5].norm(dim=-1) + b[..., 3:5].norm(dim=-1)) / 2
    close = (a[..., :2] - b[..., :2]).norm(dim=-1) < reach
    iou = torch.zeros(close.shape, dtype=torch.promote_types(a.dtype, torch.float32))
    shape = (*close.shape, 7)
    iou[close] = paired_bev_iou(a.expand(shape)[close], b.expand(shape)[close]).to(iou.dtype)
    return iou


def _float(boxes: Tensor) -> Tensor:
    """At least float32: an area in half precision has three digits."""
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    size = (high - low).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    return intersection, (box_area(a) + box_area(b) - intersection).clamp(min=_SMALLEST_AREA)


def _footprint_in_frame_of(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """x and y [..., 4] of the footprint corners of `a`, in the frame whose origin and x axis are those of `b`."""
    # Differences first: far from the origin the coordinates themselves have too few digits left.
    offset = a[..., :2] - b[..., :2]
    cos_b, sin_b = b[..., 6].cos(), b[..., 6].sin()
    x = offset[..., 0] * cos_b + offset[..., 1] * sin_b
    y = offset[..., 1] * cos_b - offset[..., 0] * sin_b
    turned = torch.stack(torch.broadcast_tensors(x, y, x, a[..., 3], a[..., 4], x, a[..., 6] - b[..., 6]), dim=-1)
    corner_x, corner_y = bev_corners(turned).unbind(-1)
    return corner_x, corner_y


def _cut(value: Tensor, limit: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(value, limit), -limit)


def _mean_of_cut_line(start: Tensor, end: Tensor, limit: Tensor) -> Tensor:
    """Mean of a line from `start` to `end` after its values are cut to [-limit, limit]."""
    cut_start, cut_end = _cut(start, limit), _cut(end, limit)
    rise = end - start
    rise = torch.where(rise.abs() > 1e-9, rise, torch.ones_like(rise))
    share_start = ((cut_start - start) / rise).clamp(0, 1)  # the share of the line beyond the limit at its start
    share_end = ((end - cut_end) / rise).clamp(0, 1)
    between = (1 - share_start - share_end) * (cut_start + cut_end) / 2
    return share_start * cut_start + share_end * cut_end + between
