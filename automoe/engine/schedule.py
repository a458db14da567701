"""The learning rate of a step, as a pure function: linear warm-up, then half a cosine."""

from __future__ import annotations

import math

from torch.optim import Optimizer


def learning_rate_factor(step: int, *, total_steps: int, warmup_steps: int, final_factor: float) -> float:
    """What the peak learning rate is multiplied with at optimizer step `step` (from 0).

    It rises linearly to 1 at the last warm-up step, starts the cosine at 1, and is `final_factor` at the last step.
    Warm-up takes at most half of the run.
    """
    warmup_steps = min(warmup_steps, total_steps // 2)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    span = total_steps - 1 - warmup_steps
    done = min(1.0, (step - warmup_steps) / span) if span > 0 else 1.0
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * done)) / 2


def set_learning_rate(optimizer: Optimizer, factor: float, step: int = 0) -> None:
    """Give every parameter group its own peak (`initial_lr`) times `factor`; nothing to a group that is held still
    until a later step (`hold_steps`)."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor if step >= group.get("hold_steps", 0) else 0.0
