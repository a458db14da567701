"""A driving model from its checkpoint alone: experts, gate, planner and camera rig come from the one file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from automoe.engine import checkpoint
from automoe.errors import CheckpointError
from automoe.moe.model import DrivingConfig, DrivingModel

COMPONENTS = ("carla_policy", "gating_network")
"""Whose checkpoints drive."""


@dataclass(frozen=True)
class TrainedDriver:
    """A model in eval mode. payload: everything that the checkpoint says about itself; digest: of the file."""

    model: DrivingModel
    path: Path
    payload: dict[str, Any]
    digest: str

    @property
    def rig(self) -> dict[str, Any]:
        """The cameras that it was trained with, as prepared sets tell them: by name size, field_of_view (degrees) and
        T_ego_mount."""
        return self.payload["rig"]


def load_driving_model(path: Path | str, device: torch.device | str = "cpu") -> TrainedDriver:
    """Read a best.pth of the policy or the gating network. Raises CheckpointError where it isn't one or doesn't fit."""
    path = Path(path)
    payload = checkpoint.load(path)
    if payload.get("component") not in COMPONENTS or "model" not in payload:
        raise CheckpointError(
            f"{path} is no checkpoint that drives (it is of {payload.get('component')!r}); give the best.pth of "
            "carla_policy or gating_network."
        )
    model = DrivingModel(DrivingConfig.from_plain(payload["model_config"], f"{path}: model_config"))
    checkpoint.load_weights(model, payload["model"], source=str(path))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return TrainedDriver(model.to(device).eval(), path, payload, digest)
