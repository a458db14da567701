"""How samples reach the device: the one place where DataLoaders are made.

Items must be functions of their key (epoch, index) alone. Then what a run sees does not depend on the number of
workers, and neither do its results.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from automoe.engine.distributed import Distributed
from automoe.engine.sampler import EvaluationSampler


def training_loader(
    dataset: Any,
    collate: Callable[[list], dict],
    sampler: Sampler,
    *,
    num_workers: int,
    device: torch.device,
    seed: int,
) -> DataLoader:
    """Batches in the order of `sampler`, decoded ahead by `num_workers` processes (0: in this process)."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
        # Its own generator: a DataLoader otherwise draws its workers' seeds from the global one and shifts it.
        generator=torch.Generator().manual_seed(seed),
    )


def evaluation_loader(
    dataset: Any, collate: Callable[[list], dict], batch_size: int, dist: Distributed, *, num_workers: int
) -> DataLoader:
    """This rank's share of the data set, every sample exactly once over all ranks. Make it once, iterate it
    often."""
    sampler = EvaluationSampler(len(dataset), batch_size, rank=dist.rank, world_size=dist.world_size)
    return training_loader(
        dataset, collate, sampler, num_workers=min(num_workers, len(sampler)), device=dist.device, seed=0
    )


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor inside dicts, lists and tuples on `device`; anything else as it is.

    Copies to a GPU do not wait: they overlap with the host where the loader pinned the memory.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _start_worker(worker: int) -> None:
    # One thread each: a forked child cannot use its parent's thread pools, and cores are shared by processes.
    torch.set_num_threads(1)
    os.environ["OPENCV_FOR_THREADS_NUM"] = "1"
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
    # Ctrl-C and a batch system's SIGTERM reach the whole group. The training process decides; a worker that died of
    # one would turn an orderly stop into a crash. It ends when its parent ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
