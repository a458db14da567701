"""The training loop: `fit` trains a module, evaluates it, and keeps last.pth and best.pth.

The loop itself is `_turn`. Around it stand the start (fresh or resumed) and an orderly end for every way a run can
end: finished, interrupted by a signal, failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from automoe.engine import checkpoint, resume
from automoe.engine.config import EngineConfig
from automoe.engine.distributed import Distributed
from automoe.engine.ema import ExponentialMovingAverage
from automoe.engine.loader import training_loader
from automoe.engine.manifest import close_manifest, origin, write_manifest
from automoe.engine.optimizer import make_optimizer
from automoe.engine.run import Run
from automoe.engine.runlog import RunLog, duration
from automoe.engine.sampler import ResumableSampler
from automoe.engine.selection import checked_metrics, is_better
from automoe.engine.state import Interval, Progress, TrainingState
from automoe.engine.step import StepReport, train_step
from automoe.stopping import Interrupted, StopSignals

Evaluate = Callable[[nn.Module, Distributed], dict[str, float | None]]


class _Hooks(NamedTuple):
    evaluate: Evaluate
    on_best: Callable[[], None]


# What the engine itself writes into checkpoints, beside the caller's `meta`.
RESERVED_KEYS = {
    "format_version", "kind", "model", "metrics", "metric", "progress", "engine", "seed", "world_size",
    "versions", "commit", "dirty", "module", "ema", "optimizer", "identity",
}  # fmt: skip


class SizedDataset(Protocol):
    """A map-style data set whose items are functions of the key (epoch, index)."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: tuple[int, int]) -> Any: ...


@dataclass(frozen=True)
class FitResult:
    """How a run ended. Seconds and shares count all of its parts, resumed ones too."""

    best: float | None
    best_step: int | None
    metrics: dict[str, float | None]
    """The metrics of the last evaluation."""
    steps: int
    seconds: float
    """Of training steps, data waits included, evaluations and saves not."""
    evaluation_seconds: float
    data_wait: float
    """The share of `seconds` spent waiting for data."""
    images_per_second: float
    """Over all processes."""


def fit(
    step_module: nn.Module,
    *,
    dataset: SizedDataset,
    collate: Callable[[list], dict],
    evaluate: Evaluate,
    config: EngineConfig,
    run_dir: Path | str,
    log_dir: Path | str,
    meta: dict[str, Any],
    dist: Distributed,
    param_groups: list[dict[str, Any]] | None = None,
    sample_weights: Any = None,
    on_start: Callable[[], None] = lambda: None,
    on_best: Callable[[], None] = lambda: None,
) -> FitResult:
    """Train `step_module` to the end of `config`, or go on with the run in `run_dir`.

    step_module: its forward takes a collated batch (dict, on the device, with "sample_id": list[str]) and returns
        scalar losses; "loss" is minimised, the others are logged. Its `.model` is what best.pth holds.
    dataset: items for keys (epoch, index); augmentation must be a function of seed and key alone.
    evaluate: called on every rank with the (averaged) model in eval mode, without gradients, in float32. It gathers
        across ranks itself; rank 0's metrics count. None is for what is undefined.
    meta: plain values that travel in every checkpoint (config, classes, preprocess, postprocess, rig, ...);
        "dataset_fingerprint", "model_config", "recipe" and "start" also decide whether a saved run may be gone on
        with.
    param_groups: as for AdamW, each with its own peak "lr" and "weight_decay" if given; default: no decay for
        biases and norms.
    sample_weights: one number a sample, to draw samples in proportion instead of each once an epoch.
    on_start: called by every process before the first step of a run that begins, not of one that goes on.
    on_best: called by the main process whenever best.pth has been written.

    Raises ConfigError (mismatch with the saved run), CheckpointError (files read), WriteError (a full disk, say),
    TrainingError (non-finite loss), and Interrupted, a SystemExit with 128 + signal, after a SIGTERM or SIGINT was
    answered by saving.
    """
    if reserved := RESERVED_KEYS & meta.keys():
        raise ValueError(f"meta has keys that the engine writes itself: {', '.join(sorted(reserved))}")
    run = _plan(dataset, config, Path(run_dir), meta, dist, sample_weights)
    saved = dist.from_main(lambda: _find_saved(run, Path(log_dir)))

    step_module.to(dist.device).train()
    optimizer = make_optimizer(
        step_module,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        device=dist.device,
        param_groups=param_groups,
    )
    state = TrainingState(step_module, None, optimizer, Progress())
    if config.ema_decay:
        dist.broadcast_tensors(state.model.state_dict().values())
        state.ema = ExponentialMovingAverage(state.model, config.ema_decay)
    if saved is not None:
        state.load_state_dict(saved)
        del saved
        if state.progress.step >= run.total_steps and state.progress.evaluated_step == state.progress.step:
            dist.say(f"Already finished: {run_dir} stands at step {state.progress.step} of {run.total_steps}.")
            return _result(run, state.progress)
        dist.say(f"Going on at step {state.progress.step} of {run.total_steps}.")
    else:
        on_start()
    run.introduce()
    _train(run, state, dataset, collate, _Hooks(evaluate, on_best), Path(log_dir))
    return _result(run, state.progress)


def _plan(
    dataset: SizedDataset,
    config: EngineConfig,
    run_dir: Path,
    meta: dict[str, Any],
    dist: Distributed,
    weights: Any,
) -> Run:
    sampler = ResumableSampler(
        len(dataset),
        config.batch_size,
        seed=config.seed,
        rank=dist.rank,
        world_size=dist.world_size,
        accumulate=config.accumulate,
        weights=weights,
    )
    total_steps = config.epochs * sampler.steps_per_epoch
    total_steps = min(total_steps, config.max_steps or total_steps)
    identity = resume.identity(config, meta, length=len(dataset), world_size=dist.world_size)
    return Run(config, dist, run_dir, meta, identity, dist.from_main(origin), sampler, total_steps)


def _find_saved(run: Run, log_dir: Path) -> dict[str, Any] | None:
    """The saved state to go on with, checked to be of this run; None to start anew. For the main process."""
    path = resume.find_or_clear(run.config, run.run_dir, log_dir, run.dist.say)
    if path is None:
        return None
    saved = resume.load_training(path)
    resume.check_same_run(saved["identity"], run.identity, path)
    resume.say_differences(saved["engine"], run.config, saved["identity"], run.identity, run.dist)
    return {key: saved[key] for key in ("module", "ema", "optimizer", "progress")}


def _train(run: Run, state: TrainingState, dataset: Any, collate: Callable, hooks: _Hooks, log_dir: Path) -> None:
    """Set the loader, the log and the signals up, turn the loop, and record how it ended."""
    config, dist, progress = run.config, run.dist, state.progress
    run.sampler.start_batch = progress.step * config.accumulate
    run.sampler.stop_batch = run.total_steps * config.accumulate
    if dist.is_main:
        write_manifest(run, progress.step)
    log = None
    ended = {"state": "failed"}
    with StopSignals() as signals:
        try:
            loader = training_loader(
                dataset,
                collate,
                run.sampler,
                num_workers=config.num_workers,
                device=dist.device,
                seed=config.seed,
            )
            # Forks the workers, before the log and the bar exist: they inherit none of their files and locks.
            batches = iter(loader)
            log = RunLog(
                run.run_dir,
                log_dir,
                active=dist.is_main,
                step=progress.step if progress.evaluated_step == progress.step else progress.step - 1,
                total_steps=run.total_steps,
                log_seconds=config.log_seconds,
            )
            _turn(run, state, _parallel(run, state), batches, hooks, signals, log)
            ended = {"state": "finished", "result": asdict(_result(run, progress))}
        except Interrupted:
            ended = {"state": "interrupted"}
            raise
        finally:
            if log:
                log.close(quiet=ended["state"] != "finished")
            if dist.is_main:
                close_manifest(run.run_dir, step=progress.step, **ended)


def _turn(
    run: Run,
    state: TrainingState,
    parallel: nn.Module,
    batches: Iterator[dict],
    hooks: _Hooks,
    signals: StopSignals,
    log: RunLog,
) -> None:
    """The loop: a step, its log, a save now and then, an evaluation at the end of epochs."""
    progress = state.progress
    saved_at = time.monotonic()
    while True:
        if run.evaluation_due(progress):
            # Before it, so that nothing is lost if it fails or is killed; after it, for what it found.
            _save_last(run, state)
            _evaluate(run, state, hooks, log)
            _save_last(run, state)
            saved_at = time.monotonic()
            if stop_signal := run.dist.all_reduce_max([signals.received])[0]:
                _stop(run, state, stop_signal, log)
        if progress.step >= run.total_steps:
            return
        report = train_step(run, state, parallel, batches, signals)
        _log_step(run, state, report, log)
        if report.stop_signal:
            _stop(run, state, report.stop_signal, log)
        if _save_due(run.config, progress.step, time.monotonic() - saved_at):
            _save_last(run, state)
            saved_at = time.monotonic()


def _evaluate(run: Run, state: TrainingState, hooks: _Hooks, log: RunLog) -> None:
    """Evaluate, keep best.pth, write the line of metrics.jsonl, and begin a new interval."""
    config, dist, progress = run.config, run.dist, state.progress
    started = time.perf_counter()
    model = state.model_to_evaluate
    # Each rank keeps its own running statistics: all must evaluate those that will be saved.
    dist.broadcast_tensors(model.buffers())
    model.eval()
    with torch.no_grad():
        found = hooks.evaluate(model, dist)
    if not state.ema:
        state.module.train()
    metrics = dist.from_main(lambda: checked_metrics(found, config.metric))
    seconds = time.perf_counter() - started
    progress.evaluation_seconds += seconds
    progress.evaluated_step, progress.metrics = progress.step, metrics

    value = metrics[config.metric]
    is_best = is_better(value, progress.best, config.metric_mode)
    if is_best:
        progress.best, progress.best_step = value, progress.step
    # A run whose metric is undefined throughout still leaves its last weights for the next stage.
    if dist.is_main and (is_best or progress.best is None):
        checkpoint.save(run.run_dir / resume.BEST, _best_payload(run, state))
        hooks.on_best()
    log.evaluation(
        {
            "epoch": round(run.epoch_at(progress.step), 6),
            "step": progress.step,
            "metrics": metrics,
            "losses": dist.all_reduce_mean(progress.interval.mean_losses()),
            "best": progress.best,
            "seconds": round(progress.seconds, 3),
            "evaluation_seconds": round(seconds, 3),
            **run.rates(progress.interval),
        }
    )
    log.scalars(progress.step, {f"val/{key}": number for key, number in metrics.items()})
    dist.say(
        f"Epoch {run.epoch_at(progress.step):.4g}, step {progress.step}: {config.metric} "
        f"{'undefined' if value is None else format(value, '.4g')}{' (best so far)' if is_best else ''}, "
        f"evaluated in {duration(seconds)}."
    )
    progress.interval = Interval()


def _save_due(config: EngineConfig, step: int, seconds: float) -> bool:
    by_steps = config.save_steps > 0 and step % config.save_steps == 0
    return by_steps or (config.save_seconds > 0 and seconds > config.save_seconds)


def _save_last(run: Run, state: TrainingState) -> None:
    """Write last.pth. Only the main process has to, and no other has to wait for it."""
    if run.dist.is_main:
        payload = {
            **run.meta,
            **run.origin,
            "kind": resume.TRAINING_KIND,
            "identity": run.identity,
            "engine": asdict(run.config),
            "seed": run.config.seed,
            **state.state_dict(),
        }
        checkpoint.save(run.run_dir / resume.LAST, payload)


def _best_payload(run: Run, state: TrainingState) -> dict[str, Any]:
    config, progress = run.config, state.progress
    return {
        **run.meta,
        **run.origin,
        "kind": resume.MODEL_KIND,
        "model": state.model_to_evaluate.state_dict(),
        "metrics": progress.metrics,
        "metric": {
            "name": config.metric,
            "mode": config.metric_mode,
            "value": progress.metrics[config.metric],
        },
        "progress": {
            "step": progress.step,
            "epoch": run.epoch_at(progress.step),
            "total_steps": run.total_steps,
            "seconds": progress.seconds,
        },
        "engine": asdict(config),
        "seed": config.seed,
        "world_size": run.dist.world_size,
    }


def _stop(run: Run, state: TrainingState, signal_number: int, log: RunLog) -> None:
    """Save, say how to go on, and end the process with the signal's exit code."""
    _save_last(run, state)
    # The others wait: the first process that ends makes torchrun end them all.
    run.dist.barrier()
    log.close()
    how = f" Go on with: {run.config.resume_command}" if run.config.resume_command else ""
    run.dist.say(
        f"Interrupted: step {state.progress.step} of {run.total_steps} is saved in {run.run_dir / resume.LAST}.{how}"
    )
    raise Interrupted(signal_number)


def _parallel(run: Run, state: TrainingState) -> nn.Module:
    """The module as it is called: compiled if asked for, in DDP if there are several processes."""
    if run.config.compile:
        # In place: the state dict's keys stay as they are, and the criterion around the model stays plain Python.
        state.model.compile()
    if run.dist.world_size == 1:
        return state.module
    return DistributedDataParallel(
        state.module,
        device_ids=[run.dist.device] if run.dist.device.type == "cuda" else None,
        find_unused_parameters=run.config.find_unused_parameters,
        gradient_as_bucket_view=True,
    )


def _log_step(run: Run, state: TrainingState, report: StepReport, log: RunLog) -> None:
    progress = state.progress
    numbers = {
        "loss": report.losses["loss"],
        "lr": max(group["lr"] for group in state.optimizer.param_groups),
        "step_seconds": progress.interval.seconds / progress.interval.steps,
        **run.rates(progress.interval),
    }
    log.step(progress.step, run.epoch_at(progress.step), numbers)
    if progress.step % run.config.log_steps == 0:
        log.scalars(progress.step, {f"train/{key}": value for key, value in {**report.losses, **numbers}.items()})


def _result(run: Run, progress: Progress) -> FitResult:
    seconds = progress.seconds
    return FitResult(
        best=progress.best,
        best_step=progress.best_step,
        metrics=progress.metrics,
        steps=progress.step,
        seconds=seconds,
        evaluation_seconds=progress.evaluation_seconds,
        data_wait=progress.data_seconds / seconds if seconds else 0.0,
        images_per_second=progress.step * run.sampler.global_batch_size / seconds if seconds else 0.0,
    )
