"""Experts by name. One decorator registers a builder; a checkpoint's `kind` finds it again."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from automoe.errors import ConfigError

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register_expert(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a builder (config dict, `pretrained` flag -> module) under `name`."""

    def decorate(builder: Callable[..., Any]) -> Callable[..., Any]:
        _BUILDERS[name] = builder
        return builder

    return decorate


def expert_names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_BUILDERS)


def build_expert(name: str, config: dict[str, Any], *, pretrained: bool) -> Any:
    """The expert `name` from its model config. pretrained: load the backbone's ImageNet weights (a fresh start)."""
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(expert_names())}."
        raise ConfigError(f"no expert is registered as {name!r}{hint}")
    return _BUILDERS[name](config, pretrained=pretrained)
