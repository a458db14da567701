"""The planner: queries that listen to tokens and say where to drive and how fast.

A path is where, whatever the speed; the target speed is a distribution over classes, since "go" and "stop" have no
sensible mean (as in TransFuser++). Waypoints in time say both once more: an auxiliary task, and a check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automoe.data.sequences import LIGHTS, SequenceConfig, TargetsBatch
from automoe.errors import ConfigError
from automoe.moe.context import Context


@dataclass(frozen=True)
class PlannerConfig:
    """dim: of all tokens. speeds: the classes of the target speed, m/s. The weights are of the losses; those of path
    and waypoints are a metre's."""

    dim: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    speeds: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0)
    path_weight: float = 1.0
    waypoint_weight: float = 0.5
    speed_weight: float = 1.0
    light_weight: float = 0.5

    def __post_init__(self) -> None:
        if len(self.speeds) < 2 or self.speeds[0] != 0.0 or sorted(set(self.speeds)) != list(self.speeds):
            raise ConfigError("planner.speeds must be two or more rising numbers, the first of them 0.")
        if self.dim % (4 * self.heads):
            raise ConfigError(f"planner.dim is {self.dim}; give a multiple of {4 * self.heads}.")


class Plan(NamedTuple):
    """path [B, M, 2] and waypoints [B, T, 2], ego frame, metres; speed_logits [B, S]; speed [B], their mean, m/s;
    light_logits [B, len(LIGHTS)]."""

    path: Tensor
    waypoints: Tensor
    speed_logits: Tensor
    speed: Tensor
    light_logits: Tensor


class Planner(nn.Module):
    """A `Context` and tokens [B, S, D], its own and those of experts, to a `Plan`."""

    speeds: Tensor
    times: Tensor

    def __init__(self, config: PlannerConfig, sequence: SequenceConfig) -> None:
        super().__init__()
        self.config, self.sequence = config, sequence
        dim, points, times = config.dim, sequence.path_metres, len(sequence.waypoint_seconds)
        self.queries = nn.Parameter(torch.randn(points + times + 2, dim) * 0.02)
        layer = nn.TransformerDecoderLayer(
            dim, config.heads, 4 * dim, config.dropout, activation=F.silu, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, config.layers, nn.LayerNorm(dim))
        self.step = nn.Linear(dim, 2)
        self.hop = nn.Linear(dim, 2)
        self.pace = nn.Linear(dim, len(config.speeds))
        self.light = nn.Linear(dim, len(LIGHTS))
        self.register_buffer("speeds", torch.tensor(config.speeds), persistent=False)
        self.register_buffer("times", torch.tensor(sequence.waypoint_seconds), persistent=False)

    def forward(self, context: Context, tokens: Tensor, absent: Tensor | None = None) -> Plan:
        """absent: bool [B, S], tokens that are padding."""
        points = self.sequence.path_metres
        queries = self.queries + context.state[:, None]
        states = self.decoder(queries, tokens, memory_key_padding_mask=absent).float()
        path, hops, (pace, light) = states[:, :points], states[:, points:-2], states[:, -2:].unbind(1)
        # Straight on unless something is said, a metre after a metre, and at the speed that the car has: errors are
        # those of a bend or a change, not of a place.
        ahead = states.new_tensor([1.0, 0.0])
        reached = context.speed[:, None, None] * self.times[:, None] * ahead
        logits = self.pace(pace)
        return Plan(
            (self.step(path) + ahead).cumsum(dim=1),
            self.hop(hops).cumsum(dim=1) + reached,
            logits,
            (logits.softmax(dim=-1) * self.speeds).sum(dim=-1),
            self.light(light),
        )


def two_hot(values: Tensor, classes: Tensor) -> Tensor:
    """Numbers [B] as weights [B, S] of the two rising classes [S] that they lie between, whose mean they are; beyond
    the last one they are the last one's."""
    values = values.clamp(min=float(classes[0]), max=float(classes[-1]))
    upper = torch.searchsorted(classes, values.contiguous()).clamp(min=1, max=len(classes) - 1)
    low, high = classes[upper - 1], classes[upper]
    share = (values - low) / (high - low)
    weights = torch.zeros(len(values), len(classes), device=values.device)
    weights.scatter_(1, (upper - 1)[:, None], (1 - share)[:, None])
    return weights.scatter_(1, upper[:, None], share[:, None])


def planning_losses(plan: Plan, targets: TargetsBatch, planner: Planner) -> dict[str, Tensor]:
    """Of each sample [B]: path, waypoints (mean absolute metres), speed, light (cross entropies), weighted, and their
    sum `loss`. What isn't known teaches nothing."""
    config = planner.config
    wanted = two_hot(targets.speed.nan_to_num(0.0), planner.speeds)
    speed = -(wanted * plan.speed_logits.log_softmax(dim=-1)).sum(dim=-1) * targets.speed.isfinite()
    seen = targets.light >= 0
    light = F.cross_entropy(plan.light_logits, targets.light.clamp(min=0), reduction="none") * seen
    losses = {
        "path": _mean_known((plan.path - targets.path).abs().sum(dim=-1), targets.path_known) * config.path_weight,
        "waypoints": _mean_known((plan.waypoints - targets.waypoints).abs().sum(dim=-1), targets.waypoints_known)
        * config.waypoint_weight,
        "speed": speed * config.speed_weight,
        "light": light * config.light_weight,
    }
    losses["loss"] = torch.stack(list(losses.values())).sum(dim=0)
    return losses


def mean_losses(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The means over a batch."""
    return {key: value.mean() for key, value in losses.items()}


def _mean_known(values: Tensor, known: Tensor) -> Tensor:
    """The mean over those of [B, N] that are known: [B], 0 where none is."""
    return (values * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)
