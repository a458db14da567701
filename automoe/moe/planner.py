"""The planner: queries that listen to tokens and say where to drive and how fast.

A path is where, whatever the speed; the target speed is a distribution over classes, since "go" and "stop" have no
sensible mean (as in TransFuser++). The path comes first: its queries look for what is where the sparse route suggests
to drive. How fast depends on what stands on that path, so the others look along it. Waypoints in time say both once
more: an auxiliary task, and a check. What is learnt of path and waypoints is how they differ from the curve that the
route suggests, at the present speed where that is told.
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
from automoe.moe.ground import PLACE_FEATURES, beside_path, place_features
from automoe.moe.lights import LightPointer, Votes

USUAL_SPEED = 5.0
"""m/s at which waypoints begin where the planner isn't told how fast it is."""

BEYOND = 4.0, 40.0
"""Metres from point to point, and in all, by which a path goes on as the route does, to look along."""

NEAR = (1.5, 3.0, 8.0, 60.0)
"""Metres within which attention heads listen to tokens round the place of a query of the path, before they have learnt
something, by turns: nobody finds a lane beside him who first has to find out what is beside him."""

BESIDE = (2.0, 6.0, 60.0, 60.0)
"""Metres beside the path, likewise, within which the other queries listen."""

NOWHERE = 2.0
"""So many of these reaches is away what has no place."""

FARTHEST = 60.0
"""Metres that a suggested way goes straight on where nothing more is told."""

SHARPEST = 1.6
"""Radians by which it turns at most up to its first point."""

PIECES = 16
"""Straight pieces that a curve between two points is made of."""


@dataclass(frozen=True)
class PlannerConfig:
    """dim: of all tokens. layers: of each of both decoders. speeds: the classes of the target speed, m/s. The weights
    are of the losses; those of path and waypoints are a metre's."""

    dim: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    speeds: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0)
    path_weight: float = 1.0
    waypoint_weight: float = 0.5
    speed_weight: float = 1.0
    light_weight: float = 1.0

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
    """A `Context` and tokens [B, S, D], its own and those of experts, to a `Plan`.

    told_lights: whether there are experts that tell the colours of lights. The target speed then knows which of them
    holds the car; where none of them is heard, that is guessed like all the rest.
    """

    speeds: Tensor
    times: Tensor
    metres: Tensor
    farther: Tensor
    apart: Tensor

    def __init__(self, config: PlannerConfig, sequence: SequenceConfig, *, told_lights: bool = False) -> None:
        super().__init__()
        self.config, self.sequence = config, sequence
        dim, points, times = config.dim, sequence.path_metres, len(sequence.waypoint_seconds)
        self.points = nn.Parameter(torch.randn(points, dim))
        self.queries = nn.Parameter(torch.randn(times + 2, dim))
        self.decode_path, self.decode_speed = _decoder(config), _decoder(config)
        self.place, self.beside = _place_encoder(dim), _place_encoder(dim)
        self.near, self.aside = _reaches(NEAR, config.heads), _reaches(BESIDE, config.heads)
        self.off = _silent(nn.Linear(dim, 2))
        self.hop = _silent(nn.Linear(dim, 2))
        self.pace = nn.Linear(dim, len(config.speeds))
        self.light = nn.Linear(dim, len(LIGHTS))
        self.pointer = LightPointer(dim) if told_lights else None
        self.holds = nn.Linear(len(LIGHTS), dim, bias=False) if told_lights else None
        self.register_buffer("speeds", torch.tensor(config.speeds), persistent=False)
        self.register_buffer("times", torch.tensor(sequence.waypoint_seconds), persistent=False)
        self.register_buffer("metres", torch.arange(1.0, points + 1.0), persistent=False)
        step, most = BEYOND
        self.register_buffer("farther", points + torch.arange(step, most + step, step), persistent=False)
        # What waypoints are told of the car's motion reaches nobody else.
        apart = torch.zeros(times + 2, times + 2, dtype=torch.bool)
        apart[times:, :times] = True
        self.register_buffer("apart", apart, persistent=False)

    def forward(
        self,
        context: Context,
        tokens: Tensor,
        places: Tensor,
        absent: Tensor | None = None,
        votes: Votes | None = None,
    ) -> Plan:
        """places: [B, S, 2], where on the ground tokens speak of, metres in the ego's frame, NaN for those of no place.
        absent: bool [B, S], tokens that are padding. votes: what tokens tell of lights, if any of them does."""
        reached = context.speed.nan_to_num(USUAL_SPEED)[:, None] * self.times
        metres = torch.cat([self.metres, self.farther]).expand(len(reached), -1)
        curve = route_curve(context.route, torch.cat([metres, reached], dim=1))
        ahead, beyond, hopped = curve.split([len(self.metres), len(self.farther), len(self.times)], dim=1)

        tokens = tokens + self._where(self.place, places)
        points = self.points + context.state[:, None] + self._where(self.place, ahead)
        away = torch.cdist(ahead, places.nan_to_num(0.0))
        away = away.masked_fill(places.isnan().any(dim=-1)[:, None], torch.nan)
        points = self.decode_path(points, tokens, memory_mask=_nearness(away, self.near, absent))
        path = ahead + self.off(points.float())

        last = path[:, -1:].detach()
        way = torch.cat([path.detach(), last + beyond - ahead[:, -1:]], dim=1)
        along = beside_path(way, places)
        tokens = torch.cat([tokens + self._where(self.beside, along), points], dim=1)
        if absent is not None:
            absent = torch.cat([absent, absent.new_zeros(points.shape[:2])], dim=1)
        away = torch.cat([along[..., 1].abs(), torch.zeros_like(ahead[..., 0])], dim=1)
        away = away[:, None].expand(-1, len(self.queries), -1)
        pointed, is_told, holds = self._pointed(context, tokens[:, : places.shape[1]], votes)
        told = context.moving[:, None].expand(-1, len(self.times), -1)
        queries = self.queries + torch.cat([told, (context.state + holds)[:, None], context.state[:, None]], dim=1)
        states = self.decode_speed(queries, tokens, self.apart, _nearness(away, self.aside, absent))
        hops, (pace, light) = states[:, :-2].float(), states[:, -2:].float().unbind(1)
        logits, guessed = self.pace(pace), self.light(light)
        return Plan(
            path,
            hopped + self.hop(hops).cumsum(dim=1),
            logits,
            (logits.softmax(dim=-1) * self.speeds).sum(dim=-1),
            torch.where(is_told[:, None], pointed, guessed),
        )

    def _pointed(self, context: Context, tokens: Tensor, votes: Votes | None) -> tuple[Tensor, Tensor, Tensor]:
        """By what is told of lights: logits [B, len(LIGHTS)], whether anything is, bool [B], and what the target speed
        makes of it, [B, D], nothing where it isn't."""
        if votes is None or self.pointer is None or self.holds is None:
            nothing = context.state.new_zeros(len(tokens), len(LIGHTS))
            return nothing, torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device), context.state * 0.0
        logits, told = self.pointer(context.state, tokens, votes), votes.told.any(dim=1)
        return logits, told, self.holds(logits.softmax(dim=-1)) * told[:, None]

    def _where(self, encoder: nn.Module, places: Tensor) -> Tensor:
        """What a token or a query of these places is told of them: nothing where a place is NaN."""
        return encoder(place_features(places)).masked_fill(places.isnan().any(dim=-1, keepdim=True), 0.0)


def _decoder(config: PlannerConfig) -> nn.TransformerDecoder:
    dim = config.dim
    layer = nn.TransformerDecoderLayer(
        dim, config.heads, 4 * dim, config.dropout, activation=F.silu, batch_first=True, norm_first=True
    )
    return nn.TransformerDecoder(layer, config.layers, nn.LayerNorm(dim))


def _reaches(metres: tuple[float, ...], heads: int) -> nn.Parameter:
    """The logarithms of as many reaches as there are heads, [heads]."""
    return nn.Parameter(torch.tensor([metres[head % len(metres)] for head in range(heads)]).log())


def _nearness(away: Tensor, reaches: Tensor, absent: Tensor | None) -> Tensor:
    """What is added to the attention of queries to tokens that are so many metres away [B, Q, S], NaN for those without
    a place, for each head: [B * heads, Q, S]. -inf for those that are absent, bool [B, S]."""
    placeless = away.isnan()[:, None]
    bias = -0.5 * (away.nan_to_num(0.0)[:, None] / reaches.exp()[:, None, None]).square()
    bias = bias.masked_fill(placeless, -0.5 * NOWHERE**2)
    if absent is not None:
        bias = bias.masked_fill(absent[:, None, None], -torch.inf)
    return bias.flatten(0, 1)


def _place_encoder(dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(PLACE_FEATURES, dim), nn.LayerNorm(dim))


def route_curve(route: Tensor, metres: Tensor) -> Tensor:
    """Where the way that a sparse route suggests is after some metres of it: [B, N, 2].

    route: [B, 2, 2], ego frame, metres. The way leaves straight ahead, as a circle would that passes the route's first
    point, and goes on to the second (cubic Hermite pieces); beyond it, and where a point is NaN, it goes straight on.
    metres: [B, N], from 0 on.
    """
    start = torch.zeros_like(route[:, 0])
    ahead = start.new_tensor([1.0, 0.0]).expand_as(start)
    first = torch.where(route[:, 0].isfinite(), route[:, 0], FARTHEST * ahead)
    far = first.norm(dim=-1, keepdim=True).clamp(min=0.1)
    # The heading in which a circle that leaves straight ahead reaches a point is twice the point's direction.
    turn = (2.0 * torch.atan2(first[:, 1], first[:, 0])).clamp(min=-SHARPEST, max=SHARPEST)
    arrival = torch.stack([turn.cos(), turn.sin()], dim=-1)
    onward = route[:, 1] - first
    reach = onward.norm(dim=-1, keepdim=True)
    known = reach.isfinite() & (reach > 0.5)  # a route's last point is said twice
    onward, reach = torch.where(known, onward, 10.0 * arrival), torch.where(known, reach, 10.0)
    heading = onward / reach
    line = torch.cat(
        [
            _hermite(start, ahead * far, first, arrival * far),
            _hermite(first, arrival * reach, first + onward, onward)[:, 1:],
            (first + onward + FARTHEST * heading)[:, None],
        ],
        dim=1,
    )
    along = torch.cat([torch.zeros_like(far), line.diff(dim=1).norm(dim=-1).cumsum(dim=1)], dim=1)
    after = torch.searchsorted(along, metres.contiguous(), right=True).clamp(min=1, max=along.shape[1] - 1)
    low, high = along.gather(1, after - 1), along.gather(1, after)
    share = ((metres - low) / (high - low).clamp(min=1e-6))[..., None]
    pairs = after[..., None].expand(-1, -1, 2)
    return line.gather(1, pairs - 1) * (1 - share) + line.gather(1, pairs) * share


def _hermite(start: Tensor, leaving: Tensor, end: Tensor, arriving: Tensor) -> Tensor:
    """Points [B, PIECES + 1, 2] of cubic curves from start to end, [B, 2] each, with those derivatives there."""
    s = torch.linspace(0.0, 1.0, PIECES + 1, device=start.device)[:, None]
    parts = (2 * s**3 - 3 * s**2 + 1, s**3 - 2 * s**2 + s, 3 * s**2 - 2 * s**3, s**3 - s**2)
    given = (start, leaving, end, arriving)
    return torch.stack([part * one[:, None] for part, one in zip(parts, given)]).sum(dim=0)


def _silent(layer: nn.Linear) -> nn.Linear:
    """A layer that says nothing before it has learnt something."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


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
