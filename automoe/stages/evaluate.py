"""`automoe evaluate`: official metrics of an expert from its checkpoint alone, by one process or by many, and its
predictions in the official formats if they are wanted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automoe.config import project_root
from automoe.data.prepared import PreparedInfo, ensure_prepared
from automoe.engine.distributed import Distributed, setup
from automoe.engine.loader import evaluation_loader
from automoe.engine.runlog import duration
from automoe.experts.evaluation import evaluate_expert
from automoe.experts.inference import TrainedExpert, load_expert
from automoe.metrics.score import write_metrics_json
from automoe.progress import progress_bar
from automoe.stages.kinds import Kind, kind_of
from automoe.stages.predictions import PredictionWriter

PARTS = {
    "heatmap/": "The heatmap head alone, without the decoder",
    "image/": "The image branch, on the boxes projected into the pictures (COCO's metrics)",
}
"""What metrics of a part of an expert begin with, and what it is."""


def evaluate_checkpoint(
    checkpoint: Path,
    data_root: Path | None,
    *,
    split: str = "val",
    device: str = "auto",
    batch_size: int = 8,
    num_workers: int = 1,
    limit: int | None = None,
    prepared_dir: Path | None = None,
    json_out: Path | None = None,
    predictions_out: Path | None = None,
) -> dict[str, float | None]:
    """Score an expert's `best.pth` on a data set, raw or prepared; the metrics, the same on every rank.

    Under torchrun the samples are shared out among the processes and each is scored exactly once.

    Args:
        data_root: where the checkpoint's kind of expert has its data by default, if not given.
        limit: only so many samples, spread evenly over the split.
        json_out: receives {"metrics": {...}}.
        predictions_out: receives the predictions as the official tools take them, all or nothing: a det_20 JSON for
            detection, a folder of 8-bit mask PNGs at the raw size for dense tasks, a submission JSON for nuScenes; an
            earlier one is replaced.

    Prints the table. Raises CheckpointError, DataError and ConfigError.
    """
    with setup(device) as dist:
        return evaluate_in(
            dist,
            checkpoint,
            data_root,
            split=split,
            batch_size=batch_size,
            num_workers=num_workers,
            limit=limit,
            prepared_dir=prepared_dir,
            json_out=json_out,
            predictions_out=predictions_out,
        )


def evaluate_in(
    dist: Distributed,
    checkpoint: Path,
    data_root: Path | None,
    *,
    split: str = "val",
    batch_size: int = 8,
    num_workers: int = 1,
    limit: int | None = None,
    prepared_dir: Path | None = None,
    json_out: Path | None = None,
    predictions_out: Path | None = None,
) -> dict[str, float | None]:
    """`evaluate_checkpoint` for processes that have found each other already; several checkpoints in turn are fine."""
    expert = load_expert(checkpoint, dist.device)
    kind = kind_of(expert.payload, checkpoint)
    root = data_root or project_root() / kind.default_root
    options = kind.preparation(expert.payload["preprocess"])
    info = dist.from_main(lambda: _prepare(root, kind.task, split, prepared_dir, options))
    dataset = kind.open(expert, info.path, limit)
    part = f"{len(dataset)} of " if len(dataset) < info.count else ""
    dist.say(
        f"Evaluating {checkpoint} ({expert.model.kind}) on {part}{info.count} {kind.unit} ({info.split}) of {root}"
    )
    started = time.perf_counter()
    writer = kind.writer(predictions_out, expert, dist) if predictions_out else None
    metrics = _evaluate(expert, kind, dataset, dist, batch_size, num_workers, writer)
    dist.say(f"{table(metrics, kind)}\n\nin {duration(time.perf_counter() - started)}")
    if writer is not None:
        written = writer.finish(len(dataset))
        dist.say(f"Predictions: {written}")
    if json_out is not None:
        dist.from_main(lambda: write_metrics_json(json_out, metrics))
        dist.say(f"Metrics: {json_out}")
    return metrics


def table(metrics: Mapping[str, float | None], kind: Kind) -> str:
    """The metrics as a plain text table; what parts of an expert say alone stands below it."""
    text = kind.table({key: value for key, value in metrics.items() if not key.startswith(tuple(PARTS))})
    for prefix, words in PARTS.items():
        alone = [f"{key.removeprefix(prefix)} {value:.{kind.decimals}f}" for key, value in metrics.items()
                 if key.startswith(prefix) and value is not None]  # fmt: skip
        text += f"\n\n{words}: {'  '.join(alone)}" if alone else ""
    return text


def _prepare(
    data_root: Path, task: str, split: str, prepared_dir: Path | None, options: Mapping[str, Any]
) -> PreparedInfo:
    with progress_bar(f"prepare {task} {split}") as progress:
        return ensure_prepared(data_root, task, split, prepared_dir, progress=progress, options=options)


def _evaluate(
    expert: TrainedExpert,
    kind: Kind,
    dataset: Any,
    dist: Distributed,
    batch_size: int,
    num_workers: int,
    writer: PredictionWriter | None,
) -> dict[str, float | None]:
    loader = evaluation_loader(dataset, kind.collate, batch_size, dist, num_workers=num_workers)
    observe = writer.add if writer is not None else None
    if not dist.is_main:
        return evaluate_expert(expert.model, dataset, loader, dist, observe=observe)
    # The workers fork before the bar's thread starts.
    batches = iter(loader)
    with progress_bar("evaluate") as progress:
        return evaluate_expert(expert.model, dataset, batches, dist, progress, observe)
