"""Small driving models with experts of random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from automoe import taxonomy
from automoe.data.sequences import ObservationBatch, SequenceConfig
from automoe.moe.context import Context, ContextConfig
from automoe.moe.gate import GateConfig
from automoe.moe.ground import CameraSpec
from automoe.moe.model import DrivingConfig, DrivingModel
from automoe.moe.planner import PlannerConfig
from automoe.moe.tokens import ExpertSpec, FrozenExpert

SIZE = (64, 96)
MOUNT = ((1.0, 0.0, 0.0, 1.5), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 1.6), (0.0, 0.0, 0.0, 1.0))
CAMERA = CameraSpec((48, 80), 90.0, MOUNT)
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "detection": ({"dim": 16, "num_queries": 12, "decoder_layers": 1, "heads": 2}, taxonomy.BDD_DETECTION),
    "drivable": ({"dim": 16}, taxonomy.DRIVABLE),
    "segmentation": ({"dim": 16}, taxonomy.SEMANTIC),
    "nuscenes_2d": ({"dim": 16, "num_queries": 8, "decoder_layers": 1, "heads": 2}, taxonomy.NUSCENES_DETECTION),
}


def specs(*names: str) -> dict[str, ExpertSpec]:
    half = (0.5, 0.5, 0.5)
    return {name: ExpertSpec(name, MODELS[name][0], MODELS[name][1], SIZE, half, half) for name in names}


def experts(*names: str) -> dict[str, FrozenExpert]:
    torch.manual_seed(1)
    return {name: FrozenExpert(spec) for name, spec in specs(*names).items()}


def model(
    *names: str, top_k: int = 2, own: dict[str, FrozenExpert] | None = None, camera: CameraSpec = CAMERA, **more: Any
) -> DrivingModel:
    config = DrivingConfig(
        specs(*names),
        ContextConfig(size=(32, 48), frozen_stages=0),
        GateConfig(**{"top_k": min(top_k, max(len(names), 1)), **more}),
        PlannerConfig(dim=32, heads=2, layers=1, dropout=0.0),
        SequenceConfig(path_metres=6),
        camera,
    )
    torch.manual_seed(0)
    driver = DrivingModel(config, experts(*names) if own is None else own)
    # What is learnt of path and waypoints begins at nothing: a plan would be the route's curve, whoever is heard.
    for layer in (driver.planner.off, driver.planner.hop):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return driver


def observation(count: int = 3, seed: int = 0) -> ObservationBatch:
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    return ObservationBatch(
        torch.randint(0, 255, (count, 3, 32, 48), dtype=torch.uint8, generator=generator),
        torch.rand(count, 1, 2, generator=generator) * 5,
        torch.randint(0, 4, (count,), generator=generator),
        torch.rand(count, 2, 2, generator=generator) * 30,
        torch.rand(count, 2, generator=generator),
        [rng.integers(0, 255, (48, 80, 3), dtype=np.uint8) for _ in range(count)],
    )


def known(count: int, speed: float = 0.0) -> Context:
    """A context of width 32, on a straight route."""
    state = torch.randn(count, 32)
    route = torch.tensor([[50.0, 0.0], [100.0, 0.0]]).expand(count, -1, -1)
    nowhere = torch.full((count, 1, 2), float("nan"))
    return Context(torch.randn(count, 32), state, state, state[:, None], nowhere, torch.full((count,), speed), route)


def spots(count: int, tokens: int) -> torch.Tensor:
    """Places of tokens, one of which has none."""
    places = torch.rand(count, tokens, 2, generator=torch.Generator().manual_seed(0)) * 20
    places[:, 0] = float("nan")
    return places
