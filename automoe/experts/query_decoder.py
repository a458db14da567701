"""The query decoder that the 2D and the 3D expert share: queries look at feature maps where their references are.

A layer lets the queries see each other, sample every feature map at points around their own reference (deformable
attention by plain `grid_sample`), and think (a feed-forward net). What a reference is (a box in an image, a box in the
world), where its sampling points fall and how a layer refines it is told by a `Reference`, not known here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automoe.experts.pyramid import position_encoding


class Reference(Protocol):
    """Geometry of a reference with R `numbers`; `relations` says how many tell how two of them lie to each other."""

    numbers: int
    relations: int

    def locate(self, references: Tensor, offsets: Tensor) -> Tensor:
        """[B, Q, R] and offsets [B, Q, heads, maps, points, 2] to places [B, Q, heads, maps, points, 2] in [0, 1]."""
        ...

    def refine(self, references: Tensor, delta: Tensor) -> Tensor:
        """[B, Q, R] moved by a layer's output [B, Q, R]; zero moves nothing."""
        ...

    def encode(self, references: Tensor, dim: int) -> Tensor:
        """[B, Q, R] to an encoding [B, Q, dim] of what the references are."""
        ...

    def relate(self, references: Tensor) -> Tensor:
        """[B, Q, R] to how each reference lies to each other one, [B, Q, Q, F]."""
        ...


class BoxReference:
    """A 2D box as normalised cxcywh in an input of `size` (H, W): points are placed in units of half the box,
    refinement is relative to its size.

    Nothing tells where in the picture a box is, only how large it is in pixels and how boxes lie to each other: what
    is learnt on pieces of pictures holds for whole ones.
    """

    numbers = 4
    relations = 5

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def locate(self, references: Tensor, offsets: Tensor) -> Tensor:
        center, half = references[..., :2], references[..., 2:] / 2
        shape = (*references.shape[:2], 1, 1, 1, 2)
        return center.view(shape) + offsets * half.view(shape)

    def refine(self, references: Tensor, delta: Tensor) -> Tensor:
        center, size = references[..., :2], references[..., 2:]
        moved = center + delta[..., :2] * size
        # A floor keeps the box a box, and its logarithm finite.
        scaled = size * delta[..., 2:].clamp(-2.0, 2.0).exp()
        return torch.cat([moved.clamp(0, 1), scaled.clamp(1e-4, 1.5)], dim=-1)

    def encode(self, references: Tensor, dim: int) -> Tensor:
        height, width = self.size
        pixels = references[..., 2:] * references.new_tensor([width, height])
        return position_encoding(torch.log2(pixels.clamp(min=1.0)) / 10, dim)

    def relate(self, references: Tensor) -> Tensor:
        """Distances in units of the box, ratios of sizes (Hou et al., Relation DETR, 2024), and the overlap."""
        center, size = references[..., :2], references[..., 2:].clamp(min=1e-4)
        apart = (center[:, :, None] - center[:, None]).abs()
        half = (size[:, :, None] + size[:, None]) / 2
        both = torch.minimum(torch.minimum(half - apart, size[:, :, None]), size[:, None]).clamp(min=0)
        inside = both.prod(dim=-1)
        area = size.prod(dim=-1)
        iou = inside / (area[:, :, None] + area[:, None] - inside)
        distance = torch.log1p(apart / size[:, :, None])
        ratio = torch.log(size[:, None] / size[:, :, None]).clamp(-3, 3)
        return torch.cat([distance, ratio, iou[..., None]], dim=-1)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Zhu et al., 2021) by `grid_sample`, for any `Reference`.

    Heads read their own channels of the maps as they are, without a projection of values (as in D-FINE, 2024): that
    would be a convolution over every map in every layer.
    """

    def __init__(self, dim: int, heads: int, maps: int, points: int) -> None:
        super().__init__()
        self.heads, self.maps, self.points = heads, maps, points
        self.offsets = nn.Linear(dim, heads * maps * points * 2)
        self.weights = nn.Linear(dim, heads * maps * points)
        self.out = nn.Linear(dim, dim)
        self._spread_points()

    def _spread_points(self) -> None:
        """Start with each head looking in its own direction, each point a step further out, within the reference."""
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        angle = torch.arange(self.heads) * (2 * torch.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        step = (torch.arange(self.points) + 0.5) / self.points
        spread = direction[:, None, None, :] * step[None, None, :, None]
        with torch.no_grad():
            self.offsets.bias.copy_(spread.expand(-1, self.maps, -1, -1).reshape(-1))

    def favour(self, level: int) -> None:
        """Start by looking at one of the maps as much as at all others together."""
        with torch.no_grad():
            bias = self.weights.bias.view(self.heads, self.maps, self.points)
            bias[:, level] = math.log(max(1, self.maps - 1))

    def forward(self, queries: Tensor, references: Tensor, maps: list[Tensor], geometry: Reference) -> Tensor:
        """queries [B, Q, D], references [B, Q, R], maps: [B * heads, D / heads, H, W] each. Returns [B, Q, D]."""
        batch, count, dim = queries.shape
        offsets = self.offsets(queries).view(batch, count, self.heads, self.maps, self.points, 2)
        places = geometry.locate(references, offsets) * 2 - 1
        weights = self.weights(queries).view(batch, count, self.heads, self.maps * self.points).softmax(dim=-1)
        weights = weights.view(batch, count, self.heads, self.maps, self.points)
        gathered = queries.new_zeros(batch * self.heads, dim // self.heads, count)
        for level, feature_map in enumerate(maps):
            grid = places[:, :, :, level].transpose(1, 2).reshape(batch * self.heads, count, self.points, 2)
            # In bfloat16 a place would be known to whole cells only.
            sampled = F.grid_sample(feature_map.float(), grid.float(), align_corners=False)
            weight = weights[:, :, :, level].transpose(1, 2).reshape(batch * self.heads, 1, count, self.points)
            gathered = gathered + (sampled * weight).sum(dim=-1)
        return self.out(gathered.view(batch, dim, count).transpose(1, 2))


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; each normalised after its residual, as in DETR."""

    def __init__(self, dim: int, heads: int, maps: int, points: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.cross_attention = DeformableAttention(dim, heads, maps, points)
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Tensor,
        where: Tensor,
        references: Tensor,
        maps: list[Tensor],
        geometry: Reference,
        bias: Tensor,
    ) -> Tensor:
        """where: [B, Q, D] encoding of the references; bias: [B * heads, Q, Q], added to how queries see each other."""
        placed = queries + where
        seen = self.self_attention(placed, placed, queries, attn_mask=bias, need_weights=False)[0]
        queries = self.norms[0](queries + self.dropout(seen))
        seen = self.cross_attention(queries + where, references, maps, geometry)
        queries = self.norms[1](queries + self.dropout(seen))
        return self.norms[2](queries + self.dropout(self.feed_forward(queries)))


@dataclass(frozen=True)
class Decoded:
    """All layers of a decoder. logits: [L, B, Q, C]; references: [L, B, Q, R]; states: [B, Q, D] after the last."""

    logits: Tensor
    references: Tensor
    states: Tensor


class QueryDecoder(nn.Module):
    """Layers that refine references and class logits step by step.

    The class logits of a layer are those of the seed plus what the layers so far have to add, which starts at zero: an
    untrained decoder repeats its seeds, and training can only be about doing better.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        reference: type[Reference],
        *,
        layers: int,
        maps: int,
        heads: int = 8,
        points: int = 4,
        hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.relation = nn.Sequential(nn.Linear(reference.relations, 16), nn.ReLU(), nn.Linear(16, heads))
        self.where = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads, maps, points, hidden or 4 * dim, dropout) for _ in range(layers)
        )
        self.class_heads = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(layers))
        self.reference_heads = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, reference.numbers)) for _ in range(layers)
        )
        for head in [*self.class_heads, *(h[-1] for h in self.reference_heads)]:  # type: ignore[index]
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def favour(self, level: int) -> None:
        """Start by looking at one of the maps as much as at all others together, in every layer."""
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            layer.cross_attention.favour(level)

    def forward(
        self,
        queries: Tensor,
        logits: Tensor,
        references: Tensor,
        maps: list[Tensor],
        geometry: Reference,
        blocked: Tensor | None = None,
    ) -> Decoded:
        """queries: [B, Q, D]; logits: [B, Q, C] and references: [B, Q, R] of the seeds; maps: [B, D, H, W] each;
        blocked: bool [Q, Q], True where i may not see j."""
        all_logits, all_references = [], []
        by_head = [m.reshape(-1, m.shape[1] // self.heads, *m.shape[2:]) for m in maps]
        # Of the seeds, once for all layers: references move little afterwards, and the pairs are many.
        bias = self.relation(geometry.relate(references)).permute(0, 3, 1, 2)
        if blocked is not None:
            bias = bias.masked_fill(blocked, -torch.inf)
        bias = bias.flatten(0, 1)
        for layer, class_head, reference_head in zip(self.layers, self.class_heads, self.reference_heads):
            where = self.where(geometry.encode(references, queries.shape[-1]))
            queries = layer(queries, where, references, by_head, geometry, bias)
            logits = logits + class_head(queries)
            refined = geometry.refine(references, reference_head(queries))
            all_logits.append(logits)
            all_references.append(refined)
            # The next layer starts from here but doesn't push its gradient through (Deformable DETR).
            logits, references = logits.detach(), refined.detach()
        return Decoded(torch.stack(all_logits), torch.stack(all_references), queries)


def blocked_pairs(count: int, extra: int, groups: int, device: torch.device) -> Tensor:
    """Which query must not see which, bool [Q, Q], Q = count + extra, for `extra` denoising queries behind the others,
    in `groups` groups of positives and as many of negatives: no query sees a denoising query, no denoising group sees
    another, so that nothing leaks the truth."""
    group = torch.full((count + extra,), -1, device=device)
    group[count:] = torch.arange(extra, device=device) // max(extra // (2 * groups), 1)
    noisy = group >= 0
    return noisy[None, :] & (group[:, None] != group[None, :])
