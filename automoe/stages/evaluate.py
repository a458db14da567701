"""`automoe evaluate`: official metrics of an expert from its checkpoint alone, by one process or by many, and its
predictions in the official formats if they are wanted."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from automoe.data.dataset import PreparedDataset, collate
from automoe.data.prepared import PreparedInfo, ensure_prepared, progress_bar
from automoe.engine.distributed import Distributed, setup
from automoe.engine.loader import evaluation_loader
from automoe.engine.runlog import duration
from automoe.errors import DataError
from automoe.experts.evaluation import evaluate_expert
from automoe.experts.inference import TrainedExpert, load_expert
from automoe.files import write_text
from automoe.metrics.score import format_table, write_metrics_json
from automoe.stages.predictions import det20_frame, frames_json, write_mask


def evaluate_checkpoint(
    checkpoint: Path,
    data_root: Path,
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
    """Score an expert's `best.pth` on a data set, raw or prepared; the metrics in percent, the same on every rank.

    Under torchrun the images are shared out among the processes and each is scored exactly once.

    Args:
        limit: only so many images, spread evenly over the split.
        json_out: receives {"metrics": {...}}.
        predictions_out: receives the predictions as the official tools take them, all or nothing: a det_20 JSON for
            detection, otherwise a folder of 8-bit mask PNGs at the raw size; an earlier one is replaced.

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
    data_root: Path,
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
    info = dist.from_main(lambda: _prepare(data_root, expert.model.kind, split, prepared_dir))
    dataset = PreparedDataset(info.path, expert.model.kind, expert.transform, limit=limit)
    dist.say(f"Evaluating {checkpoint} ({expert.model.kind}) on {_how_many(dataset, info)} of {data_root}")
    started = time.perf_counter()
    writer = PredictionWriter(predictions_out, expert, dist) if predictions_out else None
    metrics = _evaluate(expert, dataset, dist, batch_size, num_workers, writer)
    dist.say(f"{table(metrics, expert.model.kind)}\n\nin {duration(time.perf_counter() - started)}")
    if writer is not None:
        written = writer.finish(len(dataset))
        dist.say(f"Predictions: {written}")
    if json_out is not None:
        dist.from_main(lambda: write_metrics_json(json_out, metrics))
        dist.say(f"Metrics: {json_out}")
    return metrics


def table(metrics: Mapping[str, float | None], kind: str) -> str:
    """The metrics as a plain text table; what an expert's auxiliary head says alone stands below it."""
    official = {key: value for key, value in metrics.items() if not key.startswith("heatmap/")}
    text = format_table(official, kind)  # pyright: ignore[reportArgumentType]
    alone = [f"{key.removeprefix('heatmap/')} {value:.2f}" for key, value in metrics.items()
             if key.startswith("heatmap/") and value is not None]  # fmt: skip
    return text + (f"\n\nThe heatmap head alone, without the decoder: {'  '.join(alone)}" if alone else "")


def _prepare(data_root: Path, kind: str, split: str, prepared_dir: Path | None) -> PreparedInfo:
    with progress_bar(f"prepare {kind} {split}") as progress:
        return ensure_prepared(data_root, kind, split, prepared_dir, progress=progress)


def _how_many(dataset: PreparedDataset, info: PreparedInfo) -> str:
    part = f"{len(dataset)} of " if len(dataset) < info.count else ""
    return f"{part}{info.count} images ({info.split})"


def _evaluate(
    expert: TrainedExpert,
    dataset: PreparedDataset,
    dist: Distributed,
    batch_size: int,
    num_workers: int,
    writer: PredictionWriter | None,
) -> dict[str, float | None]:
    loader = evaluation_loader(dataset, collate, batch_size, dist, num_workers=num_workers)
    observe = writer.add if writer is not None else None
    if not dist.is_main:
        return evaluate_expert(expert.model, dataset, loader, dist, observe=observe)
    # The workers fork before the bar's thread starts.
    batches = iter(loader)
    with progress_bar("evaluate") as progress:
        return evaluate_expert(expert.model, dataset, batches, dist, progress, observe)


class PredictionWriter:
    """Collects every process's predictions and puts them at `out` in the official format, all or nothing."""

    def __init__(self, out: Path, expert: TrainedExpert, dist: Distributed) -> None:
        """Raises DataError where `out` holds something that isn't an earlier output: nothing else is replaced."""
        self.out, self.dist, self.classes = Path(out), dist, expert.model.classes
        self.boxes = expert.model.kind == "detection"
        self._frames: list[dict[str, Any]] = []
        self._partial = self.out.with_name(f".{self.out.name}.partial")
        dist.from_main(self._start)

    def _start(self) -> None:
        if self.boxes:
            if self.out.is_dir():
                raise DataError(f"{self.out} is a folder; detections are one JSON file: name a file for them.")
            return
        if self.out.is_file():
            raise DataError(f"{self.out} is a file; predicted masks are a folder of PNGs: name a folder for them.")
        foreign = [p for p in self.out.iterdir() if p.suffix != ".png"] if self.out.is_dir() else []
        if foreign:
            raise DataError(f"{self.out} holds other things than masks ({foreign[0].name}); name another folder.")
        shutil.rmtree(self._partial, ignore_errors=True)
        try:
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise DataError(f"{self._partial} cannot be made ({error.strerror}); name another folder.") from error

    def add(self, sample_id: str, prediction: Mapping[str, Tensor]) -> None:
        """Take one image's prediction (`ImageExpert.predict`)."""
        if self.boxes:
            self._frames.append(det20_frame(sample_id, prediction, self.classes))
        else:
            write_mask(self._partial / f"{Path(sample_id).stem}.png", prediction["mask"].numpy())

    def finish(self, count: int) -> Path:
        """Put everything in its place once all processes are here. count: how many images there must be."""
        frames = self.dist.all_gather_objects(self._frames)
        self.dist.barrier()
        self.dist.from_main(lambda: self._place_boxes(frames) if self.boxes else self._place_masks(count))
        return self.out

    def _place_boxes(self, frames: list[dict[str, Any]]) -> None:
        write_text(self.out, frames_json(sorted(frames, key=lambda frame: frame["name"])))

    def _place_masks(self, count: int) -> None:
        found = sum(1 for _ in self._partial.glob("*.png"))
        if found != count:
            raise DataError(
                f"{found} of {count} masks are in {self._partial}: processes on several machines need a shared "
                "folder for --predictions, and image names must differ by more than their suffix."
            )
        shutil.rmtree(self.out, ignore_errors=True)
        os.replace(self._partial, self.out)
