"""The assembled model: context, then the gate, then the experts that it chose, then the planner.

One module and one state dict, experts included: a checkpoint drives with nothing else at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from automoe.config import from_dict
from automoe.data.sequences import ObservationBatch, SequenceConfig
from automoe.errors import ConfigError
from automoe.experts.pyramid import position_encoding
from automoe.moe.context import Context, ContextConfig, ContextEncoder
from automoe.moe.gate import Gate, GateConfig, Routing
from automoe.moe.ground import PLACE_FEATURES, CameraSpec, Ground, place_features
from automoe.moe.lights import Votes
from automoe.moe.planner import Plan, Planner, PlannerConfig
from automoe.moe.routers import Router
from automoe.moe.tokens import ExpertSpec, FrozenExpert, LiveTokens, TokenSource
from automoe.taxonomy import LIGHT_COLORS


@dataclass(frozen=True)
class DrivingConfig:
    """Everything that decides the model's shape; experts by name, none for a policy without them. camera: whose
    pictures it looks at; only who looks at none does without."""

    experts: dict[str, ExpertSpec] = field(default_factory=dict)
    context: ContextConfig = field(default_factory=ContextConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    camera: CameraSpec | None = None

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], where: str = "model") -> DrivingConfig:
        """From a checkpoint's or a config's plain values. Raises ConfigError."""
        return from_dict(cls, dict(plain), where)

    @property
    def looks(self) -> bool:
        """Whether pictures are looked at, by experts or by the stem."""
        return bool(self.experts) or not self.context.blind

    def plain(self) -> dict[str, Any]:
        """As JSON and checkpoints have it."""
        return asdict(self)


SPOT_FEATURES = 28
"""In which a place in the picture is told."""


class Adapter(nn.Module):
    """An expert's tokens in the planner's width, each seen together with its place, and who speaks: two parts of one
    scale, that of the context's tokens. Quiet tokens are not listened to, and what is not listened to doesn't learn."""

    def __init__(self, features: int, dim: int, ground: Ground) -> None:
        super().__init__()
        self.ground = ground
        self.norm = nn.LayerNorm(features)
        self.features = nn.Sequential(
            nn.Linear(features + SPOT_FEATURES + PLACE_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim), nn.LayerNorm(dim)
        )
        self.speaker = nn.Parameter(torch.randn(dim))

    def forward(self, features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """features [B, T, F] and positions [B, T, 2] in the picture to tokens [B, T, D] and places [B, T, 2], metres on
        the ground."""
        places = self.ground(positions)
        told = [self.norm(features), position_encoding(positions, SPOT_FEATURES), place_features(places)]
        return self.features(torch.cat(told, dim=-1)) + self.speaker, places


class Heard(NamedTuple):
    """What a planner is given to listen to: tokens [B, S, D], their places [B, S, 2], which of them are padding, since
    their expert was chosen for other moments alone, bool [B, S], None where nothing is, and what they tell of lights,
    None where nobody does."""

    tokens: Tensor
    places: Tensor
    absent: Tensor | None
    votes: Votes | None


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
        self.context = ContextEncoder(
            config.context, dim, config.sequence.past, config.camera, gated=bool(self.names), pretrained=pretrained
        )
        self.adapters = nn.ModuleDict({name: self._adapter(expert, dim) for name, expert in built.items()})
        self.gate = Gate(config.gate, dim, len(self.names)) if self.names else None
        self.tells_lights = {name for name, expert in built.items() if expert.model.tells_lights}
        self.planner = Planner(config.planner, config.sequence, told_lights=bool(self.tells_lights))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.planner.speeds.device

    def _adapter(self, expert: FrozenExpert, dim: int) -> Adapter:
        camera = self.config.camera
        if camera is None:
            raise ConfigError("a model with experts needs the camera: where what they see stands.")
        return Adapter(expert.dim(), dim, Ground(camera, expert.spec.size, expert.transform.matrix(*camera.size)))

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
            return self.planner(context, context.tokens, context.places), None
        routing = self.gate(context.vector) if router is None else router(self.gate, context.vector)
        heard = self.hear(context, pictures, routing, source or LiveTokens(self.experts))
        return self.planner(context, *heard), routing

    def hear(self, context: Context, pictures: list[Any], routing: Routing, source: TokenSource) -> Heard:
        """A context's own tokens and, after them, those of the experts that were chosen, as loud as their weights."""
        own = context.tokens
        heard, spoken_of = [own], [context.places]
        here = [torch.ones(own.shape[:2], dtype=torch.bool, device=own.device)]
        votes = [own.new_zeros(*own.shape[:2], len(LIGHT_COLORS))]
        telling = [torch.zeros_like(here[0])]
        for place, name in enumerate(self.names):
            chosen = routing.chosen[:, place]
            (rows,) = chosen.nonzero(as_tuple=True)
            if not len(rows):
                continue
            tokens = source(name, [pictures[row] for row in rows.tolist()])
            # A weight is the share among those that were chosen: 1 on average.
            loudness = routing.weights[rows, place] * routing.chosen[rows].sum(dim=1)
            adapted, places = self.adapters[name](tokens.features, tokens.positions)
            adapted = adapted * loudness[:, None, None]
            tells = name in self.tells_lights
            colors = tokens.features[..., -len(LIGHT_COLORS) :].to(own.dtype) * tells
            for kept, found in ((heard, adapted), (spoken_of, places), (votes, colors)):
                kept.append(found.new_zeros(len(own), *found.shape[1:]).index_copy(0, rows, found))
            here.append(chosen[:, None].expand(-1, adapted.shape[1]))
            telling.append(here[-1] & tells)
        present, told = torch.cat(here, dim=1), torch.cat(telling, dim=1)
        return Heard(
            torch.cat(heard, dim=1),
            torch.cat(spoken_of, dim=1),
            None if bool(present.all()) else ~present,
            Votes(torch.cat(votes, dim=1), told) if bool(told.any()) else None,
        )
