"""Layers that image experts share: group norm, separable convolution, the feature pyramid, positions and tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(width: int) -> nn.GroupNorm:
    """Group norm with groups of 8 channels or more: it needs no batch statistics, so small batches don't hurt."""
    groups = max(g for g in (32, 16, 8, 4, 2, 1) if width % g == 0 and width // g >= min(8, width))
    return nn.GroupNorm(groups, width)


class SeparableConv(nn.Sequential):
    """Depthwise then pointwise convolution, group norm, SiLU: [B, C, H, W] -> [B, D, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, kernel, padding=kernel // 2, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            group_norm(out_channels),
            nn.SiLU(inplace=True),
        )


class FeaturePyramid(nn.Module):
    """Top-down pyramid (Lin et al., 2017) with group norm, depthwise smoothing and a global context on top.

    in_channels: channels of the backbone's maps, fine to coarse. Returns as many maps, each [B, width, H_s, W_s].
    """

    def __init__(self, in_channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False), group_norm(width)) for c in in_channels
        )
        self.context = nn.Sequential(nn.Linear(in_channels[-1], width), nn.SiLU(), nn.Linear(width, width))
        self.smooth = nn.ModuleList(SeparableConv(width, width, 5 if i else 3) for i in range(len(in_channels)))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        laterals = [lateral(f) for lateral, f in zip(self.laterals, features)]
        top = laterals[-1] + self.context(features[-1].mean(dim=(2, 3)))[:, :, None, None]
        maps = [self.smooth[-1](top)]
        for lateral, smooth in zip(laterals[-2::-1], list(self.smooth)[-2::-1]):
            up = F.interpolate(maps[0], size=lateral.shape[-2:], mode="nearest")
            maps.insert(0, smooth(lateral + up))
        return maps


def position_encoding(xy: Tensor, dim: int) -> Tensor:
    """Sine encoding of positions in [0, 1]: [..., 2] -> [..., dim], half for x and half for y (DETR's form)."""
    quarter = dim // 4
    frequency = 2 * torch.pi * 2 ** torch.linspace(0, 6, quarter, device=xy.device, dtype=xy.dtype)
    phase = xy[..., None] * frequency
    return torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(-2)


def grid_tokens(feature_map: Tensor) -> tuple[Tensor, Tensor]:
    """A map [B, D, H, W] as spatial tokens [B, H*W, D] and the position of each, [H*W, 2] as x, y in [0, 1]."""
    height, width = feature_map.shape[-2:]
    ys, xs = torch.meshgrid(
        (torch.arange(height, device=feature_map.device) + 0.5) / height,
        (torch.arange(width, device=feature_map.device) + 0.5) / width,
        indexing="ij",
    )
    return feature_map.flatten(2).transpose(1, 2), torch.stack([xs, ys], dim=-1).reshape(-1, 2)
