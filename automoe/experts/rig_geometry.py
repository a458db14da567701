"""Cameras round a car as one picture: where a point in the ego frame lies on the cameras' feature maps.

The maps of a sample's cameras stand side by side in one wide map, with a column of nothing between them, so that a
deformable attention that samples places of maps needs to know nothing of cameras. A point that two cameras see takes
the one in which it is farther from the margin; a point that none sees lies outside of the map, where there is zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEAREST = 0.3
"""Metres before a camera below which it sees nothing."""

NOWHERE = -2.0
"""A place outside of every map."""


class Rig:
    """The cameras of a batch. T_cam_ego: [B, N, 4, 4]; intrinsic: [B, N, 3, 3] in pixels of `size` (H, W); present:
    bool [B, N], cameras that are there at all."""

    def __init__(self, T_cam_ego: Tensor, intrinsic: Tensor, size: tuple[int, int], present: Tensor) -> None:
        self.rotation, self.offset = T_cam_ego[..., :3, :3], T_cam_ego[..., :3, 3]
        self.intrinsic, self.size, self.present = intrinsic, size, present
        self.count = T_cam_ego.shape[1]

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points [B, P, 3] to places [B, N, P, 2] in each picture (x, y in 0 to 1) and whether they are in it."""
        # Under autocast a product of matrices would be in bfloat16, which places a point to whole cells only.
        with torch.autocast(points.device.type, enabled=False):
            inside = torch.einsum("bnij,bpj->bnpi", self.rotation, points.float()) + self.offset[:, :, None]
            depth = inside[..., 2:]
            pixels = torch.einsum("bnij,bnpj->bnpi", self.intrinsic, inside / depth.clamp(min=NEAREST))
        places = pixels[..., :2] / pixels.new_tensor([self.size[1], self.size[0]])
        seen = (depth[..., 0] > NEAREST) & ((places > 0) & (places < 1)).all(dim=-1) & self.present[:, :, None]
        return places, seen

    def locate(self, points: Tensor, columns: int) -> Tensor:
        """Points [B, P, 3] to places [B, P, 2] on the wide map (0 to 1) of cameras of `columns` columns each."""
        places, seen = self.project(points)
        margin = torch.minimum(places, 1 - places).amin(dim=-1).masked_fill(~seen, -1.0)
        best, camera = margin.max(dim=1)
        own = places.gather(1, camera[:, None, :, None].expand(-1, -1, -1, 2))[:, 0]
        total = self.count * (columns + 1) - 1
        x = (camera * (columns + 1) + own[..., 0] * columns) / total
        return torch.where((best > 0)[..., None], torch.stack([x, own[..., 1]], dim=-1), NOWHERE)

    def side_by_side(self, feature_map: Tensor) -> Tensor:
        """[B * N, D, h, w] to one map [B, D, h, N (w + 1) - 1]; cameras that are not there are zero."""
        height, width = feature_map.shape[-2:]
        apart = feature_map.view(-1, self.count, *feature_map.shape[1:])
        apart = apart * self.present[:, :, None, None, None].to(apart.dtype)
        wide = F.pad(apart, (0, 1)).permute(0, 2, 3, 1, 4).reshape(len(apart), -1, height, self.count * (width + 1))
        return wide[..., :-1]
