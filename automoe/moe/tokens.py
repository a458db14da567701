"""What frozen experts see, as tokens: run on pictures, or read from a cache.

A token is a row of features with the place that it speaks of, x and y in [0, 1] of the expert's input. Models ask a
`TokenSource` and don't know which of the two answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from automoe.data.transforms import EvalTransform
from automoe.errors import CheckpointError
from automoe.experts.expert import ImageExpert
from automoe.experts.inference import load_expert, network_input
from automoe.experts.registry import build_expert
from automoe.machine import cpu_has_bfloat16


class Tokens(NamedTuple):
    """features [B, T, D] and positions [B, T, 2] of one expert on B pictures."""

    features: Tensor
    positions: Tensor


class TokenSource(Protocol):
    """Whoever knows what an expert, by name, sees in some pictures."""

    def __call__(self, expert: str, pictures: Sequence[Any]) -> Tokens: ...


@dataclass(frozen=True)
class ExpertSpec:
    """Enough of an expert's checkpoint to build it again, and to know it: plain values.

    kind: its registered name. size: of its input, height and width.
    """

    kind: str
    model_config: dict[str, Any]
    classes: tuple[str, ...]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class FrozenExpert(nn.Module):
    """An expert that learns nothing any more: always in eval mode, without gradients, whatever is done around it.

    Its backbone computes in bfloat16 where the processor does so natively: it then takes half of the time.
    """

    def __init__(self, spec: ExpertSpec, model: ImageExpert | None = None, in_bfloat16: bool | None = None) -> None:
        """model: the trained one; without it the weights are those of a state dict that is loaded later. in_bfloat16:
        whether it computes in it; as this machine's processor is good for, if not given."""
        super().__init__()
        self.spec = spec
        if model is None:
            model = build_expert(spec.kind, dict(spec.model_config), pretrained=False)
            assert isinstance(model, ImageExpert)
            model.set_normalisation(spec.mean, spec.std)
        self.model = model.requires_grad_(False).eval()
        self.in_bfloat16 = cpu_has_bfloat16() if in_bfloat16 is None else in_bfloat16
        self.model.backbone.in_bfloat16 = self.in_bfloat16
        self.transform = EvalTransform(spec.size)

    def train(self, mode: bool = True) -> FrozenExpert:
        """Stay in eval mode: statistics don't drift."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pictures: Sequence[np.ndarray]) -> Tokens:
        """pictures: uint8 [h, w, 3] RGB, of any sizes."""
        inputs = [network_input(one, self.transform.matrix(*one.shape[:2]), self.spec.size) for one in pictures]
        images = torch.from_numpy(np.stack(inputs)).permute(0, 3, 1, 2).to(self.model.mean.device)
        return Tokens(*self.model.driving_tokens(images))

    @torch.no_grad()
    def dim(self) -> int:
        """D of its tokens, found by looking at nothing."""
        height, width = self.spec.size
        return self(np.zeros((1, height, width, 3), np.uint8)).features.shape[-1]

    def digest(self) -> str:
        """A hash of everything that decides what it sees: 64 hexadecimal digits."""
        spec = self.spec
        shape = (spec.kind, sorted(spec.model_config.items()), spec.classes, spec.size)
        return content_digest((self.model.tokens_version, *shape, spec.mean, spec.std, self.in_bfloat16), self.model)


def content_digest(told: tuple[Any, ...], module: nn.Module) -> str:
    """A hash of plain values and of a module's weights: 64 hexadecimal digits."""
    found = hashlib.sha256(repr(told).encode())
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def freeze_expert(path: Path | str, kind: str, size: tuple[int, int] | None = None) -> FrozenExpert:
    """The expert of a `best.pth`, frozen. kind: what it must be. size: of its input, the trained one if not given.

    Raises CheckpointError where the file is of another expert, or of one that needs more than a picture.
    """
    trained = load_expert(path)
    if trained.model.kind != kind:
        raise CheckpointError(f"{path} is a {trained.model.kind} expert, where the config wants {kind}.")
    if not isinstance(trained.model, ImageExpert):
        raise CheckpointError(
            f"{path} is a {kind} expert, which needs more than the front camera's picture; give the "
            "carla_nuscenes_2d_ddp one."
        )
    preprocess = trained.payload["preprocess"]
    spec = ExpertSpec(
        kind, dict(trained.payload["model_config"]), tuple(trained.model.classes), size or trained.size,
        tuple(preprocess["mean"]), tuple(preprocess["std"]),
    )  # fmt: skip
    return FrozenExpert(spec, trained.model)


class LiveTokens:
    """A `TokenSource` that runs the experts; `calls` counts, by name, the pictures that each has looked at."""

    def __init__(self, experts: Mapping[str, FrozenExpert] | nn.ModuleDict) -> None:
        self.experts = experts
        self.calls: dict[str, int] = dict.fromkeys(experts, 0)

    def __call__(self, expert: str, pictures: Sequence[Any]) -> Tokens:
        self.calls[expert] += len(pictures)
        return self.experts[expert](pictures)
