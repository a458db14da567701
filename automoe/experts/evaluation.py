"""Scoring an expert on a prepared set: the same code in training, in `automoe evaluate`, with one process or many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch

from automoe.engine.distributed import Distributed
from automoe.engine.loader import to_device
from automoe.experts.expert import Expert

Progress = Callable[[int, int], None]
Observer = Callable[[str, Mapping[str, torch.Tensor], Any], None]


class ScoredDataset(Protocol):
    """A data set whose stored rows, untouched by any transform, are at hand as truth."""

    def __len__(self) -> int: ...
    def row(self, index: int) -> Any: ...


@torch.no_grad()
def evaluate_expert(
    model: Expert,
    dataset: ScoredDataset,
    loader: Iterable[dict[str, Any]],
    dist: Distributed,
    progress: Progress | None = None,
    observe: Observer | None = None,
    keep: Callable[[Any], None] | None = None,
) -> dict[str, float | None]:
    """The expert's metrics over the whole set, the same on every rank.

    loader: this rank's share of `dataset` under an evaluation transform. progress: told (done, share) by samples.
    observe: shown every prediction of this rank with its sample_id and row, before it is scored. keep: given the
    accumulator of all ranks.
    Truth is taken from the raw rows, so the network's input size changes predictions, never what they are scored on.
    """
    was_training = model.training
    model.eval()
    metrics, done, share = model.make_metrics(), 0, -(-len(dataset) // dist.world_size)
    for batch in loader:
        predictions = model.predict_batch(to_device({key: batch[key] for key in model.inputs}, dist.device))
        for index, sample_id, prediction in zip(batch["index"], batch["sample_id"], predictions, strict=True):
            row = dataset.row(int(index))
            if observe is not None:
                observe(sample_id, prediction, row)
            model.add_to_metrics(metrics, sample_id, prediction, row)
        done += len(predictions)
        if progress is not None:
            progress(done, share)
    everyone = model.make_metrics()
    everyone.merge(dist.all_gather_objects([metrics.state()]))
    if keep is not None:
        keep(everyone)
    model.train(was_training)
    return model.summarise(everyone)
