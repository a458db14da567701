"""Everything that changes while a run goes on, as one object that is saved and restored."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from automoe.engine.checkpoint import load_weights
from automoe.engine.ema import ExponentialMovingAverage
from automoe.errors import CheckpointError


@dataclass
class Interval:
    """What was measured since the last evaluation. Seconds are of training, without evaluations and saves."""

    steps: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    loss_sums: dict[str, float] = field(default_factory=dict)

    def add(self, losses: dict[str, float], seconds: float, data_seconds: float) -> None:
        """Count one step."""
        self.steps += 1
        self.seconds += seconds
        self.data_seconds += data_seconds
        for key, value in losses.items():
            self.loss_sums[key] = self.loss_sums.get(key, 0.0) + value

    def mean_losses(self) -> dict[str, float]:
        """The mean of every loss over the interval's steps."""
        return {key: total / max(1, self.steps) for key, total in self.loss_sums.items()}


@dataclass
class Progress:
    """Where a run stands. All of it is the same on every rank but the timings and the losses."""

    step: int = 0
    evaluated_step: int = -1
    best: float | None = None
    best_step: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    data_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    interval: Interval = field(default_factory=Interval)

    def count(self, losses: dict[str, float], seconds: float, data_seconds: float) -> None:
        """Count one step."""
        self.step += 1
        self.seconds += seconds
        self.data_seconds += data_seconds
        self.interval.add(losses, seconds, data_seconds)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Progress:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**saved, "interval": Interval(**saved["interval"])})


@dataclass
class TrainingState:
    """The module that trains, its average, the optimizer, and the progress."""

    module: nn.Module
    ema: ExponentialMovingAverage | None
    optimizer: torch.optim.Optimizer
    progress: Progress

    @property
    def model(self) -> nn.Module:
        """The model that trains, without the criterion around it."""
        return self.module.get_submodule("model")

    @property
    def model_to_evaluate(self) -> nn.Module:
        """The averaged model where there is one, else the one that trains."""
        return self.ema.model if self.ema else self.model

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for last.pth."""
        return {
            "module": self.module.state_dict(),
            "ema": {"model": self.ema.model.state_dict(), "updates": self.ema.updates} if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore all but the hyper-parameters: learning rate and weight decay are those of the new command.

        Raises CheckpointError if the module or the parameter groups are not those that were saved.
        """
        load_weights(self.module, saved["module"], source="last.pth")
        if self.ema:
            load_weights(self.ema.model, saved["ema"]["model"], source="last.pth")
            self.ema.updates = saved["ema"]["updates"]
        groups = self.optimizer.state_dict()["param_groups"]
        sizes, saved_sizes = ([len(g["params"]) for g in some] for some in (groups, saved["optimizer"]["param_groups"]))
        if sizes != saved_sizes:
            raise CheckpointError(
                f"last.pth has optimizer groups of {saved_sizes} parameters, this run has {sizes}: "
                "go on with the code and config that wrote it, or start anew with --resume never."
            )
        self.optimizer.load_state_dict({"state": saved["optimizer"]["state"], "param_groups": groups})
        self.progress = Progress.from_dict(saved["progress"])
