"""An expert from its checkpoint alone: config, classes, pre- and post-processing all come from the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from automoe.data.transforms import EvalTransform, warp_image
from automoe.engine import checkpoint
from automoe.errors import CheckpointError
from automoe.experts.expert import Expert, ImageExpert
from automoe.experts.registry import build_expert, expert_names

IMAGE_BRANCH = "image"
"""The part of a nuScenes expert that is the image-only variant."""


@dataclass(frozen=True)
class TrainedExpert:
    """A model in eval mode, ready for raw pictures. payload: everything the checkpoint says about itself."""

    model: Expert
    size: tuple[int, int]
    device: torch.device
    path: Path
    payload: dict[str, Any]

    @property
    def transform(self) -> EvalTransform:
        """From a raw picture to the network's input."""
        return EvalTransform(self.size)

    @torch.no_grad()
    def predict(self, images: list[np.ndarray]) -> list[dict[str, Tensor]]:
        """Predictions in raw pixels for RGB uint8 [h, w, 3] pictures of any sizes. Raises CheckpointError where the
        expert needs more than a picture."""
        if not isinstance(self.model, ImageExpert):
            raise CheckpointError(f"{self.path} is a {self.model.kind} expert, which needs more than pictures.")
        matrices = [self.transform.matrix(*image.shape[:2]) for image in images]
        inputs = np.stack([network_input(image, m, self.size) for image, m in zip(images, matrices)])
        return self.model.predict(
            torch.from_numpy(inputs).permute(0, 3, 1, 2).to(self.device),
            torch.from_numpy(np.stack(matrices)).float().to(self.device),
            torch.tensor([image.shape[:2] for image in images]),
        )


def network_input(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A raw picture as the network's input, halved first while it is more than twice too large: bilinear sampling
    alone would skip pixels, and training saw JPEGs that were decoded at such a reduced size."""
    scale = float(np.abs(matrix[:, :2]).max())
    divisor = next((d for d in (8, 4, 2) if scale <= 1 / d), 1)
    if divisor > 1:
        height, width = image.shape[:2]
        reduced = -(-width // divisor), -(-height // divisor)
        image = cv2.resize(image, reduced, interpolation=cv2.INTER_AREA)
        matrix = matrix / (1 / divisor, 1 / divisor, 1.0)
    return warp_image(image, matrix, size)


def load_expert(path: Path | str, device: torch.device | str = "cpu") -> TrainedExpert:
    """Read a `best.pth` of an expert trainer. Raises CheckpointError where it isn't one or doesn't fit."""
    path = Path(path)
    payload = checkpoint.load(path)
    kind = payload.get("expert")
    if kind not in expert_names() or "model" not in payload:
        raise CheckpointError(
            f"{path} is not an expert's checkpoint (it says expert={kind!r}); give the best.pth of an expert's run."
        )
    model = build_expert(kind, payload["model_config"], pretrained=False)
    checkpoint.load_weights(model, payload["model"])
    if tuple(payload["classes"]) != model.classes:
        raise CheckpointError(f"{path} was trained on other classes ({', '.join(payload['classes'])}); train again.")
    preprocess = payload["preprocess"]
    if "mean" in preprocess:
        model.set_normalisation(tuple(preprocess["mean"]), tuple(preprocess["std"]))
    height, width = preprocess["size"]
    device = torch.device(device)
    return TrainedExpert(model.to(device).eval(), (height, width), device, path, payload)


def load_image_branch(path: Path | str, device: torch.device | str = "cpu") -> TrainedExpert:
    """The image-only variant `nuscenes_2d` from the `best.pth` of a nuScenes expert: the weights of its image branch,
    all of them and no others. Raises CheckpointError where the file has none or they don't fit."""
    whole = load_expert(path, device)
    branch = IMAGE_BRANCH + "."
    weights = {key.removeprefix(branch): v for key, v in whole.model.state_dict().items() if key.startswith(branch)}
    if whole.model.kind != "nuscenes" or not weights:
        raise CheckpointError(f"{path} has no image branch; give the best.pth of a nuScenes expert that has cameras.")
    model = build_expert("nuscenes_2d", whole.payload["model_config"][IMAGE_BRANCH], pretrained=False)
    checkpoint.load_weights(model, weights)
    preprocess = whole.payload["preprocess"]
    model.set_normalisation(tuple(preprocess["mean"]), tuple(preprocess["std"]))
    return TrainedExpert(model.to(whole.device).eval(), whole.size, whole.device, whole.path, whole.payload)
