"""The assembled model: context, then the gate, then the experts that it chose, then the planner.

One module and one state dict, experts included: a checkpoint drives with nothing else at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from automoe.config import from_dict
from automoe.data.sequences import ObservationBatch, SequenceConfig
from automoe.errors import ConfigError
from automoe.experts.pyramid import position_encoding
from automoe.moe.context import Context, ContextConfig, ContextEncoder
from automoe.moe.gate import Gate, GateConfig, Routing
from automoe.moe.planner import Plan, Planner, PlannerConfig
from automoe.moe.routers import Router
from automoe.moe.tokens import ExpertSpec, FrozenExpert, LiveTokens, TokenSource


@dataclass(frozen=True)
class DrivingConfig:
    """Everything that decides the model's shape; experts by name, none for a policy without them."""

    experts: dict[str, ExpertSpec] = field(default_factory=dict)
    context: ContextConfig = field(default_factory=ContextConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], where: str = "model") -> DrivingConfig:
        """From a checkpoint's or a config's plain values. Raises ConfigError."""
        return from_dict(cls, dict(plain), where)

    def plain(self) -> dict[str, Any]:
        """As JSON and checkpoints have it."""
        return asdict(self)


class Adapter(nn.Module):
    """An expert's tokens in the planner's width, with where they speak of and who speaks: three parts of one scale,
    that of the context's tokens. Quiet tokens are not listened to, and what is not listened to doesn't learn."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim), nn.LayerNorm(dim)
        )
        self.position = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.speaker = nn.Parameter(torch.randn(dim))
        self.dim = dim

    def forward(self, features: Tensor, positions: Tensor) -> Tensor:
        """features [B, T, F] and positions [B, T, 2] to [B, T, D]."""
        return self.features(features) + self.position(position_encoding(positions, self.dim)) + self.speaker


class DrivingModel(nn.Module):
    """Observations to a plan. Experts that the gate doesn't choose are not asked: per moment, in training and in use.

    experts: frozen ones, by the config's names; built without weights, to be loaded, if not given.
    """

    def __init__(
        self, config: DrivingConfig, experts: Mapping[str, FrozenExpert] | None = None, *, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        built = {name: FrozenExpert(spec) for name, spec in config.experts.items()} if experts is None else experts
        if list(built) != list(config.experts):
            raise ConfigError(f"experts are {', '.join(built)}, where the config names {', '.join(config.experts)}.")
        self.names = tuple(config.experts)
        self.experts = nn.ModuleDict(built)
        dim = config.planner.dim
        self.context = ContextEncoder(config.context, dim, config.sequence.past, pretrained=pretrained)
        self.adapters = nn.ModuleDict({name: Adapter(expert.dim(), dim) for name, expert in built.items()})
        self.gate = Gate(config.gate, dim, len(self.names)) if self.names else None
        self.planner = Planner(config.planner, config.sequence)

    def forward(
        self, observation: ObservationBatch, source: TokenSource | None = None, router: Router | None = None
    ) -> tuple[Plan, Routing | None]:
        """source: who knows the experts' tokens of the observation's pictures; the model's own experts if not given.
        router: who decides which experts are heard; the model's gate if not given."""
        return self.decide(self.context(observation), observation.pictures, source, router)

    def decide(
        self, context: Context, pictures: list[Any], source: TokenSource | None = None, router: Router | None = None
    ) -> tuple[Plan, Routing | None]:
        """What follows from a context, whatever else is made of it; arguments as of `forward`."""
        if self.gate is None:
            return self.planner(context, context.tokens), None
        routing = self.gate(context.vector) if router is None else router(self.gate, context.vector)
        tokens, absent = self.hear(context.tokens, pictures, routing, source or LiveTokens(self.experts))
        return self.planner(context, tokens, absent), routing

    def hear(
        self, own: Tensor, pictures: list[Any], routing: Routing, source: TokenSource
    ) -> tuple[Tensor, Tensor | None]:
        """A context's own tokens [B, S, D] and, after them, those of the experts that were chosen, as loud as their
        weights: [B, S', D], and which of them are padding, since their expert was chosen for other moments alone: bool
        [B, S'], None where nothing is."""
        heard, here = [own], [torch.ones(own.shape[:2], dtype=torch.bool, device=own.device)]
        for place, name in enumerate(self.names):
            chosen = routing.chosen[:, place]
            (rows,) = chosen.nonzero(as_tuple=True)
            if not len(rows):
                continue
            tokens = source(name, [pictures[row] for row in rows.tolist()])
            # A weight is the share among those that were chosen: 1 on average.
            loudness = routing.weights[rows, place] * routing.chosen[rows].sum(dim=1)
            adapted = self.adapters[name](tokens.features, tokens.positions) * loudness[:, None, None]
            heard.append(adapted.new_zeros(len(own), *adapted.shape[1:]).index_copy(0, rows, adapted))
            here.append(chosen[:, None].expand(-1, adapted.shape[1]))
        present = torch.cat(here, dim=1)
        return torch.cat(heard, dim=1), None if bool(present.all()) else ~present
