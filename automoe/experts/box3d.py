"""3D boxes as the decoder's references: ten numbers in metres, how they are refined, and where they look.

x, y, z, log length, log width, log height, sin yaw, cos yaw, velocity x and y; ego frame, metres, m/s.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from automoe.experts.pillars import BevGrid
from automoe.experts.pyramid import position_encoding
from automoe.experts.rig_geometry import Rig

NUMBERS = 10
LOG_SIZE = (-2.0, 3.2)
"""Sides between 14 cm and 25 m."""

LARGEST_STEP = 8.0
"""Metres (or what else a number is in) that a layer may move a reference."""


def encode_boxes(boxes: Tensor, velocity: Tensor) -> Tensor:
    """[..., 7] x, y, z, l, w, h, yaw and [..., 2] m/s to the ten numbers [..., 10]; an unknown velocity stays NaN."""
    yaw = boxes[..., 6:]
    size = boxes[..., 3:6].clamp(min=0.05).log()
    return torch.cat([boxes[..., :3], size, yaw.sin(), yaw.cos(), velocity], dim=-1)


def decode_boxes(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Ten numbers [..., 10] to boxes [..., 7] and velocities [..., 2]."""
    yaw = torch.atan2(numbers[..., 6], numbers[..., 7])[..., None]
    return torch.cat([numbers[..., :3], numbers[..., 3:6].exp(), yaw], dim=-1), numbers[..., 8:]


class Box3dReference:
    """Looks at the map seen from above within the box's footprint, and at the cameras' maps around the box.

    On the first map an offset is in units of half the length and half the width, along the heading. On the cameras'
    maps its first number is sideways, square to the line of sight, in units of half the box's larger side, its second
    upwards, in units of half its height. columns: of each camera on each of the camera maps.
    """

    numbers = NUMBERS
    relations = 5

    def __init__(self, grid: BevGrid, rig: Rig | None = None, columns: tuple[int, ...] = ()) -> None:
        self.grid, self.rig, self.columns = grid, rig, columns

    def locate(self, references: Tensor, offsets: Tensor) -> Tensor:
        half = references[..., 3:6].exp()[:, :, None, None] / 2  # [B, Q, 1, 1, 3]
        sin, cos = (one[:, :, None, None] for one in _heading(references).unbind(dim=-1))
        along = offsets[:, :, :, 0, :, 0] * half[..., 0]
        across = offsets[:, :, :, 0, :, 1] * half[..., 1]
        x = references[..., 0, None, None] + along * cos - across * sin
        y = references[..., 1, None, None] + along * sin + across * cos
        places = [self.grid.place(torch.stack([x, y], dim=-1))]
        if self.columns:
            assert self.rig is not None
            sight = F.normalize(references[..., :2], dim=-1, eps=1e-3)
            left = torch.stack([-sight[..., 1], sight[..., 0]], dim=-1)[:, :, None, None]
            wide = torch.maximum(half[..., 0], half[..., 1])[..., None]
            for number, columns in enumerate(self.columns, start=1):
                moved = offsets[:, :, :, number]
                xy = references[:, :, None, None, :2] + left * (moved[..., :1] * wide)
                z = references[:, :, None, None, 2:3] + moved[..., 1:] * half[..., 2:]
                spots = torch.cat([xy, z], dim=-1)
                found = self.rig.locate(spots.reshape(len(spots), -1, 3), columns)
                places.append(found.view(*spots.shape[:-1], 2))
        return torch.stack(places, dim=3)

    def refine(self, references: Tensor, delta: Tensor) -> Tensor:
        moved = references + delta.clamp(-LARGEST_STEP, LARGEST_STEP)
        size = moved[..., 3:6].clamp(*LOG_SIZE)
        return torch.cat([moved[..., :3], size, moved[..., 6:]], dim=-1)

    def encode(self, references: Tensor, dim: int) -> Tensor:
        """How far away it is, and how large: what decides how much a sensor can tell of it."""
        distance = references[..., :2].norm(dim=-1, keepdim=True) / (1.5 * self.grid.reach)
        size = (references[..., 3:4] - LOG_SIZE[0]) / (LOG_SIZE[1] - LOG_SIZE[0])
        return position_encoding(torch.cat([distance, size], dim=-1), dim)

    def relate(self, references: Tensor) -> Tensor:
        """How each box lies to each other one: along and across its heading in its lengths, the turn, and sizes."""
        gap = references[:, None, :, :2] - references[:, :, None, :2]
        heading = _heading(references)
        sin, cos = heading[:, :, None, 0], heading[:, :, None, 1]
        length = references[..., 3].exp()[:, :, None]
        along = (gap[..., 0] * cos + gap[..., 1] * sin).abs() / length
        across = (gap[..., 1] * cos - gap[..., 0] * sin).abs() / length
        turn = (heading[:, :, None] * heading[:, None]).sum(dim=-1)
        ratio = (references[:, None, :, 3] - references[:, :, None, 3]).clamp(-3, 3)
        close = torch.exp(-gap.norm(dim=-1) / 2)
        return torch.stack([along.log1p(), across.log1p(), turn, ratio, close], dim=-1)


def _heading(references: Tensor) -> Tensor:
    """[..., 10] to the unit vector of the heading [..., 2], sine first."""
    return F.normalize(references[..., 6:8], dim=-1, eps=1e-4)
