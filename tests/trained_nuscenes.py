"""A nuScenes expert trained for a few steps on the tiny tree, once a session: a real run folder for whoever reads it.

Import the fixture: `from trained_nuscenes import trained_nuscenes`.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from nuscenes_tree import write_nuscenes_tree

from automoe.stages.nuscenes import NuscenesFlags, train_nuscenes

RUN = "toy"


@dataclass(frozen=True)
class TrainedNuscenes:
    """data: a raw tree of four training and two validation samples; output: where the run is."""

    data: Path
    output: Path

    @property
    def folder(self) -> Path:
        return self.output / "models" / "checkpoints" / "nuscenes_expert" / RUN

    @property
    def checkpoint(self) -> Path:
        return self.folder / "best.pth"


@pytest.fixture(scope="session")
def trained_nuscenes(tmp_path_factory: pytest.TempPathFactory) -> TrainedNuscenes:
    return _train(tmp_path_factory.getbasetemp() / "trained_nuscenes")


@functools.cache
def _train(base: Path) -> TrainedNuscenes:
    data = write_nuscenes_tree(base / "nuscenes", size=(96, 54))
    image = {"dim": 16, "frozen_stages": 2, "num_queries": 8, "decoder_layers": 1, "heads": 2, "denoising_groups": 0}
    model = {"image": image, "grid": {"reach": 25.6, "cell": 1.6}, "dim": 16, "pillar_dim": 8, "paint_dim": 4}
    model |= {"num_queries": 12, "decoder_layers": 1, "heads": 2, "denoising_groups": 0}
    engine = {"epochs": 2, "batch_size": 2, "num_workers": 0, "ema_decay": 0.0, "log_steps": 1}
    content = {"size": [64, 96], "sweeps": 2, "eval_batch_size": 2, "model": model, "engine": engine}
    config = base / "config.json"
    config.write_text(json.dumps(content))
    output = base / "output"
    train_nuscenes(NuscenesFlags(config=config, data_root=data, run_name=RUN, output_root=output, device="cpu"))
    return TrainedNuscenes(data, output)
