"""LiDAR points to a map seen from above: pillars by scatter, in plain PyTorch (PointPillars, CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automoe.errors import ConfigError
from automoe.experts.pyramid import SeparableConv, group_norm

POINT_FEATURES = 12
"""Place (3), intensity, lag, offsets from the pillar's middle (2) and from its points' mean (3), how many points it
has, and whether the point is of the key frame."""


@dataclass(frozen=True)
class BevGrid:
    """The square that is seen from above, in the ego frame: x forward, y left, metres. Rows go along x, from behind
    to ahead, columns along y, from right to left.

    reach: metres from the ego to each side. cell: metres of a pillar. low, high: of the points that count.
    """

    reach: float = 51.2
    cell: float = 0.4
    low: float = -2.0
    high: float = 4.5

    def __post_init__(self) -> None:
        across = 2 * self.reach / self.cell if self.cell > 0 and self.reach > 0 else 0.0
        if round(across) == 0 or round(across) % 8 or abs(across - round(across)) > 1e-6 * across:
            raise ConfigError(
                f"model.grid: reach {self.reach} m in cells of {self.cell} m makes {across:g} pillars a side; "
                "choose them so that it is a multiple of 8."
            )

    @property
    def side(self) -> int:
        """Pillars along each side."""
        return round(2 * self.reach / self.cell)

    def place(self, xy: Tensor) -> Tensor:
        """Metres [..., 2] (x, y) to fractions of the map [..., 2] in grid_sample's order (column, row), 0 to 1."""
        return (xy.flip(-1) + self.reach) / (2 * self.reach)

    def centres(self, height: int, width: int, device: torch.device) -> Tensor:
        """The middle of each cell of a map of any stride: [H, W, 2], metres (x, y)."""
        x = (torch.arange(height, device=device) + 0.5) / height * 2 * self.reach - self.reach
        y = (torch.arange(width, device=device) + 0.5) / width * 2 * self.reach - self.reach
        return torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1)

    def holds(self, xy: Tensor) -> Tensor:
        """Which places [..., 2], metres, lie on the map: bool [...]."""
        return (xy.abs() < self.reach).all(dim=-1)


class PillarEncoder(nn.Module):
    """Points of a batch to [B, D, side, side]: a linear layer on each point, the maximum over each pillar.

    extra: channels that come with each point beside its own, as what the cameras show there.
    """

    def __init__(self, grid: BevGrid, width: int, extra: int = 0) -> None:
        super().__init__()
        self.grid, self.width = grid, width
        # No norm over a point's features: it would take away how high and how bright a point is.
        self.points = nn.Linear(POINT_FEATURES + extra, width)

    def forward(self, points: Tensor, count: Tensor, extra: Tensor | None = None) -> Tensor:
        """points: [B, P, 5] x, y, z, intensity (0 to 255), lag (seconds), in the ego frame; count: int64 [B], how many
        of the P are points; extra: [B, P, E]. Pillars without points are zero."""
        grid, side, batch = self.grid, self.grid.side, len(points)
        inside = torch.arange(points.shape[1], device=points.device)[None] < count[:, None]
        inside &= grid.holds(points[..., :2]) & (points[..., 2] > grid.low) & (points[..., 2] < grid.high)
        owner, row = inside.nonzero(as_tuple=True)
        kept = points[owner, row]
        cells = ((kept[:, :2] + grid.reach) / grid.cell).floor().long().clamp(0, side - 1)
        pillar = (owner * side + cells[:, 0]) * side + cells[:, 1]
        total = batch * side * side
        number = torch.bincount(pillar, minlength=total).to(kept.dtype)
        mean = kept.new_zeros(total, 3).index_add_(0, pillar, kept[:, :3]) / number.clamp(min=1)[:, None]
        middle = (cells.to(kept.dtype) + 0.5) * grid.cell - grid.reach
        features = [
            kept[:, :2] / grid.reach,
            kept[:, 2:3] / 3,
            kept[:, 3:4] / 128 - 0.3,
            kept[:, 4:5] * 10,
            (kept[:, :2] - middle) / grid.cell,
            kept[:, :3] - mean[pillar],
            number[pillar, None].log1p() / 4,
            (kept[:, 4:5] == 0).to(kept.dtype),
        ]
        if extra is not None:
            features.append(extra[owner, row])
        encoded = self.points(torch.cat(features, dim=1)).relu_()
        flat = encoded.new_zeros(total, self.width)
        # After a ReLU nothing is below zero: empty pillars stay zero, and the maximum is that of the points.
        flat = flat.scatter_reduce(0, pillar[:, None].expand(-1, self.width), encoded, "amax", include_self=True)
        return flat.view(batch, side, side, self.width).permute(0, 3, 1, 2)


class BevBackbone(nn.Module):
    """Pillars [B, D, side, side] to a map [B, width, side / 2, side / 2] that has seen strides 2, 4 and 8."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = (width, width, 2 * width)
        stages, before = [], channels
        for number, after in enumerate(widths):
            down = nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), group_norm(after), nn.SiLU(inplace=True)
            )
            stages.append(nn.Sequential(down, *(Residual(after) for _ in range(depth + (number > 0)))))
            before = after
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(nn.Conv2d(w, width, 1) for w in widths)
        self.out = SeparableConv(width, width)

    def forward(self, pillars: Tensor) -> Tensor:
        maps, value = [], pillars
        for stage in self.stages:
            value = stage(value)
            maps.append(value)
        fused = self.laterals[-1](maps[-1])
        for lateral, finer in zip(list(self.laterals)[-2::-1], maps[-2::-1]):
            fused = F.interpolate(fused, size=finer.shape[-2:], mode="bilinear", align_corners=False) + lateral(finer)
        return self.out(fused)


class Residual(nn.Module):
    """A separable convolution of 5 x 5 beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = SeparableConv(width, width, 5)

    def forward(self, value: Tensor) -> Tensor:
        return value + self.block(value)
