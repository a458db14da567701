"""What a traffic light shows: a small network on what is within its box, which no detector's class tells.

Lights are a few pixels large, and a colour is a fact of one box: it is read from the picture itself, and taught box by
box (BDD100K's attribute trafficLightColor), by true boxes that are moved a little, since found ones are a little off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from automoe.geometry import pairwise_iou
from automoe.taxonomy import LIGHT_COLORS

SIDE = 12
"""Pixels a side of what the network is shown: a square round the box."""

MARGIN = 1.3
"""That square's side, in units of the box's longer one."""

SHIFT, STRETCH = 0.1, 0.2
"""How far true boxes are moved in training, in units of their sides."""

FOUND = 0.5
"""Overlap (IoU) of a predicted light with a true one from which on it is that one."""


class LightHead(nn.Module):
    """Normalised images [B, 3, H, W] and boxes [B, N, 4] (normalised cxcywh) to logits of LIGHT_COLORS, [B, N, 4]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(width * (SIDE // 2) ** 2, 64), nn.SiLU(),
            nn.Linear(64, len(LIGHT_COLORS)),
        )  # fmt: skip

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        seen = squares(images.float(), boxes.float())
        return self.net(seen.flatten(0, 1)).view(*boxes.shape[:2], -1)


def squares(images: Tensor, boxes: Tensor) -> Tensor:
    """What is round boxes [B, N, 4] (normalised cxcywh) of images [B, 3, H, W]: [B, N, 3, SIDE, SIDE], 0 outside."""
    height, width = images.shape[-2:]
    pixels = boxes.new_tensor([width, height])
    side = MARGIN * (boxes[..., 2:] * pixels).amax(dim=-1).clamp(min=2.0)
    steps = (torch.arange(SIDE, device=boxes.device) + 0.5) / SIDE - 0.5
    x, y = ((boxes[..., :2] * pixels)[..., None] + side[..., None, None] * steps).unbind(dim=-2)
    places = torch.stack([x[:, :, None, :].expand(-1, -1, SIDE, -1), y[..., None].expand(-1, -1, -1, SIDE)], dim=-1)
    grid = places / pixels * 2.0 - 1.0
    found = F.grid_sample(images, grid.flatten(1, 2), align_corners=False)
    return found.unflatten(2, (boxes.shape[1], SIDE)).transpose(1, 2)


def color_loss(head: LightHead, images: Tensor, targets: list[dict[str, Tensor]]) -> tuple[Tensor, int]:
    """The cross entropy, summed over all true lights whose colour is known, and how many these are. Without any it is
    0, with a gradient of 0 for every weight. targets: per image `boxes` [N, 4], `colors` [N], `ignored` [N]."""
    kept = [(one["colors"] >= 0) & ~one["ignored"] for one in targets]
    count = int(sum(int(keep.sum()) for keep in kept))
    if not count:
        return torch.stack([weight.sum() for weight in head.parameters()]).sum() * 0.0, 0
    boxes = pad_sequence([one["boxes"][keep].float() for one, keep in zip(targets, kept)], batch_first=True)
    colors = pad_sequence(
        [one["colors"][keep] for one, keep in zip(targets, kept)], batch_first=True, padding_value=-100
    )
    moved = torch.rand_like(boxes) * 2.0 - 1.0
    middle = boxes[..., :2] + SHIFT * moved[..., :2] * boxes[..., 2:]
    size = boxes[..., 2:] * (1.0 + STRETCH * moved[..., 2:])
    logits = head(images, torch.cat([middle, size], dim=-1)).float()
    return F.cross_entropy(logits.flatten(0, 1), colors.flatten(), ignore_index=-100, reduction="sum"), count


class LightScores:
    """Of the true lights whose colour is known and that were found, the share whose colour is told right."""

    def __init__(self, light: int) -> None:
        """light: the label of traffic lights."""
        self.light = light
        self._samples: dict[str, tuple[int, int]] = {}

    def add(self, sample_id: str, truth: Any, prediction: Mapping[str, np.ndarray]) -> None:
        """truth: a prepared row; prediction: boxes [K, 4] xyxy, labels [K], colors [K], best first. A sample counts
        once."""
        known = (truth.colors >= 0) & ~truth.ignored
        said = prediction["labels"] == self.light
        boxes, colors = prediction["boxes"][said], prediction["colors"][said]
        overlaps = pairwise_iou(torch.from_numpy(truth.boxes[known]), torch.from_numpy(boxes)).numpy()
        right = found = 0
        taken = np.zeros(int(known.sum()), bool)
        for place in range(len(boxes)):  # the surest one has the first choice, as in the official matching
            open_to_it = np.where(taken, 0.0, overlaps[:, place])
            if not len(open_to_it) or open_to_it.max() < FOUND:
                continue
            true = int(open_to_it.argmax())
            taken[true] = True
            found += 1
            right += int(colors[place] == truth.colors[known][true])
        self._samples[sample_id] = (right, found)

    def state(self) -> dict[str, tuple[int, int]]:
        """Plain data for `merge` in another process."""
        return dict(self._samples)

    def merge(self, states: list[dict[str, tuple[int, int]]]) -> None:
        """Add what other processes scored."""
        for state in states:
            self._samples |= {key: max(value, self._samples.get(key, value)) for key, value in state.items()}

    def compute(self) -> float | None:
        """Per cent; None where no light was found."""
        right, found = (sum(column) for column in zip(*self._samples.values())) if self._samples else (0, 0)
        return 100.0 * right / found if found else None
