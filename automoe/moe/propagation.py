"""What an expert saw is heard on for a moment while others look.

Ten times a second most of a picture is as it was; what has changed is where it is, since the car has moved. So features
are carried from the picture that they were seen in to the present one, as in Deep Feature Flow (Zhu et al., 2017), but
by the car's own motion over a flat road instead of by optical flow: a planner then hears more experts than have run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from automoe.data.sequences import Observation, batch_observations
from automoe.engine.loader import to_device
from automoe.moe.gate import Gate, Routing
from automoe.moe.ground import STILL, Motion, beside_path, moved
from automoe.moe.model import Adapter, DrivingModel
from automoe.moe.planner import Plan
from automoe.moe.routers import Router, learned
from automoe.moe.tokens import FrozenExpert, LiveTokens, Tokens

LONGEST_WAIT = 1.0
"""Seconds that an expert is said to have waited at most, and that one has who has never looked; if a moment comes so
long after the last one, nothing is known any more."""

SURE = 0.5
"""How likely a token must be a thing on the road to be in the way."""


@dataclass
class Sighting:
    """What an expert saw `age` seconds ago, and how the ego has moved since."""

    tokens: Tokens
    age: float = 0.0
    motion: Motion = STILL

    def move(self, seconds: float, speed: float, yaw_rate: float) -> None:
        """The car goes on for so long, m/s and radians a second."""
        self.motion = moved(self.motion, speed * seconds, yaw_rate * seconds)
        self.age += seconds


class Propagation:
    """Of one drive with a model: its `TokenSource`, and by `route` its `Router`. After a `plan`, `ran` is who looked.
    router: who decides that, the model's gate if not given; hold_seconds: for how long an expert is heard on, as the
    gate's config says if not given. `heard` is what all said who were heard."""

    def __init__(self, model: DrivingModel, router: Router | None = None, hold_seconds: float | None = None) -> None:
        self.model, self.router, self.source = model, router or learned(), LiveTokens(model.experts)
        self.hold_seconds = model.config.gate.hold_seconds if hold_seconds is None else hold_seconds
        self.ran: tuple[str, ...] = ()
        self.heard: dict[str, Tokens] = {}
        self._sightings: dict[str, Sighting] = {}
        self._time: float | None = None

    def plan(self, observation: Observation) -> tuple[Plan, Routing | None]:
        """What the model plans at the next moment of the drive, on the model's device."""
        self._go_on(observation)
        self.heard = {}
        batch = to_device(batch_observations([observation], self.model.config.context.size), self.model.device)
        return self.model(batch, self, self.route)

    def _go_on(self, observation: Observation) -> None:
        """The car has moved; where time or motion isn't known, what was seen is forgotten."""
        speed, yaw_rate = (float(one) for one in observation.motion[-1])
        seconds = math.inf if self._time is None else observation.time - self._time
        self._time = observation.time
        if not (0.0 <= seconds <= LONGEST_WAIT and math.isfinite(speed)):
            self.forget()
        for sighting in self._sightings.values():
            sighting.move(seconds, speed, yaw_rate if math.isfinite(yaw_rate) else 0.0)

    def forget(self) -> None:
        """Everything that was seen."""
        self._sightings.clear()
        self.ran, self.heard = (), {}

    def route(self, gate: Gate, context: Tensor, waited: Tensor | None = None) -> Routing:
        """Of one moment: those whom the router chooses, who will look, and those who have looked a moment ago."""
        names = self.model.names
        kept = [self._sightings.get(name) for name in names]
        since = [LONGEST_WAIT if one is None else min(one.age, LONGEST_WAIT) for one in kept]
        # Who would not be heard on is not missed when others look.
        routing = self.router(gate, context, context.new_tensor([since]) if self.hold_seconds > 0.0 else None)
        chosen = routing.chosen[0].tolist()
        self.ran = tuple(name for name, looks in zip(names, chosen) if looks)
        held = [one is not None and one.age < self.hold_seconds for one in kept]
        heard = routing.chosen | torch.tensor([held], device=context.device)
        return gate.route(routing.logits, heard)

    def __call__(self, expert: str, pictures: Sequence[Any]) -> Tokens:
        if expert in self.ran:
            tokens = self.source(expert, pictures)
            self._sightings[expert] = Sighting(tokens)
        else:
            seen = self._sightings[expert]
            positions = self._adapter(expert).ground.after(seen.tokens.positions, seen.motion)
            tokens = Tokens(seen.tokens.features, positions)
        self.heard[expert] = tokens
        return tokens

    def in_the_way(self, path: Tensor) -> Tensor | None:
        """What stands on the road as those tell it who were heard at the last moment, seen from a path [M, 2]: metres
        along it and to its left, [N, 2]. None where nobody was heard who tells such things."""
        found = []
        for name, tokens in self.heard.items():
            expert = self.model.experts[name]
            assert isinstance(expert, FrozenExpert)
            likely = expert.model.things(tokens.features[0])
            if likely is not None:
                places = self._adapter(name).ground(tokens.positions[0, likely > SURE])
                found.append(beside_path(path[None].float(), places[None])[0])
        return torch.cat(found) if found else None

    def _adapter(self, expert: str) -> Adapter:
        adapter = self.model.adapters[expert]
        assert isinstance(adapter, Adapter)
        return adapter
