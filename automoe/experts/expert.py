"""What every expert offers beside its pure `forward`, so that training, scoring and prediction are one code.

A new expert is one file: a module with these methods, registered by name (`registry.py`), and a JSON config.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from automoe.experts.backbone import Backbone

CountReducer = Callable[[int], float]
"""Turns this process's count (of boxes, of pixels) into the mean over all processes, as if there were one at least:
losses are divided by it."""


class Expert(nn.Module, ABC):
    """A frozen-able specialist for one task.

    kind: its registered name. classes: what its labels mean. metric: the key that selects best.pth. headline: the
    metrics that a person looks at first. decimals: of metrics, where they are shown. inputs: the entries of a batch
    that `predict_batch` reads.
    """

    kind: str
    classes: tuple[str, ...]
    metric: str
    headline: tuple[str, ...]
    decimals: int = 1
    inputs: tuple[str, ...]

    @abstractmethod
    def make_criterion(self, reduce_count: CountReducer) -> Callable[[Any, Mapping[str, Any]], dict[str, Tensor]]:
        """The loss: called with this model and a training batch, it runs the model and returns scalars with `loss`."""

    def normalisation(self) -> dict[str, Any]:
        """What is done to colours, for a checkpoint's `preprocess`; nothing where there are no pictures."""
        return {}

    def set_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Take colours as a checkpoint's `normalisation` tells."""
        raise NotImplementedError(f"the {self.kind} expert has no pictures")

    @abstractmethod
    def predict_batch(self, batch: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """Predictions for a collated batch that was not augmented, in the task's raw coordinates: one dict a sample, on
        the CPU."""

    @abstractmethod
    def make_metrics(self) -> Any:
        """An empty accumulator of this task's official metrics, with `state`, `merge` and `compute`."""

    @abstractmethod
    def add_to_metrics(self, metrics: Any, sample_id: str, prediction: Mapping[str, Tensor], truth: Any) -> None:
        """Score one sample: its prediction against the prepared row."""

    @abstractmethod
    def summarise(self, metrics: Any) -> dict[str, float | None]:
        """All metrics under the official names and in their unit, and what this expert has to add."""


class ImageExpert(Expert):
    """An expert on single images."""

    inputs = ("image", "transform", "orig_size")
    tokens_version = 3
    """Raised when what `driving_tokens` say changes, or how a picture becomes their input: cached tokens of another
    version are not taken for these."""
    backbone: Backbone
    mean: Tensor
    std: Tensor

    def set_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Keep the backbone's normalisation with the module, so that it moves with it and travels in no state dict."""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def normalisation(self) -> dict[str, Any]:
        return {
            "mean": (self.mean / 255).flatten().tolist(),
            "std": (self.std / 255).flatten().tolist(),
            "color": "RGB",
        }

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] RGB to what the backbone was pretrained with, float32."""
        return (images.float() - self.mean) / self.std

    @abstractmethod
    def predict(self, images: Tensor, transform: Tensor, orig_size: Tensor) -> list[dict[str, Tensor]]:
        """Predictions in raw pixels, one dict an image, on the CPU.

        images: uint8 [B, 3, H, W]; transform: [B, 2, 3] raw pixel -> network pixel; orig_size: [B, 2] height, width.
        """

    @abstractmethod
    def driving_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What a policy is given of uint8 images [B, 3, H, W] RGB: features [B, T, D], what is there and how sure the
        expert is, and positions [B, T, 2], x and y in [0, 1] of the input. T and D are the same for every image."""

    @property
    def tells_lights(self) -> bool:
        """Whether the last features of a driving token are how likely it is a traffic light of each of LIGHT_COLORS."""
        return False

    def things(self, features: Tensor) -> Tensor | None:
        """How likely each driving token [..., T, D] is something that stands on the road, where its place is: [..., T].
        None of an expert that tells no such things."""
        return None

    def predict_batch(self, batch: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        return self.predict(batch["image"], batch["transform"], batch["orig_size"])


class ExpertStep(nn.Module):
    """What the engine trains: a batch in, losses out. Lives in DDP as one module, so that forwards are synchronised."""

    def __init__(self, model: Expert, reduce_count: CountReducer) -> None:
        super().__init__()
        self.model = model
        self.criterion = model.make_criterion(reduce_count)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch: collated items of the data set that the expert is trained on."""
        return self.criterion(self.model, batch)
