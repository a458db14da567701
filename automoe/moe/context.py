"""What is known before any expert has looked: the car's own state, the route, and a cheap look at the picture.

It is all that the gate may choose by, and the path that runs whatever the gate chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from automoe.data.sequences import AMBIENT, ROUTE_POINTS, ObservationBatch, batch_images
from automoe.errors import ConfigError
from automoe.experts.backbone import Backbone
from automoe.experts.pyramid import grid_tokens
from automoe.machine import cpu_has_bfloat16
from automoe.moe.ground import CameraSpec, Ground
from automoe.moe.tokens import Tokens, content_digest
from automoe.taxonomy import CARLA_COMMANDS

SPEED_SCALE, ROUTE_SCALE, ROUTE_FARTHEST = 10.0, 20.0, 60.0
"""m/s and metres that become 1, and metres beyond which a point of the route is as far as it gets."""


@dataclass(frozen=True)
class ContextConfig:
    """The stem and what is done to the car's state.

    size: of the stem's pictures, height and width. stride: of its only map. speed_dropout: how often, in training, the
    car's motion is hidden; speed_swap: how often the gate is told that of another moment of the batch instead: what
    is worth a look doesn't depend on how fast the car is, and in records it seems to, since a car that stands has
    nearly always the same before it. ambient: whether rain and darkness are told; ambient_dropout: how often, in
    training, they are not all the same, so that one model can be asked with them and without. motion_to_planner:
    whether path and target speed are told the car's motion: who sees how fast it is learns to go on like that; gate
    and waypoints always are, and who is blind is. map_to_planner: whether the planner is given the stem's map, too;
    without it the stem is for the gate alone, and what is seen is seen by experts. blind: whether there is no stem:
    the car's state and the route are all that is known.
    """

    backbone: str = "tf_efficientnet_lite0"
    norm: str = "folded"
    size: tuple[int, int] = (96, 128)
    stride: int = 16
    frozen_stages: int = 2
    speed_dropout: float = 0.3
    speed_swap: float = 0.5
    ambient: bool = True
    ambient_dropout: float = 0.3
    motion_to_planner: bool = False
    map_to_planner: bool = True
    blind: bool = False

    def __post_init__(self) -> None:
        if self.stride not in (8, 16, 32) or any(side <= 0 or side % self.stride for side in self.size):
            raise ConfigError(
                f"context.size is {list(self.size)}; give multiples of the stride {self.stride} (8, 16 or 32)."
            )
        for name in ("speed_dropout", "speed_swap", "ambient_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"context.{name} is {getattr(self, name)}; give a share from 0 to below 1.")


class Context(NamedTuple):
    """vector [B, D]: everything in one, for the gate, if there is one; moving, state [B, D]: what the car knows without
    looking, with its motion, for waypoints, and as path and target speed are told, with it or without; tokens [B, S,
    D]: the stem's map, where the planner is given that, and, last, the state; places [B, S, 2]: where on the ground
    they speak of, metres, NaN for the state; speed [B]: m/s, NaN where it is not known; route [B, ROUTE_POINTS, 2]:
    metres, NaN where there is none.

    A planner is given states and tokens. The vector holds a summary of the whole picture, by which places are easily
    recognised: who plans by it learns the training towns by heart.
    """

    vector: Tensor
    moving: Tensor
    state: Tensor
    tokens: Tensor
    places: Tensor
    speed: Tensor
    route: Tensor


class ContextEncoder(nn.Module):
    """Observations to a `Context` of width `dim`; past: earlier moments whose motion is known; camera: whose pictures
    they are, where the planner is given the stem's map; gated: whether there is a gate to be told something."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: ContextConfig,
        dim: int,
        past: int,
        camera: CameraSpec | None = None,
        *,
        gated: bool = True,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.gated = config, gated
        if not config.blind:
            self.stem = Backbone(
                config.backbone, pretrained=pretrained, norm=config.norm, frozen_stages=config.frozen_stages,
                out_strides=(config.stride,),
            )  # fmt: skip
            mean, std = (torch.tensor(value).view(1, 3, 1, 1) * 255 for value in (self.stem.mean, self.stem.std))
            self.register_buffer("mean", mean, persistent=False)
            self.register_buffer("std", std, persistent=False)
            if self.stem_is_frozen:
                self.stem.in_bfloat16 = cpu_has_bfloat16()
            channels = self.stem.channels[0]
            if config.map_to_planner:
                if camera is None:
                    raise ConfigError("context.map_to_planner needs the camera: where what is seen stands.")
                self.project = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, dim), nn.LayerNorm(dim))
                self.ground = Ground(camera, config.size)
            if gated:
                self.glance = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, dim))
        self.command = nn.Embedding(len(CARLA_COMMANDS) + 1, dim)  # the last one: nobody said
        told = 4 * (past + 1) + 3 * ROUTE_POINTS + 2 * len(AMBIENT)
        self.state = nn.Sequential(nn.Linear(told, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.settle = nn.LayerNorm(dim)
        if gated:
            self.join = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    @property
    def stem_is_frozen(self) -> bool:
        """Whether there is a stem, and it learns nothing."""
        return not self.config.blind and not any(one.requires_grad for one in self.stem.parameters())

    def look(self, images: Tensor) -> Tokens:
        """What the stem sees of pictures, uint8 [B, 3, h, w] of its size: a token for each cell of its map."""
        (feature_map,) = self.stem((images.float() - self.mean) / self.std)
        cells, positions = grid_tokens(feature_map)
        return Tokens(cells, positions.expand(len(cells), -1, -1))

    def forward(self, observation: ObservationBatch, seen: Tokens | None = None) -> Context:
        """seen: what the stem sees of the observation's pictures, where that is known; it looks if not given."""
        config = self.config
        motion = self._told(observation.motion, config.speed_dropout)
        moving = state = self._state(observation, motion)
        if not config.blind:
            seen = self.look(observation.image) if seen is None else seen
            if not config.motion_to_planner:
                state = self._state(observation, torch.full_like(motion, float("nan")))
        vector = moving
        if self.gated:
            swapped = self._swapped(motion)
            vector = moving if swapped is motion else self._state(observation, swapped)
            if seen is not None:
                vector = vector + self.glance(seen.features.mean(dim=1))
            vector = self.join(vector)
        tokens, places = state[:, None], torch.full_like(state[:, None, :2], float("nan"))
        if seen is not None and not config.blind and config.map_to_planner:
            tokens = torch.cat([self.project(seen.features), tokens], dim=1)
            places = torch.cat([self.ground(seen.positions).expand(len(state), -1, -1), places], dim=1)
        return Context(vector, moving, state, tokens, places, motion[:, -1, 0], observation.route)

    def _state(self, observation: ObservationBatch, motion: Tensor) -> Tensor:
        """What the car knows without looking, given so much of its motion: [B, D]."""
        command = observation.command.clamp(min=-1) % self.command.num_embeddings
        return self.settle(self.state(self._numbers(motion, observation)) + self.command(command))

    def _told(self, values: Tensor, dropout: float) -> Tensor:
        """Values [B, ...], in training hidden from that share of the samples."""
        if not (self.training and dropout > 0.0):
            return values
        hidden = torch.rand(len(values), *[1] * (values.dim() - 1), device=values.device) < dropout
        return values.masked_fill(hidden, float("nan"))

    def _swapped(self, motion: Tensor) -> Tensor:
        """Motion [B, past + 1, 2], in training for a share of the samples another one's of the batch."""
        if not (self.training and self.config.speed_swap > 0.0):
            return motion
        swapped = torch.rand(len(motion), 1, 1, device=motion.device) < self.config.speed_swap
        return torch.where(swapped, motion[torch.randperm(len(motion), device=motion.device)], motion)

    def _numbers(self, motion: Tensor, observation: ObservationBatch) -> Tensor:
        """The car's state, each number with whether it is known: [B, N]."""
        motion = motion / motion.new_tensor([SPEED_SCALE, 1.0])
        route = observation.route
        distance = route.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        route = route * (ROUTE_FARTHEST / distance).clamp(max=1.0) / ROUTE_SCALE
        ambient = observation.ambient if self.config.ambient else torch.full_like(observation.ambient, float("nan"))
        ambient = self._told(ambient, self.config.ambient_dropout)
        return torch.cat(
            [_with_known(motion.flatten(1)), route.nan_to_num(0.0).flatten(1), route[..., 0].isfinite().float(),
             _with_known(ambient)],
            dim=1,
        )  # fmt: skip


def _with_known(values: Tensor) -> Tensor:
    """[B, N] with 0 for NaN, and beside them which are known: [B, 2 N]."""
    return torch.cat([values.nan_to_num(0.0), values.isfinite().to(values.dtype)], dim=1)


class FrozenStem:
    """An encoder's stem that learns no more, as a cache is filled from it."""

    def __init__(self, encoder: ContextEncoder) -> None:
        self.encoder = encoder

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray]) -> Tokens:
        """pictures: uint8 [h, w, 3] RGB, of any sizes."""
        return self.encoder.look(batch_images(pictures, self.encoder.config.size).to(self.encoder.mean.device))

    def digest(self) -> str:
        """A hash of everything that decides what it sees: 64 hexadecimal digits."""
        config, stem = self.encoder.config, self.encoder.stem
        told = ("stem", config.backbone, config.norm, config.size, config.stride, stem.mean, stem.std, stem.in_bfloat16)
        return content_digest(told, stem)
