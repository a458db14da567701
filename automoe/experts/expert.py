"""What every image expert offers beside its pure `forward`, so that training, scoring and prediction are one code.

A new expert is one file: a module with these methods, registered by name (`registry.py`), and a JSON config.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

CountReducer = Callable[[int], float]
"""Turns this process's count (of boxes, of pixels) into the mean over all processes."""


class ImageExpert(nn.Module, ABC):
    """A frozen-able specialist for one task on single images.

    kind: its registered name. classes: what its labels mean. metric: the key that selects best.pth. headline: the
    metrics that a person looks at first.
    """

    kind: str
    classes: tuple[str, ...]
    metric: str
    headline: tuple[str, ...]
    mean: Tensor
    std: Tensor

    def set_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Keep the backbone's normalisation with the module, so that it moves with it and travels in no state dict."""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] RGB to what the backbone was pretrained with, float32."""
        return (images.float() - self.mean) / self.std

    @abstractmethod
    def make_criterion(self, reduce_count: CountReducer) -> Callable[[Any, Mapping[str, Any]], dict[str, Tensor]]:
        """The loss: called with this model and a training batch, it runs the model and returns scalars with `loss`."""

    @abstractmethod
    def predict(self, images: Tensor, transform: Tensor, orig_size: Tensor) -> list[dict[str, Tensor]]:
        """Predictions in raw pixels, one dict an image, on the CPU.

        images: uint8 [B, 3, H, W]; transform: [B, 2, 3] raw pixel -> network pixel; orig_size: [B, 2] height, width.
        """

    @abstractmethod
    def make_metrics(self) -> Any:
        """An empty accumulator of this task's official metrics, with `state`, `merge` and `compute`."""

    @abstractmethod
    def add_to_metrics(self, metrics: Any, sample_id: str, prediction: Mapping[str, Tensor], truth: Any) -> None:
        """Score one image: a prediction of `predict` against the prepared row (`data.dataset.PreparedRow`)."""

    @abstractmethod
    def summarise(self, metrics: Any) -> dict[str, float | None]:
        """All metrics in percent under the official names, and what this expert has to add."""


class ExpertStep(nn.Module):
    """What the engine trains: a batch in, losses out. Lives in DDP as one module, so that forwards are synchronised."""

    def __init__(self, model: ImageExpert, reduce_count: CountReducer) -> None:
        super().__init__()
        self.model = model
        self.criterion = model.make_criterion(reduce_count)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch: see `data.dataset.collate`."""
        return self.criterion(self.model, batch)
