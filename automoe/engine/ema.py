"""An exponential moving average of a model's weights: what is evaluated and saved as best.pth."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """A copy of `model` in eval mode whose parameters and floating-point buffers trail the original's.

    After update t (from 1) the copy is decay_t * copy + (1 - decay_t) * model, with decay_t = min(decay, (1 + t) /
    (10 + t)), so that early averages forget the initialisation (as in TensorFlow's ExponentialMovingAverage).
    Integer buffers, such as batch norm's counter, are copied. What learns nothing from the beginning on stays as it is,
    to the last bit: an average would make 0.0 of -0.0, and what is kept under a hash of weights would not be found.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._frozen = [not parameter.requires_grad for parameter in model.parameters()]
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move a little towards `model`, which must have the structure of the original."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, values = [], []
        for average, parameter, frozen in zip(self.model.parameters(), model.parameters(), self._frozen, strict=True):
            if not frozen or parameter.requires_grad:
                averages.append(average)
                values.append(parameter.detach())
        for average, value in zip(self.model.buffers(), model.buffers(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
