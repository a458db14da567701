"""Three experts trained for two steps on the tiny tree, once a session: real run folders for whoever reads them.

Import the fixture: `from trained_experts import trained`.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from bdd100k_tree import write_bdd100k_tree

from automoe.stages.bdd100k import component_of, stage_of
from automoe.stages.train_expert import TrainFlags, train_expert

TASKS = ("detection", "drivable", "segmentation")
RUN = "toy"


@dataclass(frozen=True)
class Trained:
    """data: a raw BDD100K tree of six training and five validation frames; output: where the runs are."""

    data: Path
    output: Path

    def checkpoint(self, task: str) -> Path:
        return self.output / "models" / "checkpoints" / component_of(task) / RUN / "best.pth"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return _train(tmp_path_factory.getbasetemp())


@functools.cache
def _train(base: Path) -> Trained:
    data = write_bdd100k_tree(base / "trained" / "bdd100k", train=6, val=5, size=(96, 54))
    output = base / "trained" / "output"
    for task in TASKS:
        model = {"dim": 16, "frozen_stages": 2}
        if task == "detection":
            model |= {"num_queries": 20, "decoder_layers": 1, "heads": 2}
        config = base / "trained" / f"{task}.json"
        engine = {"epochs": 2, "batch_size": 3, "num_workers": 0, "ema_decay": 0.0, "log_steps": 1}
        config.write_text(json.dumps({"size": [64, 96], "model": model, "engine": engine}))
        flags = TrainFlags(config=config, run_name=RUN, output_root=output, device="cpu", max_steps=4)
        train_expert(stage_of(task), data, flags)
    return Trained(data, output)
