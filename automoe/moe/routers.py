"""Who decides which experts are heard: the gate as it was trained, or something to compare it with.

A router turns the gate and context vectors [B, D] into a `Routing`; a model takes one in place of its own. Where
moments follow each other it is told, too, how long each expert hasn't looked, seconds [B, E].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from automoe.errors import ConfigError
from automoe.moe.gate import Gate, Routing, highest


class Router(Protocol):
    """See above."""

    def __call__(self, gate: Gate, context: Tensor, waited: Tensor | None = None) -> Routing: ...


def learned(top_k: int | None = None) -> Router:
    """The gate's own choice; top_k: of so many experts instead of as many as it was trained for."""

    def router(gate: Gate, context: Tensor, waited: Tensor | None = None) -> Routing:
        logits = gate.logits(context)
        return gate.route(logits, gate.best(logits, top_k, waited))

    return router


def given(chosen: Tensor) -> Router:
    """Those that `chosen`, bool [B, E], says, as loud as the gate would have them."""
    return lambda gate, context, waited=None: gate(context, chosen)


def fixed(names: Sequence[str], experts: Sequence[str]) -> Router:
    """Always the experts of those names, nobody for none. Raises ConfigError for one that isn't there."""
    unknown = [name for name in names if name not in experts]
    if unknown:
        raise ConfigError(
            f"there is no expert {unknown[0]!r}; there are {', '.join(experts) or 'none'}, to be joined by +. Or say "
            "gate[:K], random[:K], uniform or nobody."
        )
    always = torch.tensor([name in names for name in experts])
    return lambda gate, context, waited=None: gate(context, always.to(context.device).expand(len(context), -1))


def uniform() -> Router:
    """All experts, equally loud: no gate at all."""

    def router(gate: Gate, context: Tensor, waited: Tensor | None = None) -> Routing:
        logits = torch.zeros_like(gate.logits(context))
        return gate.route(logits, torch.ones_like(logits, dtype=torch.bool))

    return router


RESERVED = ("gate", "random", "uniform", "nobody")
"""What no expert may be named."""


HOLD = ",hold="


def named(said: str, experts: Sequence[str], seed: int = 0) -> tuple[Router, float | None]:
    """A router by what a person says: `gate`, `gate:1` (its best one), `uniform`, `random:2`, `nobody`, or the names of
    experts joined by `+`; and for how many seconds experts are heard on that don't look, `gate:2,hold=0`, None if that
    isn't said. Raises ConfigError for anything else, and where there are no experts to choose from."""
    if not experts:
        raise ConfigError(f"{said!r} chooses experts, and the checkpoint is of a policy without any.")
    choice, holds, number = said.partition(HOLD)
    try:
        hold = float(number) if holds else None
    except ValueError:
        hold = math.nan
    if hold is not None and not 0.0 <= hold < math.inf:
        raise ConfigError(f"{said!r}: what follows {HOLD!r} must be a number of seconds, from 0 on.")
    return _chooser(choice, experts, seed), hold


def _chooser(said: str, experts: Sequence[str], seed: int) -> Router:
    kind, _, number = said.partition(":")
    if kind == "uniform" and not number:
        return uniform()
    if kind in ("gate", "random") and (number.isdigit() or not number):
        count = int(number) if number else None
        if count is not None and not 1 <= count <= len(experts):
            raise ConfigError(f"{said!r} asks for {count} of {len(experts)} experts.")
        return learned(count) if kind == "gate" else drawn(count or 1, seed)
    return fixed([] if said == "nobody" else said.split("+"), experts)


def drawn(top_k: int, seed: int) -> Router:
    """So many experts, drawn anew at every moment; the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)

    def router(gate: Gate, context: Tensor, waited: Tensor | None = None) -> Routing:
        logits = torch.zeros_like(gate.logits(context))
        return gate.route(logits, highest(torch.rand(logits.shape, generator=generator).to(logits.device), top_k))

    return router
