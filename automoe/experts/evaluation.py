"""Scoring an expert on a prepared set: the same code in training, in `automoe evaluate`, with one process or many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from automoe.data.dataset import PreparedDataset
from automoe.engine.distributed import Distributed
from automoe.engine.loader import to_device
from automoe.experts.expert import ImageExpert

Progress = Callable[[int, int], None]
Observer = Callable[[str, Mapping[str, torch.Tensor]], None]


@torch.no_grad()
def evaluate_expert(
    model: ImageExpert,
    dataset: PreparedDataset,
    loader: Iterable[dict[str, Any]],
    dist: Distributed,
    progress: Progress | None = None,
    observe: Observer | None = None,
) -> dict[str, float | None]:
    """The expert's metrics in percent over the whole set, the same on every rank.

    loader: this rank's share of `dataset` under an evaluation transform. progress: told (done, share) by images.
    observe: shown every prediction of this rank with its sample_id, before it is scored.
    Truth is taken from the raw rows, so the network's input size changes predictions, never what they are scored on.
    """
    was_training = model.training
    model.eval()
    metrics, done, share = model.make_metrics(), 0, -(-len(dataset) // dist.world_size)
    for batch in loader:
        moved = to_device({key: batch[key] for key in ("image", "transform", "orig_size")}, dist.device)
        predictions = model.predict(moved["image"], moved["transform"], moved["orig_size"])
        for index, sample_id, prediction in zip(batch["index"], batch["sample_id"], predictions, strict=True):
            if observe is not None:
                observe(sample_id, prediction)
            model.add_to_metrics(metrics, sample_id, prediction, dataset.row(int(index)))
        done += len(predictions)
        if progress is not None:
            progress(done, share)
    everyone = model.make_metrics()
    everyone.merge(dist.all_gather_objects([metrics.state()]))
    model.train(was_training)
    return model.summarise(everyone)
