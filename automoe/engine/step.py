"""One optimizer step: micro-batches forward and backward, agreement among the ranks, clipping, update."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from automoe.engine.loader import to_device
from automoe.engine.optimizer import autocast
from automoe.engine.run import Run
from automoe.engine.schedule import learning_rate_factor, set_learning_rate
from automoe.engine.seeding import seed_step
from automoe.engine.state import TrainingState
from automoe.errors import TrainingError
from automoe.stopping import StopSignals


@dataclass(frozen=True)
class StepReport:
    """What one step did on this rank."""

    losses: dict[str, float]
    """Means over the micro-batches, and "grad_norm" before clipping."""
    seconds: float
    data_seconds: float
    stop_signal: int
    """The signal that some rank received, or 0: the same on every rank."""


def train_step(
    run: Run, state: TrainingState, parallel: nn.Module, batches: Iterator[dict], signals: StopSignals
) -> StepReport:
    """Take one step and count it. `parallel` is the module as it is called.

    Raises TrainingError on every rank, before the weights change, if any rank's loss or gradient is not finite.
    """
    config, dist, step = run.config, run.dist, state.progress.step
    started = time.perf_counter()
    factor = learning_rate_factor(
        step,
        total_steps=run.total_steps,
        warmup_steps=config.warmup_steps,
        final_factor=config.final_lr_factor,
    )
    set_learning_rate(state.optimizer, factor, step)
    seed_step(config.seed, dist.rank, step)
    state.optimizer.zero_grad(set_to_none=True)

    data_seconds = 0.0
    totals: dict[str, Tensor] = {}
    seen: list[tuple[list[str], Tensor]] = []
    for micro in range(config.accumulate):
        waiting = time.perf_counter()
        batch = next(batches)
        data_seconds += time.perf_counter() - waiting
        losses = _forward_backward(run, parallel, batch, exchange=micro == config.accumulate - 1)
        seen.append((batch.get("sample_id", []), losses["loss"]))
        for key, value in losses.items():
            totals[key] = totals.get(key, 0.0) + value.float().reshape(()) / config.accumulate

    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm or math.inf)
    # One copy to the host for all numbers: the only time a step waits for the device.
    *values, norm_value = torch.stack([*totals.values(), norm.float().to(dist.device)]).tolist()
    numbers = dict(zip(totals, values, strict=True))
    sound = math.isfinite(numbers["loss"]) and math.isfinite(norm_value)
    some_unsound, stop_signal = dist.all_reduce_max([not sound, signals.received])
    if some_unsound:
        _raise_non_finite(run, step, seen, {**numbers, "gradient norm": norm_value})
    state.optimizer.step()
    if state.ema:
        state.ema.update(state.model)

    report = StepReport({**numbers, "grad_norm": norm_value}, time.perf_counter() - started, data_seconds, stop_signal)
    state.progress.count(report.losses, report.seconds, report.data_seconds)
    return report


def _forward_backward(run: Run, parallel: Any, batch: dict, *, exchange: bool) -> dict[str, Tensor]:
    """Add one micro-batch's gradients. Ranks `exchange` them once a step, with the last one."""
    batch = to_device(batch, run.dist.device)
    with nullcontext() if exchange or run.dist.world_size == 1 else parallel.no_sync():
        with autocast(run.config.amp, run.dist.device):
            losses = parallel(batch)
        (losses["loss"] / run.config.accumulate).backward()
    return {key: value.detach() for key, value in losses.items()}


def _raise_non_finite(run: Run, step: int, seen: list[tuple[list[str], Tensor]], numbers: dict[str, float]) -> None:
    """Gather from all ranks which micro-batches went wrong; where only the gradient did, name them all."""
    dist = run.dist
    guilty = [sample_ids for sample_ids, loss in seen if not math.isfinite(float(loss))]
    wrong = [f"{key} {value}" for key, value in numbers.items() if not math.isfinite(value)]
    if not math.isfinite(numbers["loss"]):
        # A gradient is exchanged: on the other ranks it says nothing about their samples.
        wrong = [text for text in wrong if not text.startswith("gradient norm")]
    some_loss = dist.all_reduce_max([bool(guilty)])[0]
    if not some_loss:
        guilty = [sample_ids for sample_ids, _ in seen]
    elif not guilty:
        wrong = []
    ids = dist.all_gather_objects([(dist.rank, one) for sample_ids in guilty for one in sample_ids])
    names = ", ".join(dict.fromkeys(dist.all_gather_objects(wrong)))
    listed = ", ".join(repr(one) if dist.world_size == 1 else f"{one!r} (rank {rank})" for rank, one in ids)
    raise TrainingError(
        f"Training stopped at step {step} (epoch {int(run.epoch_at(step))}), not finite: {names}; "
        f"the samples of that batch: {listed or 'unnamed'}. Look at them, or lower the learning rate; "
        "no weights were changed by this step."
    )
