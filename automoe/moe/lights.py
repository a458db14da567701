"""Which light holds the car: one is pointed at, and what counts is the colour that its expert tells.

A pointer (Vinyals et al., 2015) can learn nothing else than which of the lights to go by: it has places and sizes to
choose by, and no way of its own from a place to a colour. A network that may combine everything learns by heart instead
in which pictures of its training set the light was red.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from automoe.taxonomy import LIGHT_COLORS


class Votes(NamedTuple):
    """What tokens [B, S] tell of lights. colors: [B, S, len(LIGHT_COLORS)], how likely each is a light of a colour, in
    all at most 1; told: bool [B, S], which of them are those of an expert that tells colours."""

    colors: Tensor
    told: Tensor


class LightPointer(nn.Module):
    """States [B, D], tokens [B, S, D] and what they tell to logits of LIGHT_COLORS, the light's that holds the car, [B,
    len(LIGHT_COLORS)]; of no use for a moment at which nobody tells anything."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.nothing = nn.Parameter(torch.zeros(()))
        """Pointed at where none of them is meant."""
        self.unsaid = nn.Parameter(torch.zeros(len(LIGHT_COLORS)))
        """Logits of what holds, that nobody told: of the share of a token that is no light, and of nothing."""
        self.sharpness = nn.Parameter(torch.ones(()))

    def forward(self, state: Tensor, tokens: Tensor, votes: Votes) -> Tensor:
        columns = votes.told.any(dim=0)
        tokens, colors, told = tokens[:, columns], votes.colors[:, columns].float(), votes.told[:, columns]
        scores = (self.key(tokens) * self.query(state)[:, None]).sum(dim=-1) / tokens.shape[-1] ** 0.5
        scores = scores.float().masked_fill(~told, -torch.inf)
        shares = torch.cat([scores, self.nothing.expand(len(scores), 1)], dim=1).softmax(dim=1)
        unsaid = self.unsaid.softmax(dim=0)
        said = colors + (1.0 - colors.sum(dim=-1, keepdim=True)).clamp(min=0.0) * unsaid
        said = torch.cat([said, unsaid.expand(len(said), 1, -1)], dim=1)
        found = (shares[..., None] * said).sum(dim=1)
        return self.sharpness * found.clamp(min=1e-4).log()
