"""The processes of a run: who am I, on which device, and how do we exchange what we know.

DDP is on if and only if RANK and LOCAL_RANK are both set, as torchrun does. WORLD_SIZE alone is a variable of the
user's shell scripts and means nothing here. Every function also works in a single process, where it costs nothing,
so the code above never asks how many there are.
"""

from __future__ import annotations

import datetime
import gc
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist

# Its functions take the process group of the moment of import as a default and keep it for ever. DDP imports it when
# it wraps a model; imported here, before there is a group, it keeps none alive, and `teardown` ends gloo's threads.
import torch.distributed.nn
from torch import Tensor

from automoe.engine.memory import keep_freed_memory
from automoe.errors import AutoMoEError, ConfigError
from automoe.machine import available_cores

T = TypeVar("T")

# Long enough for one rank to write a large checkpoint or to prepare data while the others wait.
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=60)


@dataclass(frozen=True)
class Distributed:
    """One process among `world_size`. Usable as a context manager that leaves the process group at the end.

    `rank` is global (over all nodes) and decides sampling and who writes; `local_rank` is the place on this node
    and decides the device only.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """True in the one process that prints and writes."""
        return self.rank == 0

    def say(self, message: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            print(message, flush=True)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            torch_dist.all_reduce(torch.zeros(1))

    def all_gather_objects(self, items: list[T]) -> list[T]:
        """Every rank's list, one after the other in the order of the ranks; the same list on every rank."""
        if self.world_size == 1:
            return list(items)
        lists: list[Any] = [None] * self.world_size
        torch_dist.all_gather_object(lists, items)
        return [item for gathered in lists for item in gathered]

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """A new tensor: the sum over the ranks (the global count of boxes, say). Any shape, no gradient."""
        total = tensor.detach().clone()
        if self.world_size > 1:
            torch_dist.all_reduce(total)
        return total

    def all_reduce_max(self, values: list[int]) -> list[int]:
        """The largest of each number over the ranks. On the CPU, so no GPU has to be waited for."""
        if self.world_size == 1:
            return values
        largest = torch.tensor(values, dtype=torch.int64)
        torch_dist.all_reduce(largest, op=torch_dist.ReduceOp.MAX)
        return largest.tolist()

    def all_reduce_mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each value over the ranks that have it; the same dict on every rank."""
        if self.world_size == 1:
            return dict(values)
        ranks = self.all_gather_objects([values])
        keys = dict.fromkeys(key for one in ranks for key in one)
        found = {key: [one[key] for one in ranks if key in one] for key in keys}
        return {key: sum(numbers) / len(numbers) for key, numbers in found.items()}

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with rank 0's, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                # gloo has no booleans; their bytes are the same.
                data = tensor.detach()
                torch_dist.broadcast(data.view(torch.uint8) if data.dtype == torch.bool else data, src=0)

    def from_main(self, function: Callable[[], T]) -> T:
        """Run `function` in the main process alone and give its result to all.

        An AutoMoEError is raised in every process, so that none is left waiting.
        """
        if self.world_size == 1:
            return function()
        result: list[Any] = [None, None]
        if self.is_main:
            try:
                result[0] = function()
            except AutoMoEError as error:
                result[1] = error
        torch_dist.broadcast_object_list(result, src=0)
        if result[1] is not None:
            raise result[1]
        return result[0]

    def teardown(self) -> None:
        """Leave the process group and end its threads. Calling it twice, or in a single process, is fine."""
        if torch_dist.is_initialized():
            torch_dist.destroy_process_group()
            # A wrapped model in a reference cycle still holds the group. A thread of gloo's that lets go of a tensor
            # while the interpreter shuts down aborts the process, so none may be left by then.
            gc.collect()

    def __enter__(self) -> Distributed:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        # After an error the other ranks may never arrive; the end of this process frees what it held.
        if error is None:
            self.teardown()


def under_torchrun() -> bool:
    """True if this process is one of a torchrun job, whatever WORLD_SIZE says."""
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def setup(device: str = "auto") -> Distributed:
    """Choose the device and, under torchrun, join the process group (gloo on the CPU, NCCL beside it on GPUs).

    `device` is "auto" (CUDA if there is any, else the CPU, said in one line), "cpu", "cuda" or "cuda:N".
    Raises ConfigError for a CUDA device that isn't there, an unknown name, or an incomplete torchrun environment.
    """
    if not under_torchrun():
        dist = Distributed(device=_choose_device(device, local_rank=0, world_size=1))
        if dist.device.type == "cpu":
            keep_freed_memory()
            if device == "auto":
                dist.say("No CUDA device found: using the CPU.")
        return dist

    rank, local_rank = _environment_int("RANK"), _environment_int("LOCAL_RANK")
    world_size = _environment_int("WORLD_SIZE")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ConfigError(f"RANK and LOCAL_RANK are set but {name} is not: start through torchrun, or unset them.")
    chosen = _choose_device(device, local_rank, world_size)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        # gloo stands beside NCCL for what lives on the CPU: objects, and the flags the loop agrees on each step.
        torch_dist.init_process_group(
            "cpu:gloo,cuda:nccl",
            rank=rank,
            world_size=world_size,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=chosen,
        )
    else:
        keep_freed_memory()
        processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        # More threads than cores spin against each other and make a step many times slower.
        torch.set_num_threads(max(1, available_cores() // max(1, processes_here)))
        torch_dist.init_process_group("gloo", rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
    dist = Distributed(rank, local_rank, world_size, chosen)
    if device == "auto" and chosen.type == "cpu":
        dist.say(f"No CUDA device found: using the CPU, {world_size} processes with gloo.")
    return dist


def _choose_device(device: str, local_rank: int, world_size: int) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"Unknown device {device!r}: choose auto, cpu, cuda or cuda:N.")
    if chosen.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"Device {device!r} was asked for but PyTorch sees no CUDA device here: "
            "use --device auto or --device cpu, or install a driver and a CUDA build of PyTorch."
        )
    if chosen.index is not None and world_size > 1:
        raise ConfigError(f"Device {device!r} names one GPU for {world_size} processes: use --device cuda.")
    index = local_rank if chosen.index is None else chosen.index
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"This process needs cuda:{index}, but this machine has {torch.cuda.device_count()} of them: "
            "start fewer processes (NUM_GPUS, --nproc_per_node) or choose another device."
        )
    return torch.device("cuda", index)


def _environment_int(name: str) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        found = os.environ.get(name)
        raise ConfigError(
            f"RANK and LOCAL_RANK are set, so this is a torchrun process, but {name} is {found!r}: "
            "start through torchrun, or unset them."
        ) from None
