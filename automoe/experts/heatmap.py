"""The dense head that teaches a DETR-style expert to see within minutes: class heatmaps and boxes at every cell.

It is trained one-to-many on gaussians around the objects (CenterNet's heatmap with TTFNet's box-shaped kernels and
box regression over the whole kernel), each object on the map that suits its size, with the same weights on all maps
(FCOS). Its peaks become the queries of the decoder. Nothing here is needed beyond that, so at inference it costs what
query selection costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from automoe.experts.pyramid import SeparableConv
from automoe.geometry import cxcywh_to_xyxy, paired_giou, xyxy_to_cxcywh
from automoe.losses import gaussian_focal_loss

PRIOR = -4.0
"""Initial class logit (p = 0.018): most cells are background, and the first step should know."""

CELLS_ACROSS = 8
"""An object belongs to the finest map on which its longer side spans at most so many cells."""

CANDIDATES = 5
"""So many peaks for each seed are looked at."""

SAME_OBJECT = 0.5
"""Peaks whose boxes overlap by this IoU are taken for one object."""

KERNEL = 0.54
"""TTFNet's ratio of the kernel to the box."""


@dataclass(frozen=True)
class Seeds:
    """The peaks of the heatmaps. logits: [B, K, C]; boxes: [B, K, 4] cxcywh; cells: int64 [B, K], counted through all
    maps, row by row."""

    logits: Tensor
    boxes: Tensor
    cells: Tensor


class HeatmapHead(nn.Module):
    """Class logits [B, C, H, W] and boxes [B, H, W, 4] (normalised cxcywh) from a feature map [B, D, H, W] of any
    stride."""

    def __init__(self, width: int, num_classes: int, depth: int = 1) -> None:
        super().__init__()
        self.classes = nn.Sequential(
            *(SeparableConv(width, width) for _ in range(depth)), nn.Conv2d(width, num_classes, 1)
        )
        self.sides = nn.Sequential(*(SeparableConv(width, width) for _ in range(depth)), nn.Conv2d(width, 4, 1))
        for head, bias in ((self.classes, PRIOR), (self.sides, 1.0)):
            last = head[-1]
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            nn.init.normal_(last.weight, std=0.01)
            nn.init.constant_(last.bias, bias)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classes(feature_map)
        # Distances to the four sides, in cells; the clamp keeps a wild start finite.
        sides = self.sides(feature_map).float().clamp(max=6.0).exp()
        height, width = feature_map.shape[-2:]
        ys = torch.arange(height, device=sides.device, dtype=sides.dtype)[:, None] + 0.5
        xs = torch.arange(width, device=sides.device, dtype=sides.dtype)[None, :] + 0.5
        left, top, right, bottom = sides.unbind(dim=1)
        boxes = torch.stack(
            [(xs - left) / width, (ys - top) / height, (xs + right) / width, (ys + bottom) / height], dim=-1
        )
        return logits, xyxy_to_cxcywh(boxes)


def map_of_box(boxes: Tensor, maps: list[Tensor]) -> Tensor:
    """Which map each box belongs to: int64 [...] for normalised cxcywh boxes [..., 4]; maps [..., H, W], fine first."""
    index = torch.zeros(boxes.shape[:-1], dtype=torch.int64, device=boxes.device)
    for feature_map in maps[:-1]:
        height, width = feature_map.shape[-2:]
        across = (boxes[..., 2:] * boxes.new_tensor([width, height])).amax(dim=-1)
        index += across > CELLS_ACROSS
    return index


def select_seeds(logits: list[Tensor], boxes: list[Tensor], count: int) -> Seeds:
    """The `count` highest local maxima of the heatmaps, over classes, whose boxes are not one object's: the queries'
    starting points.

    logits: [B, C, H, W], boxes: [B, H, W, 4] of each map. A cell is a local maximum if no neighbour has a higher best
    class. On large objects there are several, so that non-maximum suppression on their boxes chooses (as DETA does,
    2022): without it the decoder's first lesson would be to tell copies apart, which takes longer than all others.
    """
    found = []
    for one in logits:
        best = one.detach().amax(dim=1)
        # On the margin of a batch of flat maps many cells tie; topk then takes any, which is fine.
        peaks = torch.where(best == F.max_pool2d(best, 3, stride=1, padding=1), best, best - 1e4)
        found.append(peaks.flatten(1))
    flat = torch.cat(found, dim=1)
    flat_boxes = torch.cat([one.flatten(1, 2) for one in boxes], dim=1)
    flat_logits = torch.cat([one.flatten(2) for one in logits], dim=2).transpose(1, 2)
    count = min(count, flat.shape[1])
    scores, candidates = flat.topk(min(CANDIDATES * count, flat.shape[1]), dim=1)
    corners = cxcywh_to_xyxy(rows_at(flat_boxes.detach(), candidates))
    cells = torch.stack([c[_distinct(b, s)[:count]] for b, s, c in zip(corners, scores, candidates)])
    return Seeds(rows_at(flat_logits, cells), rows_at(flat_boxes, cells), cells)


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """Of values [B, N, D] those at index [B, K]: [B, K, D]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _distinct(boxes: Tensor, scores: Tensor) -> Tensor:
    """The order in which candidates are taken [K]: those that no better one covers, then the others; xyxy [K, 4]."""
    kept = nms(boxes.float(), scores.float(), SAME_OBJECT)
    others = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    others[kept] = False
    return torch.cat([kept, others.nonzero().flatten()])


def heatmap_targets(
    boxes: Tensor, labels: Tensor, ignored: Tensor, num_classes: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the head should say for one image.

    boxes: [N, 4] normalised cxcywh, labels: [N], ignored: bool [N]. Returns heat [C, H, W] with exact ones at the
    objects' cells, weight [H, W] (0 inside ignored boxes), owner int64 [H, W] (which box regresses there, -1 none) and
    share [H, W] (that cell's share of its box's regression loss; sums to one for every box that owns a cell).
    """
    device = boxes.device
    heat = torch.zeros(num_classes, height, width, device=device)
    weight = torch.ones(height, width, device=device)
    ys = torch.arange(height, device=device, dtype=torch.float32) + 0.5
    xs = torch.arange(width, device=device, dtype=torch.float32) + 0.5
    scale = torch.tensor([width, height, width, height], device=device, dtype=torch.float32)
    cells = boxes.float() * scale
    for cx, cy, w, h in cells[ignored].tolist():
        inside = ((ys - cy).abs() <= h / 2)[:, None] & ((xs - cx).abs() <= w / 2)[None, :]
        weight[inside] = 0.0
    cells, labels = cells[~ignored], labels[~ignored]
    if len(cells) == 0:
        return (
            heat,
            weight,
            torch.full((height, width), -1, device=device),
            torch.zeros(height, width, device=device),
        )
    # The kernel sits on the middle of the cell that holds the centre, so that cell's value is exactly one.
    cx = cells[:, 0].clamp(0, width - 1e-3).floor() + 0.5
    cy = cells[:, 1].clamp(0, height - 1e-3).floor() + 0.5
    sigma_x = (cells[:, 2] * KERNEL / 6).clamp(min=0.4)
    sigma_y = (cells[:, 3] * KERNEL / 6).clamp(min=0.4)
    kernel_x = torch.exp(-((xs[None] - cx[:, None]) ** 2) / (2 * sigma_x[:, None] ** 2))
    kernel_y = torch.exp(-((ys[None] - cy[:, None]) ** 2) / (2 * sigma_y[:, None] ** 2))
    kernels = kernel_y[:, :, None] * kernel_x[:, None, :]
    rows = labels[:, None].expand(-1, height * width)
    heat.view(num_classes, -1).scatter_reduce_(0, rows, kernels.flatten(1), "amax")
    weight[heat.amax(dim=0) >= 1] = 1.0  # an object that stands in an ignored region still counts
    # Where kernels overlap, the smaller box regresses: it has fewer other cells.
    area = cells[:, 2] * cells[:, 3]
    reach = kernels > 0.05
    contested = torch.where(reach, area[:, None, None], torch.inf)
    owner = torch.where(reach.any(dim=0), contested.argmin(dim=0), -1)
    own = torch.where(owner >= 0, kernels.gather(0, owner.clamp(min=0)[None])[0], 0.0)
    totals = torch.zeros(len(cells), device=device).index_add_(0, owner.clamp(min=0).flatten(), own.flatten())
    share = own / totals[owner.clamp(min=0)].clamp(min=1e-6)
    index = (~ignored).nonzero().flatten()
    return heat, weight, torch.where(owner >= 0, index[owner.clamp(min=0)], -1), share


def heatmap_loss(
    logits: list[Tensor],
    boxes: list[Tensor],
    targets: list[dict[str, Tensor]],
    count: Callable[[int], float],
) -> dict[str, Tensor]:
    """Focal loss on the heatmaps and GIoU loss on the boxes, both per object over all processes.

    logits: [B, C, H, W]; boxes: [B, H, W, 4] normalised cxcywh, of each map; targets: per image `boxes`, `labels`,
    `ignored`. count: turns this process's number of objects into the mean over processes, at least 1.
    """
    normal = count(int(sum(int((~t["ignored"]).sum()) for t in targets)))
    levels = [map_of_box(t["boxes"], logits) for t in targets]
    heat_loss = logits[0].new_zeros(())
    box_loss = torch.stack([one.sum() for one in boxes]).sum() * 0.0
    for level, (map_logits, map_boxes) in enumerate(zip(logits, boxes)):
        _, num_classes, height, width = map_logits.shape
        heats, weights = [], []
        for predicted, target, level_of_box in zip(map_boxes, targets, levels):
            # Objects of other maps are background here; ignored regions are ignored on all.
            here = target["ignored"] | (level_of_box == level)
            own = {key: target[key][here] for key in ("boxes", "labels", "ignored")}
            heat, weight, owner, share = heatmap_targets(**own, num_classes=num_classes, height=height, width=width)
            heats.append(heat)
            weights.append(weight)
            rows = owner >= 0
            if bool(rows.any()):
                wanted = cxcywh_to_xyxy(own["boxes"][owner[rows]].float())
                got = cxcywh_to_xyxy(predicted[rows].float())
                box_loss = box_loss + ((1 - paired_giou(got, wanted)) * share[rows]).sum()
        heat_loss = heat_loss + gaussian_focal_loss(
            map_logits.float(), torch.stack(heats), torch.stack(weights)[:, None]
        )
    return {"heatmap": heat_loss / normal, "heatmap_giou": box_loss / normal}
