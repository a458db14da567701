"""The dense head on the map seen from above: class heatmaps and a 3D box at every cell (CenterPoint, CVPR 2021).

Its peaks seed the decoder's queries (TransFusion, CVPR 2022), as the image heatmaps do in the 2D expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automoe.experts.box3d import LOG_SIZE, NUMBERS
from automoe.experts.heatmap import PRIOR, rows_at
from automoe.experts.pillars import BevGrid
from automoe.experts.pyramid import SeparableConv
from automoe.losses import gaussian_focal_loss
from automoe.taxonomy import NUSCENES_DETECTION

KERNEL = 0.25
"""A gaussian's deviation in roots of its object's footprint."""

SMALLEST_KERNEL = 0.45
"""Metres: the gaussians of small objects."""

CLOSE_TOGETHER = ("pedestrian", "traffic_cone", "barrier")
"""Classes whose objects may stand in neighbouring cells."""

AROUND = 1.3
"""Metres from an object's centre within which cells learn its box."""


class BevHeatmapHead(nn.Module):
    """Class logits [B, C, H, W] and boxes [B, H, W, 10] (`box3d`) from a map [B, D, H, W]."""

    def __init__(self, grid: BevGrid, width: int, num_classes: int) -> None:
        super().__init__()
        self.grid = grid
        self.classes = nn.Sequential(SeparableConv(width, width), nn.Conv2d(width, num_classes, 1))
        self.boxes = nn.Sequential(SeparableConv(width, width), nn.Conv2d(width, NUMBERS, 1))
        for head, bias in ((self.classes, PRIOR), (self.boxes, 0.0)):
            last = head[-1]
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            nn.init.normal_(last.weight, std=0.01)
            nn.init.constant_(last.bias, bias)

    def forward(self, bev: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classes(bev)
        raw = self.boxes(bev).float().permute(0, 2, 3, 1)
        centres = self.grid.centres(bev.shape[-2], bev.shape[-1], bev.device).expand(len(bev), -1, -1, -1)
        place = torch.cat([centres + raw[..., :2], raw[..., 2:3] + 0.8], dim=-1)
        # A start that fits nothing badly: a metre and a half to each side.
        size = (raw[..., 3:6] + 0.5).clamp(*LOG_SIZE)
        heading = raw[..., 6:8] + raw.new_tensor([0.0, 1e-3])
        return logits, torch.cat([place, size, heading, raw[..., 8:]], dim=-1)


def select_seeds(logits: Tensor, boxes: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` cells of the best peaks: logits [B, K, C], boxes [B, K, 10], cells int64 [B, K], row by row.

    A cell counts by its best class; if that is of large objects, it must be a local maximum. Small ones stand closer to
    each other than the cells of three are wide (as in TransFusion): there all cells compete, and the decoder tells
    copies apart.
    """
    best, label = logits.detach().max(dim=1)
    large = torch.tensor([name not in CLOSE_TOGETHER for name in NUSCENES_DETECTION], device=logits.device)[label]
    peak = best == F.max_pool2d(best, 3, stride=1, padding=1)
    scores = torch.where(peak | ~large, best, best - 1e4).flatten(1)
    _, cells = scores.topk(min(count, scores.shape[1]), dim=1)
    return rows_at(logits.flatten(2).transpose(1, 2), cells), rows_at(boxes.flatten(1, 2), cells), cells


def bev_targets(
    numbers: Tensor, labels: Tensor, num_classes: int, grid: BevGrid, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """For one sample the heatmap [C, H, W], exactly 1 at the objects' cells, and for each cell the object whose box it
    learns, int64 [H, W], -1 for none. numbers: [N, 10], all on the map; labels: int64 [N]."""
    device = numbers.device
    heat = torch.zeros(num_classes, height, width, device=device)
    if not len(numbers):
        return heat, torch.full((height, width), -1, device=device)
    squared = ((grid.centres(height, width, device)[None] - numbers[:, None, None, :2]) ** 2).sum(dim=-1)
    deviation = (KERNEL * (numbers[:, 3:5].sum(dim=1) / 2).exp()).clamp(min=SMALLEST_KERNEL)
    bumps = torch.exp(-squared / (2 * deviation[:, None, None] ** 2))
    # The cell that holds the centre is the object's own, whatever the distance to its middle.
    side = numbers.new_tensor([2 * grid.reach / height, 2 * grid.reach / width])
    row, column = ((numbers[:, :2] + grid.reach) / side).floor().long().unbind(dim=1)
    index = torch.arange(len(numbers), device=device)
    bumps[index, row.clamp(0, height - 1), column.clamp(0, width - 1)] = 1.0
    flat = labels[:, None].expand(-1, height * width)
    heat.view(num_classes, -1).scatter_reduce_(0, flat, bumps.flatten(1), "amax")
    nearest, owner = squared.min(dim=0)
    own_cell = torch.full((height, width), -1, device=device)
    own_cell[row.clamp(0, height - 1), column.clamp(0, width - 1)] = index
    return heat, torch.where(own_cell >= 0, own_cell, torch.where(nearest < AROUND**2, owner, -1))


def bev_heatmap_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Sequence[dict[str, Tensor]],
    grid: BevGrid,
    box_loss: Callable[[Tensor, Tensor], Tensor],
    normal: float,
    class_weight: Tensor,
) -> dict[str, Tensor]:
    """Focal loss on the heatmaps, weighted by class [C], and `box_loss` (of [M, 10] and [M, 10] to [M]) on the boxes
    around objects, each divided by `normal`.

    targets: per sample `numbers` [N, 10] and `labels` [N].
    """
    _, num_classes, height, width = logits.shape
    heats, box_sum = [], boxes.sum() * 0.0
    for own, target in zip(boxes, targets, strict=True):
        heat, owner = bev_targets(target["numbers"], target["labels"], num_classes, grid, height, width)
        heats.append(heat)
        rows = owner >= 0
        if bool(rows.any()):
            share = 1 / torch.bincount(owner[rows], minlength=len(target["labels"]))[owner[rows]]
            box_sum = box_sum + (box_loss(own[rows], target["numbers"][owner[rows]]) * share).sum()
    heat_loss = gaussian_focal_loss(logits.float(), torch.stack(heats), class_weight[:, None, None])
    return {"heatmap": heat_loss / normal, "heatmap_box": box_sum / normal}
