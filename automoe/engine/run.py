"""What stays the same while the loop turns: `Run`, and what it says before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from automoe.engine.config import EngineConfig
from automoe.engine.distributed import Distributed
from automoe.engine.optimizer import uses_bf16
from automoe.engine.sampler import ResumableSampler
from automoe.engine.state import Interval, Progress


@dataclass(frozen=True)
class Run:
    """One training run: its settings, its processes, its data order, its place on the disk."""

    config: EngineConfig
    dist: Distributed
    run_dir: Path
    meta: dict[str, Any]
    """The caller's part of every checkpoint."""
    identity: dict[str, Any]
    """What another command must share to go on with this run (see resume.py)."""
    origin: dict[str, Any]
    """Versions and commit, as they were when the run began."""
    sampler: ResumableSampler
    total_steps: int

    def epoch_at(self, step: int) -> float:
        """The epoch that `step` lies in, with its fraction."""
        return step / self.sampler.steps_per_epoch

    def evaluation_due(self, progress: Progress) -> bool:
        """True at the end of every `eval_every` epochs and of the run, until it is evaluated there."""
        between = self.config.eval_every * self.sampler.steps_per_epoch
        at_point = progress.step >= self.total_steps or (progress.step > 0 and progress.step % between == 0)
        return at_point and progress.evaluated_step != progress.step

    def rates(self, interval: Interval) -> dict[str, float]:
        """Speed since the last evaluation: images a second over all processes, and the share spent on data."""
        images, seconds = interval.steps * self.sampler.global_batch_size, interval.seconds
        rates = {
            "images_per_second": round(images / seconds, 3) if seconds else 0.0,
            "data_wait": round(interval.data_seconds / seconds, 4) if seconds else 0.0,
        }
        if self.dist.device.type == "cuda":
            rates["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated(self.dist.device) / 2**30, 3)
        return rates

    def introduce(self) -> None:
        """Say, once, how large the batch is, how long the run, and in which precision."""
        config, dist, sampler = self.config, self.dist, self.sampler
        processes = f"{dist.world_size} process{'es' if dist.world_size > 1 else ''}"
        dist.say(
            f"Global batch size {sampler.global_batch_size}: {config.batch_size} a process x {processes} "
            f"x {config.accumulate} accumulated; learning rate {config.learning_rate:g}, not scaled with it."
        )
        warmup = min(config.warmup_steps, self.total_steps // 2)
        precision = "bf16" if uses_bf16(config.amp, dist.device) else "float32"
        dist.say(
            f"{sampler.length} samples, {sampler.steps_per_epoch} steps an epoch, {self.total_steps} steps "
            f"in all, {warmup} of warm-up; {precision} on {dist.device}."
        )
        if sampler.length < sampler.global_batch_size:
            dist.say(f"Samples repeat within a step: there are only {sampler.length} of them.")
