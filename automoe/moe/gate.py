"""The gate: which experts a moment is worth, said before any of them has looked.

Experts here differ in kind and are frozen: there is nothing that equal use would train better. So the balance loss is
off by default and what an expert is worth is measured instead (`utility`): the gate is taught by how much the planning
loss falls when each expert is heard beside others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automoe.errors import ConfigError

SUPERVISION = ("none", "utility")


@dataclass(frozen=True)
class GateConfig:
    """top_k: experts that run at a moment. temperature: of the softmax over them; below 1 it is more decided.
    balance_weight: of the Switch loss that spreads use. supervision: `utility` teaches the gate the measured loss
    reductions, `none` leaves it to the planning loss. utility_weight, utility_temperature: of that lesson; a loss
    difference of the temperature makes an expert e times as likely. utility_share: of each batch, on which it is
    measured: that takes two plans for each expert, with it and without it. explore: share of training moments at which
    experts, from none to all, are drawn at random instead, so that the planner learns to hear any of them.

    Who drives sees a moment after the other: hold_seconds: how long what an expert saw is heard on while others look
    (`moe.propagation`), 0 for not at all. revisit: by how much its logit rises in each second that it doesn't look.
    hold_share: of training moments at which an expert that isn't chosen is heard all the same, as it is then.
    """

    top_k: int = 2
    temperature: float = 1.0
    balance_weight: float = 0.0
    supervision: str = "utility"
    utility_weight: float = 4.0
    utility_temperature: float = 0.05
    utility_share: float = 0.25
    explore: float = 0.5
    hold_seconds: float = 0.35
    revisit: float = 5.0
    hold_share: float = 0.75

    def __post_init__(self) -> None:
        if self.supervision not in SUPERVISION:
            raise ConfigError(f"gate.supervision is {self.supervision!r}; choose one of {', '.join(SUPERVISION)}.")
        if not self.temperature > 0 or not self.utility_temperature > 0:
            raise ConfigError("gate.temperature and gate.utility_temperature must be numbers above 0.")
        if not 0.0 < self.utility_share <= 1.0:
            raise ConfigError(f"gate.utility_share is {self.utility_share}; give a share above 0, at most 1.")
        if self.top_k < 1 or not 0.0 <= self.explore <= 1.0 or not 0.0 <= self.hold_share <= 1.0:
            raise ConfigError("gate.top_k must be 1 or more, gate.explore and gate.hold_share lie between 0 and 1.")
        if not (self.hold_seconds >= 0.0 and self.revisit >= 0.0):
            raise ConfigError("gate.hold_seconds and gate.revisit must be numbers from 0 on.")


class Routing(NamedTuple):
    """Of B moments and E experts: logits and probabilities [B, E], chosen bool [B, E], weights [B, E], the chosen
    ones' share of each other, 0 for the others."""

    logits: Tensor
    probabilities: Tensor
    chosen: Tensor
    weights: Tensor


class Gate(nn.Module):
    """Context vectors [B, D] to a `Routing`. Everything is computed in float32: close calls must not be rounding."""

    def __init__(self, config: GateConfig, dim: int, experts: int) -> None:
        super().__init__()
        if config.top_k > experts:
            raise ConfigError(
                f"gate.top_k is {config.top_k}, and there are {experts} experts; give {experts} at most, or name more."
            )
        self.config = config
        self.score = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, experts))

    def forward(self, context: Tensor, chosen: Tensor | None = None) -> Routing:
        """chosen: bool [B, E], to hear those experts instead of the best ones."""
        return self.route(self.logits(context), chosen)

    def logits(self, context: Tensor) -> Tensor:
        """[B, E]: what a router chooses by."""
        with torch.autocast(context.device.type, enabled=False):
            return self.score(context.float())

    def best(self, logits: Tensor, count: int | None = None, waited: Tensor | None = None) -> Tensor:
        """Of logits [B, E] the `count` best experts, `top_k` if not given: bool [B, E]. waited: [B, E], seconds since
        each has looked, where moments follow each other."""
        scaled = logits / self.config.temperature
        if waited is not None:
            scaled = scaled + self.config.revisit * waited
        return highest(scaled, min(count or self.config.top_k, logits.shape[1]))

    def route(self, logits: Tensor, chosen: Tensor | None = None) -> Routing:
        """What follows from logits [B, E]."""
        scaled = logits / self.config.temperature
        if chosen is None:
            chosen = self.best(logits)
        # Where nobody is heard there are no weights, and the softmax over nothing would be NaN.
        weights = scaled.masked_fill(~chosen, -torch.inf).softmax(dim=-1).nan_to_num(0.0)
        return Routing(logits, scaled.softmax(dim=-1), chosen, weights)


def balance_loss(routing: Routing) -> Tensor:
    """Switch Transformer's: E times the sum over experts of the share of choices that fell on each times its mean
    probability. 1 for even use, E where one expert has everything."""
    share = routing.chosen.float().mean(dim=0)
    share = share / share.sum().clamp(min=1e-9)
    return len(share) * (share * routing.probabilities.mean(dim=0)).sum()


def utility_loss(logits: Tensor, utility: Tensor, temperature: float) -> Tensor:
    """Cross entropy of the gate's logits [B, E] to the softmax of what each expert is worth [B, E], in units of the
    loss; lower where better experts get higher logits.

    Moments count by how much the best expert is worth more than the worst, up to 1: a light that turns green is seldom,
    and there hangs more on who looks than at a hundred moments before it.
    """
    utility = utility.float()
    at_stake = (utility.amax(dim=-1) - utility.amin(dim=-1)).clamp(max=1.0)
    wanted = (utility / temperature).softmax(dim=-1)
    return (at_stake * F.cross_entropy(logits.float(), wanted, reduction="none")).mean()


def highest(scores: Tensor, count: int) -> Tensor:
    """Which of scores [..., E] are the `count` highest of their row: bool [..., E]."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(count, dim=-1).indices, True)


def random_choice(
    count: int, experts: int, most: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """For each of `count` moments from none to `most` experts, drawn evenly: bool [count, E]."""
    order = torch.rand(count, experts, device=device, generator=generator).argsort(dim=-1).argsort(dim=-1)
    number = torch.randint(0, most + 1, (count, 1), device=device, generator=generator)
    return order < number
