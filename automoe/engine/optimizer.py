"""AdamW, the parameters it decays, and the precision of the forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from automoe.errors import ConfigError


def default_param_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the parameters that train: weights with decay; biases, norms and scalars without."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    device: torch.device,
    param_groups: list[dict[str, Any]] | None = None,
) -> torch.optim.AdamW:
    """AdamW over `param_groups` (each may carry its own "lr", the peak, "weight_decay" and "hold_steps", until which
    it doesn't learn), or the default ones.

    Raises ConfigError if nothing would train.
    """
    groups = default_param_groups(module, weight_decay) if param_groups is None else param_groups
    if not any(len(list(group["params"])) for group in groups):
        raise ConfigError("The model has no parameter that requires a gradient: nothing would be trained.")
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=fused)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def uses_bf16(amp: str, device: torch.device) -> bool:
    """Whether `amp` ("auto", "bf16" or "off") means bfloat16 autocast on this device.

    "auto" leaves the CPU alone: bfloat16 halves the time of some networks there and slows others.
    """
    if amp == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return amp == "bf16"


def autocast(amp: str, device: torch.device) -> AbstractContextManager:
    """The context of a forward pass: bfloat16 autocast where `uses_bf16`, nothing elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if uses_bf16(amp, device) else nullcontext()
